"""Where a worker's seconds go while it trains a group, told from the progress that it reports."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pbd.records import Progress

if TYPE_CHECKING:
    from pbd.blockwise.context import TrainingContext
    from pbd.data import Dataset

PARTS = (
    "first weights, tracing",
    "steps: data",
    "steps: teacher",
    "steps: blocks",
    "checks between epochs",
    "scoring and saving",
    "waiting for others",
)
BATCHES, WARM_UP = 12, 3


@dataclass
class Watch:
    """Listens to one worker's progress and notes when it came."""

    clock: Callable[[], float] = time.monotonic
    began: float = 0.0
    events: list[tuple[float, Progress]] = field(default_factory=list)

    def start(self) -> None:
        """Begin to count."""
        self.began, self.events = self.clock(), []

    def __call__(self, event: Progress) -> None:
        if event.worker == 0:
            self.events.append((self.clock(), event))

    def spent(self, ended: float) -> dict[str, float]:
        """Return the seconds until it was done; `steps` as a whole, each as long as the median.

        A step that comes first in an epoch also stands for what was done since the one before it.
        """
        spans = list(zip([(self.began, None), *self.events], [*self.events, (ended, None)], strict=True))
        within = [(then - now) / _steps(one, other) for (now, one), (then, other) in spans if _steps(one, other)]
        step_s = statistics.median(within) if within else 0.0
        found = dict.fromkeys(("first weights, tracing", "steps", "checks between epochs", "scoring and saving"), 0.0)
        for (now, one), (then, other) in spans:
            taken, step = then - now, other is not None and not _scores(other)
            own_s = min(taken, step_s) if step else 0.0
            found["steps"] += taken if _steps(one, other) else own_s
            if not _steps(one, other):
                found[_between(one, other)] += taken - own_s
        return found


def _scores(event: Progress) -> bool:
    return event.label.startswith("scoring")


def _steps(one: Progress | None, other: Progress | None) -> int:
    """Return how many steps, and nothing else, lie between two events."""
    if one is None or other is None or _scores(one) or _scores(other):
        return 0
    return other.done - one.done if (one.label, one.epoch) == (other.label, other.epoch) else 0


def _between(one: Progress | None, other: Progress | None) -> str:
    if one is not None and _scores(one):
        return "scoring and saving"
    if one is None:
        return "first weights, tracing"
    return "checks between epochs" if other is not None else "scoring and saving"


def step_parts(context: "TrainingContext", names: Iterable[str], dataset: "Dataset") -> dict[str, float]:
    """Return the seconds that a batch's data and the teacher up to these layers take alone, means of a few.

    Args:
        context: of the run; the teacher is loaded by it.
        names: of the layers that are trained.
        dataset: as the worker sees it, one that shares batches its part of them.
    """
    import keras

    from pbd.blockwise.context import load_teacher
    from pbd.networks import graph
    from pbd.system import devices

    prefix = graph.truncate(load_teacher(context.teacher_path, context.session), names)
    ends = keras.tree.flatten(prefix.output)
    alone = keras.Model(prefix.inputs[0], [keras.ops.mean(end) for end in ends])  # nothing large comes back
    alone.compile(jit_compile=devices.compiles_with_xla())
    coming = iter(dataset.training_batches(0, 2 + (WARM_UP + BATCHES) // dataset.steps_per_epoch))
    images, _ = next(coming)
    return {
        "data": _mean_s(lambda: next(coming)),
        "teacher": _mean_s(lambda: alone.predict_on_batch(images)),
    }


def _mean_s(call: Callable[[], object]) -> float:
    """Return the seconds of a call: not the median, since some find prepared what others prepare."""
    for _ in range(WARM_UP):
        call()
    began = time.perf_counter()
    for _ in range(BATCHES):
        call()
    return (time.perf_counter() - began) / BATCHES


def split(spent: dict[str, float], steps: int, alone_s: dict[str, float], waiting_s: float) -> dict[str, float]:
    """Return the seconds by `PARTS`; of the steps, what data and teacher do not take alone is the blocks'.

    Args:
        spent: what `Watch.spent` returned.
        steps: how many there were.
        alone_s: what `step_parts` returned.
        waiting_s: for other workers, at the end.
    """
    parts = {part: spent.get(part, 0.0) for part in PARTS}
    parts["steps: data"] = min(spent["steps"], steps * alone_s["data"])
    parts["steps: teacher"] = min(spent["steps"] - parts["steps: data"], steps * alone_s["teacher"])
    parts["steps: blocks"] = spent["steps"] - parts["steps: data"] - parts["steps: teacher"]
    parts["waiting for others"] = waiting_s
    parts["scoring and saving"] = max(0.0, parts["scoring and saving"] - waiting_s)
    return parts
