"""Patterns that select layers by their names: globs, of which those that begin with ^ exclude layers."""

import fnmatch
from collections.abc import Iterable, Sequence

from pbd.errors import UsageError, unknown_name


def check(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Check that each pattern matches a layer.

    Args:
        patterns: globs over names.
        names: the names of all layers.

    Raises:
        UsageError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern.removeprefix("^")) for name in names):
            mark = "^" if pattern.startswith("^") else ""
            raise UsageError(unknown_name("layer or pattern", pattern, [mark + name for name in names]))


def selects(patterns: Sequence[str], name: str) -> bool:
    """Return whether the patterns select a layer: it is not excluded, and matches one of the others, if there are any.

    Args:
        patterns: globs over names; none selects all.
        name: the name of the layer.
    """
    included = [pattern for pattern in patterns if not pattern.startswith("^")]
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("^")]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in excluded):
        return False
    return not included or any(fnmatch.fnmatchcase(name, pattern) for pattern in included)
