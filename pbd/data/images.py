"""Stores of images that feeds read in any order: an array, or a list of image files."""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pbd.data.shapes import FreeShape, Shape
from pbd.errors import MissingInputError


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in memory, (n, height, width, channels), uint8 or float32; read as float32 in `image_shape`."""

    array: np.ndarray
    image_shape: Shape | None = None

    resizable = False

    def __len__(self) -> int:
        return len(self.array)

    @property
    def stored_shape(self) -> FreeShape:
        return self.array.shape[1:]

    @property
    def read_shape(self) -> Shape:
        """The shape of the images that are read."""
        assert self.image_shape is not None, "a store is read after its image shape is set"
        return self.image_shape

    @cached_property
    def pixel_max(self) -> float | None:
        """The largest value of float images; `None` for uint8, whose range is known."""
        return None if self.array.dtype == np.uint8 else float(self.array.max())

    def content(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes that the digest of the data is computed from."""
        yield f"{self.array.dtype.str}{self.array.shape}".encode()
        yield np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data

    def __getstate__(self) -> dict[str, Any]:
        return {"array": self.array, "image_shape": self.image_shape}


_log = logging.getLogger(__name__)
MOST_DECODED = 20_000
"""At most this many files of a split are decoded before training, evenly spread over a larger split."""


class DamagedFiles:
    """The files of a store that could not be decoded when they were read, and functions to call with each."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._observers: list[Callable[[str], object]] = []

    def add(self, path: str) -> None:
        """Note a file, at its first reading only, and log it, once in a process."""
        _warn_of_damage(path)
        if path not in self._paths:
            self._paths.append(path)
            for observer in self._observers:
                observer(path)

    def observe(self, observer: Callable[[str], object]) -> None:
        """Call `observer` with every file, also with those that were noted before."""
        self._observers.append(observer)
        for path in list(self._paths):
            observer(path)


@functools.cache
def _warn_of_damage(path: str) -> None:
    _log.warning("%s cannot be decoded: a black image takes its place. Remove it, or save it again as PNG.", path)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files (JPEG, PNG, BMP, GIF: its first frame), decoded as they are read, resized to `image_shape`."""

    paths: Sequence[str]
    image_shape: Shape | None = None
    damaged: DamagedFiles = field(default_factory=DamagedFiles)
    """Files that were not checked before training, and turned out damaged."""
    unread: Sequence[str] = ()
    """Image files beside them that are left out, since their format is not read."""

    resizable = True
    stored_shape: FreeShape = (None, None, None)
    pixel_max: float | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def checked_paths(self) -> Sequence[str]:
        """The files that are decoded before training."""
        count = min(len(self.paths), MOST_DECODED)
        return [self.paths[number * len(self.paths) // count] for number in range(count)]

    @property
    def is_checked(self) -> bool:
        """Whether every file is decoded before training; otherwise a damaged file may be met later."""
        return len(self.paths) <= MOST_DECODED

    @property
    def read_shape(self) -> Shape:
        """The shape of the images that are read."""
        assert self.image_shape is not None, "a store is read after its image shape is set"
        return self.image_shape

    def content(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes that the digest of the data is computed from: file names, relative to their common folder."""
        paths = [os.path.abspath(path) for path in self.paths]
        root = os.path.commonpath(paths) if paths else ""
        for path in paths:
            yield os.path.relpath(path, root).encode()


def encoded_image(path: str) -> bytes:
    """Return the content of an image file.

    Raises:
        MissingInputError: the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        remedy = "Restore the file, or remove the link to it" if is_gone else "Check its permissions"
        raise MissingInputError(
            f"an image file must be readable. Received: {path!r}: {error.strerror}. {remedy}."
        ) from error
