"""Figure 5: numbers of threads that are fixed against those that TensorFlow chooses by itself.

The authors found that several workers of one host are faster with a fixed number of threads each. This measures our
block phase both ways with `experiments.speed`: `task`, each worker with --threads-per-worker threads on cores of its
own; `automatic`, all left to TensorFlow.

    python -m experiments.paper.figure5 [--quick|--full] [--workers 1 2] [--repeats N]
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from rich.console import Console

from experiments import speed
from experiments.paper import paper_comparison, plans
from experiments.paper.paper_comparison import Row
from experiments.paper.plans import Setting
from pbd import command_line
from pbd.command_line import positive

QUICK = plans.SMALL.but(epochs=2)
FULL = plans.FULL_CIFAR
THREADS = {"task": "fixed", "automatic": "automatic"}
SHARED = (
    "teacher",
    "dataset",
    "train_limit",
    "batch_size",
    "image_size",
    "epochs",
    "block",
    "block_init",
    "learning_rate",
    "augment",
)
"""The settings of pbd that `experiments.speed` knows."""
COLUMNS = {
    "whose": ("whose", ""),
    "network": ("network", ""),
    "threads": ("threads", ""),
    "workers": ("workers", "d"),
    "seconds": ("block phase, s", ",.1f"),
    "speedup": ("over\none worker", ".2f"),
    "layer_mean_s": ("a layer's\nmean, s", ".0f"),
}


def arguments(setting: Setting, settings: argparse.Namespace) -> list[str]:
    """Return what `experiments.speed` is given."""
    words = [
        word
        for name in SHARED
        if setting.flags.get(name) is not None
        for word in (f"--{name.replace('_', '-')}", str(setting.flags[name]))
    ]
    words += ["--schemes", *THREADS, "--workers", *map(str, {1: None, **dict.fromkeys(settings.workers)})]
    return [*words, "--threads-per-worker", str(settings.threads_per_worker), "--repeats", str(settings.repeats)]


def ours(setting: Setting, measured: Sequence[speed.Row]) -> list[Row]:
    """Return our rows; both are compared with one worker of a fixed number of threads."""
    return [
        {
            "whose": "ours",
            "network": setting.name,
            "threads": THREADS[one.scheme],
            "workers": one.workers,
            "seconds": one.seconds,
            "speedup": one.gain,
        }
        for one in measured
    ]


def papers() -> list[Row]:
    """Return the paper's speedups, each over one worker with threads of the same kind."""
    return [
        one | {"whose": f"paper, {one['kind']}", "network": "ResNet50, CIFAR-10"}
        for one in paper_comparison.paper("threads")
    ]


def make(settings: argparse.Namespace) -> None:
    """Measure; print, write and draw the table."""
    rows: list[Row] = []
    for setting in settings.settings:
        words = arguments(setting, settings)
        if settings.print_commands:
            print(shlex.join(["python", "-m", "experiments.speed", *words]))
        else:
            rows += ours(setting, speed.run(speed.parse(words), Console(stderr=True)))
    if not rows:
        return
    rows += papers()
    flags = settings.settings[0].flags
    remarks = (
        f"Ours: {flags.get('train_limit') or 'all'} images, {flags['epochs']} epochs for each block; medians of "
        f"{settings.repeats}; fixed: {settings.threads_per_worker} for each worker. Both over one with fixed threads.",
        "The paper's: each over one GPU with threads of its kind; fixed, that takes 9,693 s, automatic 8,111 s.",
        paper_comparison.HARDWARE,
        "Its figures are of the table and the logs that the authors drew from; Figure 5 itself was not at hand.",
    )
    paper_comparison.show("Figure 5: threads", COLUMNS, rows, remarks)
    paper_comparison.write(rows, settings, "figure5")
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = f"{row['whose']}: {row['network']}, {row['threads']}"
        series.setdefault(label, [(1, 1.0)] if row["workers"] > 1 else []).append((row["workers"], row["speedup"]))
    paper_comparison.draw_lines(
        "Figure 5: threads", "speedup of the block phase", series, settings.plots / "figure5.png"
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    parser = plans.parser("experiments.paper.figure5", __doc__)
    parser.add_argument("--repeats", type=positive, default=1, metavar="N", help="runs of each case (default 1)")
    parser.add_argument("--threads-per-worker", type=positive, metavar="N", help="fixed (default: 1; --full: 8)")
    given = parser.parse_args(argv)
    given.threads_per_worker = given.threads_per_worker or (8 if given.full else 1)
    return plans.settings(given, QUICK, FULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run("experiments.paper.figure5", lambda arguments: make(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
