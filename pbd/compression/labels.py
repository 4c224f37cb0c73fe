"""Steps that learn from labels are refused before the first step of a recipe if the data have none."""

from pbd.compression.step import Step, name_of
from pbd.config import NEED_LABELS
from pbd.data import Dataset
from pbd.errors import BadInputError


def require(step: Step, setting: str, epochs: int, dataset: Dataset) -> None:
    """Check that the data have labels if a step trains on them.

    Args:
        step: has the loss.
        setting: the name of its setting that names the loss.
        epochs: the epochs for which it trains; with 0, the loss does not matter.
        dataset: the images of the recipe.

    Raises:
        BadInputError: the step needs labels, and there are none.
    """
    loss = getattr(step, setting)
    if epochs and loss in NEED_LABELS and not dataset.labelled:
        raise BadInputError(
            f"the {setting} {loss} of {name_of(step)} needs labels. Received: {dataset.name!r}, which has none. "
            "Give kd_mse or kd_kl."
        )
