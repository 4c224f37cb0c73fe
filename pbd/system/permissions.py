"""Permissions of input files: they are checked first, since `Path.exists` and Keras report them in other ways."""

import os

from pbd.errors import MissingInputError


def check_readable(what: str, path: str | os.PathLike[str]) -> None:
    """Check that this user may read a file or a folder; a path that does not exist passes.

    Args:
        what: the input, for the message.
        path: the path of the input.

    Raises:
        MissingInputError: the file, or a folder above it, is closed to this user.
    """
    try:
        os.stat(path)
    except PermissionError:
        readable = False
    except OSError:  # it does not exist: the caller's message says so
        return
    else:
        readable = os.access(path, os.R_OK)
    if not readable:
        raise MissingInputError(
            f"{what} must be readable. Received: {os.fspath(path)!r}: Permission denied. Check its permissions, and "
            "those of the folders above it."
        )
