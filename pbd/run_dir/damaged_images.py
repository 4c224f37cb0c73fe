"""Image files that turned out damaged while a run read them, in folders `damaged_images` of the run directory.

Every process of a run writes the files that it meets, one name in each file of the folder; the report counts them. The
processes of a step of a recipe write into the folder of the step.
"""

import contextlib
import hashlib

from pbd.run_dir.journal import Journal

FOLDER = "damaged_images"
MOST_NAMED = 3
"""How many files the event names."""


def write(journal: Journal, path: str) -> None:
    """Note a damaged image file, unless this host does not see the run directory."""
    name = f"{FOLDER}/{hashlib.sha256(path.encode()).hexdigest()[:16]}.txt"
    if journal.path.is_dir():
        with contextlib.suppress(OSError):  # a full disk must not end the reading of images
            journal.write_bytes(name, f"{path}\n".encode())


def events(journal: Journal) -> tuple[str, ...]:
    """Return the event for the report of a run or of a recipe, whose steps count, too; empty if no file was damaged."""
    paths = sorted({file.read_text(encoding="utf-8").strip() for file in journal.path.rglob(f"{FOLDER}/[!.]*.txt")})
    if not paths:
        return ()
    files = "1 image file" if len(paths) == 1 else f"{len(paths)} image files"
    named = ", ".join(map(repr, paths[:MOST_NAMED]))
    more = f" and {len(paths) - MOST_NAMED} more (see {FOLDER}/)" if len(paths) > MOST_NAMED else ""
    return (f"{files} could not be decoded, black images took their place: {named}{more}",)
