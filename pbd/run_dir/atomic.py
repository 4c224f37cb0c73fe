"""Files that are written atomically, and the error for a disk that cannot be written."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pbd.errors import CannotWriteError

TEMPORARY = f".{'[0-9a-f]' * 32}.tmp"
"""Pattern of the names under which files are written before they are renamed; a killed process leaves such a file."""
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


def write_atomically(target: Path, data: bytes, parents: bool = True) -> Path:
    """Write `data` to `target` atomically: even if the process dies, the file has its old content or all of the new.

    Raises:
        CannotWriteError: the disk is full, read-only or defective; no partial file is left.
        OSError: the file cannot be written for another reason.
    """
    with open_atomically(target, parents) as stream:
        stream.write(data)
    return target


@contextlib.contextmanager
def open_atomically(target: Path, parents: bool = True) -> Iterator[BinaryIO]:
    """Open `target` for writing; it keeps its old content until the block ends without an error.

    Args:
        target: its folder is created if it does not exist.
        parents: whether the folders above that folder are created, too.

    Raises:
        CannotWriteError: the disk is full, read-only or defective; no partial file is left.
        OSError: the file cannot be written for another reason.
    """
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    with disk_errors(target.parent):
        target.parent.mkdir(parents=parents, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise a `CannotWriteError` if the disk cannot be written in the block.

    Args:
        folder: the folder to which the block writes.

    Raises:
        CannotWriteError: the disk is full, read-only or defective.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        failure = CannotWriteError(
            f"the disk must have space and be writable. Received: {folder}: {error.strerror}. Free space or repair the "
            "disk. A run that has begun goes on with --resume --run-dir DIR."
        )
        failure.strerror = error.strerror
        raise failure from error


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not support it; the file itself is synced
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
