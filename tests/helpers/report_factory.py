"""A run report with every kind of row, for tests of what is made from it."""

import dataclasses
from typing import Any

from pbd.config import RunConfig
from pbd.records import BlockReport, CandidateReport, Deployment, Latency, ModelFacts, RunReport, Timing, WorkerReport

NASTY = """<script>alert("1")</script> 'x' & Größe 層/{{ 7*7 }}"""
"""A name that no layer should have."""
SECTIONS = ("result", "layers", "timeline", "curves", "time", "energy", "again")
"""Of the page of one run, in order."""


def make_row(layer: str, status: str, reason: str, **changes: Any) -> BlockReport:
    """Return a row of the report; what was not trained has neither figures nor a worker."""
    trained = status in ("accepted", "rejected", "restored")
    row = BlockReport(
        layer=layer,
        status=status,
        reason=reason,
        block="two_layer" if trained else None,
        worker=0 if trained else None,
        started_s=0.5 if trained else None,
        seconds=12.25 if trained else None,
        nmse=0.127 if trained else None,
        val_accuracy=0.91 if trained else None,
        val_agreement=0.93 if trained else None,
        val_kl=0.05 if trained else None,
        params_before=590_080,
        params_after=70_272,
        macs_before=37_748_736,
        macs_after=4_423_680,
        loss_history=(0.5, 0.25) if trained else (),
        nmse_history=(0.4, 0.2, 0.127) if trained else (),
        candidates=(CandidateReport("two_layer", status, reason, 70_272, 4_423_680),),
    )
    return dataclasses.replace(row, **changes)


def deployed(
    model: str,
    target: str,
    accuracy: float | None,
    ms: tuple[float, ...],
    against: tuple[tuple[float, ...], tuple[float, ...] | None],
    size_bytes: int = 400_000,
    **changes: Any,
) -> Deployment:
    """Return a row of the report with the median times for 1 and 32 images.

    Args:
        model: `teacher` or `student`.
        target: runtime and precision.
        accuracy: on the test images; `None` without labels.
        ms: median times in milliseconds, for 1 and 32 images.
        against: times of the teacher in float32, and in 8-bit integers if there is one.
        size_bytes: of the files.
        changes: other fields.
    """
    float32, int8 = against
    latency = tuple(
        Latency(
            batch=batch,
            seconds=time / 1000,
            q1_s=0.9 * time / 1000,
            q3_s=1.1 * time / 1000,
            times_as_fast=reference / time,
            times_as_fast_as_int8=None if int8 is None else int8[number] / time,
            rounds=15,
            passes=10,
        )
        for number, (batch, time, reference) in enumerate(zip((1, 32), ms, float32, strict=True))
    )
    fields = {"test_accuracy": accuracy, "test_agreement": 0.9, "test_images": 1000} | changes
    return Deployment(model, target, size_bytes, latency=latency, **fields)


def four_rows(runtime: str = "openvino", **changes: dict[str, Any]) -> tuple[Deployment, ...]:
    """Return teacher and student in float32 and in 8-bit integers.

    In 8-bit integers, the student is the fastest for one image and slower than the teacher for 32.

    Args:
        runtime: of the target.
        changes: other arguments of `deployed` for `teacher`, `student`, `teacher_int8` and `student_int8`.
    """
    defaults: dict[str, dict[str, Any]] = {
        "teacher": {"accuracy": 0.86, "ms": (0.7, 20.0), "size_bytes": 1_094_000},
        "student": {"accuracy": 0.856, "ms": (0.5, 12.0), "size_bytes": 340_000},
        "teacher_int8": {"accuracy": 0.859, "ms": (0.4, 9.0), "size_bytes": 290_000},
        "student_int8": {"accuracy": 0.852, "ms": (0.35, 10.0), "size_bytes": 130_000},
    }
    of = {name: arguments | changes.get(name, {}) for name, arguments in defaults.items()}
    against = of["teacher"]["ms"], of["teacher_int8"]["ms"]
    return tuple(
        deployed(name.removesuffix("_int8"), runtime + "-int8" * name.endswith("_int8"), against=against, **arguments)
        for name, arguments in of.items()
    )


