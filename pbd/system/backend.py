"""Import Keras and what it runs on, quickly and in silence."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator

from pbd.errors import EnvironmentMismatchError

_UNUSED = ("matplotlib", "scipy", "sklearn")
"""What Keras and TensorFlow import where it is installed, for nothing that is used here: half the time they take."""
_spares_imports = False


def spare_imports() -> None:
    """Say that this process does what pbd does and nothing else, so that Keras may do without what only others use."""
    global _spares_imports
    _spares_imports = True


def load() -> None:
    """Import Keras and its backend in silence; where their messages are wanted, they are imported at their first use.

    Raises:
        EnvironmentMismatchError: there is none.
    """
    if "keras" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        return
    try:
        with _without(_UNUSED if _spares_imports else ()), _silence():
            importlib.import_module("keras")
    except ImportError as error:
        raise EnvironmentMismatchError(
            f"Keras needs a backend. Received: {error}. Install one: pip install 'pbd[cpu]' or 'pbd[gpu]'."
        ) from error


@contextlib.contextmanager
def _without(packages: Iterable[str]) -> Iterator[None]:
    """Have imports of packages fail as if they were not installed; those that are loaded stay."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep back the notices that TensorFlow's libraries print before logging is set up."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
