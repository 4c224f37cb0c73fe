"""Run directories as a run starts or resumes: none is mixed with another, and none that was begun is lost."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pbd.errors import CannotCreateError, CorruptStateError, MissingInputError
from pbd.run_dir.archive import json_digest
from pbd.run_dir.journal import Journal
from tests.helpers.ordinary_user import ordinary_user
from tests.run_dir.conftest import IDENTITY

pytestmark = pytest.mark.fast


def test_create_takes_an_empty_directory_and_refuses_a_run(tmp_path: Path) -> None:
    Journal.create(tmp_path, IDENTITY)
    with pytest.raises(CannotCreateError, match=r"already holds a run.*--resume.*--run-dir"):
        Journal.create(tmp_path, IDENTITY)


def test_create_takes_what_a_start_that_was_killed_leaves(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    stale = tmp_path / f".{uuid.uuid4().hex}.tmp"
    stale.write_bytes(b"{")
    Journal.check(tmp_path, resume=False)
    journal = Journal.create(tmp_path, IDENTITY)
    assert not stale.exists()
    assert journal.identity() == Journal.resume(tmp_path, IDENTITY).identity()


@pytest.mark.parametrize("name", ["blocks/conv@two_layer.npz", ".notes.tmp"])
def test_create_refuses_what_is_more_than_that(tmp_path: Path, name: str) -> None:
    (tmp_path / "blocks").mkdir()
    (tmp_path / name).write_bytes(b"")
    for begin in (lambda: Journal.check(tmp_path, resume=False), lambda: Journal.create(tmp_path, IDENTITY)):
        with pytest.raises(CannotCreateError, match="must be new or empty"):
            begin()


def test_of_two_runs_that_start_in_a_directory_at_once_one_is_refused(tmp_path: Path) -> None:
    def start(seed: int) -> Journal | CannotCreateError:
        try:
            return Journal.create(tmp_path / "run", {"seed": seed})
        except CannotCreateError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        journals = [one for one in pool.map(start, range(8)) if isinstance(one, Journal)]
    assert len(journals) == 1
    assert journals[0].settings_digest == json_digest(journals[0].identity())


def test_create_refuses_files_and_folders_of_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path, Path("/proc/pbd")):
        with pytest.raises(CannotCreateError, match="--run-dir") as caught:
            Journal.create(path, IDENTITY)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 73
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_read_only_place_is_refused(journal: Journal) -> None:
    journal.path.chmod(0o555)
    with ordinary_user(), pytest.raises(CannotCreateError):
        Journal.create(journal.path / "below", IDENTITY)
    with ordinary_user(), pytest.raises(CannotCreateError):
        Journal.resume(journal.path, IDENTITY)
    journal.path.chmod(0o755)


@pytest.mark.parametrize("missing", ["nowhere", "file", "."])
def test_resume_needs_a_run(tmp_path: Path, missing: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingInputError, match="--resume"):
        Journal.resume(tmp_path / missing, IDENTITY)


def test_resume_names_the_settings_that_differ(journal: Journal) -> None:
    other = {"epochs": 3, "layers": ["conv*"], "data": {"dataset": "digits", "seed": 1}, "new": "x"}
    with pytest.raises(CorruptStateError) as caught:
        Journal.resume(journal.path, other)
    message = str(caught.value)
    for part in ("epochs was 8 and is 3 now", "data.seed was 0 and is 1 now", "new was None and is 'x' now"):
        assert part in message
    assert "layers" not in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1}', b'{"format": 1, "identity": {}}', b"\xff"])
def test_a_damaged_run_file_stops_the_run(journal: Journal, content: bytes) -> None:
    journal.file("run.json").write_bytes(content)
    with pytest.raises(CorruptStateError):
        Journal.resume(journal.path, IDENTITY)
