"""What it costs to train in child processes: the same run with and without them.

    python -m experiments.supervision --workers 4 --repeats 3 -- --teacher resnet20.keras --dataset cifar10.npz

Arguments after `--` go to pbd.run. The runs of a pair take turns of a few seconds (`experiments.interleave`), so that
both see the same machine. A run counts from its command to its end.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.measured_runs import module_command
from pbd import command_line
from pbd.command_line import Parser, positive

WAYS = {"in child processes": "--isolate", "in the workers": "--no-isolate"}


def measure(arguments: Sequence[str], workers: int, turn_s: float, folder: Path, number: int) -> list[float]:
    """Run both ways in turns, in another order in every other pair; return the seconds of each, as `WAYS` has them.

    Args:
        arguments: of pbd.run.
        workers: how many ranks.
        turn_s: how long a turn is.
        folder: for the run directories.
        number: of the pair.

    Raises:
        PbdError: a run failed; the message is its last line.
    """
    from experiments import interleave  # needs psutil

    ways = list(WAYS)[:: -1 if number % 2 else 1]
    commands = {}
    for way in ways:
        path = folder / f"{way}, {number}"
        module = ["pbd.run", *arguments, WAYS[way], "--run-dir", str(path)]
        commands[path.with_suffix(".txt")] = module_command("mpi", workers, module)
    jobs = interleave.run(commands, [turn_s] * len(ways))
    took_s = {way: job.seconds_until(math.inf) for way, job in zip(ways, jobs, strict=True)}
    return [took_s[way] for way in WAYS]


def compare(settings: argparse.Namespace) -> None:
    """Measure and print the table."""
    pairs: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.repeats):
            pairs.append(measure(settings.arguments, settings.workers, settings.turns, Path(folder), number))
    table = Table("pair", *(f"{way}, s" for way in WAYS), "more")
    for number, (isolated_s, bare_s) in enumerate(pairs, 1):
        table.add_row(str(number), f"{isolated_s:.1f}", f"{bare_s:.1f}", f"{isolated_s / bare_s - 1:+.1%}")
    console = Console()
    console.print(table)
    more = statistics.median(isolated_s / bare_s - 1 for isolated_s, bare_s in pairs)
    console.print(f"Median of {len(pairs)}: {more:+.1%}, {settings.workers} workers.", highlight=False)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    parser = Parser("experiments.supervision", __doc__ or "")
    parser.add_argument("--workers", type=positive, default=4, help="ranks (default 4)")
    parser.add_argument("--repeats", type=positive, default=3, help="pairs of runs (default 3)")
    parser.add_argument("--turns", type=positive, default=5, metavar="S", help="seconds of a turn (default 5)")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="for pbd.run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run("experiments.supervision", lambda arguments: compare(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
