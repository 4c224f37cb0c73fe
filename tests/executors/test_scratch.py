"""Temporary folders of training processes: those whose workers were killed are removed, and no others."""

import os
import tempfile
from pathlib import Path

import pytest

from pbd.executors.isolation.scratch import ScratchFolder

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def left_by_a_killed_worker(age_s: float) -> ScratchFolder:
    folder = ScratchFolder()
    Path(folder.name, "of a library").touch()
    folder._lock.close()  # as the kernel does
    make_older(folder, age_s)
    return folder


def make_older(folder: ScratchFolder, age_s: float) -> None:
    lock = Path(folder.name, "lock")
    made_s = lock.stat().st_mtime
    os.utime(lock, (made_s - age_s, made_s - age_s))


def test_the_folder_of_a_killed_worker_is_removed_with_the_next_start(tmp_path: Path) -> None:
    left = left_by_a_killed_worker(3600)
    folder = ScratchFolder()
    assert [path.name for path in tmp_path.iterdir()] == [Path(folder.name).name]
    assert not Path(left.name).exists()
    folder.cleanup()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_running_workers_and_of_others_stay(tmp_path: Path) -> None:
    running = ScratchFolder()
    make_older(running, 3600)
    just_made = left_by_a_killed_worker(0)
    of_another_host = tmp_path / "pbd_child_elsewhere.invalid_abc"
    of_another_host.mkdir()
    (of_another_host / "lock").touch()
    os.utime(of_another_host / "lock", (0, 0))
    ScratchFolder().cleanup()
    assert set(tmp_path.iterdir()) == {Path(running.name), Path(just_made.name), of_another_host}
    running.cleanup()
