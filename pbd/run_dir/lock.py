"""The lock of a run directory: one run at a time.

It is a `flock` of the kernel's, which is released however its holder ends. The lock file contains the holder as JSON.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pbd.errors import CannotCreateError, CannotWriteError, EnvironmentMismatchError
from pbd.run_dir.atomic import disk_errors

NAME = "lock"
RETRY_S = 1.0
"""How long to try again: `holder` locks the file for a moment, too."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Lock a run directory for the block, against runs on all hosts that share it.

    Raises:
        EnvironmentMismatchError: another run has locked it.
        CannotCreateError: the directory is not writable.
        CannotWriteError: the disk is full, read-only or defective.
    """
    try:
        with disk_errors(run_dir):  # on a full disk, a buffer would fail once more when it is closed
            file = (run_dir / NAME).open("ab+", buffering=0)
    except CannotWriteError:
        raise
    except OSError as error:
        raise CannotCreateError(f"cannot write to {run_dir}: {error.strerror}. Give another --run-dir.") from error
    with file:
        _acquire(file, run_dir)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        owner = {"host": platform.node(), "process": os.getpid(), "since": since}
        with disk_errors(run_dir):
            file.truncate(0)
            file.write(json.dumps(owner).encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # what it says counts only while the file is locked
                file.truncate(0)


@contextlib.contextmanager
def starting(run_dir: Path) -> Iterator[None]:
    """Lock the folder itself for the block, in which a run directory is made; a second process waits.

    It leaves no file behind. Where the file system has no locks for folders, nothing is locked.
    """
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _acquire(file: Any, run_dir: Path) -> None:
    began = time.monotonic()
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() - began > RETRY_S:
                raise _locked(run_dir, _read(file)) from error
            time.sleep(0.02)
        except OSError as error:  # the file system has no locks
            return _log.warning("%s cannot be locked (%s): start no second run there.", run_dir, error.strerror)


def check(run_dir: Path) -> None:
    """Refuse a directory that a run has locked.

    Raises:
        EnvironmentMismatchError: a run has locked it.
    """
    owner = holder(run_dir)
    if owner is not None:
        raise _locked(run_dir, owner)


def holder(run_dir: Path) -> dict[str, Any] | None:
    """Return host, process and start time of the run that has locked the directory; `None` if it is not locked."""
    try:
        with (run_dir / NAME).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(file)
    except OSError:  # there is no lock file, or the file system has no locks
        pass
    return None


def describe(owner: dict[str, Any]) -> str:
    """Return who has locked a directory, in words."""
    return f"process {owner.get('process', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}"


def _locked(run_dir: Path, owner: dict[str, Any]) -> EnvironmentMismatchError:
    return EnvironmentMismatchError(
        f"a run directory is for one run at a time. Received: {run_dir}, which is used by {describe(owner)}. "
        "Wait for it, or give another --run-dir."
    )


def _read(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except (ValueError, TypeError, RecursionError):  # its holder is just writing it
        return {}
