"""Run a recipe: each step on the network of the one before, and a table of all networks."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from pbd.compression.recipe import Recipe
from pbd.config import RunConfig
from pbd.executors.base import Executor
from pbd.pipeline import early_checks, session
from pbd.progress import ProgressDisplay
from pbd.records.recipe_report import RecipeReport

if TYPE_CHECKING:
    import keras

    from pbd.data import Data


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
