"""Load model files; the declarations in a foreign file are checked before they are built or take memory.

Keras itself refuses code, links and storage outside of the file. It accepts a file of three kilobytes that declares a
network of gigabytes, and weights that are NaN.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import numpy as np

from pbd.errors import BadInputError, UsageError
from pbd.networks import file_checks, file_remedies
from pbd.run_dir.journal import Journal
from pbd.system import initial_values, keras_state, memory, watchdog


@watchdog.waiting()
@initial_values.on_host()
def load(path: str) -> keras.Model:
    """Return the model in a foreign `.keras` or `.h5` file; no code in it is run.

    Raises:
        BadInputError: the file is damaged, too large, or contains something that pbd does not allow.
    """
    _check("a model file must be a whole Keras model", path)
    with _one_line_errors("a model file must be a whole Keras model", path, file_remedies.for_model):
        _load_without_variables(path)
        model = read(path)
        _check_finite(model)
    return model


@watchdog.waiting()
@initial_values.on_host()
def load_own(path: Path) -> keras.Model:
    """Return the model in a file that pbd itself wrote, in a run directory or in its cache.

    Unlike a foreign file it is not checked in another process. Callers that know the digest of the model compare it.

    Raises:
        BadInputError: the file is missing or damaged.
    """
    with _one_line_errors("a model file of pbd must be whole", str(path), file_remedies.for_damage):
        return read(path)


@watchdog.waiting()
def load_weights(model: keras.Model, path: str) -> None:
    """Load the weights in a foreign `.weights.h5` file into a model.

    Raises:
        BadInputError: the file is damaged, or its weights do not fit the model.
    """
    rule = f"teacher_weights must be those of {model.name}, whole"
    _check(rule, path, file_remedies.for_damaged_weights)
    with _one_line_errors(rule, path, file_remedies.for_weights):
        model.load_weights(path)
        _check_all_loaded(model, path)
        _check_finite(model)


def _check_all_loaded(model: keras.Model, path: str) -> None:
    """Check that a file has no further weights: Keras loads those of a larger network if the first shapes are equal."""
    names = list[str]()
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    in_file = sum("/vars/" in name and not name.startswith("optimizer/") for name in names)
    if in_file > len(model.weights):
        raise ValueError(f"the file has {in_file} weights, the network {len(model.weights)}")


def check_model(model: object) -> None:
    """Check that a network is a Keras model.

    Raises:
        UsageError: it is something else, such as the path of one.
    """
    if not isinstance(model, keras.Model):
        raise UsageError(
            f"a network must be a keras.Model. Received: {type(model).__name__}. Give keras.models.load_model(path)."
        )


def check_known(model: keras.Model) -> None:
    """Check that Keras can recreate each layer of a model from its configuration, as worker processes do.

    Raises:
        UsageError: it is no model.
        BadInputError: Keras does not know a layer or an object in its configuration.
    """
    check_model(model)
    for layer in model.layers:
        try:
            with keras_state.without_values():
                keras.layers.deserialize(keras.layers.serialize(layer))
        except Exception as error:
            raise BadInputError(
                f"Keras must be able to recreate each layer of the network. Received: {layer.name!r} "
                f"({type(layer).__name__}). Register your own with @keras.saving.register_keras_serializable(), or "
                "call pbd in a keras.saving.custom_object_scope; replace a Lambda by such a layer."
            ) from error


def _check(rule: str, path: str, explain: file_remedies.Explain = file_remedies.for_damage) -> None:
    with _one_line_errors(rule, path, explain):
        file_checks.check_apart(path, memory.free_host_memory())


@contextlib.contextmanager
def _one_line_errors(rule: str, path: str, explain: file_remedies.Explain) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason, remedy = explain(path, error)
        raise BadInputError(f"{rule}. Received: {path!r}: {reason}. {remedy}") from error


def _load_without_variables(path: str) -> None:
    """Load the file without creating variables: every variable must find weights of its shape in the file.

    So no layer can take more memory than the file, whose size was checked.

    Raises:
        Exception: configuration and weights do not fit; the type is Keras' choice.
    """
    with keras_state.without_values():
        read(path)


def _check_finite(model: keras.Model) -> None:
    for variable in model.variables:
        if variable.dtype.startswith(("float", "bfloat")) and not np.isfinite(np.asarray(variable, np.float32)).all():
            raise ValueError(f"{variable.path} {file_remedies.NOT_FINITE}")


def read(path: str | Path) -> keras.Model:
    """Return the model in a file, not compiled, as Keras reads it; errors are Keras'."""
    keras_state.remember_skipped_attributes()
    return keras.models.load_model(path, compile=False, safe_mode=True)


def model_bytes(model: keras.Model) -> bytes:
    """Return the model as the content of a `.keras` file."""
    keras_state.remember_skipped_attributes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def save_model(journal: Journal, name: str, model: keras.Model) -> Path:
    """Write the model into the run directory, atomically, and return its path."""
    return journal.write_bytes(name, model_bytes(model))
