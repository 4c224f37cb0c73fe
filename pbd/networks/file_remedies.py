"""Reasons why Keras does not load a model file, and what the user can do about each."""

import contextlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py

from pbd.errors import one_line, root_cause

Explain = Callable[[str, Exception], tuple[str, str]]
NOT_FINITE = "has values that are not finite"
HDF5_SUFFIXES = (".h5", ".hdf5")
_OTHERWISE = "Save the model again with Keras 3: model.save('teacher.keras')."
_DIVERGED = "Its training diverged: give weights from before that, or train it again."
_WEIGHTS_ONLY = (
    "it holds weights without a network",
    "Save the whole model: model.save('teacher.keras'). For a network that pbd builds: "
    "--teacher NAME --teacher-weights FILE.",
)


def for_damage(path: str, error: Exception) -> tuple[str, str]:
    """Return the reason why a file did not pass the checks, without its full stop, and the remedy; do not read it."""
    return _for_damage(error, "save the model again with Keras 3: model.save('teacher.keras')")


def for_damaged_weights(path: str, error: Exception) -> tuple[str, str]:
    """Return the same for a file of weights."""
    return _for_damage(error, "save the weights again with Keras 3: model.save_weights('teacher.weights.h5')")


def _for_damage(error: Exception, otherwise: str) -> tuple[str, str]:
    reason = one_line(error)
    if reason.endswith("that are free"):
        return reason, "Use a host with more free memory."
    return reason, f"Copy the file again, or {otherwise}."


def for_weights(path: str, error: Exception) -> tuple[str, str]:
    """Return the reason why weights do not fit a network, without its full stop, and the remedy."""
    reason = one_line(root_cause(error))
    if reason.endswith(NOT_FINITE):
        return reason, _DIVERGED
    return reason, (
        "Give the file that save_weights('teacher.weights.h5') of the same network writes, for as many classes."
    )


def for_model(path: str, error: Exception) -> tuple[str, str]:
    """Return the reason why Keras did not load a file that passed the checks, without its full stop, and the remedy."""
    root = root_cause(error)
    if one_line(root).endswith(NOT_FINITE):
        return one_line(root), _DIVERGED
    messages = f"{error} {root}"
    wrong_suffix = _wrong_suffix(path)
    if wrong_suffix is not None:
        return wrong_suffix
    if "Lambda" in messages and "safe_mode" in messages:
        return "it has a Lambda layer, whose code pbd does not run", _without_lambda(path)
    if _holds_weights_only(path):
        return _WEIGHTS_ONLY
    version = keras_version(path)
    if version is not None and version < "3":
        return f"{one_line(root)}; Keras {version} wrote it", _convert(path)
    if any(words in messages for words in ("Could not locate", "Unknown layer", "custom_objects")):
        return one_line(root), _with_own_class(messages)
    return one_line(root), _OTHERWISE


def keras_version(path: str) -> str | None:
    """Return the version of the Keras that wrote a file; `None` if the file does not contain it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json"))["keras_version"])
        with h5py.File(path, "r") as file:
            return str(file.attrs["keras_version"])
    return None


def _wrong_suffix(path: str) -> tuple[str, str] | None:
    """Return reason and remedy if Keras, which selects the format by the suffix, reads the file as another format."""
    named_hdf5, is_archive = path.endswith(HDF5_SUFFIXES), zipfile.is_zipfile(path)
    if is_archive == h5py.is_hdf5(path):  # neither of the two formats, or both
        return None
    if is_archive and not path.endswith(".keras"):
        return "it is a .keras archive by its content", f"Rename it to {Path(path).with_suffix('.keras').name}."
    if not is_archive and not named_hdf5:
        return "it is an HDF5 file by its content", f"Rename it to {Path(path).with_suffix('.h5').name}."
    return None


def _holds_weights_only(path: str) -> bool:
    if not h5py.is_hdf5(path):
        return False
    with contextlib.suppress(OSError), h5py.File(path, "r") as file:
        return "model_config" not in file.attrs and "model_weights" not in file
    return False


def _with_own_class(messages: str) -> str:
    """Return how to load a file with a class that Keras does not know; workers find it only if it is registered."""
    function = re.search(r"Could not locate function '([^']+)'", messages)
    match = function or re.search(
        r"Could not locate class .*?'registered_name': '([^']+)'|Unknown layer: '([^']+)'", messages, re.S
    )
    name = next(filter(None, match.groups())) if match else "NAME"
    kind = "function" if function else "class"
    return (
        f"Decorate the {kind} with @keras.saving.register_keras_serializable(), load the file with "
        f"keras.models.load_model(FILE, custom_objects={{{name!r}: {name.rpartition('>')[2]}}}), and pass the model "
        "from Python: pbd.distill(model, ...)."
    )


def _convert(path: str) -> str:
    """Return how to load a file of Keras 2: Keras 3 reads the weights of its HDF5 files, in the order of the layers."""
    file = Path(path).with_suffix(".h5").name
    save = "" if path.endswith(HDF5_SUFFIXES) else f"Save it with that Keras as {file}. "
    return (
        f"{save}Build the same network with Keras 3, call its load_weights('{file}'), and pass it from Python: "
        "pbd.distill(model, ...)."
    )


def _without_lambda(path: str) -> str:
    return (
        "Write the Lambda as a layer class with @keras.saving.register_keras_serializable(), build the network with "
        f"it, call its load_weights('{Path(path).name}'), and pass it from Python: pbd.distill(model, ...)."
    )