def unlabelled(rows: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """Return the rows with their accuracy as agreement."""
    return tuple(dataclasses.replace(row, test_accuracy=None, test_agreement=row.test_accuracy) for row in rows)


def two_rows(student_ms: tuple[float, float] = (3.3, 25.0)) -> tuple[Deployment, ...]:
    """Return teacher and student in a target without 8-bit integers; the student is slower for one image."""
    against = ((3.0, 40.0), None)
    return (
        deployed("teacher", "keras", 0.92, against[0], against, 14_400_000),
        deployed("student", "keras", 0.91, student_ms, against, 1_400_000),
    )


def make_report(**changes: Any) -> RunReport:
    """Return a report of a run with an accepted, a rejected, a skipped and a failed layer."""
    report = RunReport(
        config={"teacher": "VGG16", "layers": ("conv*",), "seed": 0},
        versions={"pbd": "0.1.0", "keras": "3.0.0"},
        device="CPU, 2 cores",
        teacher=ModelFacts(1_180_000, 40_600_000, 0.93, 0.92, "run/teacher.keras", 14_400_000),
        assembled=ModelFacts(140_000, 5_100_000, val_accuracy=0.6125),
        student=ModelFacts(140_000, 5_100_000, 0.915, 0.91, "run/student.keras", 1_400_000),
        blocks=(
            make_row("block1_conv1", "skipped", "its block would cost no fewer multiply-accumulates"),
            make_row("conv4_block1_2_conv", "accepted", "0.910 is at least 0.830", worker=63, seconds=1234.5),
            make_row("block2_conv1", "rejected", "0.410 is below 0.830", val_accuracy=0.41),
            make_row("block3_conv1", "failed", "the loss is not finite"),
        ),
        workers=(WorkerReport(0, 12.25, 0.0), WorkerReport(1, 10.0, 2.25)),
        timing=Timing(3.2, 0.5, 12.25, 11.0, "calibration", 8.0, 25.0),
        energy={"source": "none", "total_j": None},
        executor="mpi",
        scheduler="wfd",
        groups=(("conv4_block1_2_conv", "block2_conv1"), ("block3_conv1",)),
        fine_tune_history=({"loss": 0.5, "val_accuracy": 0.9},),
        run_dir="run",
        deployments=two_rows(),
    )
    return dataclasses.replace(report, **changes)


def full_report(**changes: Any) -> RunReport:
    """Return a report of two workers with everything that there can be."""
    rows = (
        make_row("stem", "skipped", "input channels: 3; depthwise filters are faster from 8 on"),
        make_row("b1", "accepted", "accuracy 0.9 >= 0.8", nmse=0.03, params_after=9_000, predicted_s=10.0),
        make_row("b2", "accepted", "accuracy 0.9 >= 0.8", nmse=0.3, predicted_s=10.0),
        make_row("b3", "restored", "cost most", nmse=0.1, worker=1, started_s=0.0, seconds=8.0, predicted_s=9.0),
        make_row("b4", "failed", "the loss is not finite", worker=1, started_s=8.0, seconds=2.0),
        make_row("b5", "accepted", "from before", nmse=0.2, worker=0, started_s=3.0, seconds=5.0),
    )
    report = make_report(
        blocks=rows,
        groups=(("b1", "b2"), ("b3",), ("b4",)),
        deployments=four_rows(
            student_int8={"kept_float": ("stem", "b3"), "files": ("student_int8.xml", "student_int8.bin")}
        ),
        events=("epoch 2 diverged: undone", "restored b3"),
        fine_tune_history=(
            {"epoch": 1, "loss": 0.5, "val_accuracy": 0.9, "val_kl": 0.2, "learning_rate": 0.003},
            {"epoch": 2, "loss": 0.25, "val_accuracy": 0.91, "val_kl": 0.1, "learning_rate": 0.001},
        ),
        workers=(WorkerReport(0, 12.25, 0.0, 2_000_000_000), WorkerReport(1, 10.0, 2.25)),
        config=RunConfig.of(teacher="VGG16", epochs=5, labels=True, layers=["conv*", "^conv1"]).flat(),
    )
    return dataclasses.replace(report, **changes)


def several_designs(**changes: Any) -> RunReport:
    """Return a report of a resumed run with several candidates for a layer, on two workers."""

    def candidate(block: str, status: str, worker: int, started_s: float, **fields: Any) -> CandidateReport:
        figures = {"nmse": 0.1, "val_accuracy": 0.9, "seconds": 4.0} | fields
        return CandidateReport(block, status, "a reason", 9, 99, worker=worker, started_s=started_s, **figures)

    before = candidate("tucker2_r50", "rejected", 1, 0.0, earlier=True)
    b1 = (candidate("decoupled_r1", "rejected", 0, 0.0), candidate("spatial_svd_r50", "accepted", 1, 0.0), before)
    failed = CandidateReport("tucker2_r50", "failed", "no memory", 9, 99, worker=1, started_s=4.0, seconds=2.0)
    b2 = (candidate("decoupled_r1", "accepted", 0, 0.0), candidate("spatial_svd_r50", "rejected", 0, 0.0), failed)
    rows = (
        make_row(
            "stem", "skipped", "called 2 times", candidates=(CandidateReport("decoupled_r1", "skipped", "", 0, 0),)
        ),
        make_row("b1", "accepted", "accuracy 0.9 >= 0.8", block="spatial_svd_r50", candidates=b1),
        make_row("b2", "accepted", "accuracy 0.9 >= 0.8", block="decoupled_r1", candidates=b2),
    )
    groups = (("b1", "b2"), ("b1",), ("b2",))
    return make_report(
        blocks=rows, groups=groups, workers=(WorkerReport(0, 4.0, 2.0), WorkerReport(1, 6.0, 0.0)), **changes
    )
