"""Read a model file that somebody else made: what it declares is checked before it is built or takes memory.

Keras itself refuses code, links and storage outside of the file. It does not stop a file of three kilobytes that
declares a network of gigabytes, nor weights that are no numbers.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from pbd.errors import BadInputError
from pbd.networks import file_checks
from pbd.system import keras_state, memory

MEMORY_IF_UNKNOWN = 16 * 2**30
"""Bytes that are taken to be free where the system does not say."""
_DEFERRED = "uninitialized_variables"  # where Keras keeps what a stateless scope did not create


def load(path: str) -> keras.Model:
    """Return the model in a `.keras` or `.h5` file; nothing in it is run.

    Raises:
        BadInputError: it is damaged, or wants what pbd does not allow.
    """
    with _said_in_one_line("a model file must be a whole Keras model", path):
        _check(path)
        _rehearse(path)
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        _check_finite(model)
    return model


def load_own(path: Path) -> keras.Model:
    """Return the model in a file that pbd itself wrote; unlike a foreign file it is not checked in another process.

    Raises:
        BadInputError: the file is missing or damaged.
    """
    with _said_in_one_line("a model file of pbd must be whole", str(path)):
        return keras.models.load_model(path, compile=False, safe_mode=True)


def load_weights(model: keras.Model, path: str) -> None:
    """Give a model the weights in a `.weights.h5` file.

    Raises:
        BadInputError: it is damaged, or its weights are another model's.
    """
    with _said_in_one_line(f"teacher_weights must be those of {model.name}, whole", path):
        _check(path)
        model.load_weights(path)
        _check_finite(model)


def check_known(model: keras.Model) -> None:
    """Check that Keras can make each layer of a model again, as every process that trains has to.

    Raises:
        BadInputError: it does not know a layer, or something that is in it.
    """
    for layer in model.layers:
        try:
            with _without_variables():
                keras.layers.deserialize(keras.layers.serialize(layer))
        except Exception as error:
            raise BadInputError(
                f"each layer of the teacher must be one that Keras can make again. Received: {layer.name!r} "
                f"({type(layer).__name__}). Register your own with @keras.saving.register_keras_serializable(), or "
                "call pbd in a keras.saving.custom_object_scope; write a Lambda as such a layer."
            ) from error


def _check(path: str) -> None:
    free = memory.free_host_memory()
    file_checks.check_apart(path, MEMORY_IF_UNKNOWN if free is None else free)


@contextlib.contextmanager
def _said_in_one_line(rule: str, path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(f"{rule}. Received: {path!r}: {reason[:300]}") from error


def _rehearse(path: str) -> None:
    """Load the file without creating a variable: each must find weights of its shape, and those are no larger than it.

    Raises:
        Exception: Keras' own, where it does not fit together.
    """
    with _without_variables():
        keras.models.load_model(path, compile=False, safe_mode=True)


@contextlib.contextmanager
def _without_variables() -> Iterator[None]:
    before = list(keras_state.get_attribute(_DEFERRED, []))  # Keras adds to the list itself
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        keras_state.set_attribute(_DEFERRED, before)  # else Keras would create them at the next occasion


def _check_finite(model: keras.Model) -> None:
    for variable in model.variables:
        if variable.dtype.startswith(("float", "bfloat")) and not np.isfinite(np.asarray(variable, np.float32)).all():
            raise ValueError(f"{variable.path} holds values that are no finite numbers")


def model_bytes(model: keras.Model) -> bytes:
    """Return the model as the content of a `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def model_digest(model: keras.Model) -> str:
    """Return a SHA-256 over the model's structure and weights."""
    digest = hashlib.sha256(json.dumps([type(layer).__name__ for layer in model.layers]).encode())
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
