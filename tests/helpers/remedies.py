"""For tests that follow the remedy of a refusal: the message, and what it names."""

import importlib.metadata
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pbd.errors import PbdError

_PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = _PROJECT["optional-dependencies"]
"""The requirements of each extra of pbd."""


def refusal(action: Callable[[], object], *remedies: str) -> str:
    """Return the message with which an action is refused: one line, with these remedies in it."""
    with pytest.raises(PbdError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for remedy in remedies:
        assert remedy in message
    return message


def in_message(pattern: str, message: str) -> str:
    """Return what the group of a pattern matches in a message."""
    match = re.search(pattern, message)
    assert match is not None, message
    return match[1]


def provides(requirement: str, module: str) -> bool:
    """Return whether a requirement such as `dask[distributed]` installs the package that has a module."""
    wanted = set(importlib.metadata.packages_distributions()[module])
    name, extra = re.match(r"([\w-]+)(?:\[(\w+)\])?", requirement).groups()  # type: ignore[union-attr]
    more = [line for line in importlib.metadata.requires(name) or () if extra and f'extra == "{extra}"' in line]
    return bool(wanted & {name, *(re.split(r"[^\w-]", line)[0] for line in more)})
