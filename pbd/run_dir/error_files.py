"""Error files: an unexpected exception with its causes and tracebacks, in the folder `errors` of the run directory."""

import contextlib
import os
import platform
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from urllib.parse import quote

from pbd.collective import CollectiveAbortedError, CollectiveLostError
from pbd.errors import PbdError, describe
from pbd.run_dir.journal import Journal

FOLDER = "errors"
_LONGEST_NAME = 150
_NOTE = "The whole error is in "


def write(journal: Journal, task: str, error: BaseException, member: int = 0) -> str | None:
    """Write an exception to a new file; return its name in the run directory, `None` if it cannot be written.

    Args:
        journal: the run directory; it is not created if this host does not see it.
        task: the work that raised the exception.
        error: the exception.
        member: the worker's index in the collective that did the work.
    """
    name = f"{FOLDER}/{quote(task, safe='@+ ')[:_LONGEST_NAME]}-{uuid.uuid4().hex[:8]}.txt"
    if not journal.path.is_dir():
        return None
    with contextlib.suppress(OSError):  # a full disk must not hide the exception itself
        journal.write_bytes(name, _content(task, error, member).encode(errors="backslashreplace"))
        return name
    return None


def _content(task: str, error: BaseException, member: int) -> str:
    import pbd

    versions = [f"pbd {pbd.__version__}", f"Python {platform.python_version()}"]
    versions += [f"Keras {sys.modules['keras'].__version__}"] if "keras" in sys.modules else []
    header = {
        "error": describe(error),
        "task": task,
        "host": platform.node(),
        "process": f"{os.getpid()}, member {member} of its collective",
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": ", ".join(versions),
    }
    lines = "".join(f"{name}: {value}\n" for name, value in header.items())
    return f"{lines}\n{''.join(traceback.format_exception(error))}"


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
