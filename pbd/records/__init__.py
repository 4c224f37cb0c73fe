"""Records that the parts of pbd exchange: frozen dataclasses of plain data, without Keras or MPI."""

from pbd.records.run_report import (
    BlockReport,
    CandidateReport,
    ChoiceReport,
    Deployment,
    Latency,
    ModelFacts,
    RunReport,
    Timing,
    WorkerReport,
)
from pbd.records.work import (
    CONVOLUTION,
    RESIDUAL,
    Assignment,
    BlockKey,
    BlockResult,
    BlockTask,
    Layer,
    Progress,
    ProgressCallback,
    TaskGroup,
    no_progress,
)

__all__ = [
    "CONVOLUTION",
    "RESIDUAL",
    "Assignment",
    "BlockKey",
    "BlockReport",
    "BlockResult",
    "BlockTask",
    "CandidateReport",
    "ChoiceReport",
    "Deployment",
    "Latency",
    "Layer",
    "ModelFacts",
    "Progress",
    "ProgressCallback",
    "RunReport",
    "TaskGroup",
    "Timing",
    "WorkerReport",
    "no_progress",
]
