"""The cost of training a block in seconds: the frozen prefix of the teacher, and the block itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pbd.records import BlockKey, BlockTask


@dataclass(frozen=True)
class TaskCosts:
    """Predicted seconds of the whole training (all images, all epochs) per task, in two parts.

    Raises:
        ValueError: A cost is negative or not finite, or a task has only one of the two parts.
    """

    prefix_s: Mapping[BlockKey, float]
    """By task: the teacher's forward pass up to and including the layer."""
    block_s: Mapping[BlockKey, float]
    """By task: the forward and backward pass of the block."""
    grouped: bool
    """Whether the tasks of a group share the forward pass of the prefix."""
    source: str
    """The source of the costs, for the report."""

    def __post_init__(self) -> None:
        unpaired = sorted(set(self.prefix_s) ^ set(self.block_s))
        if unpaired:
            raise ValueError(
                f"a task needs both prefix_s and block_s. Received only one for: {', '.join(map(str, unpaired))}. "
                "Give 0 for no cost."
            )
        for key, seconds in [*self.prefix_s.items(), *self.block_s.items()]:
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(
                    f"a cost must be finite and at least 0. Received: {seconds} s for {key}. Measure again."
                )

    def task_s(self, task: BlockTask) -> float:
        """Return the seconds of this task without a group."""
        return self.prefix_s[task.key] + self.block_s[task.key]

    def load_s(self, tasks: Sequence[BlockTask]) -> float:
        """Return the seconds that one worker needs for these tasks; 0 for no tasks.

        Grouped: the largest prefix plus the sum of the blocks, because the forward pass of the deepest task serves all.
        This is exact on a chain. For tasks on sibling branches, whose prefixes do not contain each other, it is a lower
        bound. Ungrouped: every task pays its own prefix.
        """
        if not self.grouped:
            return sum(self.task_s(task) for task in tasks)
        deepest_s = max((self.prefix_s[task.key] for task in tasks), default=0.0)
        return deepest_s + sum(self.block_s[task.key] for task in tasks)

    def run_loads_s(self, tasks: Sequence[BlockTask]) -> list[list[float]]:
        """Return the loads of all runs of consecutive tasks, in O(n^2): `[i][k]` is `load_s(tasks[i : i + k + 1])`."""
        return [self._cumulative_loads_s(tasks[start:]) for start in range(len(tasks))]

    def _cumulative_loads_s(self, tasks: Sequence[BlockTask]) -> list[float]:
        loads_s, prefix_s, block_s = [], 0.0, 0.0
        for task in tasks:
            task_prefix_s = self.prefix_s[task.key]
            prefix_s = max(prefix_s, task_prefix_s) if self.grouped else prefix_s + task_prefix_s
            block_s += self.block_s[task.key]
            loads_s.append(prefix_s + block_s)
        return loads_s
