"""Several students from one set of blocks: which budgets are built, what is kept, and what resumes."""

import contextlib
import errno
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

import pytest

from pbd import report, status
from pbd.config import ExecutionConfig, RunConfig
from pbd.executors.serial import SerialExecutor
from pbd.pipeline import session, students, sweep
from pbd.records import ModelFacts, RunReport
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal
from tests.helpers.report_factory import full_report

pytestmark = pytest.mark.fast
BUDGETS = "latency:0.8,0.5"


class Runs:
    """Runs without networks."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.configs = run_dir, list[RunConfig]()

    def __call__(
        self, executor: object, display: object, config: RunConfig, sweep: Collection[str], **_: object
    ) -> RunReport:
        self.configs.append(config)
        (budget,) = config.student.budget
        journal = Journal(self.run_dir) if self.run_dir.exists() else Journal.create(self.run_dir, {})
        manifest.record_budgets(journal, sweep)
        for name in manifest.MODELS:
            journal.write_bytes(name, f"{name} of {budget}".encode())
        finished = full_report(
            config=config.flat() | {"budget": [budget]},
            teacher=ModelFacts(100, 100, val_accuracy=0.9),
            student=ModelFacts(50, 50, val_accuracy=0.8, path=str(self.run_dir / "student.keras")),
            run_dir=str(self.run_dir),
            deployments=(),
        )
        report.write(finished, journal)
        manifest.write(journal)
        return finished

    @property
    def budgets(self) -> list[str]:
        """The budgets that were run."""
        return [config.student.budget[0] for config in self.configs]


class Workers(SerialExecutor):
    """A worker without a process, which keeps the error that ends the session."""

    stopped: BaseException | None = None

    def stop(self, error: BaseException) -> None:
        type(self).stopped = error


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    of_test = Runs(tmp_path / "run")
    monkeypatch.setattr(sweep.distill, "run_on", of_test)
    monkeypatch.setattr(session, "open_executor", lambda config: Workers(ExecutionConfig(isolate=False)))
    monkeypatch.setattr(session.process, "prepared", contextlib.nullcontext)
    monkeypatch.setattr(Workers, "stopped", None)
    return of_test


def test_each_budget_has_a_student_in_a_folder_of_its_own(runs: Runs) -> None:
    finished = sweep.run(RunConfig.of(sweep=BUDGETS))
    assert runs.budgets == ["latency:0.8", "latency:0.5"]
    assert finished.config["budget"] == ["latency:0.5"]
    assert (runs.run_dir / "front" / "latency_0.8" / "student.keras").read_text() == "student.keras of latency:0.8"
    assert list(students.read(runs.run_dir)) == runs.budgets
    assert len(re.findall("latency:", (runs.run_dir / "front.txt").read_text())) == 2
    assert not runs.configs[0].execution.resume
    assert runs.configs[1].execution.resume, "the blocks are those of the first budget"


def test_a_resumed_sweep_builds_no_student_twice_but_that_of_the_run_directory(runs: Runs) -> None:
    sweep.run(RunConfig.of(sweep=BUDGETS))
    runs.configs.clear()
    resumed = RunConfig.of(sweep=BUDGETS, resume=True, run_dir=str(runs.run_dir))
    sweep.run(resumed)
    assert runs.budgets == ["latency:0.5"], "its settings, teacher and data are compared"
    sweep.run(resumed.replace(target_batch=32))
    assert runs.budgets[1:] == ["latency:0.8", "latency:0.5"], "other settings of a budget, other students"


def test_a_sweep_is_resumed_after_a_run_with_another_budget(runs: Runs) -> None:
    sweep.run(RunConfig.of(sweep=BUDGETS))
    manifest.record_budgets(Journal(runs.run_dir), ())  # as a run without a sweep does
    runs.configs.clear()
    sweep.run(RunConfig.of(sweep=BUDGETS, resume=True, run_dir=str(runs.run_dir)))
    assert runs.budgets == ["latency:0.5"]
    assert list(students.read(runs.run_dir)) == ["latency:0.8", "latency:0.5"]


@pytest.mark.parametrize("step", ["keep", "write_front"])
def test_a_student_that_cannot_be_kept_ends_the_session_of_all_processes(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Outside the session, the ranks of an MPI job would wait for a rank 0 that has left."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(students, step, fail)
    with pytest.raises(OSError, match="No space left") as raised:
        sweep.run(RunConfig.of(sweep=BUDGETS))
    assert Workers.stopped is raised.value
    assert runs.budgets == ["latency:0.8"]


def test_one_process_decides_which_students_are_there(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared file system, ranks may see different students."""
    monkeypatch.setattr(Workers, "coordinates", False)
    monkeypatch.setattr(Workers, "serve", lambda executor: "the result")
    monkeypatch.setattr(students, "read_complete", lambda config: pytest.fail("this rank decides"))
    assert sweep.run(RunConfig.of(sweep=BUDGETS, resume=True, run_dir=str(runs.run_dir))) == "the result"
    assert not runs.configs


