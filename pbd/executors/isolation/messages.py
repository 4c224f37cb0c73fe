"""What a worker and its child process say to each other, and the memory that they share."""

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from pbd.system import devices
from pbd.system.keras_state import KerasSetup


@dataclass(frozen=True)
class Setup:
    """To a child: who it is. It says nothing back; what went wrong is the answer to its first order."""

    share: devices.Share
    keras: KerasSetup


@dataclass(frozen=True)
class Request:
    """To a child: do this."""

    work: bytes
    """A pickled function of a collective and a progress listener."""
    index: int
    """Its place in the collective."""
    size: int


@dataclass(frozen=True)
class Response:
    """From a child: what its work gave, or how it failed."""

    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Heartbeat:
    """From a child: it goes on, though it has nothing to tell."""


@dataclass(frozen=True)
class AllReduce:
    """From a child: add up what lies in the buffer. The same comes back when the sum lies there, or else an error."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Abort:
    """From a child: let the next sum fail for the others of the collective. The same comes back."""


class SharedBuffer:
    """Memory that two processes share: a file without a name, which grows with what is put there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def make(cls) -> "SharedBuffer":
        """Return an empty one, to be handed to a child by its descriptor."""
        if hasattr(os, "memfd_create"):  # which no /dev/shm limits
            return cls(os.memfd_create("pbd"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def put(self, values: np.ndarray) -> None:
        """Lay values there."""
        self._reach(values.nbytes)
        np.frombuffer(self._map, values.dtype, values.size)[:] = values.reshape(-1)

    def take(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return a copy of the values that lie there."""
        size, kind = int(np.prod(shape, dtype=np.int64)), np.dtype(dtype)
        self._reach(size * kind.itemsize)
        return np.frombuffer(self._map, kind, size).reshape(shape).copy()

    def close(self) -> None:
        """Give the memory back."""
        self._map = None
        os.close(self.descriptor)

    def _reach(self, size: int) -> None:
        if self._map is not None and len(self._map) >= size:
            return
        size = max(size, 1)
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)
        self._map = mmap.mmap(self.descriptor, size)
