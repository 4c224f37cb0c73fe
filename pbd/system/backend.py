"""Keras' backend: which one it is, and its import, fast and without the notices that libraries print."""

import contextlib
import gc
import importlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from pbd.errors import EnvironmentMismatchError
from pbd.system import imports, silence

PREFERRED = ("tensorflow", "jax", "torch")
"""The backends, in the order in which an installed one replaces a missing one."""
VARIABLE = "KERAS_BACKEND"
_INSTALL = (
    "Install one: pip install 'pbd[cpu]' or 'pbd[gpu]' for TensorFlow, 'pbd[jax]', 'pbd[jax-cuda]' or 'pbd[torch]'."
)
_UNUSED = ("matplotlib", "sklearn", "scipy", "jax")
"""Optional imports of Keras and TensorFlow that pbd does not use: half of their import time."""
_NEEDED = {"jax": ("scipy", "jax")}
"""The imports among them that a backend cannot do without."""
_is_dedicated = False


def dedicate_process() -> None:
    """Let `load` be fast at the expense of other programs; for processes that run nothing but pbd.

    It hides packages that pbd does not use, and exempts what it has loaded from garbage collection.
    """
    global _is_dedicated
    _is_dedicated = True


def name() -> str:
    """Return the name of the backend: that of the loaded Keras, else the one that Keras will load."""
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        return keras.config.backend()
    return os.environ.get(VARIABLE) or _configured()


def choose() -> None:
    """Set `KERAS_BACKEND` to an installed backend if Keras would load one that is not installed.

    Keras' default is TensorFlow, and its import fails without it. A backend that the user has named in the environment
    stays, as does one in Keras' configuration file if it is installed.
    """
    if "keras" in sys.modules or os.environ.get(VARIABLE) or is_installed(_configured()):
        return
    installed = next(filter(is_installed, PREFERRED), None)
    if installed is not None:
        os.environ[VARIABLE] = installed


def use(coordinators: str) -> None:
    """Let this process, a worker, compute with the coordinator's backend.

    Raises:
        EnvironmentMismatchError: Keras is loaded with another backend.
    """
    if name() == coordinators:
        return
    if "keras" in sys.modules:
        raise EnvironmentMismatchError(
            f"all workers compute with the coordinator's backend. Received: {coordinators}, a worker that has loaded "
            f"{name()}. Start the workers again with {VARIABLE}={coordinators}."
        )
    os.environ[VARIABLE] = coordinators


def is_installed(package: str) -> bool:
    """Return whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def is_loaded() -> bool:
    """Return whether this process has loaded the backend's library, which then keeps its device and its threads."""
    return name() in sys.modules


def _configured() -> str:
    """Return the backend in Keras' configuration file, by default TensorFlow, as Keras reads it."""
    home = os.path.expanduser("~")
    folder = os.environ.get("KERAS_HOME") or os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    try:
        return json.loads(Path(folder, "keras.json").expanduser().read_text(encoding="utf-8"))["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return PREFERRED[0]


def load() -> None:
    """Import Keras and its backend silently; with verbose logging, leave the import to its first use.

    Raises:
        EnvironmentMismatchError: no backend is installed, or not the one that `KERAS_BACKEND` names.
    """
    if "keras" in sys.modules or os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") in ("", "0"):
        return
    unused = set(_UNUSED).difference(_NEEDED.get(name(), ())) if _is_dedicated else ()
    try:
        with imports.hidden(*unused), _libraries_silenced(), _garbage_kept():
            importlib.import_module("keras")
    except (ImportError, ValueError) as error:
        raise EnvironmentMismatchError(f"Keras needs a backend. Received: {name()}, {error}. {_INSTALL}") from error
    if _is_dedicated:
        gc.freeze()  # the modules stay to the end: no collection, nor that at the end, need look through them


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect no garbage in the block: an import makes little, and many objects to look through."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _libraries_silenced() -> Iterator[None]:
    """Discard what the libraries of a backend write to stderr before their logging is configured."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with silence.silenced(2):
        yield
