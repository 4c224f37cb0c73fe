"""Dispatch of work to workers that become available, are lost, or join; for replays and for Dask."""

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from pbd.records import Assignment, TaskGroup

W = TypeVar("W")
"""The type of the work: a group of an assignment, or a call."""


class Dispatcher(Generic[W]):
    """The work that is left, and the order in which workers take it.

    A worker takes the next item of its own queue, then of the pool, then, if `steals`, the last item of the longest
    queue. Workers that join later have no queue.

    Args:
        queues: the queue of each worker.
        pool: what all workers draw from.
        steals: whether a worker with an empty queue takes from the queues of others.

    Example:
        >>> dispatcher = Dispatcher.of(Assignment("pull", ((), ()), (0.0, 0.0), pool=(first, second)))
        >>> dispatcher.take(worker=1) is first
        True
    """

    def __init__(self, queues: Iterable[Iterable[W]], pool: Iterable[W], steals: bool = False) -> None:
        self._queues = {worker: deque(queue) for worker, queue in enumerate(queues)}
        self._pool = deque(pool)
        self._steals = steals

    @classmethod
    def of(cls, assignment: Assignment) -> "Dispatcher[TaskGroup]":
        """Return the dispatcher of the groups of an assignment."""
        return Dispatcher(assignment.queues, assignment.pool, assignment.steals)

    def take(self, worker: int) -> W | None:
        """Remove and return the worker's next item; `None` if there is none for it."""
        queue = self._queues.get(worker)
        if queue:
            return queue.popleft()
        if self._pool:
            return self._pool.popleft()
        longest = max(self._queues.values(), key=len, default=None)
        return longest.pop() if self._steals and longest else None

    def put_back(self, item: W) -> None:
        """Put an item whose worker was lost at the head of the pool."""
        self._pool.appendleft(item)

    def lose(self, worker: int) -> None:
        """Move the queue of a lost worker to the end of the pool."""
        self._pool.extend(self._queues.pop(worker, ()))

    @property
    def left(self) -> int:
        """The number of items that no worker has taken."""
        return len(self._pool) + sum(map(len, self._queues.values()))
