"""Checks, before a backend is loaded, of whether a teacher is a model file and whether that file exists."""

import os
from pathlib import Path

from pbd.config import TeacherConfig
from pbd.errors import BadInputError, MissingInputError, UsageError
from pbd.system.permissions import check_readable

SUFFIXES = (".keras", ".h5", ".hdf5")


def is_file(name: str) -> bool:
    """Return whether the name is that of a model file and not of a built-in network."""
    return name.endswith(SUFFIXES) or os.sep in name or Path(name).exists()


def check(config: TeacherConfig) -> None:
    """Refuse a model file that cannot be read.

    Raises:
        MissingInputError: the file does not exist, is a folder, or is not readable.
        BadInputError: the name is a URL.
        UsageError: weights were given as well.
    """
    name, weights = config.teacher, config.teacher_weights
    if "://" in name:
        raise BadInputError(f"the teacher must be a local file. Received: {name!r}. Download it first.")
    if weights is not None:
        raise UsageError(
            f"teacher_weights are for built-in teachers. Received: {weights!r} with {name!r}. Leave them out."
        )
    check_readable("the teacher", name)
    if not Path(name).is_file():
        raise MissingInputError(
            f"the teacher must be a model file (.keras or .h5). Received: {name!r}, {_what_it_is(Path(name))}."
        )


def _what_it_is(path: Path) -> str:
    """Return what a path is that is no file, and the remedy."""
    if not path.is_dir():
        return "no such file. Check the path"
    if (path / "saved_model.pb").is_file():
        return (
            "a SavedModel folder, which holds a graph without Keras layers. Where the model was built or is loaded by "
            "the Keras that wrote it, save it as a file: model.save('teacher.keras'), or 'teacher.h5' in Keras 2"
        )
    return "a folder. Name the file in it"
