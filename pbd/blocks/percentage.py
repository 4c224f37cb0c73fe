"""Common to families of designs whose names end with a percentage, such as `narrow_r50`."""

from dataclasses import dataclass, field
from typing import ClassVar

from pbd.blocks.design import BlockDesign

PERCENTAGES = range(5, 96)
"""Percentages that names of designs may give."""


@dataclass(frozen=True)
class PercentageDesign(BlockDesign):
    """A design of such a family, which is fitted to the moments of the layer's inputs."""

    prefix: ClassVar[str]
    """The name without the percentage."""
    percent: int
    name: str = field(init=False)
    per_image = True
    needs_inputs = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.prefix}{self.percent}")
