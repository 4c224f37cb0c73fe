"""What training a layer's block costs: a frozen prefix of the teacher, and the block itself, in seconds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pbd.records import LayerTask

# A training step costs the forward pass, the gradient by the input and the gradient by the weights: three
# times the forward's multiply-accumulates. The frozen prefix only runs forward.
TRAINING_PASSES = 3


@dataclass(frozen=True)
class LayerCosts:
    """Predicted seconds of whole training (all images, all epochs) per layer, kept in two parts.

    Raises:
        ValueError: a cost is negative or not finite, or a layer has only one of the two parts.
    """

    prefix_s: Mapping[str, float]
    """By layer name: the teacher's forward up to and including the layer."""
    block_s: Mapping[str, float]
    """By layer name: the block's own forward and backward."""
    grouped: bool
    """Whether the tasks of a group share one run of the prefix."""
    source: str
    """Where the figures come from, for the report."""

    def __post_init__(self) -> None:
        unpaired = sorted(set(self.prefix_s) ^ set(self.block_s))
        if unpaired:
            raise ValueError(
                f"a layer needs both prefix_s and block_s. Received one only: {unpaired}. Give 0 for none."
            )
        for name, seconds in [*self.prefix_s.items(), *self.block_s.items()]:
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(
                    f"a cost must be finite and at least 0. Received: {seconds} s for {name}. Measure again."
                )

    def task_s(self, task: LayerTask) -> float:
        """Return the seconds that this task takes on its own."""
        return self.prefix_s[task.layer_name] + self.block_s[task.layer_name]

    def load_s(self, tasks: Sequence[LayerTask]) -> float:
        """Return the seconds that one worker needs for these tasks; 0 for none.

        Grouped, the prefix is paid once, as deep as the deepest task: the largest prefix plus the sum of the
        blocks. That is exact on a chain; for tasks on sibling branches, whose prefixes do not contain each
        other, it is a lower bound. Ungrouped, every task pays its own prefix.
        """
        if not self.grouped:
            return sum(self.task_s(task) for task in tasks)
        deepest_s = max((self.prefix_s[task.layer_name] for task in tasks), default=0.0)
        return deepest_s + sum(self.block_s[task.layer_name] for task in tasks)

    def run_loads_s(self, tasks: Sequence[LayerTask]) -> list[list[float]]:
        """Return `table` with `table[i][k] = load_s(tasks[i : i + k + 1])`, in quadratic time."""
        return [self._growing_loads_s(tasks[start:]) for start in range(len(tasks))]

    def _growing_loads_s(self, tasks: Sequence[LayerTask]) -> list[float]:
        loads_s, prefix_s, block_s = [], 0.0, 0.0
        for task in tasks:
            own_prefix_s = self.prefix_s[task.layer_name]
            prefix_s = max(prefix_s, own_prefix_s) if self.grouped else prefix_s + own_prefix_s
            block_s += self.block_s[task.layer_name]
            loads_s.append(prefix_s + block_s)
        return loads_s


def costs_from_macs(
    tasks: Sequence[LayerTask], images: int, epochs: int, macs_per_s: float, grouped: bool
) -> LayerCosts:
    """Estimate costs from multiply-accumulates alone.

    Args:
        tasks: The layers to estimate.
        images: Training images per epoch.
        epochs: Passes over them.
        macs_per_s: The rate at which this device ran the teacher forward.
        grouped: Whether the tasks of a worker share one run of the prefix.

    Returns:
        Costs in seconds, whose `source` names the rate.

    Raises:
        ValueError: `macs_per_s` is not positive and finite.
    """
    if not (math.isfinite(macs_per_s) and macs_per_s > 0):
        raise ValueError(f"macs_per_s must be positive. Received: {macs_per_s}. Time the teacher's forward again.")
    passes_per_rate = images * epochs / macs_per_s
    return LayerCosts(
        prefix_s={task.layer_name: passes_per_rate * task.prefix_macs for task in tasks},
        block_s={task.layer_name: passes_per_rate * TRAINING_PASSES * task.block_macs for task in tasks},
        grouped=grouped,
        source=f"multiply-accumulates at the teacher's measured forward rate ({macs_per_s / 1e9:.3g} GMAC/s)",
    )
