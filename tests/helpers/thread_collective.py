"""A collective of threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from pbd.collective import Collective, CollectiveAbortedError, CollectiveLostError

T = TypeVar("T")
_LONGEST_WAIT_S = 120


class ThreadCollective:
    """The collective as seen by one thread; `None` among the values means that a member aborted."""

    def __init__(self, index: int, values: list[np.ndarray | None], barrier: threading.Barrier) -> None:
        self.index, self.size = index, len(values)
        self._values, self._barrier = values, barrier

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        parts = self._exchange(values)
        if any(part is None for part in parts):
            raise CollectiveAbortedError("a thread aborted")
        return np.sum(parts, axis=0, dtype=values.dtype)

    def abort(self) -> None:
        self._exchange(None)

    def disconnect(self, reason: str) -> None:
        self._barrier.abort()

    def _exchange(self, values: np.ndarray | None) -> list[np.ndarray | None]:
        try:
            self._values[self.index] = values
            self._barrier.wait(_LONGEST_WAIT_S)
            parts = list(self._values)
            self._barrier.wait(_LONGEST_WAIT_S)
        except threading.BrokenBarrierError as error:
            raise CollectiveLostError("a thread was lost") from error
        return parts


def run_threads(size: int, work: Callable[[Collective], T]) -> list[T]:
    """Call a function in several threads, as one collective; return the results in the order of the members."""
    values: list[np.ndarray | None] = [None] * size
    barrier = threading.Barrier(size)

    def member(index: int) -> T:
        try:
            return work(ThreadCollective(index, values, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(member, range(size)))
