"""Checks of model files in forked processes: as many as a fuzzer needs, where each fresh Python would take 0.2 s."""

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pbd.networks import file_checks


def _check(path: str, free: int, connection: multiprocessing.connection.Connection) -> None:
    """Be the process that `file_checks.check_apart` starts; what it writes to stdout goes to the connection."""
    sys.stdout = io.TextIOWrapper(io.BytesIO())
    code = file_checks.main(path, free)
    connection.send_bytes(sys.stdout.buffer.getvalue())
    sys.exit(code)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """While the block lasts, `file_checks.check_apart` forks a server that has loaded h5py and nothing else heavy.

    Each check still has a process with limits of its own. Only in a main program that loads little itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", file_checks.__name__])

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        *_, path, free = command
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_check, args=(path, int(free), theirs))
        process.start()
        theirs.close()
        try:
            said = ours.recv_bytes()
        except EOFError:  # it was ended by a signal
            said = b""
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode, said, b"")

    with mock.patch.object(file_checks, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL)):
        yield
