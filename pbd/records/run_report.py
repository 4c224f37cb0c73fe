"""Records of a finished run: the content of `report.json`."""

from dataclasses import dataclass, field
from typing import Any

from pbd.records.analysis_report import ClassChanges
from pbd.records.work import BlockKey


@dataclass(frozen=True)
class ModelFacts:
    """Size, cost and quality of a network; accuracies (`None` without labels) and agreements lie in [0, 1]."""

    params: int
    """Number of parameters."""
    macs: int
    """Multiply-accumulates per image."""
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    path: str | None = None
    """Its model file."""
    size_bytes: int | None = None
    """Size of the model file."""
    val_agreement: float | None = None
    """Fraction of the images for which it predicts the same class as the teacher."""
    test_agreement: float | None = None
    val_kl: float | None = None
    """Mean Kullback-Leibler divergence of its class probabilities from the teacher's, in nats."""
    test_kl: float | None = None


@dataclass(frozen=True)
class CandidateReport:
    """A candidate for a layer: a block of one design, alone in the teacher."""

    block: str
    """Name of the block design."""
    status: str
    """`accepted`, `rejected`, `restored`, `skipped` or `failed`."""
    reason: str
    """Why it has this status."""
    params: int
    macs: int
    nmse: float | None = None
    val_accuracy: float | None = None
    val_agreement: float | None = None
    val_kl: float | None = None
    worker: int | None = None
    """The worker that trained it; `None` if none did."""
    started_s: float | None = None
    """Start of its group, in seconds since the start of the block phase."""
    seconds: float | None = None
    """Wall-clock seconds that its group took."""
    predicted_s: float | None = None
    """Prediction of `seconds`."""
    earlier: bool = False
    """Whether it was trained before the run was resumed, so that its times are those of another session."""


@dataclass(frozen=True)
class BlockReport:
    """One row of the report: the decision about one layer, and the measurements that it is based on.

    If the layer has several candidates, the measurements are those of the accepted one; if none is accepted, those of
    the most accurate one.
    """

    layer: str
    status: str
    """`accepted`, `rejected`, `restored`, `skipped` or `failed`."""
    reason: str
    """Why the layer has this status."""
    block: str | None
    """Name of the block design; `None` if no block was trained."""
    worker: int | None
    started_s: float | None
    """Start of its group, in seconds since the start of the block phase."""
    seconds: float | None
    """Wall-clock seconds that its group took."""
    nmse: float | None
    val_accuracy: float | None
    val_agreement: float | None
    val_kl: float | None
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    loss_history: tuple[float, ...] = ()
    nmse_history: tuple[float, ...] = ()
    predicted_s: float | None = None
    """Prediction of `seconds`."""
    attempts: int = 1
    """How often its training was started; more than once if a process was lost during training."""
    energy_j: float | None = None
    """The share of its candidates, in joules, of the energy that workers used during their groups; `None` if it was not
    measured."""
    candidates: tuple[CandidateReport, ...] = ()
    """All candidates for the layer, in the order of the settings; empty in reports of earlier versions."""


@dataclass(frozen=True)
class WorkerReport:
    """Time and energy of one worker in the block phase: while it trained, and while it waited for the slowest."""

    worker: int
    busy_s: float
    """Seconds of training."""
    idle_s: float
    """Seconds of waiting for the slowest worker."""
    peak_bytes: int | None = None
    """Peak memory during training: of its accelerator if it has one, else of the host."""
    busy_j: float | None = None
    """Energy in joules while busy: its host's energy in equal shares to all its workers; `None` if not measured."""
    idle_j: float | None = None
    """Energy in joules while idle, shared in the same way."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of the run's phases."""

    teacher_s: float
    """Training or loading the teacher."""
    calibrate_s: float
    """Planning, with a calibration if there is one."""
    distill_s: float
    """The block phase."""
    predicted_makespan_s: float
    """Prediction of `distill_s`."""
    predicted_from: str
    """Basis of the prediction: measured, taken from an earlier run, or estimated."""
    fine_tune_s: float
    total_s: float


