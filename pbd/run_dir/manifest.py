"""The record that a run is complete: `complete.json`, written last, with the digests of its files (see `write`)."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from pbd.errors import CannotCreateError
from pbd.run_dir.archive import json_digest
from pbd.run_dir.journal import Journal

RECORD = "complete.json"
STUDENTS = "front"
"""The folder of the run directory that holds a folder, with a record of its own, for each budget of a sweep."""
BUDGETS = f"{STUDENTS}/budgets.json"
"""The budgets of a sweep, written before its first student is complete."""
MODELS = ("teacher.keras", "student.keras", "student_folded.keras")
TEXTS = ("run.json", "report.json", "report.html", "summary.txt")
COSTS = "costs.json"
"""Written only if the run trained blocks; models and texts are written by every run."""
_log = logging.getLogger(__name__)


def write(journal: Journal, deployed: Iterable[str] = ()) -> None:
    """Record that the run is complete, with the digests of its files; other files in the directory are ignored.

    Args:
        journal: the journal of the run.
        deployed: names of the files of other runtimes.

    Raises:
        OSError: a file of the run is missing, or cannot be read.
    """
    blocks = sorted(str(path.relative_to(journal.path)) for path in journal.path.glob("blocks/*.npz"))
    measured = [COSTS] if journal.file(COSTS).exists() else []
    record(journal, (*MODELS, *TEXTS, *measured, *blocks, *deployed))


def record(journal: Journal, names: Iterable[str]) -> None:
    """Record that what these files hold is complete, with their digests.

    Raises:
        OSError: a file is missing, or cannot be read.
    """
    files = {name: file_digest(journal.file(name)) for name in names}
    journal.write_json(RECORD, {"files": files, "sha256": json_digest(files)})


def withdraw(journal: Journal) -> None:
    """Remove the record, since files will be rewritten; remove damaged costs, which are written only after training."""
    if COSTS in (damaged(journal) or ()):
        journal.file(COSTS).unlink(missing_ok=True)
    journal.file(RECORD).unlink(missing_ok=True)


def damaged(journal: Journal) -> list[str] | None:
    """Return the files that have changed since the run was complete; `None` if it is not complete."""
    path = journal.file(RECORD)
    if not os.path.isfile(path):  # `Path.is_file` raises in a folder that this user may not search
        return None
    try:
        files = _recorded(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [RECORD]
    return [name for name, digest in files.items() if not _is_unchanged(journal.file(name), digest)]


def damaged_students(journal: Journal) -> list[str]:
    """Return the files of the students of a sweep, and of its budgets, that have changed since they were written."""
    records = sorted(journal.path.glob(f"{STUDENTS}/[!.]*/{RECORD}"))
    changed = [(record.parent, damaged(Journal(record.parent)) or ()) for record in records]
    files = [str(folder.relative_to(journal.path) / name) for folder, names in changed for name in names]
    return files if sweep_budgets(journal) is not None else [BUDGETS, *files]


def record_budgets(journal: Journal, budgets: Iterable[str]) -> None:
    """Record the budgets of the sweep whose students the directory will hold; without budgets, remove the record."""
    texts = list(budgets)
    if texts:
        journal.write_json(BUDGETS, {"budgets": texts, "sha256": json_digest({"budgets": texts})})
    else:
        journal.file(BUDGETS).unlink(missing_ok=True)


def missing_students(journal: Journal) -> list[str]:
    """Return the budgets of a sweep without a complete student; empty if the run is no sweep."""
    budgets = sweep_budgets(journal) or ()
    return [text for text in budgets if not os.path.isfile(student_folder(journal.path, text) / RECORD)]


def student_folder(run_dir: Path, budget: str) -> Path:
    """Return the folder of the student of a budget in the directory of a sweep."""
    return run_dir / STUDENTS / budget.replace(":", "_")


def sweep_budgets(journal: Journal) -> list[str] | None:
    """Return the budgets of a sweep; an empty list without a record of a sweep; `None` if the record is damaged."""
    try:
        record = json.loads(journal.file(BUDGETS).read_bytes())
        budgets = list(map(str, record["budgets"]))
        return budgets if record["sha256"] == json_digest({"budgets": budgets}) else None
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def names(folder: Path) -> frozenset[str]:
    """Return the names of the files that belong to the complete run in this folder; empty if there is no such run."""
    try:
        return frozenset(_recorded(folder / RECORD))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()


def check_output(path: Path) -> None:
    """Check that a new file or folder does not replace what belongs to the complete run in its folder.

    Raises:
        CannotCreateError: it does; the run would be damaged.
    """
    recorded = names(path.parent)
    if recorded and path.name in {RECORD, *(name.partition("/")[0] for name in recorded)}:
        raise CannotCreateError(
            f"files of a complete run are kept. Received: {str(path)!r}, which belongs to one. Give another --output."
        )


def _recorded(path: Path) -> dict[str, str]:
    record = json.loads(path.read_bytes())
    files = dict(record["files"])
    if record["sha256"] != json_digest(files):
        raise ValueError("its content does not match its checksum")
    return files


def is_intact(journal: Journal) -> bool:
    """Return whether the run is complete and none of its files has changed; changed files are logged."""
    changed = damaged(journal)
    if changed:
        names = ", ".join(changed)
        _log.warning("%s: files that changed after the run was complete are written again: %s.", journal.path, names)
    return changed == []


def _is_unchanged(path: Path, digest: str) -> bool:
    try:
        return file_digest(path) == digest
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
