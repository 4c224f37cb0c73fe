"""What happens to files: processes killed while they save, full disks, flipped bytes."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pbd import status
from pbd.errors import CannotCreateError, CorruptStateError, PbdError
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal

SAVES = """
import sys
import numpy as np
from pbd.run_dir.journal import Journal
from pbd.records import BlockResult
journal, number = Journal(__import__("pathlib").Path(sys.argv[1])), 0
print("begins", flush=True)
while True:
    number += 1
    weights = {"conv/kernel": np.full((200_000,), number, np.float32)}
    journal.commit_block(BlockResult(f"layer{number % 5}", "trained", "decoupled_r2", weights=weights))
    journal.write_bytes("student.keras", bytes([number % 256]) * 300_000)
"""
SMALL_DISK = "2m"


@dataclass(frozen=True)
class Found:
    """What a trial came to."""

    description: str
    kept: bool


def torn_by_kills(folder: Path, kills: int, draws: random.Random) -> tuple[int, int]:
    """Kill a process that does nothing but save, again and again; return how many files were torn, of how many."""
    journal, torn, seen = Journal.create(folder, {}), 0, 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", SAVES, str(folder)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(draws.uniform(0.01, 0.15))
        process.kill()
        process.wait()
        names = list((folder / "blocks").glob("[!.]*.npz"))
        whole = journal.committed_blocks()
        for result in whole.values():
            (values,) = result.weights.values()
            torn += len(set(values.tolist())) != 1
        student = folder / "student.keras"
        content = student.read_bytes() if student.exists() else b"x" * 300_000
        torn += len(names) - len(whole) + (len(content) != 300_000 or len(set(content)) != 1)
        seen += len(names) + 1
    return torn, seen


def on_a_full_disk(folder: Path) -> Found | None:
    """Save to a disk that fills, and to one that is read-only; `None` where this system lets us make no such disks."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        return None
    try:
        journal = Journal.create(folder / "run", {})
        failed, data = 0, os.urandom(300_000)
        for number in range(10):
            try:
                journal.write_bytes(f"file{number}", data)
            except OSError:
                failed += 1
        left = [path for path in journal.path.rglob("*") if path.is_file() and path.name != "run.json"]
        torn = sum(path.read_bytes() != data for path in left)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        try:
            Journal.create(folder / "other", {})
            refused = False
        except CannotCreateError:
            refused = True
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    return Found(
        f"full disk: {failed} of 10 saves refused, torn {torn}; read-only: {'refused' if refused else 'NOT refused'}",
        failed > 0 and not torn and refused,
    )


@contextlib.contextmanager
def flipped(path: Path, draws: random.Random) -> Iterator[None]:
    """Flip a random bit of a file, for as long as the block lasts."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
    path.write_bytes(bytes(damaged))
    try:
        yield
    finally:
        path.write_bytes(whole)


def notices(journal: Journal) -> bool:
    """Return whether the damage of a complete run is noticed."""
    try:
        return status.read(journal.path).state != status.COMPLETE
    except PbdError:
        return True


def flips_in_an_unfinished_run(journal: Journal, draws: random.Random, times: int) -> Found:
    """Flip bits of what an unfinished run consists of: what it resumes from."""
    (journal.path / manifest.RECORD).unlink()
    flips = noticed = 0
    for path in [journal.file("run.json"), *sorted((journal.path / "blocks").glob("*.npz"))]:
        for _ in range(times):
            blocks = journal.committed_blocks().keys()
            with flipped(path, draws):
                flips += 1
                try:
                    journal.keys()
                    noticed += journal.committed_blocks().keys() != blocks
                except CorruptStateError:
                    noticed += 1
    return Found(f"{flips} flips, noticed {noticed}", noticed == flips)
