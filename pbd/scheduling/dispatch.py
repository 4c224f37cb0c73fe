"""Hand out an assignment's groups while workers come free, are lost, or join: the same rule in replays and on Dask."""

from collections import deque

from pbd.records import Assignment, TaskGroup


class Dispatcher:
    """Knows what is left to do, and what a worker does next.

    A worker takes the next group of its own queue, then of the pool, then, where the assignment steals, the last group
    of the longest queue. Workers that are not in the assignment (they joined later) have no queue of their own.

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
        """Return the worker's next group, which is no longer left to do; `None` where there is nothing for it."""
        queue = self._queues.get(worker)
        if queue:
            return queue.popleft()
        if self._pool:
            return self._pool.popleft()
        longest = max(self._queues.values(), key=len, default=None)
        return longest.pop() if self._steals and longest else None

    def put_back(self, group: TaskGroup) -> None:
        """Take back a group whose worker was lost: it is the next of the pool."""
        self._pool.appendleft(group)

    def lose(self, worker: int) -> None:
        """Move the queue of a worker that is gone to the pool."""
        self._pool.extend(self._queues.pop(worker, ()))

    @property
    def left(self) -> int:
        """How many groups nobody has taken yet."""
        return len(self._pool) + sum(map(len, self._queues.values()))
