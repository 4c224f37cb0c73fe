"""The record that a run is complete, written last, with a digest of everything it made: the proof of success."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pbd.run_dir.journal import Journal

RECORD = "complete.json"
MODELS = ("teacher.keras", "student.keras", "student_folded.keras")
TEXTS = ("run.json", "report.json", "report.html", "summary.txt")
"""What every run makes, with the models."""
MADE_IN_TRAINING = "costs.json"
_log = logging.getLogger(__name__)


def write(journal: Journal) -> None:
    """Record that nothing is missing, and what there is; other files in the directory are their owners'.

    Raises:
        OSError: something is missing, or cannot be read.
    """
    blocks = sorted(str(path.relative_to(journal.path)) for path in journal.path.glob("blocks/[!.]*.npz"))
    measured = [MADE_IN_TRAINING] if journal.file(MADE_IN_TRAINING).exists() else []
    files = {name: _digest(journal.file(name)) for name in (*MODELS, *TEXTS, *measured, *blocks)}
    journal.write_json(RECORD, {"files": files, "sha256": _digest_of(files)})


def withdraw(journal: Journal) -> None:
    """Take the record back, before anything is made again; what is only made while blocks train goes if damaged."""
    if MADE_IN_TRAINING in (damaged(journal) or ()):
        journal.file(MADE_IN_TRAINING).unlink(missing_ok=True)
    journal.file(RECORD).unlink(missing_ok=True)


def damaged(journal: Journal) -> list[str] | None:
    """Return the files that are not as they were when the run was complete; `None` where it is not complete."""
    path = journal.file(RECORD)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        files = dict(record["files"])
        if record["sha256"] != _digest_of(files):
            raise ValueError("its content does not match its checksum")
    except (OSError, ValueError, KeyError, TypeError):
        return [RECORD]
    return [name for name, digest in files.items() if not _is_whole(journal.file(name), digest)]


def is_intact(journal: Journal) -> bool:
    """Return whether the run is complete and everything it made is whole; what is not is logged."""
    found = damaged(journal)
    if found:
        _log.warning("%s: %s changed after the run was complete, and is made again.", journal.path, ", ".join(found))
    return found == []


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return _digest(path) == digest
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