def test_without_a_sweep_there_is_one_run_with_the_settings_resolved(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = list[RunConfig]()
    monkeypatch.setattr(sweep.distill, "run", lambda config, *_, **__: received.append(config))
    sweep.run(RunConfig())
    assert received == [RunConfig().resolved()]


DAMAGES = {
    "report": lambda folder: (folder / "report.json").write_text("{"),
    "figure": lambda folder: replace(folder / "report.json", '"val_accuracy": 0.8', '"val_accuracy": 0.9'),
    "missing model": lambda folder: (folder / "student.keras").unlink(),
    "damaged model": lambda folder: (folder / "student.keras").write_bytes(b"torn"),
    "record": lambda folder: (folder / manifest.RECORD).write_bytes(b"{"),
}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_student_that_is_damaged_is_built_again(runs: Runs, damage: str) -> None:
    sweep.run(RunConfig.of(sweep=BUDGETS))
    runs.configs.clear()
    folder = runs.run_dir / "front" / "latency_0.8"
    assert status.read(runs.run_dir).state == status.COMPLETE
    DAMAGES[damage](folder)
    found = status.read(runs.run_dir)
    assert found.state == status.DAMAGED
    assert [name.startswith("front/latency_0.8/") for name in found.damaged] == [True]
    sweep.run(RunConfig.of(sweep=BUDGETS, resume=True, run_dir=str(runs.run_dir)))
    assert runs.budgets == ["latency:0.8", "latency:0.5"]
    assert status.read(runs.run_dir).state == status.COMPLETE
    built = students.read(runs.run_dir)
    assert list(built) == runs.budgets
    assert built["latency:0.8"].student.val_accuracy == 0.8
    assert (folder / "student.keras").read_text() == "student.keras of latency:0.8"


def test_a_sweep_that_was_stopped_is_not_complete(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = students.keep

    def stop(finished: RunReport) -> None:
        keep(finished)
        raise KeyboardInterrupt

    monkeypatch.setattr(students, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(RunConfig.of(sweep=BUDGETS))
    monkeypatch.setattr(students, "keep", keep)
    found = status.read(runs.run_dir)
    assert (found.state, found.students_left, found.exit_code) == (status.STOPPED, ("latency:0.5",), 75)
    assert "students left: latency:0.5" in status.describe(found)
    sweep.run(RunConfig.of(sweep=BUDGETS, resume=True, run_dir=str(runs.run_dir)))
    assert status.read(runs.run_dir).state == status.COMPLETE


def test_a_sweep_without_a_student_is_not_complete(runs: Runs) -> None:
    sweep.run(RunConfig.of(sweep=BUDGETS))
    shutil.rmtree(runs.run_dir / "front" / "latency_0.8")
    assert status.read(runs.run_dir).students_left == ("latency:0.8",)
    assert status.read(runs.run_dir).state == status.STOPPED
    (runs.run_dir / manifest.BUDGETS).write_text("{")
    assert status.read(runs.run_dir).damaged == (manifest.BUDGETS,)
    manifest.record_budgets(Journal(runs.run_dir), ())
    assert status.read(runs.run_dir).state == status.COMPLETE, "the run was resumed without a sweep"


def test_a_front_has_the_students_of_the_last_sweep_alone(runs: Runs) -> None:
    sweep.run(RunConfig.of(sweep=BUDGETS))
    sweep.run(RunConfig.of(sweep="latency:0.8,0.6", resume=True, run_dir=str(runs.run_dir)))
    assert list(students.read(runs.run_dir)) == ["latency:0.8", "latency:0.6"]
    runs(None, None, RunConfig.of(budget="latency:0.6"), sweep=())
    assert students.read(runs.run_dir) == {}


def test_a_front_is_written_without_the_students_that_are_damaged(runs: Runs) -> None:
    sweep.run(RunConfig.of(sweep=BUDGETS))
    (runs.run_dir / "front" / "latency_0.8" / "report.json").write_text("{")
    students.write_front(runs.run_dir, runs.budgets)
    assert list(students.read(runs.run_dir)) == ["latency:0.5"]
