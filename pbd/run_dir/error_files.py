"""Error files: an unexpected exception with its causes and tracebacks, or the output of a process that crashed.

They lie in the folder `errors` of the run directory. A process that crashes cannot write its file itself: it announces
its work to the worker that started it, which does.
"""

import contextlib
import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from pbd.collective import CollectiveAbortedError, CollectiveLostError
from pbd.errors import PbdError, describe
from pbd.run_dir.journal import Journal

FOLDER = "errors"
_LONGEST_NAME = 150
_MOST_OUTPUT = 20_000
"""At most this many characters of the output of a process are kept, the last ones."""
_NOTE = "The whole error is in "


@dataclass(frozen=True)
class ErrorTarget:
    """The run directory to which an error of some work is written, and the work."""

    journal: Journal
    task: str
    """Names the work, also in the file name."""
    member: int = 0
    """The worker's index in the collective that does the work."""
    layers: tuple[str, ...] = ()
    """The layers whose blocks the work trains."""


Observer = Callable[[ErrorTarget | None], object]
_observer: Observer = lambda target: None  # noqa: E731
_current: ErrorTarget | None = None


def observe(observer: Observer) -> None:
    """Call `observer` whenever this process begins or ends work; with `None` if it does none."""
    global _observer
    _observer = observer


@contextlib.contextmanager
def announced(target: ErrorTarget) -> Iterator[None]:
    """Announce the work of the block to the observer of this process, and at its end the work around it."""
    global _current
    around, _current = _current, target
    _observer(target)
    try:
        yield
    finally:
        _current = around
        _observer(around)


def write_crash(target: ErrorTarget, reason: str, process: int, output: str) -> str | None:
    """Write that a training process ended during its work; return the file's name, `None` if it cannot be written.

    Args:
        target: the work.
        reason: how the process ended.
        process: its number.
        output: what it wrote to its standard error, with the traceback of faulthandler if there is one.
    """
    header = _header(reason, target.task, process, target.member)
    header |= {"layers": ", ".join(target.layers)} if target.layers else {}
    return _write(target.journal, target.task, f"{_as_lines(header)}\n{output[-_MOST_OUTPUT:] or 'no output'}\n")


def write(journal: Journal, task: str, error: BaseException, member: int = 0) -> str | None:
    """Write an exception to a new file; return its name in the run directory, `None` if it cannot be written.

    Args:
        journal: the run directory; it is not created if this host does not see it.
        task: the work that raised the exception.
        error: the exception.
        member: the worker's index in the collective that did the work.
    """
    header = _header(describe(error), task, os.getpid(), member)
    return _write(journal, task, f"{_as_lines(header)}\n{''.join(traceback.format_exception(error))}")


def _write(journal: Journal, task: str, content: str) -> str | None:
    name = f"{FOLDER}/{quote(task, safe='@+ ')[:_LONGEST_NAME]}-{uuid.uuid4().hex[:8]}.txt"
    if not journal.path.is_dir():
        return None
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        journal.write_bytes(name, content.encode(errors="backslashreplace"))
        return name
    return None


def _header(error: str, task: str, process: int, member: int) -> dict[str, str]:
    import pbd

    versions = [f"pbd {pbd.__version__}", f"Python {platform.python_version()}"]
    versions += [f"Keras {sys.modules['keras'].__version__}"] if "keras" in sys.modules else []
    return {
        "error": error,
        "task": task,
        "host": platform.node(),
        "process": f"{process}, member {member} of its collective",
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": ", ".join(versions),
    }


def _as_lines(header: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\n" for name, value in header.items())


@contextlib.contextmanager
def recorded(journal: Journal, task: str, member: int = 0) -> Iterator[None]:
    """Write an unexpected exception of the block to a file, unless that was done before, and name the file in a note.

    Args:
        journal: the run directory.
        task: the work in the block.
        member: the worker's index in the collective that does the work.

    Raises:
        Exception: the exception itself.
    """
    try:
        with announced(ErrorTarget(journal, task, member)):
            yield
    except (PbdError, CollectiveAbortedError, CollectiveLostError):
        raise
    except Exception as error:
        if _note(error) is None and (name := write(journal, task, error, member)) is not None:
            error.add_note(f"{_NOTE}{journal.file(name)}")
        raise


def summary(error: BaseException) -> str | None:
    """Return the line that names an exception, its root cause and its file; `None` if the exception has no file."""
    note = _note(error)
    return None if note is None else f"{describe(error)}. {note}."


def _note(error: BaseException) -> str | None:
    return next((note for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE)), None)
