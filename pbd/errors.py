"""Errors that a user can act on, each with the exit code `pbd-run` ends with (see sysexits.h)."""

import difflib
import re
from collections.abc import Iterable


class PbdError(Exception):
    """Base class: a one-line message (rule, what was received, remedy) and an exit code."""

    exit_code = 70


class UsageError(PbdError, ValueError):
    """A setting is out of its range, unknown, or contradicts another one."""

    exit_code = 2


class InfeasibleBudgetError(UsageError):
    """No choice of the candidates keeps within a budget."""


class BadInputError(PbdError, ValueError):
    """The teacher or the data was found, but cannot be used."""

    exit_code = 65


class MissingInputError(PbdError, FileNotFoundError):
    """The teacher or the data does not exist or cannot be read."""

    exit_code = 66


class NoWorkersError(PbdError):
    """There are too few workers, the scheduler has terminated, or a process was lost at every attempt.

    Args:
        cause: what happened, without a final period.
        remedy: how to go on once the run has ended.
    """

    exit_code = 69

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause = cause

    def __str__(self) -> str:
        return ". ".join(self.args)


class CannotCreateError(PbdError, OSError):
    """The run directory cannot be created, or holds another run."""

    exit_code = 73


class CannotWriteError(PbdError, OSError):
    """A disk is full, read-only or defective."""

    exit_code = 74


class StoppedError(PbdError):
    """A signal stopped the run; what is finished is in the run directory."""

    exit_code = 75

    def __init__(self, message: str = "stopped. Finished blocks are kept: go on with --resume --run-dir DIR.") -> None:
        super().__init__(message)


class CorruptStateError(PbdError):
    """The run directory is damaged, or belongs to a run with another teacher, other data or settings of the blocks."""

    exit_code = 76


class EnvironmentMismatchError(PbdError):
    """Launcher, packages, GPUs or cluster do not fit the run, or another run holds the lock of the run directory."""

    exit_code = 78


FINISHED_WITH_FAILED_BLOCKS = 79
_LONGEST_REASON = 400
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Colour codes of terminals; Keras has them in messages."""


def root_cause(error: BaseException) -> BaseException:
    """Return the first exception of a chain: the one that all others were raised from, or while handling."""
    seen = {id(error)}
    while True:
        earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if earlier is None or id(earlier) in seen:
            return error
        error = earlier
        seen.add(id(error))


def one_line(error: BaseException, limit: int = _LONGEST_REASON) -> str:
    """Return the message of an exception as one line, shortened in its middle: libraries put the cause first or last.

    Args:
        error: the exception; without a message its type stands for it.
        limit: the largest number of characters.
    """
    line = " ".join(_COLOURS.sub("", str(error)).split()).rstrip(".") or type(error).__name__
    first, last = limit // 4, limit - limit // 4
    return line if len(line) <= limit else f"{line[:first]} … {line[-last:]}"


def describe(error: BaseException) -> str:
    """Return type and message of an exception and, if it has another, of its root cause, as one line."""
    root = root_cause(error)
    if root is error:
        return f"{type(error).__name__}: {one_line(error)}"
    return f"{type(error).__name__}: {one_line(error, _LONGEST_REASON // 2)} (root cause: {describe(root)})"


def unknown_name(kind: str, received: str, names: Iterable[str]) -> str:
    """Return the line that says `received` is no known `kind`, with the nearest name."""
    choices = sorted(names)
    near = difflib.get_close_matches(received, choices, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Choose from: {', '.join(choices)}."
    return f"unknown {kind}. Received: {received!r}. {hint}"
