"""Changes that damage model files: parts of archives, and what the HDF5 files of weights hold."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py

KERNEL = "layers/conv2d/vars/0"
"""Of the first convolution, in the weights of an archive."""


def repacked(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], packing: int = 0) -> None:
    """Copy a `.keras` file with its parts changed."""
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(target, "w", packing) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def edited(content: bytes, edit: Callable[[h5py.File], None]) -> bytes:
    """Return an HDF5 file with something changed in it."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        edit(file)
    return stream.getvalue()


def in_weights(edit: Callable[[h5py.File], None]) -> Callable[[dict[str, bytes]], None]:
    """Return a change of an archive that edits its weights."""

    def change(parts: dict[str, bytes]) -> None:
        parts["model.weights.h5"] = edited(parts["model.weights.h5"], edit)

    return change


def in_config(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    """Return a change of an archive that replaces a text in its configuration, which must be there."""

    def change(parts: dict[str, bytes]) -> None:
        assert old.encode() in parts["config.json"]
        parts["config.json"] = parts["config.json"].replace(old.encode(), new.encode())

    return change


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    """Return a change of an archive that leaves out a part."""
    return lambda parts: parts.pop(name) and None


def with_part(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    """Return a change of an archive that adds or replaces a part."""
    return lambda parts: parts.update({name: content})


def fill(value: float) -> Callable[[h5py.File], None]:
    """Return an edit that puts a value into the kernel."""

    def edit(file: h5py.File) -> None:
        file[KERNEL][0, 0, 0, 0] = value

    return edit


def link_inside(file: h5py.File) -> None:
    """Let the kernel be a link to another array of the file."""
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink("/layers/conv2d/vars/1")


def truncated(source: bytes) -> bytes:
    """Return the first half."""
    return source[: len(source) // 2]
