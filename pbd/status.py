"""`pbd status RUN_DIR`: which blocks are trained, failed or missing, and whether the run is complete and undamaged.

Use it, not the exit code of `mpirun`, to decide whether a run succeeded: a launcher may lose the code of a rank.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbd import command_line, report
from pbd.command_line import Parser, path
from pbd.errors import FINISHED_WITH_FAILED_BLOCKS, CorruptStateError, StoppedError
from pbd.run_dir import lock, manifest, steps
from pbd.run_dir.journal import Journal

PROGRAM = "pbd-status"
COMPLETE, RUNNING, STOPPED, DAMAGED = "complete", "running", "stopped", "damaged"
STEPS = "steps complete"
"""The unit of a recipe."""
MAX_NAMES = 12
"""How many layers or files a line of the text output names."""


@dataclass(frozen=True)
class Status:
    """The state of a run."""

    run_dir: str
    state: str
    """`complete`, `running`, `stopped` (continue with --resume) or `damaged`."""
    done: tuple[str, ...]
    """Blocks (layer@design) that are trained and undamaged."""
    failed: tuple[str, ...]
    """Blocks that could not be trained; empty until the run is complete."""
    left: tuple[str, ...]
    """Blocks that have yet to be trained."""
    damaged: tuple[str, ...]
    """Files that changed after the run was complete."""
    holder: dict[str, Any] | None
    """The process that works in the run directory: its host, its id, and when it started."""
    unit: str = "blocks trained"
    """What is counted; `steps complete` in the directory of a recipe."""
    students_left: tuple[str, ...] = ()
    """Budgets of a sweep that have yet to get their student."""

    @property
    def exit_code(self) -> int:
        """0 if the run is complete, undamaged and without failed blocks, else the exit code of `pbd distill`."""
        if self.state == COMPLETE:
            return FINISHED_WITH_FAILED_BLOCKS if self.failed else 0
        return CorruptStateError.exit_code if self.state == DAMAGED else StoppedError.exit_code


def read(run_dir: str | Path) -> Status:
    """Return the state of the run in a directory, without changing anything.

    Raises:
        MissingInputError: the directory holds no run.
        CorruptStateError: its `run.json` is damaged.
    """
    journal = Journal(Path(run_dir))
    keys = journal.keys()
    holder, damaged = lock.holder(journal.path), manifest.damaged(journal)
    if damaged is not None:
        damaged += manifest.damaged_students(journal)
    students_left = tuple(manifest.missing_students(journal))
    if holder is not None:
        state = RUNNING
    elif damaged is None or (not damaged and students_left):
        state = STOPPED
    else:
        state = DAMAGED if damaged else COMPLETE
    names = steps.names(journal)
    if names is not None:
        return _of_recipe(journal, state, names, tuple(damaged or ()), holder)
    committed = journal.committed_blocks()
    finished = report.read(journal) if state == COMPLETE else None
    done = tuple(str(key) for key in sorted(committed))
    failed = tuple(str(key) for key in finished.failed_blocks) if finished else ()
    left = () if finished else tuple(str(key) for key in keys if key not in committed)
    damaged_files = tuple(damaged or ())
    return Status(str(journal.path), state, done, failed, left, damaged_files, holder, students_left=students_left)


def _of_recipe(
    journal: Journal, state: str, names: Sequence[str], damaged: tuple[str, ...], holder: dict[str, Any] | None
) -> Status:
    """Return the state of a recipe with these steps; behind one that is not complete, all are still to be done."""
    records = [steps.read_record(steps.folder(journal.path, name)) for name in names]
    done = len(list(itertools.takewhile(steps.is_complete, records)))
    failed = tuple(
        f"{name}: {block}"
        for name, record in zip(names, records if state == COMPLETE else (), strict=False)
        for block in steps.failed_blocks(record.get("details", {}))
    )
    left = tuple(names[done:])
    return Status(str(journal.path), state, tuple(names[:done]), failed, left, damaged, holder, STEPS)


def describe(status: Status) -> str:
    """Return the state as lines of text."""
    total = len({*status.done, *status.left, *(() if status.unit == STEPS else status.failed)})
    states = {
        COMPLETE: "complete and intact",
        RUNNING: f"running: {lock.describe(status.holder or {})}",
        STOPPED: "stopped: continue with --resume",
        DAMAGED: "complete, but damaged since: repair with --resume",
    }
    lines = [f"{status.run_dir}: {states[status.state]}", f"{len(status.done)} of {total} {status.unit}"]
    for field in ("failed", "left", "students_left", "damaged"):
        names = getattr(status, field)
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            lines.append(f"{field.replace('_', ' ')}: {', '.join(names[:MAX_NAMES])}{more}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command line; return the exit code, 0 only for a run that is complete, undamaged and without failures."""

    def command(arguments: Sequence[str]) -> int:
        parser = Parser(program, __doc__ or "")
        parser.add_argument("run_dir", metavar="RUN_DIR", type=path, help="the run directory (--run-dir of the run)")
        parser.add_argument("--json", action="store_true", help="print JSON in place of text")
        settings = parser.parse_args(arguments)
        status = read(settings.run_dir)
        text = json.dumps(dataclasses.asdict(status), indent=2) if settings.json else describe(status)
        command_line.print_output(text)
        return status.exit_code

    return command_line.run(program, command, argv)


if __name__ == "__main__":
    sys.exit(main())
