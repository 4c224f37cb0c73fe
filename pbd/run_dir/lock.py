"""One run at a time in a run directory: a lock of the kernel's, which falls free however its holder ends."""

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

from pbd.errors import CannotCreateError, EnvironmentMismatchError

NAME = "lock"
ASKING_S = 1.0
"""For how long a lock may be taken by those who only ask."""
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keep every other run, on any host that shares the directory, out of it.

    Raises:
        EnvironmentMismatchError: another run is at work there.
        CannotCreateError: the directory cannot be written to.
    """
    try:
        file = (run_dir / NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise CannotCreateError(f"cannot write to {run_dir}: {error.strerror}. Give another --run-dir.") from error
    with file:
        _take(file, run_dir)
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(json.dumps({"host": platform.node(), "process": os.getpid(), "since": now}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _take(file: Any, run_dir: Path) -> None:
    """Lock the file and empty it; who only asks who holds it, locks it for a moment, too."""
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() - began > ASKING_S:
                raise _taken(run_dir, _said_by(file)) from error
            time.sleep(0.02)
        except OSError as error:
            _log.warning("%s cannot be locked (%s): start no second run there.", run_dir, error.strerror)
            break
    file.truncate(0)


def check(run_dir: Path) -> None:
    """Refuse a directory where a run is at work.

    Raises:
        EnvironmentMismatchError: one is.
    """
    who = holder(run_dir)
    if who is not None:
        raise _taken(run_dir, who)


def holder(run_dir: Path) -> dict[str, Any] | None:
    """Return who is at work in the directory: host, process and since when; `None` where nobody is."""
    try:
        with (run_dir / NAME).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _said_by(file)
    except OSError:  # there is no lock, or none that works
        pass
    return None


def describe(who: dict[str, Any]) -> str:
    """Say who is at work."""
    return f"process {who.get('process', '?')} on {who.get('host', '?')} is at work since {who.get('since', '?')}"


def _taken(run_dir: Path, who: dict[str, Any]) -> EnvironmentMismatchError:
    return EnvironmentMismatchError(
        f"a run directory is for one run at a time. Received: {run_dir}, where {describe(who)}. "
        "Wait for it, or give another --run-dir."
    )


def _said_by(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except (ValueError, TypeError):  # it is just being written
        return {}
