"""The steps by name, as recipe files name them."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from pbd.compression.step import Step
from pbd.errors import PbdError, UsageError, unknown_name

HOMES = {
    "craft": "Craft",
    "distill_into": "DistillInto",
    "ensemble": "Ensemble",
    "fine_tune": "FineTune",
    "progressive": "Progressive",
    "prune_filters": "PruneFilters",
    "prune_weights": "PruneWeights",
    "quantize": "Quantize",
    "replace_blocks": "ReplaceBlocks",
}
"""By the name of a step, its class, in the module of that name."""
MEMBERS = "members"
"""The setting of an ensemble that holds steps: a list of them for each member."""


def get(name: str) -> type:
    """Return the class of the step of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in HOMES:
        raise UsageError(unknown_name("step", name, HOMES))
    return getattr(importlib.import_module(f"pbd.compression.{name}"), HOMES[name])


def made(entries: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """Return the steps that the `[[step]]` tables of a recipe file describe.

    Args:
        entries: of each step, its name under `use`, and its settings.

    Raises:
        PbdError: a name or setting is unknown, a value is out of its range, or a file does not exist; the message
            names the place of the step.
    """
    return tuple(_made(f"step {number}", entry) for number, entry in enumerate(entries, start=1))


def _made(place: str, entry: Any) -> Step:
    """Return the step that a table describes.

    Args:
        place: of the table in the recipe, for messages.
        entry: the table; within a member of an ensemble it may be anything.
    """
    if not isinstance(entry, Mapping) or "use" not in entry:
        raise UsageError(f'a step names what it does. Received: {place} without use. Write use = "fine_tune".')
    name = str(entry["use"])
    settings = {key.replace("-", "_"): value for key, value in entry.items() if key != "use"}
    if MEMBERS in settings:
        settings[MEMBERS] = _members(place, settings[MEMBERS])
    try:
        return _of_settings(name, settings)
    except PbdError as error:
        raise type(error)(f"{place}, {name}: {error}") from error


def _members(place: str, members: Any) -> Any:
    """Return the steps of each member of an ensemble, or what is given if it is no list of lists."""
    if not isinstance(members, list) or not all(isinstance(steps, list) for steps in members):
        return members
    return [
        [_made(f"{place}, member {member}, step {number}", entry) for number, entry in enumerate(steps, start=1)]
        for member, steps in enumerate(members, start=1)
    ]


def _of_settings(name: str, settings: Mapping[str, Any]) -> Step:
    kind = get(name)
    settings = {key: value for key, value in settings.items() if key not in _computed(kind)}
    names = [field.name for field in dataclasses.fields(kind)]
    for key in settings:
        if key not in names:
            raise UsageError(unknown_name("setting", key, names))
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.init and not has_default and field.name not in settings:
            raise UsageError(f"{field.name} must be given. Received: none. Add it.")
    return kind(**settings)


def _computed(kind: type) -> set[str]:
    """Return the fields of a step that it computes itself, which reports have among its settings."""
    return {field.name for field in dataclasses.fields(kind) if not field.init}
