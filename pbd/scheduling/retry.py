"""What is tried in place of a group whose process was lost: less at a time, until whoever is to blame is alone."""

from pbd.records import TaskGroup

MOST_ATTEMPTS = 3
"""How often a task is begun before it is given up."""


def again(group: TaskGroup) -> tuple[TaskGroup, ...]:
    """Return the next attempt at the tasks of a group: its halves, the last time each task alone; nothing after that.

    A task that loses its process every time so costs nobody but itself, and an accident costs little.

    Example:
        >>> [part.layer_names for part in again(TaskGroup((stem, middle, head)))]
        [('stem', 'middle'), ('head',)]
    """
    if group.attempt >= MOST_ATTEMPTS:
        return ()
    attempt, size = group.attempt + 1, len(group.tasks)
    each = 1 if attempt == MOST_ATTEMPTS else (size + 1) // 2
    return tuple(TaskGroup(group.tasks[at : at + each], attempt=attempt) for at in range(0, size, each))
