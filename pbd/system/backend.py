"""Import of Keras and its backend: fast, and without the notices that their libraries print."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator

from pbd.errors import EnvironmentMismatchError
from pbd.system import silence

_UNUSED = ("matplotlib", "scipy", "sklearn")
"""Optional imports of Keras and TensorFlow that pbd does not use: half of their import time."""
_skips_unused = False


def skip_unused_imports() -> None:
    """Let `load` hide packages that only other programs need; for processes that run nothing but pbd."""
    global _skips_unused
    _skips_unused = True


def load() -> None:
    """Import Keras and its backend silently; with verbose logging, leave the import to its first use.

    Raises:
        EnvironmentMismatchError: no backend is installed.
    """
    if "keras" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        return
    try:
        with _hidden(_UNUSED if _skips_unused else ()), _tensorflow_silenced():
            importlib.import_module("keras")
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"Keras needs a backend. Received: {error}. Install one: pip install 'pbd[cpu]' or 'pbd[gpu]'."
        ) from error


@contextlib.contextmanager
def _hidden(packages: Iterable[str]) -> Iterator[None]:
    """Let imports of packages fail in the block as if they were not installed; loaded packages stay."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # the stubs omit None, which blocks an import
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _tensorflow_silenced() -> Iterator[None]:
    """Discard what TensorFlow's libraries write to stderr before their logging is configured."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with silence.silenced(2):
        yield
