"""Splits: which images of a store or a stream, with their labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pbd.data.images import ArrayImages, FileImages


@dataclass(frozen=True, eq=False)
class IndexedSplit:
    """Rows of a store of images.

    `labels`, (n,) int32, belong to `rows`, (n,) int64; without labels, each label is `NO_LABEL`.
    """

    images: ArrayImages | FileImages
    rows: np.ndarray
    labels: np.ndarray

    @classmethod
    def whole(cls, images: ArrayImages | FileImages, labels: np.ndarray) -> "IndexedSplit":
        """Return the split of all images of a store."""
        return cls(images, np.arange(len(labels)), labels)

    def __len__(self) -> int:
        return len(self.rows)

    def content(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes that the digest of the data is computed from."""
        yield self.rows.tobytes()
        yield self.labels.tobytes()
        yield from self.images.content()


@dataclass(frozen=True, eq=False)
class StreamSplit:
    """A stream that may be larger than memory, always read in the same order.

    An epoch is shuffled within a buffer, seeded by the epoch: not a full shuffle, unlike that of `IndexedSplit`.
    """

    stream: Callable[[], Any]
    """Returns a `tf.data.Dataset`."""
    size: int
    """Number of elements."""
    decode: Callable[[dict[str, Any]], tuple[Any, Any]]
    """Maps an element of the stream to its image and its label."""

    def __len__(self) -> int:
        return self.size

    def content(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes that the digest of the data is computed from: the size alone."""
        yield str(self.size).encode()


Split = IndexedSplit | StreamSplit
"""Images with labels, before augmentation and preprocessing."""
