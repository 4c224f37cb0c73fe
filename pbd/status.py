"""`python -m pbd.status RUN_DIR`: what is done, failed and left, and whether the run is complete and intact.

It is the authority on success, which the exit code of `mpirun` is not.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pbd import report
from pbd.errors import FINISHED_WITH_FAILED_BLOCKS, CorruptStateError, PbdError, StoppedError
from pbd.run_dir import lock, manifest
from pbd.run_dir.journal import Journal

COMPLETE, RUNNING, STOPPED, DAMAGED = "complete", "running", "stopped", "damaged"
_MOST_NAMES = 12


@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    run_dir: str
    state: str
    """`complete`, `running`, `stopped` (go on with --resume) or `damaged`."""
    done: tuple[str, ...]
    """Blocks (layer@design) that are trained and whole."""
    failed: tuple[str, ...]
    """Blocks that could not be trained; known when the run is complete."""
    left: tuple[str, ...]
    """Blocks that are still to be trained."""
    damaged: tuple[str, ...]
    """Files that changed after the run was complete."""
    holder: dict[str, Any] | None
    """Who is at work: host, process, since."""

    @property
    def exit_code(self) -> int:
        """0 if everything is done and whole, else what `pbd-run` would end with."""
        if self.state == COMPLETE:
            return FINISHED_WITH_FAILED_BLOCKS if self.failed else 0
        return CorruptStateError.exit_code if self.state == DAMAGED else StoppedError.exit_code


def read(run_dir: str | Path) -> Status:
    """Return where the run in a directory stands; nothing is changed.

    Raises:
        MissingInputError: there is no run.
        CorruptStateError: its `run.json` is damaged.
    """
    journal = Journal(Path(run_dir))
    keys, committed = journal.keys(), journal.committed_blocks()
    who, damaged = lock.holder(journal.path), manifest.damaged(journal)
    state = RUNNING if who is not None else STOPPED if damaged is None else DAMAGED if damaged else COMPLETE
    finished = report.read(journal) if state == COMPLETE else None
    done = tuple(str(key) for key in sorted(committed))
    failed = tuple(str(key) for key in finished.failed_blocks) if finished else ()
    left = () if finished else tuple(str(key) for key in keys if key not in committed)
    return Status(str(journal.path), state, done, failed, left, tuple(damaged or ()), who)


def describe(status: Status) -> str:
    """Say it to people."""
    total = len({*status.done, *status.failed, *status.left})
    said = {
        COMPLETE: "complete and intact",
        RUNNING: f"running: {lock.describe(status.holder or {})}",
        STOPPED: "stopped: go on with --resume",
        DAMAGED: "complete, but damaged since: make it whole with --resume",
    }
    lines = [f"{status.run_dir}: {said[status.state]}", f"{len(status.done)} of {total} blocks trained"]
    for word in ("failed", "left", "damaged"):
        names = getattr(status, word)
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            lines.append(f"{word}: {', '.join(names[:_MOST_NAMES])}{more}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _CommandLine:
    run_dir: tyro.conf.Positional[str]
    """What --run-dir was."""
    json: bool = False
    """Say it to programs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 0 only for a run that is complete, whole and without failures."""
    line = tyro.cli(_CommandLine, args=argv, prog="pbd-status", description=(__doc__ or "").split("\n\n")[1])
    try:
        status = read(line.run_dir)
    except PbdError as error:
        print(f"pbd-status: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(dataclasses.asdict(status), indent=2) if line.json else describe(status))
    return status.exit_code


if __name__ == "__main__":
    sys.exit(main())
