"""Reasons why Keras does not load a model file, and what the user can do about each."""

import contextlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py

from pbd.errors import one_line, root_cause

Explain = Callable[[str, Exception], tuple[str, str]]
HDF5_SUFFIXES = (".h5", ".hdf5")
_OTHERWISE = "Save the model again with Keras 3: model.save('teacher.keras')."
_WEIGHTS_ONLY = (
    "it holds weights without a network",
    "Save the whole model: model.save('teacher.keras'). For a network that pbd builds: "
    "--teacher NAME --teacher-weights FILE.",
)
_UNKNOWN_OBJECT = (
    "Decorate the class with @keras.saving.register_keras_serializable(), import it, "
    "and pass the model from Python: pbd.distill(model, ...)."
)


def for_damage(path: str, error: Exception) -> tuple[str, str]:
    """Return the reason why a file did not pass the checks, without its full stop, and the remedy; do not read it."""
    reason = one_line(error)
    if reason.endswith("that are free"):
        return reason, "Use a host with more free memory."
    return reason, "Copy the file again, or save the model again with Keras 3: model.save('teacher.keras')."


def for_weights(path: str, error: Exception) -> tuple[str, str]:
    """Return the reason why weights do not fit a network, without its full stop, and the remedy."""
    return one_line(root_cause(error)), (
        "Give the file that save_weights('teacher.weights.h5') of the same network writes, for as many classes."
    )


def for_model(path: str, error: Exception) -> tuple[str, str]:
    """Return the reason why Keras did not load a file that passed the checks, without its full stop, and the remedy."""
    root = root_cause(error)
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
    if "Could not locate class" in messages or "custom_objects" in messages:
        return one_line(root), _UNKNOWN_OBJECT
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
