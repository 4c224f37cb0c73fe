"""Refusals of run directories, locks and of the commands that read them: each remedy is followed, and works."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pbd import status
from pbd.errors import PbdError
from pbd.records import BlockResult
from pbd.report import __main__ as report_command
from pbd.run_dir import lock
from pbd.run_dir.journal import Journal

pytestmark = pytest.mark.fast

IDENTITY = {"epochs": 3}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return Journal.create(tmp_path / "run", IDENTITY).path


def change_run_file(run_dir: Path, old: str, new: str) -> None:
    file = run_dir / "run.json"
    file.write_text(file.read_text().replace(old, new))


def create(path: Path) -> Journal:
    return Journal.create(path, IDENTITY)


def resume(path: Path) -> Journal:
    return Journal.resume(path, IDENTITY)


Action = Callable[[Path], object]
REFUSALS: list[tuple[Action, Action, str, Action]] = [
    (lambda run: None, create, "Add --resume", resume),
    (lambda run: None, create, "or give another --run-dir", lambda run: create(run.parent / "another")),
    (
        lambda run: (run / "run.json").rename(run / "notes.json"),
        create,
        "Give another --run-dir",
        lambda run: create(run.parent / "another"),
    ),
    (
        lambda run: (run.parent / "file").touch(),
        lambda run: create(run.parent / "file" / "run"),
        "Give another --run-dir",
        lambda run: create(run.parent / "another"),
    ),
    (
        lambda run: (run / "run.json").unlink(),
        resume,
        "started without --resume",
        lambda run: create(run.parent / "new"),
    ),
    (
        lambda run: None,
        lambda run: Journal.resume(run, {"epochs": 4}),
        "Resume with the old settings",
        resume,
    ),
    (
        lambda run: None,
        lambda run: Journal.resume(run, {"epochs": 4}),
        "or give another --run-dir without --resume",
        lambda run: Journal.create(run.parent / "another", {"epochs": 4}),
    ),
    (
        lambda run: change_run_file(run, '"epochs": 3', '"epochs": 4'),
        resume,
        "Start anew in another --run-dir",
        lambda run: create(run.parent / "another"),
    ),
    (
        lambda run: change_run_file(run, '"format"', '"form"'),
        lambda run: Journal.check(run, resume=True),
        "Start anew in another --run-dir",
        lambda run: Journal.check(run.parent / "another", resume=False),
    ),
    (
        lambda run: change_run_file(run, '"format": ', '"format": 1'),
        resume,
        "or start anew in another --run-dir",
        lambda run: create(run.parent / "another"),
    ),
    (
        lambda run: (run / "run.json").write_text("[" * 200_000),
        status.read,
        "Start anew in another --run-dir",
        lambda run: create(run.parent / "another"),
    ),
    (
        lambda run: shutil.rmtree(run),
        lambda run: Journal(run, "settings").commit_block(BlockResult("conv", "trained", "two_layer")),
        "End the workers of the earlier run",
        lambda run: create(run),
    ),
    (
        lambda run: None,
        lambda run: create(run.parent / os.fsdecode(b"caf\xe9")),
        "Give another --run-dir",
        lambda run: create(run.parent / "café"),
    ),
    (
        lambda run: None,
        lambda run: Journal.check(run.parent / os.fsdecode(b"caf\xe9"), resume=False),
        "must be UTF-8",
        lambda run: Journal.check(run.parent / "café", resume=False),
    ),
    (
        lambda run: None,
        lambda run: status.read(run.parent / "absent"),
        "Check the path",
        status.read,
    ),
]


@pytest.mark.parametrize(("spoil", "refused", "remedy", "followed"), REFUSALS)
def test_remedies_for_run_directories_work(
    run_dir: Path, spoil: Action, refused: Action, remedy: str, followed: Action
) -> None:
    spoil(run_dir)
    with pytest.raises(PbdError) as refusal:
        refused(run_dir)
    assert remedy in str(refusal.value)
    assert "\n" not in str(refusal.value)
    followed(run_dir)


def test_a_locked_directory_is_free_after_waiting(run_dir: Path) -> None:
    with lock.held(run_dir), pytest.raises(PbdError, match=r"Wait for it, or give another --run-dir\."):
        lock.check(run_dir)
    lock.check(run_dir)
    with lock.held(run_dir):
        lock.check(run_dir.parent / "another")


@pytest.mark.parametrize("command", [status.main, report_command.main])
def test_commands_read_run_directories_in_the_home_folder(
    command: Callable[..., int],
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command(["~/run"])
    shutil.rmtree(run_dir)
    first = capsys.readouterr()
    assert command(["~/run"]) == 66
    assert str(run_dir) in capsys.readouterr().err
    assert str(run_dir) in first.out + first.err
