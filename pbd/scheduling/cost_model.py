"""The cost of training a block in seconds: the teacher's frozen prefix, what blocks of a layer share, and the block."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pbd.records import BlockKey, BlockTask


@dataclass(frozen=True)
class TaskCosts:
    """Predicted seconds of the whole training (all images, all epochs) per task, in three parts.

    Raises:
        ValueError: A cost is negative or not finite, or a task has only one of `prefix_s` and `block_s`.
    """

    prefix_s: Mapping[BlockKey, float]
    """Seconds by task: the teacher's forward pass up to and including the layer."""
    block_s: Mapping[BlockKey, float]
    """Seconds by task: the forward and backward pass of the block."""
    grouped: bool
    """Whether the tasks of a group share the forward pass of the prefix."""
    source: str
    """The source of the costs, for the report."""
    layer_s: Mapping[BlockKey, float] = field(default_factory=dict)
    """Seconds by task: what the blocks of its layer need once in a group, the statistics of its inputs; by default
    0."""

    def __post_init__(self) -> None:
        unpaired = sorted(set(self.prefix_s) ^ set(self.block_s))
        if unpaired:
            raise ValueError(
                f"a task needs both prefix_s and block_s. Received only one for: {', '.join(map(str, unpaired))}. "
                "Give 0 for no cost."
            )
        for key, seconds in [*self.prefix_s.items(), *self.block_s.items(), *self.layer_s.items()]:
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(
                    f"a cost must be finite and at least 0. Received: {seconds} s for {key}. Measure again."
                )

    def task_s(self, task: BlockTask) -> float:
        """Return the seconds of this task without a group."""
        return self.prefix_s[task.key] + self.layer_s.get(task.key, 0.0) + self.block_s[task.key]

    def load_s(self, tasks: Sequence[BlockTask]) -> float:
        """Return the seconds that one worker needs for these tasks; 0 for no tasks.

        Grouped: the largest prefix, what each layer needs once, and the sum of the blocks, because the forward pass of
        the deepest task serves all. This is exact on a chain. For tasks on sibling branches, whose prefixes do not
        contain each other, it is a lower bound. Ungrouped: every task pays its own prefix and its own layer.
        """
        return self._cumulative_loads_s(tasks)[-1] if tasks else 0.0

    def run_loads_s(self, tasks: Sequence[BlockTask]) -> list[list[float]]:
        """Return the loads of all segments of tasks, in O(n^2): `[i][k]` is `load_s(tasks[i : i + k + 1])`."""
        return [self._cumulative_loads_s(tasks[start:]) for start in range(len(tasks))]

    def _cumulative_loads_s(self, tasks: Sequence[BlockTask]) -> list[float]:
        if not self.grouped:
            return list(itertools.accumulate(self.task_s(task) for task in tasks))
        loads_s, prefix_s, block_s = [], 0.0, 0.0
        layers_s: dict[str, float] = {}  # the designs of a layer may need different statistics: those of most count
        for task in tasks:
            key = task.key
            prefix_s = max(prefix_s, self.prefix_s[key])
            layer_s = max(self.layer_s.get(key, 0.0), layers_s.get(key.layer, 0.0))
            block_s += self.block_s[key] + layer_s - layers_s.get(key.layer, 0.0)
            layers_s[key.layer] = layer_s
            loads_s.append(prefix_s + block_s)
        return loads_s
