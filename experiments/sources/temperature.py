"""Distillation at several temperatures into a small network, then inference in Keras and compiled.

python -m experiments.sources.temperature [--quick|--full] [--teacher MODEL.keras --dataset DATA.npz]
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.paper.paper_comparison import Row
from experiments.sources import common, trials
from experiments.sources.common import Settings, percent
from pbd import command_line

if TYPE_CHECKING:
    import keras

NAME = "experiments.sources.temperature"
TEMPERATURES = (1, 5, 10, 15, 20)
STUDENT = "conv4_dense1"
EPOCHS = (3, 20)
COMPILED = ("openvino", "onnx")
ACCURACIES = {"temperature": ("T", "d"), "accuracy": ("test accuracy, %", ".2f"), "agreement": ("agreement, %", ".2f")}
LATENCIES = {
    "network": ("network", ""),
    "kilobytes": ("file, kB", ".0f"),
    "keras_ms": ("Keras,\n1 image, ms", ".3f"),
    "openvino_ms": ("OpenVINO,\nms", ".3f"),
    "onnx_ms": ("ONNX Runtime,\nms", ".3f"),
    "gain": ("fastest\nx Keras", ".2f"),
    "their_network": ("theirs", ""),
    "their_kilobytes": ("kB", ".0f"),
    "their_framework_ms": ("framework,\nms", ".2f"),
    "their_compiled_ms": ("TVM,\nms", ".2f"),
    "their_gain": ("x", ".2f"),
}


def make(settings: Settings) -> None:
    """Run the recipes, print and write the tables."""
    import pbd

    epochs = settings.epochs_of(*EPOCHS)
    done = {
        at: common.compress(
            settings, f"kd-{STUDENT}-T{at}", [pbd.DistillInto(STUDENT, epochs=epochs, temperature=float(at))]
        )
        for at in TEMPERATURES
    }
    rows: list[Row] = [
        {
            "temperature": at,
            "accuracy": percent(one.report.steps[-1].network.test_accuracy),
            "agreement": percent(one.report.steps[-1].network.test_agreement),
        }
        for at, one in done.items()
    ]
    settings.show(
        "temperature",
        "Temperature of distillation",
        ACCURACIES,
        rows,
        settings.ours(f"{STUDENT}, {epochs} epochs, mixed loss"),
        "Theirs: ResNet-101 to ResNet-18 on CIFAR-10, 20 epochs; T = 1 was the best of theirs.",
    )
    best = done[max(done, key=lambda at: done[at].report.steps[-1].network.val_accuracy or 0.0)]
    _compiled(settings, {"teacher": best.network("teacher"), STUDENT: best.model})


def _compiled(settings: Settings, models: "dict[str, keras.Model]") -> None:
    """Measure the networks in Keras and in runtimes, print and write the table."""
    from pbd.deploy import targets

    installed = [name for name in COMPILED if targets.TARGETS[name].obstacle() is None]
    measured = {name: trials.measure(models, name) for name in ("keras", *installed)}
    theirs = settings.source("compile_report") or [{}] * len(models)
    rows = [
        _row(name, {target: times[name] for target, times in measured.items()}) | _theirs(their)
        for name, their in zip(models, theirs, strict=True)
    ]
    settings.show(
        "compiled_inference",
        "Inference in Keras and in runtimes that compile the network",
        LATENCIES,
        rows,
        "Ours: the student of the best T on validation images; one thread, Keras with those of this process.",
        "OpenVINO and ONNX Runtime take the place of TVM, to which pbd does not export.",
        "Theirs: a framework, and tuned TVM, on a Xeon Gold 6248; 10% of the student's filters are pruned as well.",
    )


def _row(name: str, times: dict[str, trials.Trials]) -> Row:
    compiled = [times[target] for target in COMPILED if target in times]
    row: Row = {"network": name, "kilobytes": (compiled or [times["keras"]])[0].size_bytes / 1000}
    row |= {f"{target}_ms": each.median_ms for target, each in times.items()}
    if compiled:
        row["gain"] = times["keras"].median_ms / min(each.median_ms for each in compiled)
    return row


def _theirs(row: Row) -> Row:
    if not row:
        return {}
    return {
        "their_network": row["network"],
        "their_kilobytes": 1000 * row["size_mb"],
        "their_framework_ms": row["framework_ms"],
        "their_compiled_ms": row["compiled_and_tuned_ms"],
        "their_gain": row["framework_ms"] / row["compiled_and_tuned_ms"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (see `pbd.errors`)."""
    return command_line.run(NAME, lambda arguments: make(common.parse(NAME, __doc__, arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
