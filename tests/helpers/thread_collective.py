"""A collective of threads, for tests of what workers do together."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from pbd.collective import Collective, CollectiveAbortedError, CollectiveLostError

T = TypeVar("T")


class ThreadCollective:
    """One thread's place in a collective; `None` in a sum means that somebody gave up."""

    def __init__(self, index: int, brought: list[np.ndarray | None], barrier: threading.Barrier) -> None:
        self.index, self.size = index, len(brought)
        self._brought, self._barrier = brought, barrier

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        parts = self._meet(values)
        if any(part is None for part in parts):
            raise CollectiveAbortedError("a thread gave up")
        return np.sum(parts, axis=0, dtype=values.dtype)

    def abort(self) -> None:
        self._meet(None)

    def leave(self) -> None:
        self._barrier.abort()

    def _meet(self, values: np.ndarray | None) -> list[np.ndarray | None]:
        try:
            self._brought[self.index] = values
            self._barrier.wait(120)
            parts = list(self._brought)
            self._barrier.wait(120)
        except threading.BrokenBarrierError as error:
            raise CollectiveLostError("a thread left") from error
        return parts


def as_team(size: int, work: Callable[[Collective], T]) -> list[T]:
    """Let so many threads do the work together; return what each gives."""
    brought: list[np.ndarray | None] = [None] * size
    barrier = threading.Barrier(size)

    def one(index: int) -> T:
        try:
            return work(ThreadCollective(index, brought, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))
