"""Dispatch of an assignment's groups to workers that become available, are lost, or join; for replays and for Dask."""

from collections import deque

from pbd.records import Assignment, TaskGroup


class Dispatcher:
    """The remaining groups of an assignment, and the order in which workers take them.

    A worker takes the next group of its own queue, then of the pool, then, if the assignment steals, the last group of
    the longest queue. Workers that joined after the assignment was made have no queue.

    Example:
        >>> dispatcher = Dispatcher(Assignment("pull", ((), ()), (0.0, 0.0), pool=(first, second)))
        >>> dispatcher.take(worker=1) is first
        True
    """

    def __init__(self, assignment: Assignment) -> None:
        self._queues = {worker: deque(queue) for worker, queue in enumerate(assignment.queues)}
        self._pool = deque(assignment.pool)
        self._steals = assignment.steals

    def take(self, worker: int) -> TaskGroup | None:
        """Remove and return the worker's next group; `None` if there is none for it."""
        queue = self._queues.get(worker)
        if queue:
            return queue.popleft()
        if self._pool:
            return self._pool.popleft()
        longest = max(self._queues.values(), key=len, default=None)
        return longest.pop() if self._steals and longest else None

    def put_back(self, group: TaskGroup) -> None:
        """Put a group whose worker was lost at the head of the pool."""
        self._pool.appendleft(group)

    def lose(self, worker: int) -> None:
        """Move the queue of a lost worker to the end of the pool."""
        self._pool.extend(self._queues.pop(worker, ()))

    @property
    def left(self) -> int:
        """The number of groups that no worker has taken."""
        return len(self._pool) + sum(map(len, self._queues.values()))
