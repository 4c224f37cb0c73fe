"""Compare the schedulers (Section 4.4 and Figure 6 of arXiv:2012.03096), replayed and executed, with tables and plots.

replay  on the run times that the paper's authors logged and on costs that pbd measured, from 1 to 1,024 workers,
        beside the lower bound, the proven optimum where it can be found, and the speedups that the paper printed.
sleep   tasks that sleep, on real Dask and MPI workers, beside what the replay predicts.
train   a real small network through pbd-run, likewise.

    python -m experiments.scheduler_ablation replay sleep --csv tables --plots plots
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import measured_runs, replays, schedule_tables
from experiments.csv_table import write_csv
from experiments.measured_runs import Execution
from experiments.replays import Source
from experiments.sleep_tasks import EXECUTORS, schedulers_of, seconds
from pbd import command_line
from pbd.command_line import Parser, positive
from pbd.errors import CannotCreateError, EnvironmentMismatchError, UsageError
from pbd.scheduling.cost_table import CostTable, Workload, read_table
from pbd.scheduling.schedulers import SCHEDULERS
from pbd.scheduling.simulate import lower_bound_s

PARTS = ("replay", "sleep", "train")
WIDTH = 165
MEAN_S, QUICK_MEAN_S = 8.0, 2.5
STOPPING_IMAGES, FIT_IMAGES = 1024, 2048
"""How many images pbd looks at after each epoch, and how many it fits first weights to."""


def measured_sources(paths: Sequence[Path], images: int, epochs: int) -> list[Source]:
    """Return tables that pbd measured, one task at a time and grouped, for whole training.

    Args:
        paths: files as `pbd-run` and `profiling/profile_layers.py` write them; `costs_vgg16.json` is `vgg16`.
        images: how many there are in all; a tenth is for validation.
        epochs: passes over the others.

    Raises:
        PbdError: a file is absent or holds something else.
    """
    sources = []
    for path in paths:
        table = read_table(path)
        name = path.stem.removeprefix("costs").strip("_-") or path.parent.name
        sources += replays.both_ways(name, table.costs(workload(table, images, epochs), grouped=True))
    return sources


def workload(table: CostTable, images: int, epochs: int) -> Workload:
    """Return how many batches training goes through with the table's batch size."""
    size = table.conditions.batch_size
    held_out = images // 10
    return Workload(
        epochs=epochs,
        steps_per_epoch=math.ceil((images - held_out) / size),
        check_batches=math.ceil(min(STOPPING_IMAGES, held_out) / size),
        fit_batches=math.ceil(min(FIT_IMAGES, images - held_out) / size),
        score_batches=math.ceil(held_out / size),
    )


def run_replay(settings: argparse.Namespace, console: Console) -> None:
    """Replay every source, print the tables and write what was asked for."""
    sources = [*replays.logged_sources(), *measured_sources(settings.costs, settings.images, settings.epochs)]
    rows, limits = [], []
    for source in sources:
        fresh = replays.replay_source(source, settings.worker_counts, settings.time_limit_s)
        rows += fresh
        limits += replays.limits(source, fresh)
        console.print(schedule_tables.replayed(source, fresh))
        if settings.plots:
            draw_replay(source, fresh, settings.plots, settings.workers)
    printed = replays.printed_speedups()
    console.print(schedule_tables.scaling(limits), schedule_tables.printed(printed))
    if settings.csv:
        for name, table in (("replay", rows), ("scaling", limits), ("paper", printed)):
            write_csv(table, settings.csv / f"{name}.csv")


def draw_replay(source: Source, rows: Sequence[replays.Row], folder: Path, workers: int) -> None:
    """Draw a source's schedules on this many workers, and its curves over all numbers of workers."""
    from experiments import schedule_plots

    bound_s = lower_bound_s(source.tasks, source.costs, workers)
    charts = [schedule_plots.Chart(name, source.replay(name, workers).timeline, bound_s) for name in SCHEDULERS]
    title = f"{source.name}, replayed on {workers} workers"
    schedule_plots.draw_gantt(title, [charts], folder / schedule_plots.file_name("gantt", source.name))
    schedule_plots.draw_curves(source.name, rows, folder / schedule_plots.file_name("curves", source.name))


def sleeping(settings: argparse.Namespace) -> Iterator[list[Execution]]:
    """Run the sleeping cases on each executor; yield what came of each case."""
    for executor in settings.executors:
        done = measured_runs.execute(executor, settings.workers, settings.mean_s)
        for case in dict.fromkeys(one.case for one in done):
            yield [one for one in done if one.case == case]


