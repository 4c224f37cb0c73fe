"""The messages between a worker and its training process, and the memory that both share."""

import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np

from pbd.errors import PbdError
from pbd.run_dir.error_files import ErrorTarget
from pbd.system.keras_state import KerasSetup


@dataclass(frozen=True)
class Setup:
    """To the training process, first: its global state. A failure is the response to the first request."""

    keras: KerasSetup


@dataclass(frozen=True)
class Request:
    """To the training process: call a function."""

    work: bytes
    """A pickled function of a collective and a progress callback."""
    index: int
    """The worker's index in the collective."""
    size: int
    """The number of members of the collective."""


@dataclass(frozen=True)
class Response:
    """From the training process: the result of a request, or its exception."""

    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Heartbeat:
    """From the training process: the work made progress that it did not report."""


@dataclass(frozen=True)
class Announcement:
    """From the training process: the work that it begins or goes on with, for the error file if the process crashes."""

    target: ErrorTarget | None


@dataclass(frozen=True)
class AllReduce:
    """From the training process: sum the array in the shared buffer over the collective.

    The worker replies with the same message once the sum is in the buffer, or with an exception.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Abort:
    """From the training process: let the next all-reduce fail for the other members. The worker replies the same."""


def send(connection: Connection, message: Any) -> None:
    """Send a message pickled by cloudpickle, which also pickles what the main script or a function defines."""
    connection.send_bytes(cloudpickle.dumps(message))


def receive(connection: Connection) -> Any:
    """Wait for a message; return it unpickled."""
    return pickle.loads(connection.recv_bytes())


def picklable(error: Exception) -> Exception:
    """Return the exception, or if it cannot be pickled and unpickled, one with the same message and exit code.

    Its causes are removed if one of them cannot be: Dask pickles them with it, by tblib.
    """
    if all(map(_is_picklable, _chain(error))):
        return error
    error.__cause__ = error.__context__ = None
    return error if _is_picklable(error) else _substitute(error)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception, and all from which or in whose handling it was raised."""
    chain = [error]
    for cause in chain:  # grows meanwhile
        earlier = (each for each in (cause.__cause__, cause.__context__) if each is not None)
        chain += [each for each in earlier if all(each is not other for other in chain)]
    return chain


def _is_picklable(error: BaseException) -> bool:
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        return False
    return True


def _substitute(error: Exception) -> Exception:
    substitute: Exception = RuntimeError(f"{type(error).__name__}: {error}")
    if isinstance(error, PbdError):
        substitute = PbdError(str(error))
        substitute.exit_code = error.exit_code
    for note in getattr(error, "__notes__", ()):
        substitute.add_note(note)
    return substitute


class SharedBuffer:
    """Memory that two processes share: an anonymous file that grows as needed.

    The kernel frees it with the last process that has it open, however that process ends; named shared memory
    (`multiprocessing.shared_memory`) would outlive a SIGKILL, and /dev/shm is small in containers.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> "SharedBuffer":
        """Return an empty buffer; a child process opens it by its inherited descriptor."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("pbd"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def write(self, values: np.ndarray) -> None:
        """Copy an array into the buffer."""
        np.frombuffer(self._resized_map(values.nbytes), values.dtype, values.size)[:] = values.reshape(-1)

    def read(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return a copy of the array in the buffer."""
        size, item = int(np.prod(shape, dtype=np.int64)), np.dtype(dtype)
        return np.frombuffer(self._resized_map(size * item.itemsize), item, size).reshape(shape).copy()

    def close(self) -> None:
        """Free the memory."""
        self._map = None
        os.close(self.descriptor)

    def _resized_map(self, size: int) -> mmap.mmap:
        """Return a map of at least `size` bytes of the buffer."""
        if self._map is not None and len(self._map) >= size:
            return self._map
        size = max(size, 1)
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)
        self._map = mmap.mmap(self.descriptor, size)
        return self._map
