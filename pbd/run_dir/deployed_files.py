"""The student's files for other runtimes in the run directory. They go when another student is written.

Another student may have none for the same runtime. Files that the user has exported stay.
"""

import json
from pathlib import Path

from pbd.run_dir.journal import Journal

RECORD = "deployed.json"


def keep(journal: Journal, path: Path) -> None:
    """Copy a file of the student into the run directory."""
    journal.write_json(RECORD, sorted({*_names(journal), path.name}))  # first: what is not recorded is never removed
    journal.write_bytes(path.name, path.read_bytes())


def remove(journal: Journal) -> None:
    """Remove the files of the student that is replaced."""
    for name in _names(journal):
        journal.file(name).unlink(missing_ok=True)
    journal.file(RECORD).unlink(missing_ok=True)


def _names(journal: Journal) -> list[str]:
    try:
        return [Path(name).name for name in json.loads(journal.file(RECORD).read_bytes())]
    except (OSError, ValueError, TypeError, RecursionError):
        return []
