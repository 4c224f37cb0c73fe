"""A recipe: compression steps in a row, and what holds for all of them."""

from dataclasses import dataclass
from typing import get_type_hints

from pbd.compression.step import Step, check
from pbd.config.values import as_kind, fraction
from pbd.errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """The steps, and what holds for all of them."""

    steps: tuple[Step, ...]
    max_drop: float | None = None
    """The result is the network of the last step that loses at most this much validation accuracy (without labels:
    agreement), in 8-bit integers if the step wrote them."""
    targets: tuple[str, ...] | None = None
    """Where every network is measured, in float32 and in 8-bit integers: by default in that of the execution, and
    nowhere if there are none."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if name != "steps":
                object.__setattr__(self, name, as_kind(name, kind, getattr(self, name)))
        fraction("max_drop", self.max_drop)
        if not self.steps:
            raise UsageError("a recipe needs steps. Received: none. Give one, such as FineTune().")
        for step in self.steps:
            check(step)
