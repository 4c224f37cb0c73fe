"""Feeds: from positions of images, which `pbd.data.order` decides, to batches of pixels.

Only this folder knows how images are decoded, resized and augmented.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pbd.data.dataset import Dataset
    from pbd.data.splits import Split


class Feed(Protocol):
    """Reads the batches of a dataset; one implementation for each library that makes batches."""

    def training_batches(self, dataset: "Dataset", first_epoch: int, end_epoch: int) -> Iterable[tuple[Any, Any]]:
        """Return what `Dataset.training_batches` describes."""
        ...

    def batches_in_order(self, dataset: "Dataset", split: "Split", limit: int | None) -> Iterable[tuple[Any, Any]]:
        """Return what `Dataset.batches` describes."""
        ...

    def damaged_files(self, paths: Sequence[str]) -> list[str]:
        """Return the image files that this feed cannot decode.

        Raises:
            MissingInputError: a file cannot be read.
        """
        ...


def current() -> Feed:
    """Return the feed of this process: that of its Keras backend."""
    import keras

    if keras.backend.backend() == "tensorflow":
        from pbd.data.feeds.tf_data import TfDataFeed

        return TfDataFeed()
    if keras.backend.backend() == "jax":
        from pbd.data.feeds.jax_feed import JaxFeed

        return JaxFeed()
    from pbd.data.feeds.numpy_feed import NumpyFeed

    return NumpyFeed()
