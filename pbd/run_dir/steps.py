"""The steps of a recipe in its run directory: their names, and a folder for each, with a record of what it holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pbd.run_dir.journal import Journal

RECIPE = "recipe"
"""The kind of a run directory that holds steps, in its identity."""
STEPS = "steps"
"""The folder of the run directory that holds a folder for each step."""
FAILED_BLOCKS = "failed_blocks"
"""The entry of a step's details that names the blocks that could not be trained."""
_NAMES = "steps.json"
_RECORD = "step.json"
_NETWORK = "network"
"""The entry of a record that a step has when it is complete: the digest of its network."""


def write_names(journal: Journal, names: Sequence[str]) -> None:
    """Write the names of the steps of a recipe, in their order: `1 prune_filters`, `2 fine_tune`."""
    journal.write_json(_NAMES, list(names))


def names(journal: Journal) -> tuple[str, ...] | None:
    """Return the names of the steps; empty if they cannot be read; `None` if the directory is not that of a recipe."""
    if journal.identity().get("kind") != RECIPE:
        return None
    try:
        names = tuple(map(str, json.loads(journal.file(_NAMES).read_bytes())))
        for name in names:
            folder(journal.path, name)
    except (OSError, ValueError, TypeError, RecursionError):
        return ()
    return names


def records(names: Sequence[str]) -> list[str]:
    """Return the names of the files, in the run directory, that hold the names and the records of the steps."""
    return [_NAMES, *(str(folder(Path(), name) / _RECORD) for name in names)]


def folder(run_dir: Path, name: str) -> Path:
    """Return the folder of a step: `steps/01-prune_filters` of the step `1 prune_filters`."""
    number, _, use = name.partition(" ")
    return run_dir / STEPS / f"{int(number):02d}-{use}"


def read_record(path: Path) -> dict[str, Any]:
    """Return the record in the folder of a step; empty if there is none, or a damaged one."""
    try:
        return dict(json.loads((path / _RECORD).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record into the folder of a step, atomically."""
    Journal(path).write_json(_RECORD, record)


def is_complete(record: dict[str, Any]) -> bool:
    """Return whether a record is that of a complete step."""
    return _NETWORK in record


def failed_blocks(details: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the blocks that could not be trained, by the details of a step."""
    blocks = details.get(FAILED_BLOCKS)
    return tuple(map(str, blocks)) if isinstance(blocks, list) else ()
