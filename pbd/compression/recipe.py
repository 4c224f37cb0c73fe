"""A recipe: compression steps in a row, each on the network of the one before, and a table of all of them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_type_hints

from pbd.compression.step import Step, check
from pbd.config import RunConfig
from pbd.config.values import as_kind, fraction
from pbd.errors import UsageError
from pbd.executors.base import Executor
from pbd.pipeline import early_checks, session
from pbd.progress import ProgressDisplay
from pbd.records.recipe_report import RecipeReport

if TYPE_CHECKING:
    import keras

    from pbd.data import Data


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


def run(
    recipe: Callable[[], Recipe],
    config: RunConfig,
    model: "keras.Model | None" = None,
    data: "Data | None" = None,
    *,
    dedicated_process: bool = False,
) -> RecipeReport:
    """Do the steps on every worker there is, and return the report.

    Args:
        recipe: returns the steps; called when the devices of this process are chosen, so that it may load Keras.
        config: teacher, data, execution and seed; every other setting is one of a step.
        model: the first network, if it is not a file or a built-in network that the settings name.
        data: the images, if they are not what the settings name.
        dedicated_process: see `session.run`.

    Raises:
        PbdError: the network, the data or a setting does not fit; the message is one line and names the remedy.
    """

    def work(executor: Executor, display: ProgressDisplay) -> RecipeReport:
        from pbd.compression import steps_in_a_row  # loads the backend

        return steps_in_a_row.run(recipe(), config, model, data, executor, display)

    refuse_early = functools.partial(early_checks.check, config, model is not None)
    return session.run(config.execution, work, refuse_early, dedicated_process=dedicated_process)
