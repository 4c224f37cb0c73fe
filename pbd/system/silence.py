"""Silence for libraries that print progress and notices, also from native code."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(*descriptors: int) -> Iterator[None]:
    """Discard in the block what this process writes to file descriptors, by default to standard output and error.

    With the default, Python's streams are discarded too: in a notebook, for example, they are not those descriptors.
    Python's warnings are written to standard error.
    """
    chosen = descriptors or (1, 2)
    _flush()
    kept, null = {number: os.dup(number) for number in chosen}, os.open(os.devnull, os.O_WRONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, null)
        for number, copy in kept.items():
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(null, number)
        stack.callback(_flush)
        if not descriptors:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
