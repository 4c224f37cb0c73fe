"""Values of settings: conversion to the types of their fields, and checks of their ranges."""

import os
import sys
from collections.abc import Iterable
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pbd.errors import UsageError, unknown_name


def one_of(kind: str, received: str, choices: Iterable[str]) -> None:
    """Check that a name is one of several.

    Raises:
        UsageError: it is not; the message names the nearest one.
    """
    if received not in choices:
        raise UsageError(unknown_name(kind, received, choices))


def at_least(name: str, received: float | None, least: float) -> None:
    """Check that a number, if there is one, is finite and not below `least`.

    Raises:
        UsageError: it is not.
    """
    if received is not None and not (_is_finite(received) and received >= least):
        raise UsageError(f"{name} must be at least {least}. Received: {received}. Give {least} or more.")


def _is_finite(number: float) -> bool:
    return -sys.float_info.max <= number <= sys.float_info.max  # integers may be too large for a float


def not_empty(name: str, received: object) -> None:
    """Check that a text or path, if there is one, is not empty: shells give an empty one for an unset variable.

    Raises:
        UsageError: it is empty.
    """
    if received is not None and not str(received):
        raise UsageError(f"{name} must not be empty. Received: ''. Give a value, or leave it out.")


def positive(name: str, received: float) -> None:
    """Check that a number is finite and above 0.

    Raises:
        UsageError: it is not.
    """
    if not (_is_finite(received) and received > 0):
        raise UsageError(f"{name} must be positive. Received: {received}. Give a number above 0.")


def fraction(name: str, received: float | None) -> None:
    """Check that a number, if there is one, lies in [0, 1].

    Raises:
        UsageError: it does not.
    """
    if received is not None and not (0.0 <= received <= 1.0):
        raise UsageError(f"{name} must lie in [0, 1]. Received: {received}. It is a fraction: 0.05 is 5%.")


def as_kind(name: str, kind: Any, value: Any) -> Any:
    """Convert a value to the type of its field if that loses nothing; a field of type `Any` reads its value itself.

    NumPy values become plain ones, a path str, int float, and a list a tuple; a leading `~` becomes the home folder.

    Raises:
        UsageError: the value has another type.
    """
    if kind is Any:
        return value
    value = _plain(value)
    kinds = (kind,) if get_origin(kind) is tuple else get_args(kind) or (kind,)
    if value is None and NoneType in kinds:
        return None
    if any(get_origin(each) is tuple for each in kinds):
        values = (value,) if isinstance(value, str) else value
        if isinstance(values, list | tuple) and all(isinstance(entry, str) for entry in values):
            return tuple(values)
        raise UsageError(f"{name} must be names or patterns. Received: {value!r}. Give a list of texts.")
    if float in kinds and type(value) is int and _is_finite(value):
        return float(value)
    if type(value) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds if kind is not NoneType)
        raise UsageError(f"{name} must be of type {names}. Received: {value!r}. Convert it.")
    return os.path.expanduser(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """Return a NumPy scalar or array as Python numbers or a list, a path as str, and any other value as it is."""
    numpy = sys.modules.get("numpy")  # loaded if the value is one of its
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class Section:
    """Some of the settings of a run; a frozen dataclass whose values are converted to their types and then checked."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, as_kind(name, kind, getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Check the values.

        Raises:
            UsageError: a value is out of its range, or contradicts another one.
        """
