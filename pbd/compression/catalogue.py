"""The steps by name, as recipe files name them."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from pbd.compression.step import Step
from pbd.errors import UsageError, unknown_name

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
        UsageError: a name or setting is unknown, or a value is out of its range.
    """
    return tuple(_made(number, entry) for number, entry in enumerate(entries, start=1))


def _value(value: Any) -> Any:
    """Return the value of a setting; a table with `use`, in a list as well, is a step."""
    if isinstance(value, list):
        return [_value(each) for each in value]
    return _made(1, value) if isinstance(value, dict) and "use" in value else value


def _made(number: int, entry: Mapping[str, Any]) -> Step:
    if "use" not in entry:
        raise UsageError(f'a step names what it does. Received: step {number} without use. Write use = "fine_tune".')
    kind = get(str(entry["use"]))
    settings = {name.replace("-", "_"): _value(value) for name, value in entry.items() if name != "use"}
    settings = {name: value for name, value in settings.items() if name not in _computed(kind)}
    names = [one.name for one in dataclasses.fields(kind)]
    for name in settings:
        if name not in names:
            raise UsageError(unknown_name(f"setting of {entry['use']}", name, names))
    for one in dataclasses.fields(kind):
        has_default = one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
        if one.init and not has_default and one.name not in settings:
            raise UsageError(f"{entry['use']} needs {one.name}. Received: step {number} without it. Add it.")
    return kind(**settings)


def _computed(kind: type) -> set[str]:
    """Return the fields of a step that it computes itself, which reports have among its settings."""
    return {one.name for one in dataclasses.fields(kind) if not one.init}