@dataclass(frozen=True)
class Latency:
    """Seconds of a forward pass in a runtime on one device: median and quartiles over the rounds.

    Teacher and student, in float32 and in 8-bit integers, took turns.
    """

    batch: int
    """Images in a pass."""
    seconds: float
    q1_s: float
    q3_s: float
    times_as_fast: float
    """The median over the rounds of the time of the teacher in float32 over this time."""
    times_as_fast_as_int8: float | None
    """The same for the teacher in 8-bit integers; `None` if there is none in the runtime."""
    rounds: int
    passes: int
    """Counted passes in a round; the figure of a round is their median."""


@dataclass(frozen=True)
class Deployment:
    """A network in a file of the target: its quality, its size, and its latency."""

    model: str
    """`teacher` or `student`; in a recipe, `teacher` or the name of a step."""
    target: str
    """Runtime and precision, such as `onnx` or `onnx-int8`."""
    size_bytes: int
    """Size of the file and of the files next to it."""
    test_accuracy: float | None
    """Accuracy in the runtime, in [0, 1]; `None` without labels."""
    test_agreement: float
    """Fraction of these images for which it predicts the class that the teacher predicts in float32 in the runtime."""
    test_images: int
    """Number of test images that both are measured on."""
    latency: tuple[Latency, ...]
    """One for each batch size."""
    files: tuple[str, ...] = ()
    """Names of its files in the run directory, the main file first; empty if they were not kept."""
    kept_float: tuple[str, ...] = ()
    """Layers of a network in 8-bit integers that stay in float32."""
    memory_bytes: int | None = None
    """Resident memory that the file and a pass of the largest batch size add to a process; `None` if unknown."""


@dataclass(frozen=True)
class ChoiceReport:
    """The choice of the blocks under a budget; costs are fractions of what the teacher needs."""

    divergence: float
    """Kullback-Leibler divergence of the assembled network from the teacher before fine-tuning, in nats."""
    summed_divergence: float
    """The sum of those of its blocks, each alone in the teacher, which the choice minimised."""
    predicted: dict[str, float]
    """The predicted costs by resource: latency, macs, params, bytes."""
    measured: dict[str, float] = field(default_factory=dict)
    """The measured costs of latency and bytes, those that a budget limits: of the assembled network in comparison with
    the teacher, in the target and for the batch of the budget."""


@dataclass(frozen=True)
class RunReport:
    """The content of `report.json` (version 3)."""

    config: dict[str, Any]
    versions: dict[str, str]
    device: str
    teacher: ModelFacts
    assembled: ModelFacts
    student: ModelFacts
    blocks: tuple[BlockReport, ...]
    workers: tuple[WorkerReport, ...]
    timing: Timing
    energy: dict[str, Any]
    executor: str
    scheduler: str
    groups: tuple[tuple[str, ...], ...]
    reference: str = "labels"
    """Reference of all choices: `labels`, or `teacher` (agreement with it) if there are no labels."""
    fine_tune_history: tuple[dict[str, float], ...] = ()
    kept_epoch: str = ""
    """The epoch of fine-tuning whose weights the student has: `best`, on the validation images, or `last`; empty in
    some reports of earlier versions, which did not say."""
    events: tuple[str, ...] = ()
    """Other events, in order, such as damaged images, repeated attempts, lowered learning rates, restored layers."""
    run_dir: str = ""
    deployments: tuple[Deployment, ...] = ()
    """Teacher and student in the target: in float32 first, then in 8-bit integers if the target has them."""
    choice: ChoiceReport | None = None
    """None without a budget."""
    classes: ClassChanges | None = None
    """What changed per class, on the test images; None without labels, or in reports of earlier versions."""
    version: int = 3

    @property
    def failed_blocks(self) -> tuple[BlockKey, ...]:
        return tuple(
            BlockKey(row.layer, candidate.block or "")
            for row in self.blocks
            for candidate in row.candidates or (row,)  # reports of earlier versions have no candidates
            if candidate.status == "failed"
        )
