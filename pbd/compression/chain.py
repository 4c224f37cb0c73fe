"""Do one step after the other in a folder, and leave out those that are complete there."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import keras

from pbd import blocks
from pbd.compression import quantized_files
from pbd.compression.context import Context
from pbd.compression.step import Step, name_of, settings_of, uses_target
from pbd.compression.step_folder import Finished, StepFolder
from pbd.errors import PbdError
from pbd.networks import files, graph
from pbd.networks.digest import model_digest


def unmeasured() -> None:
    """Return the joules so far where nobody measures them."""


@dataclass(frozen=True)
class Chain:
    """Steps in a row.

    Args:
        context: the context of the recipe, or of the step that these steps are a part of; its folder gets theirs.
        steps: the steps in their order.
        joules: returns the energy so far, `None` if it is not measured.
    """

    context: Context
    steps: Sequence[Step]
    joules: Callable[[], float | None] = unmeasured

    @property
    def names(self) -> list[str]:
        """The number and name of each step, such as `1 prune_filters`."""
        return [f"{number} {name_of(step)}" for number, step in enumerate(self.steps, start=1)]

    def networks(self, model: keras.Model) -> Iterator[tuple[str, Finished]]:
        """Yield the number and name of each step, and the step with its network.

        Args:
            model: the network before the first step; flat, in float32.
        """
        keeps_zeros = self.context.keeps_zeros
        for number, step in enumerate(self.steps, start=1):
            finished = self._finished(number, step, model, keeps_zeros)
            yield self.names[number - 1], finished
            model, keeps_zeros = finished.result.model, bool(finished.result.keeps_zeros)

    def _finished(self, number: int, step: Step, before: keras.Model, keeps_zeros: bool) -> Finished:
        """Return a step's result, from its folder if the step is complete there."""
        context, display, name = self.context, self.context.display, self.names[number - 1]
        seed = blocks.derive_seed(context.seed, f"step {number}")
        inputs = self._inputs(step, before) | {"keep_zeros": keeps_zeros, "seed": seed}
        folder = StepFolder.opened(context.journal.path, name, inputs)
        context = replace(context, journal=folder.journal, seed=seed, keeps_zeros=keeps_zeros)
        done = folder.read()
        if done is not None:
            display.phase(f"step {name}: already complete")
            context.forget_checkpoints()  # the process may have ended before it deleted them
            return done
        display.phase(f"step {name}")
        context.seeded()
        with self._spending(folder):
            result = step.apply(before, context)
        files.check_known(result.model)
        keeps_zeros = keeps_zeros if result.keeps_zeros is None else result.keeps_zeros
        result = replace(result, model=graph.flatten(result.model), keeps_zeros=keeps_zeros)
        seconds, spent = folder.spent()
        metrics = context.evaluate(result.model)
        scores = {
            target: quantized_files.score(path, target, result.model, context)
            for target, path in result.quantized.items()
        }
        in_int8 = "".join(f", in {target} {score:.4f}" for target, score in scores.items())
        display.phase(f"step {name}: {metrics.on_validation()}{in_int8}")
        finished = folder.write(Finished(result, metrics, seconds, spent, scores))
        context.forget_checkpoints()
        return finished

    @contextlib.contextmanager
    def _spending(self, folder: StepFolder) -> Iterator[None]:
        """Add the time and the energy of the block to those of the step.

        If the block fails, its energy is not read: other workers may be in the middle of a task, and do not answer.
        """
        began, joules = time.monotonic(), self.joules()
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, PbdError):
                folder.spend(time.monotonic() - began, None)
            raise
        folder.spend(time.monotonic() - began, _difference(self.joules(), joules))

    def _inputs(self, step: Step, before: keras.Model) -> dict[str, object]:
        """Return what the network of a step depends on, seeds aside."""
        dataset = self.context.dataset
        return {
            "use": name_of(step),
            "settings": settings_of(step),
            "fine_tune_keep": self.context.config.student.fine_tune_keep,
            "precision": self.context.config.training.precision,
            "before": model_digest(before),
            "first": model_digest(self.context.teacher),
            "data": dataset.digest(),
            "batches": [dataset.batch_size, dataset.augment, dataset.preprocess],
            **({"target": self.context.config.execution.target} if uses_target(step) else {}),
        }


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
