"""A run report with every kind of row, for tests of what is made from it."""

import dataclasses
from typing import Any

from pbd.config import RunConfig
from pbd.records import BlockReport, Latency, ModelFacts, RunReport, Timing, WorkerReport

SLOW = Latency(1, 0.0030, 0.0029, 0.0031, 0.0033, 0.0032, 0.0035, 0.91, 15, 10)
FAST = Latency(64, 0.040, 0.039, 0.041, 0.025, 0.024, 0.026, 1.6, 3, 10)
NASTY = """<script>alert("1")</script> 'x' & Größe 層/{{ 7*7 }}"""
"""A name that no layer should have."""
SECTIONS = ("result", "layers", "timeline", "curves", "time", "energy", "again")
"""Of the page of one run, in order."""


def make_row(layer: str, status: str, reason: str, **changes: Any) -> BlockReport:
    """Return a row of the report; what was not trained has neither figures nor a worker."""
    trained = status in ("accepted", "rejected", "given_back")
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
    )
    return dataclasses.replace(row, **changes)


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
        latency=(SLOW,),
    )
    return dataclasses.replace(report, **changes)


def full_report(**changes: Any) -> RunReport:
    """Return a report of two workers with everything that there can be."""
    rows = (
        make_row("stem", "skipped", "input channels: 3; depthwise filters are faster from 8 on"),
        make_row("b1", "accepted", "accuracy 0.9 >= 0.8", nmse=0.03, params_after=9_000, predicted_s=10.0),
        make_row("b2", "accepted", "accuracy 0.9 >= 0.8", nmse=0.3, predicted_s=10.0),
        make_row("b3", "given_back", "cost most", nmse=0.1, worker=1, started_s=0.0, seconds=8.0, predicted_s=9.0),
        make_row("b4", "failed", "the loss is not finite", worker=1, started_s=8.0, seconds=2.0),
        make_row("b5", "accepted", "from before", nmse=0.2, worker=0, started_s=3.0, seconds=5.0),
    )
    report = make_report(
        blocks=rows,
        groups=(("b1", "b2"), ("b3",), ("b4",)),
        latency=(SLOW, FAST),
        events=("epoch 2 diverged: undone", "restored b3"),
        fine_tune_history=(
            {"epoch": 1, "loss": 0.5, "val_accuracy": 0.9, "val_kl": 0.2, "learning_rate": 0.003},
            {"epoch": 2, "loss": 0.25, "val_accuracy": 0.91, "val_kl": 0.1, "learning_rate": 0.001},
        ),
        workers=(WorkerReport(0, 12.25, 0.0, 2_000_000_000), WorkerReport(1, 10.0, 2.25)),
        config=RunConfig.of(teacher="VGG16", epochs=5, labels=True, layers=["conv*", "^conv1"]).flat(),
    )
    return dataclasses.replace(report, **changes)
