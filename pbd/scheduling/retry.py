"""The next attempt at a group whose training process was lost: smaller groups, until the cause is isolated."""

from pbd.records import TaskGroup

MOST_ATTEMPTS = 3
"""The number of attempts after which a task fails."""


def split_for_retry(group: TaskGroup) -> tuple[TaskGroup, ...]:
    """Return the next attempt at a group: two halves, at the last attempt single tasks, then nothing.

    A task that always crashes only fails itself; a one-off crash costs half a group.

    Example:
        >>> [part.layer_names for part in split_for_retry(TaskGroup((stem, middle, head)))]
        [('stem', 'middle'), ('head',)]
    """
    if group.attempt >= MOST_ATTEMPTS:
        return ()
    attempt, size = group.attempt + 1, len(group.tasks)
    group_size = 1 if attempt == MOST_ATTEMPTS else (size + 1) // 2
    return tuple(TaskGroup(group.tasks[at : at + group_size], attempt=attempt) for at in range(0, size, group_size))
