"""The temporary folder of a training process; if its worker was killed, a later training process removes it."""

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = f"pbd_child_{platform.node()}_"
"""The prefix has the host, because the locks of a file system that hosts share may hold on one host only."""
_LOCK = "lock"
_YOUNG_S = 60.0
"""The age from which a folder counts as abandoned: its worker locks it a moment after it has made it."""


class ScratchFolder:
    """A temporary folder that is locked as long as its worker runs: the kernel releases the lock."""

    def __init__(self) -> None:
        _remove_abandoned()
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        self.name = self._folder.name
        self._lock = Path(self.name, _LOCK).open("wb")  # noqa: SIM115
        with contextlib.suppress(OSError):  # the file system has no locks: then the folder never counts as abandoned
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def cleanup(self) -> None:
        """Remove the folder."""
        self._lock.close()
        self._folder.cleanup()


def _remove_abandoned() -> None:
    """Remove folders of this user, and made on this host, whose workers have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            is_young = time.time() - path.stat().st_mtime < _YOUNG_S
            if is_young or path.parent.lstat().st_uid != os.getuid():
                continue
            with path.open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises an error if its worker runs
                shutil.rmtree(path.parent, ignore_errors=True)
