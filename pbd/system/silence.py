"""Silence for libraries that print progress and notices, also from native code."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Collection, Iterator

_ERROR = 2
_kept_errors: list[int] = []
"""Copies of the descriptor of standard error while it is silenced, the outermost block's first."""


@contextlib.contextmanager
def silenced(*descriptors: int) -> Iterator[None]:
    """Discard in the block what this process writes to file descriptors, by default to standard output and error.

    With the default, Python's streams are discarded too: in a notebook, for example, they are not those descriptors.
    Python's warnings are written to standard error. A descriptor that is closed stays closed.
    """
    _flush()
    kept, null = dict[int, int](), os.open(os.devnull, os.O_WRONLY)
    for number in descriptors or (1, 2):
        if number != null:
            with contextlib.suppress(OSError):
                kept[number] = os.dup(number)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, null)
        for number, copy in kept.items():
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(null, number)
        if _ERROR in kept:
            _kept_errors.append(kept[_ERROR])
            stack.callback(_kept_errors.remove, kept[_ERROR])
        stack.callback(_flush)
        stack.callback(_remove_log_handlers_but, tuple(logging.root.handlers))
        if not descriptors:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def print_error(text: str) -> None:
    """Print text to this process's standard error, even within `silenced`, from any thread.

    For the last message of a process that is about to end: if standard error is closed, nothing is printed.
    """
    with contextlib.suppress(OSError, ValueError):
        if sys.__stderr__ is not None:
            sys.__stderr__.flush()
    data = f"{text}\n".encode(errors="replace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(_kept_errors[0] if _kept_errors else _ERROR, data) :]


def _remove_log_handlers_but(kept: Collection[logging.Handler]) -> None:
    """Remove what libraries added to the root logger: it writes to streams that are discarded, and to nothing later."""
    for handler in set(logging.root.handlers).difference(kept):
        logging.root.removeHandler(handler)


def _flush() -> None:
    """Flush Python's streams; one is `None` if its descriptor was closed when this process started."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
