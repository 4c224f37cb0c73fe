"""Whether a run is complete and whole, who is at work in its directory, and what `pbd.status` says of it."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pbd import report, status
from pbd.errors import EnvironmentMismatchError
from pbd.records import BlockKey, BlockResult, RunReport
from pbd.run_dir import lock, manifest
from pbd.run_dir.journal import Journal
from tests.helpers.cluster import PATIENCE_S
from tests.helpers.report_factory import make_report

pytestmark = pytest.mark.fast

LAYERS = ("first", "second", "third")
HOLD = """
import sys, time
from pathlib import Path
from pbd.run_dir import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1e6)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A run of which one block is trained."""
    made = Journal.create(tmp_path / "run", {"seed": 0}, [BlockKey(layer, "two_layer") for layer in LAYERS])
    made.commit_block(BlockResult("first", "trained", "two_layer"))
    return made


@pytest.fixture
def complete(journal: Journal) -> Journal:
    """A run that is complete."""
    for name in LAYERS[1:]:
        journal.commit_block(BlockResult(name, "trained", "two_layer"))
    for name in ("teacher.keras", "student.keras", "student_folded.keras"):
        journal.write_bytes(name, f"the content of {name}".encode())
    journal.write_json("costs.json", {"layers": 3})
    report.write(without_failures(), journal)
    manifest.write(journal)
    return journal


def without_failures() -> RunReport:
    made = make_report()
    return dataclasses.replace(made, blocks=tuple(row for row in made.blocks if row.status != "failed"))


def said(journal: Journal, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    """Return the exit code and the output of the command."""
    code = status.main([str(journal.path), *flags])
    return code, capsys.readouterr().out


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_one_flipped_byte_is_noticed_wherever_it_is(complete: Journal, tmp_path: Path) -> None:
    files = [path.relative_to(complete.path) for path in complete.path.rglob("*") if path.is_file()]
    assert len(files) == 12
    assert manifest.damaged(complete) == []
    for name in files:
        size = (complete.path / name).stat().st_size
        for at in (0, size // 2, size - 1):
            copy = Journal(Path(shutil.copytree(complete.path, tmp_path / "copy")))
            flip(copy.path / name, at)
            assert manifest.damaged(copy) == [str(name)]
            shutil.rmtree(copy.path)


def test_what_is_missing_is_not_recorded_as_complete(journal: Journal) -> None:
    with pytest.raises(FileNotFoundError):
        manifest.write(journal)
    assert manifest.damaged(journal) is None


def test_who_only_asks_keeps_nobody_out(journal: Journal) -> None:
    asking = (
        "import sys\nfrom pathlib import Path\nfrom pbd.run_dir import lock\nwhile True: lock.holder(Path(sys.argv[1]))"
    )
    with lock.held(journal.path):
        pass
    with subprocess.Popen([sys.executable, "-c", asking, str(journal.path)]) as other:
        try:
            time.sleep(1.0)
            for _ in range(300):
                with lock.held(journal.path):
                    pass
        finally:
            other.kill()


def test_a_record_that_is_nested_too_deep_is_damaged(complete: Journal) -> None:
    complete.file(manifest.RECORD).write_text("[" * 200_000)
    assert manifest.damaged(complete) == [manifest.RECORD]
    assert manifest.names(complete.path) == frozenset()


def test_a_file_that_is_gone_is_noticed_and_one_of_others_is_not_looked_at(complete: Journal) -> None:
    complete.file("notes.txt").write_text("mine")
    complete.file("notes.json").write_text("{}")
    assert manifest.is_intact(complete)
    complete.file("student.keras").unlink()
    assert manifest.damaged(complete) == ["student.keras"]
    assert not manifest.is_intact(complete)


def test_without_its_record_a_run_is_not_complete(complete: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.withdraw(complete)
    manifest.withdraw(complete)
    assert manifest.damaged(complete) is None
    assert said(complete, capsys)[0] == 75


def test_measured_costs_that_are_damaged_are_not_kept(complete: Journal) -> None:
    flip(complete.file("costs.json"), 5)
    manifest.withdraw(complete)
    assert not complete.file("costs.json").exists()
    assert complete.file("student.keras").exists()


def test_a_stopped_run_says_what_is_left(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = said(journal, capsys)
    assert code == 75
    assert output.splitlines() == [
        f"{journal.path}: stopped: continue with --resume",
        "1 of 3 blocks trained",
        "left: second@two_layer, third@two_layer",
    ]
    code, output = said(journal, capsys, "--json")
    found = json.loads(output)
    left = ["second@two_layer", "third@two_layer"]
    assert (code, found["state"], found["done"], found["left"]) == (75, "stopped", ["first@two_layer"], left)


def test_a_complete_run_is_said_to_be_so_and_to_be_damaged(
    complete: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = said(complete, capsys)
    assert (code, output.splitlines()) == (0, [f"{complete.path}: complete and intact", "3 of 3 blocks trained"])
    flip(complete.file("student.keras"), 3)
    code, output = said(complete, capsys)
    assert code == 76
    assert "damaged: student.keras" in output


def test_a_complete_run_with_failed_blocks_is_no_success(complete: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    report.write(make_report(), complete)
    manifest.write(complete)
    code, output = said(complete, capsys)
    assert code == 79
    assert "failed: block3_conv1@" in output


def test_where_there_is_no_run_or_a_damaged_one_it_is_said(
    journal: Journal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main([str(tmp_path / "nowhere")]) == 66
    journal.file("run.json").write_bytes(b"{")
    assert status.main([str(journal.path)]) == 76
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("pbd-status: ") for line in lines)


def test_one_run_at_a_time_until_it_ends_however_it_does(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(journal.path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            words = f"process {other.pid} on "
            with pytest.raises(EnvironmentMismatchError, match=words) as caught, lock.held(journal.path):
                pass
            assert caught.value.exit_code == 78
            with pytest.raises(EnvironmentMismatchError, match=words):
                lock.check(journal.path)
            code, output = said(journal, capsys)
            assert code == 75
            assert f"running: {words}" in output
        finally:
            other.kill()
    with lock.held(journal.path):
        assert lock.holder(journal.path) is not None
    lock.check(journal.path)
    assert said(journal, capsys)[1].splitlines()[0].endswith("stopped: continue with --resume")


def test_the_command_loads_no_tensorflow(complete: Journal) -> None:
    check = "import sys; from pbd import status; code = status.main(sys.argv[1:]); assert 'keras' not in sys.modules; "
    command = [sys.executable, "-c", check + "sys.exit(code)", str(complete.path)]
    assert subprocess.run(command, timeout=PATIENCE_S).returncode == 0
