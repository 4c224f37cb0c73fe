"""Read a model file that somebody else made: what it declares is checked before it is built or takes memory.

Keras itself refuses code, links and storage outside of the file. It does not stop a file of three kilobytes that
declares a network of gigabytes, nor weights that are no numbers.
"""

import contextlib
import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import h5py
import keras
import numpy as np
from keras.src.backend.common import global_state

from pbd import devices
from pbd.errors import BadInputError

EXPANSION = 100
"""How many times the bytes that it takes in the file a part may hold when unpacked; weights hardly shrink by half."""
UNSUSPICIOUS = 64 * 2**20
"""Bytes that any part may hold when unpacked."""
SHARE_OF_MEMORY = 0.5
"""Of the host's free memory: what all weights may take."""
MEMORY_IF_UNKNOWN = 16 * 2**30
"""Bytes that are taken to be free where the system does not say."""
MOST_VALUES = 2**26
"""In any shape that a layer declares, batch aside."""
_DEFERRED = "uninitialized_variables"  # where Keras keeps what a stateless scope did not create


def load(path: str) -> keras.Model:
    """Return the model in a `.keras` or `.h5` file; nothing in it is run.

    Raises:
        BadInputError: it is damaged, or wants what pbd does not allow.
    """
    with _said_in_one_line("the teacher must be a whole Keras model", path):
        check(path)
        _rehearse(path)
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        _check_finite(model)
    return model


def load_weights(model: keras.Model, path: str) -> None:
    """Give a model the weights in a `.weights.h5` file.

    Raises:
        BadInputError: it is damaged, or its weights are another model's.
    """
    with _said_in_one_line(f"teacher_weights must be those of {model.name}, whole", path):
        check(path)
        model.load_weights(path)
        _check_finite(model)


def check(path: str) -> None:
    """Check what a file says of itself, without believing it.

    Raises:
        ValueError: it is not an archive of Keras', nor HDF5, or declares what cannot be in it.
    """
    is_archive, is_hdf5 = zipfile.is_zipfile(path), h5py.is_hdf5(path)
    if is_archive == is_hdf5:  # what is both would be checked as the one and read as the other
        raise ValueError("it is empty, cut off, or of another format")
    if is_hdf5:
        with open(path, "rb") as file:
            _check_hdf5(file)
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _check_member(member)
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
        for name in ("config.json", "model.weights.h5"):
            if name not in archive.namelist():
                raise ValueError(f"it has no {name}")
        _check_shapes(json.loads(archive.read("config.json")))
        _check_hdf5(io.BytesIO(archive.read("model.weights.h5")))


@contextlib.contextmanager
def _said_in_one_line(rule: str, path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(f"{rule}. Received: {path!r}: {reason[:300]}") from error


def _check_member(member: zipfile.ZipInfo) -> None:
    place = PurePosixPath(member.filename.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{member.filename!r} lies outside of it")
    _check_size(member.filename, member.file_size, member.compress_size)


def _check_size(name: str, unpacked: int, packed: int) -> None:
    if unpacked > max(UNSUSPICIOUS, EXPANSION * packed):
        raise ValueError(f"{name} would unpack to {unpacked:,} bytes from {packed:,}")
    _check_room(unpacked)


def _check_room(needed: int) -> None:
    free = devices.free_host_memory()
    free = MEMORY_IF_UNKNOWN if free is None else free
    if needed > SHARE_OF_MEMORY * free:
        raise ValueError(f"it would take {needed:,} bytes of memory, of which {free:,} are free")


def _check_hdf5(file: BinaryIO) -> None:
    arrays: dict[str, h5py.Dataset] = {}

    def look(name: str, found: h5py.Group | h5py.Dataset) -> str | None:
        if isinstance(found, h5py.Dataset):
            arrays[name] = found
        return name if h5py.h5o.get_info(found.id).rc > 1 else None

    with h5py.File(file, "r") as content:
        if "model_config" in content.attrs:
            _check_shapes(json.loads(content.attrs["model_config"]))
        link = content.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else name)
        if link is not None:
            raise ValueError(f"{link} is a link")
        shared = content.visititems(look)
        if shared is not None:
            raise ValueError(f"{shared} stands for several things")
        for name, found in arrays.items():
            if found.external or found.is_virtual:
                raise ValueError(f"{name} is stored outside of it")
            _check_size(name, found.nbytes, found.id.get_storage_size())
        _check_room(sum(found.nbytes for found in arrays.values()))


def _check_shapes(config: Any, name: str = "") -> None:
    """Check that no layer declares an enormous shape: some compute constants of their inputs' shape."""
    if isinstance(config, dict):
        for key, value in config.items():
            _check_shapes(value, key)
    elif isinstance(config, list):
        for value in config:
            _check_shapes(value, name)
        size = math.prod(max(1, abs(size)) for size in config if isinstance(size, int))
        if "shape" in name and size > MOST_VALUES:
            raise ValueError(f"a {name} of {size:,} values is declared")


def _rehearse(path: str) -> None:
    """Load the file without creating a variable: each must find weights of its shape, and those are no larger than it.

    Raises:
        Exception: Keras' own, where it does not fit together.
    """
    before = global_state.get_global_attribute(_DEFERRED, [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            keras.models.load_model(path, compile=False, safe_mode=True)
    finally:
        global_state.set_global_attribute(_DEFERRED, before)  # else Keras would create them at the next occasion


def _check_finite(model: keras.Model) -> None:
    for variable in model.variables:
        if variable.dtype.startswith(("float", "bfloat")) and not np.isfinite(np.asarray(variable, np.float32)).all():
            raise ValueError(f"{variable.path} holds values that are no finite numbers")