def training(settings: argparse.Namespace) -> Iterator[list[Execution]]:
    """Compress the teacher under every scheduler on each executor; yield what came of each executor's runs."""
    runs = settings.runs or Path("runs") / time.strftime("scheduler-ablation-%Y%m%d-%H%M%S")
    flags = ["--teacher", settings.teacher, "--dataset", settings.dataset, "--epochs", str(settings.epochs)]
    flags += [
        "--block",
        "decoupled_r2",
        "--threads-per-worker",
        "1",
        "--fine-tune-epochs",
        "0",
        "--patience",
        "0",
        "--target",
        "keras",
    ]
    flags += [] if settings.grouped else ["--no-group"]
    flags += ["--train-limit", str(settings.train_limit)] if settings.train_limit else []
    for executor in settings.executors:
        yield [
            measured_runs.train(executor, name, settings.train_workers, flags, runs / f"{executor}-{name}")
            for name in schedulers_of(executor)
        ]


def run_executed(part: str, settings: argparse.Namespace, console: Console) -> None:
    """Execute every scheduler, print what came of it beside the prediction, and write what was asked for."""
    rows: list[dict[str, Any]] = []
    for done in sleeping(settings) if part == "sleep" else training(settings):
        foretold = ["predicted_s"] if part == "sleep" else ["predicted_s", "planned_s"]
        console.print(schedule_tables.executed(done, [measured_runs.order(done, by=figure) for figure in foretold]))
        rows += [one.figures() for one in done]
        if settings.plots:
            from experiments import schedule_plots

            path = settings.plots / schedule_plots.file_name("gantt", part, done[0].executor, done[0].case)
            schedule_plots.draw_gantt(f"{done[0].case}, on {done[0].executor}", schedule_plots.compared(done), path)
    if settings.csv:
        write_csv(rows, settings.csv / f"{part}.csv")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        CannotCreateError: a folder for tables or plots cannot be made.
    """
    parser = Parser("scheduler_ablation", __doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all, or as --quick says)"
    )
    parser.add_argument("--quick", action="store_true", help="without train, and with little sleep")
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write the tables to this folder")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write charts to this folder, as PNG")
    parser.add_argument("--workers", type=positive, default=4, metavar="N", help="that sleep, and in replayed charts")
    replay = parser.add_argument_group("replay")
    replay.add_argument(
        "--costs", nargs="+", type=Path, metavar="FILE", help="measured tables (default: those in data/)"
    )
    replay.add_argument("--worker-counts", nargs="+", type=positive, default=list(replays.WORKERS), metavar="N")
    replay.add_argument("--images", type=positive, default=50_000, help="to train on with the measured tables")
    replay.add_argument("--time-limit-s", type=seconds, default=10.0, help="of the solver, for each optimum")
    execute = parser.add_argument_group("sleep and train")
    execute.add_argument("--executors", nargs="+", choices=EXECUTORS, default=list(EXECUTORS))
    execute.add_argument(
        "--mean-s", type=seconds, help=f"sleep per worker and run (default: {MEAN_S:g}; --quick: {QUICK_MEAN_S:g})"
    )
    execute.add_argument("--teacher", default="digits_cnn", help="as in pbd-run")
    execute.add_argument("--dataset", default="digits", help="as in pbd-run")
    execute.add_argument(
        "--epochs", type=positive, default=3, help="for each block, also in replays of measured tables"
    )
    execute.add_argument("--train-limit", type=positive)
    execute.add_argument("--train-workers", type=positive, default=2, metavar="N", help="that train")
    execute.add_argument("--grouped", action="store_true", help="train the layers of a worker in one pass")
    execute.add_argument("--runs", type=Path, metavar="DIR", help="where runs go; finished ones are not run again")
    settings = parser.parse_args(argv)
    settings.mean_s = settings.mean_s or (QUICK_MEAN_S if settings.quick else MEAN_S)
    settings.parts = settings.parts or [part for part in PARTS if part != "train" or not settings.quick]
    unknown = sorted(set(settings.parts) - set(PARTS))
    if unknown:
        raise UsageError(f"parts are {', '.join(PARTS)}. Received: {', '.join(unknown)}.")
    settings.worker_counts = sorted(set(settings.worker_counts))
    settings.costs = settings.costs or sorted(replays.DATA.glob("costs*.json"))
    _make_folders(settings)
    return settings


def _make_folders(settings: argparse.Namespace) -> None:
    for folder in filter(None, (settings.csv, settings.plots)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(
                f"--csv and --plots are folders. Received: {str(folder)!r}: {error.strerror}."
            ) from error


def run(settings: argparse.Namespace, console: Console) -> None:
    """Run the parts that were asked for.

    Raises:
        PbdError: an input is missing or wrong, or a run failed.
    """
    try:
        for part in settings.parts:
            if part == "replay":
                run_replay(settings, console)
            else:
                run_executed(part, settings, console)
    except ImportError as error:
        raise EnvironmentMismatchError(f"{error}. Get it with pip install 'pbd[experiments]'.") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    console = Console()
    console.width = max(console.width, WIDTH)  # a narrower table would cut its figures
    return command_line.run("scheduler_ablation", lambda arguments: run(parse(arguments), console), argv)


if __name__ == "__main__":
    sys.exit(main())
