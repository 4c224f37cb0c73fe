"""Records of a finished recipe: the content of `recipe.json`."""

from dataclasses import dataclass, field
from typing import Any

from pbd.records.run_report import Deployment, ModelFacts


@dataclass(frozen=True)
class QuantizedReport:
    """A file in 8-bit integers that a step wrote: what is deployed of the step, and what `max_drop` judges."""

    target: str
    """Such as `onnx-int8`."""
    path: str
    """Its path in the run directory."""
    val_score: float
    """Accuracy in the runtime on the validation images, in [0, 1]; without labels, agreement with the first network."""
    test_score: float
    """The same on the test images."""


@dataclass(frozen=True)
class StepReport:
    """A network of a recipe: the first one, or what a step made of the one before it."""

    name: str
    """`teacher` for the first network, else the number and the name of the step: `1 prune_filters`."""
    network: ModelFacts
    """Agreement and divergence are from the first network."""
    nonzero_params: int
    """Parameters that are not zero."""
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall-clock time of the step, without measuring, in all sessions that were not killed."""
    energy_j: float | None = None
    """`None` if it was not measured."""
    details: dict[str, Any] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    """The network in each target, in float32 and in 8-bit integers."""
    quantized: tuple[QuantizedReport, ...] = ()
    """The files in 8-bit integers that the step wrote."""


@dataclass(frozen=True)
class RecipeReport:
    """The content of `recipe.json` (version 1)."""

    config: dict[str, Any]
    versions: dict[str, str]
    device: str
    steps: tuple[StepReport, ...]
    """The first network, and one row for each step."""
    result: str
    """The name of the step whose network is the result: the last one that keeps within `max_drop`."""
    max_drop: float | None
    """The validation accuracy (without labels: agreement) that the result may lose, in 8-bit integers if its step wrote
    them."""
    reference: str
    """`labels`, or `teacher` if there are none and every choice rests on the agreement with the first network."""
    targets: tuple[str, ...]
    events: tuple[str, ...]
    seconds: float
    """Wall-clock time of this session."""
    run_dir: str
    version: int = 1

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """All networks in all targets, one target after the other."""
        rows = [row for step in self.steps for row in step.deployments]
        names = dict.fromkeys(row.target for row in rows)
        return tuple(row for name in names for row in rows if row.target == name)
