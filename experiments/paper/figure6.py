"""Figure 6: how evenly the schedulers share out the layers, the paper's round robin against its bin packing.

Each scheduler shares the layers of a real network out, one at a time as in the paper, and the busy seconds of every
worker are compared; beside them the loads of VGG16 on four GPUs, as the authors logged them and as replayed from their
one-GPU times. More schedulers, executors and workers: `experiments.scheduler_ablation`.

    python -m experiments.paper.figure6 [--quick|--full] [--schedulers NAME …]
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from experiments.measured_runs import Execution, from_report
from experiments.paper import paper_comparison, plans, runs
from experiments.paper.paper_comparison import Row
from experiments.paper.plans import Setting
from experiments.paper.runs import Run
from experiments.replays import logged_runs
from pbd import command_line

SCHEDULERS = ("round_robin", "wfd")
LOGGED = "vgg16_cifar10_1gpu"
PAPERS_WORKERS = 4
QUICK = plans.SMALL.but(epochs=1, fine_tune_epochs=0, train_limit=512)
FULL = tuple(setting.but(fine_tune_epochs=0) for setting in plans.FULL_CIFAR)
COLUMNS = {
    "whose": ("whose", ""),
    "network": ("network", ""),
    "scheduler": ("scheduler", ""),
    "workers": ("workers", "d"),
    "busy": ("busy seconds of each worker", ""),
    "longest_s": ("longest", ",.0f"),
    "evenness": ("mean over\nlongest", ".2f"),
}


def planned(setting: Setting, schedulers: Sequence[str], workers: int) -> list[Run]:
    """Return a run for each scheduler, one layer at a time."""
    flags = setting.but(group=False, parallel="task").flags
    return [Run(f"{setting.name} {name} {workers}", workers, {**flags, "scheduler": name}) for name in schedulers]


def row(whose: str, network: str, scheduler: str, busy_s: Sequence[float]) -> Row:
    """Return how even these loads are."""
    return {
        "whose": whose,
        "network": network,
        "scheduler": scheduler,
        "workers": len(busy_s),
        "busy": " ".join(f"{seconds:,.0f}" for seconds in busy_s),
        "longest_s": max(busy_s),
        "evenness": statistics.mean(busy_s) / max(busy_s),
    }


def papers(schedulers: Sequence[str]) -> list[Row]:
    """Return the authors' logged loads, and what our schedulers make of their one-GPU times."""
    logged = [
        row(f"paper, {one['kind']}", one["model"], one["scheduler"], one["busy_s"])
        for one in paper_comparison.paper("loads")
    ]
    source = logged_runs()[LOGGED]
    replayed = [source.replay(name, PAPERS_WORKERS).busy_s for name in schedulers]
    names = zip(schedulers, replayed, strict=True)
    return [*logged, *(row("replayed here", "VGG16, CIFAR-10", name, busy_s) for name, busy_s in names)]


def make(settings: argparse.Namespace) -> None:
    """Run every scheduler on every network; print, write and draw the table."""
    pairs = [
        (setting, run)
        for setting in settings.settings
        for run in planned(setting, settings.schedulers, settings.workers[-1])
    ]
    reports = runs.carry_out([run for _, run in pairs], settings.runs, settings.print_commands)
    if not reports:
        return
    done = [from_report(report, run.workers) for (_, run), report in zip(pairs, reports, strict=True)]
    named = zip(pairs, done, strict=True)
    ours = [row("ours", s.name, one.scheduler, [w.busy_s for w in one.workers]) for (s, _), one in named]
    rows = [*ours, *papers(settings.schedulers)]
    remarks = (
        f"{runs.conditions(reports[0])} One layer at a time.",
        paper_comparison.HARDWARE,
        "Taken to be what Figure 6 shows: section 4.4 compares the schedulers, and its authors drew these loads; the "
        "figure itself was not at hand. Replayed from one-GPU times, which are shorter: several GPUs slow each other.",
    )
    paper_comparison.show("Figure 6: load balance", COLUMNS, rows, remarks)
    paper_comparison.write(rows, settings, "figure6")
    draw(settings, done)


def draw(settings: argparse.Namespace, done: Sequence[Execution]) -> None:
    """Draw what each worker did when."""
    from experiments import schedule_plots

    for at, setting in enumerate(settings.settings):
        part = done[at * len(settings.schedulers) : (at + 1) * len(settings.schedulers)]
        path = settings.plots / schedule_plots.file_name("figure6", setting.name)
        schedule_plots.draw_gantt(f"Figure 6: {setting.name}", [schedule_plots.measured(part)], path)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    parser = plans.parser("experiments.paper.figure6", __doc__)
    known = ("round_robin", "wfd", "contiguous", "pull")
    parser.add_argument("--schedulers", nargs="+", choices=known, default=list(SCHEDULERS))
    return plans.settings(parser.parse_args(argv), QUICK, FULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run("experiments.paper.figure6", lambda arguments: make(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
