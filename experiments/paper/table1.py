"""Table 1: the four candidate blocks of arXiv:2012.03096, and pbd's own beside them.

Each is one run that replaces the same layers on the same images, from noise as in the paper (pbd's own from its fitted
first weights), and is not fine-tuned: what is compared is how well a block takes its layer's place, and what it costs.

    python -m experiments.paper.table1 [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz] [--csv DIR]
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from experiments.accuracy import PAPER
from experiments.paper import paper_comparison, plans, runs
from experiments.paper.paper_comparison import Row
from experiments.paper.plans import Setting
from experiments.paper.runs import Report, Run
from pbd import command_line

OWN = {"block": "decoupled_r2", "block_init": "fitted", "learning_rate": 0.003}
QUICK = plans.SMALL.but(**PAPER, epochs=4, fine_tune_epochs=0, train_limit=512, batch_size=32, costs="macs")
FULL = tuple(setting.but(fine_tune_epochs=0) for setting in plans.FULL_CIFAR)
COLUMNS = {
    "network": ("network", ""),
    "block": ("block", ""),
    "nmse": ("error over\nvariance", ".3f"),
    "swapped_mean": ("one swapped\nin, mean", ".1%"),
    "swapped_worst": ("worst", ".1%"),
    "assembled": ("all swapped\nin", ".1%"),
    "params_share": ("parameters", ".0%"),
    "macs_share": ("MACs", ".0%"),
    "seconds": ("seconds", ".0f"),
    "paper_accuracy": ("the paper's\naccuracy", ".1%"),
}


def planned(setting: Setting, workers: int) -> list[Run]:
    """Return a run for each block."""
    recipes = [{"block": row["block"]} for row in paper_comparison.paper("blocks")] + [OWN]
    flags = [dict(setting.but(**recipe).flags) for recipe in recipes]
    return [Run(f"table1 {setting.name} {one['block']}", workers, one) for one in flags]


def row(setting: Setting, report: Report) -> Row:
    """Return what one block came to, beside what the paper says of it; accuracies are of validation images."""
    blocks, (block,) = runs.trained(report), report["config"]["block"]
    accuracies = [one["val_accuracy"] for one in blocks]
    teacher, student = report["teacher"], report["student"]
    return {
        "network": setting.name,
        "block": block,
        "nmse": statistics.mean(one["nmse"] for one in blocks),
        "swapped_mean": statistics.mean(accuracies),
        "swapped_worst": min(accuracies),
        "assembled": report["assembled"]["val_accuracy"],
        "params_share": student["params"] / teacher["params"],
        "macs_share": student["macs"] / teacher["macs"],
        "seconds": report["timing"]["distill_s"],
        "paper_accuracy": next(
            (one["accuracy"] for one in paper_comparison.paper("blocks") if one["block"] == block), None
        ),
    }


def make(settings: argparse.Namespace) -> None:
    """Run every block on every network; print, write and draw the table."""
    workers = settings.workers[-1]
    pairs = [(setting, run) for setting in settings.settings for run in planned(setting, workers)]
    reports = runs.carry_out([run for _, run in pairs], settings.runs, settings.print_commands)
    if not reports:
        return
    rows = [row(setting, report) for (setting, _), report in zip(pairs, reports, strict=True)]
    remarks = (
        runs.conditions(reports[0]),
        f"Teacher: {reports[0]['teacher']['val_accuracy']:.1%} of the validation images. {workers} workers.",
        "The paper's Table 1 compares the first four; its figures were not at hand.",
    )
    paper_comparison.show("Table 1: candidate blocks", COLUMNS, rows, remarks)
    paper_comparison.write(rows, settings, "table1")
    bars = {f"ours, {one['network']}: {one['block']}": one["nmse"] for one in rows}
    paper_comparison.draw_bars("Table 1: candidate blocks", "error over variance", bars, settings.plots / "table1.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run("experiments.paper.table1", lambda arguments: make(parse(arguments)), argv)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
    """
    return plans.settings(plans.parser("experiments.paper.table1", __doc__).parse_args(argv), QUICK, FULL)


if __name__ == "__main__":
    sys.exit(main())
