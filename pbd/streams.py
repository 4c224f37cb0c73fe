"""Standard output and standard error, whose reader, terminal or disk may be gone before the work is done."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO

_LAST_STANDARD = 2
"""The descriptor of standard error."""


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Let the command end with its exit code, whatever becomes of standard output and standard error.

    Characters that standard output cannot encode are replaced. What could not be written is discarded at the end, where
    Python would try again, and end with code 120. Standard descriptors that are closed are opened, lest a file or a
    connection get their numbers, to which libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError):
                discard(stream)


def discard(stream: IO[str]) -> None:
    """Discard what a stream still buffers, and what is written to it from now on: neither must fail later."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor, or is closed
        descriptor = stream.fileno()
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), descriptor)
