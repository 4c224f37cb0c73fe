"""How pixels are fed to the backend: a feed turns positions of images into batches of tensors."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pbd.data.dataset import Dataset, Split


class Feed(Protocol):
    """Reads batches of a dataset; one implementation for each way to feed a backend."""

    def training_batches(self, dataset: "Dataset", first_epoch: int, epochs: int) -> Iterable[tuple[Any, Any]]:
        """Return what `Dataset.training_batches` describes."""
        ...

    def batches_in_order(self, dataset: "Dataset", split: "Split", limit: int | None) -> Iterable[tuple[Any, Any]]:
        """Return what `Dataset.batches` describes."""
        ...


def current() -> Feed:
    """Return the feed of this process."""
    from pbd.data.feeds import tf_data

    return tf_data.TfDataFeed()
