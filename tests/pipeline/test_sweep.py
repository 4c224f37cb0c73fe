"""Several students from one set of blocks: which budgets are tried, which student is kept, and what resumes."""

import dataclasses
import re
from pathlib import Path

import pytest

from pbd import report
from pbd.config import RunConfig
from pbd.errors import InfeasibleBudgetError, UsageError
from pbd.pipeline import students, sweep
from pbd.records import ModelFacts, RunReport
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal
from tests.helpers.report_factory import full_report

pytestmark = pytest.mark.fast
LEAST = 0.3
"""The smallest share of latency that is possible."""


class Runs:
    """Runs without networks: a student loses a tenth of the accuracy that its share of the latency is below 1."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.budgets = run_dir, list[float]()

    def __call__(self, config: RunConfig, *_: object, **__: object) -> RunReport:
        (budget,) = config.student.budget
        amount = float(budget.partition(":")[2])
        self.budgets.append(amount)
        if amount < LEAST:
            raise InfeasibleBudgetError("the least possible: latency:0.3")
        journal = Journal(self.run_dir) if self.run_dir.exists() else Journal.create(self.run_dir, {})
        for name in manifest.MODELS:
            journal.write_bytes(name, f"{name} of {budget}".encode())
        finished = full_report(
            config=config.flat() | {"budget": [budget]},
            teacher=ModelFacts(100, 100, val_accuracy=0.9),
            student=ModelFacts(50, 50, val_accuracy=0.9 - 0.1 * (1 - amount), path=str(self.run_dir / "student.keras")),
            run_dir=str(self.run_dir),
            deployments=(),
        )
        report.write(finished, journal)
        manifest.write(journal)
        return finished


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    of_test = Runs(tmp_path / "run")
    monkeypatch.setattr(sweep.distill, "run", of_test)
    return of_test


def test_the_fastest_student_that_keeps_the_accuracy_is_found_by_bisection(runs: Runs) -> None:
    finished = sweep.run(RunConfig.of(max_drop=0.04))
    assert runs.budgets == [0.5, 0.75, 0.625, 0.5625]
    assert finished.config["budget"] == ["latency:0.625"], "a share of 0.6 loses 0.04"
    assert report.read(Journal(runs.run_dir)).config["budget"] == ["latency:0.625"]
    assert (runs.run_dir / "student.keras").read_text() == "student.keras of latency:0.625"
    assert manifest.is_intact(Journal(runs.run_dir))
    assert list(students.read(runs.run_dir)) == [f"latency:{share}" for share in (0.75, 0.625, 0.5625, 0.5)]
    assert len(re.findall("latency:", (runs.run_dir / "front.txt").read_text())) == 4


def test_impossible_budgets_bound_the_bisection(runs: Runs) -> None:
    finished = sweep.run(RunConfig.of(max_drop=0.5))
    assert runs.budgets == [0.5, 0.25, 0.375, 0.3125]
    assert finished.config["budget"] == ["latency:0.3125"]


def test_if_no_student_keeps_the_accuracy_the_error_says_what_was_lost(runs: Runs) -> None:
    with pytest.raises(UsageError, match=r"latency:0\.9375: 0\.006.*--max-drop"):
        sweep.run(RunConfig.of(max_drop=0.001))
    followed = RunConfig.of(max_drop=0.01, resume=True, run_dir=str(runs.run_dir))
    assert sweep.run(followed).config["budget"] == ["latency:0.9375"]


def test_without_labels_the_agreement_counts(runs: Runs) -> None:
    unlabelled = dataclasses.replace(
        runs(RunConfig.of(budget="latency:0.5")), student=ModelFacts(5, 5, val_agreement=0.93)
    )
    assert sweep._drop(unlabelled) == pytest.approx(0.07)


def test_a_resumed_bisection_builds_no_student_twice(runs: Runs) -> None:
    first = sweep.run(RunConfig.of(max_drop=0.04))
    runs.budgets.clear()
    resumed = sweep.run(RunConfig.of(max_drop=0.04, resume=True, run_dir=str(runs.run_dir)))
    assert runs.budgets == [0.625], "that of the run directory, whose settings, teacher and data are compared"
    assert resumed.config["budget"] == first.config["budget"]
    sweep.run(RunConfig.of(max_drop=0.04, resume=True, run_dir=str(runs.run_dir), target_batch=32))
    assert runs.budgets[1:] == [0.5, 0.75, 0.625, 0.5625, 0.625], "other settings of a budget, other students"
