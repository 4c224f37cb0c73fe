"""All chains of distillation, pruning and quantisation, each a recipe, beside those of the analysis.

python -m experiments.sources.chains [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz]
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.paper.paper_comparison import Row
from experiments.sources import common, quantization_table
from experiments.sources.common import Settings, percent
from pbd import command_line
from pbd.records.recipe_report import StepReport
from pbd.report import deployments

if TYPE_CHECKING:
    from pbd.compression.step import Step

NAME = "experiments.sources.chains"
STUDENT = "conv4_dense1"
RATIO = 0.77
KD_EPOCHS, PRUNE_EPOCHS, QAT_EPOCHS = (3, 30), (1, 10), quantization_table.EPOCHS
ROUNDS = (2, 9)
"""Rounds of pruning, each retrained; 9 rounds of 15% of what is left are 77%."""
RECIPES = (
    ("KD", "prune 77%", "QAT"),
    ("prune 77%", "QAT"),
    ("KD", "QAT"),
)
"""The longest chains: the networks behind their first steps are shorter chains; `quantization_table` has QAT alone."""
COLUMNS = {
    "chain": ("chain", ""),
    "accuracy": ("test\naccuracy, %", ".2f"),
    "kilobytes": ("kB", ".0f"),
    "params_k": ("parameters not 0,\nthousands", ".1f"),
    "latency_ms": ("1 image,\nms", ".3f"),
    "times_as_fast": ("x teacher", ".2f"),
    "their_accuracy": ("theirs:\naccuracy, %", ".2f"),
    "their_kilobytes": ("kB", ".0f"),
    "their_params_k": ("parameters,\nthousands", ".1f"),
}


def make(settings: Settings) -> None:
    """Run the recipes, print and write the table."""
    target = settings.inference_target
    teacher, *_, trained = quantization_table.recipe(settings).steps
    found = {"teacher": _row(teacher, int8=False), "QAT": _row(trained, int8=True)}
    for parts in RECIPES:
        name = "chain-" + "-".join(part.split()[0].lower() for part in parts)
        report = common.compress(settings, name, [_step(settings, part) for part in parts], target).report
        for length, step in enumerate(report.steps[1:], start=1):
            found.setdefault(" > ".join(parts[:length]), _row(step, int8=parts[length - 1] == "QAT"))
    theirs = {row["chain"]: row for row in settings.source("analysis", "combinations")}
    order = ["teacher", *sorted((name for name in found if name != "teacher"), key=lambda name: name.count(">"))]
    settings.show(
        "chains",
        "Chains of distillation (KD), pruning of weights and quantisation (QAT)",
        COLUMNS,
        [{"chain": name} | found[name] | _theirs(theirs.get(name)) for name in order],
        settings.ours(
            f"KD {settings.epochs_of(*KD_EPOCHS)} epochs into {STUDENT}, pruning in {settings.pick(*ROUNDS)} rounds of "
            f"{settings.epochs_of(*PRUNE_EPOCHS)} ({settings.loss}), QAT {settings.epochs_of(*QAT_EPOCHS)}; {target}"
        ),
        "kB: the file in the target; of pruned networks in float32, the weights with sparse kernels. Theirs: ResNet18, "
        "CIFAR-10; a student of 357,500 parameters.",
    )


def _step(settings: Settings, part: str) -> "Step":
    import pbd

    if part == "KD":
        return pbd.DistillInto(STUDENT, epochs=settings.epochs_of(*KD_EPOCHS))
    if part == "QAT":
        return pbd.Quantize(method="qat", epochs=settings.epochs_of(*QAT_EPOCHS))
    epochs, rounds = settings.epochs_of(*PRUNE_EPOCHS), settings.pick(*ROUNDS)
    return pbd.PruneWeights(ratio=RATIO, rounds=rounds, epochs=epochs, loss=settings.loss)


def _row(step: StepReport, int8: bool) -> Row:
    """Return what a chain came to; a chain that ends with QAT is measured in 8-bit integers."""
    deployed = deployments.form(step.deployments, step.name, int8)
    if deployed is None:
        return {"accuracy": percent(step.network.test_accuracy), "params_k": step.nonzero_params / 1000}
    latency = min(deployed.latency, key=lambda each: each.batch)
    size = step.details.get("bytes", {}).get("sparse", deployed.size_bytes)
    return {
        "accuracy": percent(deployed.test_accuracy),
        "kilobytes": size / 1000,
        "params_k": step.nonzero_params / 1000,
        "latency_ms": 1000 * latency.seconds,
        "times_as_fast": latency.times_as_fast,
    }


def _theirs(row: Row | None) -> Row:
    if row is None:
        return {}
    return {"their_accuracy": row["top1"], "their_kilobytes": 1000 * row["size_mb"], "their_params_k": row["params_k"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
