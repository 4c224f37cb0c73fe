"""Which steps learn from labels: refused before the first step where the data have none."""

from collections.abc import Iterable, Mapping

from pbd.compression.step import Step, name_of
from pbd.config import NEED_LABELS
from pbd.data import Dataset
from pbd.errors import BadInputError

_SETTINGS: Mapping[str, tuple[str, str]] = {
    "craft": ("tune_loss", "tune_epochs"),
    "fine_tune": ("loss", "epochs"),
    "progressive": ("loss", "epochs"),
    "prune_filters": ("loss", "epochs"),
    "prune_weights": ("loss", "epochs"),
    "replace_blocks": ("fine_tune_loss", "fine_tune_epochs"),
}
"""By the name of a step, its settings of the loss and of the number of epochs; `DistillInto` has another loss then."""


def check(steps: Iterable[Step], dataset: Dataset) -> None:
    """Check that the data have labels if a step, or a step of a member of an ensemble, trains on them.

    Raises:
        BadInputError: they have none.
    """
    if dataset.labelled:
        return
    for step in steps:
        name = name_of(step)
        for members in getattr(step, "members", ()) if name == "ensemble" else ():
            check(members, dataset)
        setting, epochs = _SETTINGS.get(name, ("", ""))
        loss = getattr(step, setting, None)
        if loss in NEED_LABELS and getattr(step, epochs, None) != 0:
            raise BadInputError(
                f"the {setting} {loss} of {name} needs labels. Received: {dataset.name!r}, which has none. "
                "Give kd_mse or kd_kl."
            )
