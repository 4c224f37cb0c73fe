"""Table 1: the four candidate blocks of arXiv:2012.03096 in place of the second convolution, and pbd's own beside them.

Each is one run that replaces this layer alone, from noise as in the paper (pbd's own from its fitted first weights),
and then fine-tunes the block with cross entropy, while the rest of the network stays as it is.

    python -m experiments.paper.table1 [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz] [--csv DIR]
"""

import argparse
import sys
from collections.abc import Sequence

from experiments.accuracy import PAPER
from experiments.paper import paper_comparison, plans, runs
from experiments.paper.paper_comparison import Row
from experiments.paper.plans import Setting
from experiments.paper.runs import Report, Run
from pbd import command_line

OWN = {"block": "decoupled_r2", "block_init": "fitted", "learning_rate": 0.003}
ONE_BLOCK = {"fine_tune_scope": "blocks", "include_unprofitable": True, "max_accuracy_drop": 1.0, "target": "keras"}
"""The block is kept and fine-tuned alone, however it turned out."""
QUICK = plans.SMALL.but(**PAPER | ONE_BLOCK, epochs=4, fine_tune_epochs=1, train_limit=512, batch_size=32, costs="macs")
FULL = (plans.VGG16.but(**ONE_BLOCK, epochs=20, fine_tune_epochs=5),)
"""How long the paper fine-tunes a block is not in it; 5 epochs are those of craft distillation in the dissertation."""
COLUMNS = {
    "network": ("network", ""),
    "block": ("block", ""),
    "nmse": ("error over\nvariance", ".3f"),
    "paper_loss": ("the paper's\nloss", ".2e"),
    "swapped": ("swapped\nin", ".1%"),
    "paper_swapped": ("the\npaper's", ".1%"),
    "fine_tuned": ("fine-\ntuned", ".1%"),
    "paper_fine_tuned": ("the\npaper's", ".1%"),
    "params": ("layer's\nparameters", ".0%"),
    "macs": ("layer's\nMACs", ".0%"),
    "seconds": ("seconds", ".0f"),
}
TEACHER = 86.45
"""Top-1 accuracy of the paper's VGG16 on CIFAR-10, in percent."""


def planned(setting: Setting) -> list[Run]:
    """Return a run for each block."""
    recipes = [{"block": row["block"]} for row in paper_comparison.table(1)] + [OWN]
    layer = second_convolution(setting)
    flags = [dict(setting.but(**recipe, layers=layer).flags) for recipe in recipes]
    return [Run(f"table1 {setting.name} {one['block']}", 1, one) for one in flags]


def second_convolution(setting: Setting) -> str:
    """Return the name of the network's second convolution that a block can replace.

    Raises:
        PbdError: there is no such network.
    """
    from experiments import networks  # loads the backend
    from pbd import blocks
    from pbd.blockwise.tasks import enumerate_tasks

    model = networks.load_teacher(setting.flags["teacher"], setting.flags.get("image_size", 32))
    return enumerate_tasks(model, blocks.get("two_layer"))[1].layer.name


def row(setting: Setting, report: Report) -> Row:
    """Return what one block came to, beside what the paper says of it."""
    (block,) = runs.trained(report)
    printed = {row["block"]: row for row in paper_comparison.table(1)}.get(block["block"])
    return {
        "network": setting.name,
        "block": block["block"],
        "nmse": block["nmse"],
        "swapped": block["val_accuracy"],
        "fine_tuned": report["student"]["test_accuracy"],
        "params": block["params_after"] / block["params_before"],
        "macs": block["macs_after"] / block["macs_before"],
        "seconds": report["timing"]["distill_s"],
        "paper_loss": printed and printed["rms_loss"],
        "paper_swapped": printed and printed["top1"] / 100,
        "paper_fine_tuned": printed and printed["fine_tuned_top1"] / 100,
        "source": printed and printed["source"],
    }


def make(settings: argparse.Namespace) -> None:
    """Run every block on every network; print, write and draw the table."""
    pairs = [(setting, run) for setting in settings.settings for run in planned(setting)]
    reports = runs.carry_out([run for _, run in pairs], settings.runs, settings.print_commands)
    if not reports:
        return
    rows = [row(setting, report) for (setting, _), report in zip(pairs, reports, strict=True)]
    teacher = reports[0]["teacher"]
    remarks = (
        runs.conditions(reports[0]),
        f"Our teacher: {teacher['val_accuracy']:.1%} of the validation images, by which a swapped block is judged, "
        f"{teacher['test_accuracy']:.1%} of the test images, by which a fine-tuned one is. The paper's: {TEACHER}%.",
        "The paper: VGG16 on CIFAR-10, 20 epochs; how its loss is scaled is not in it.",
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
