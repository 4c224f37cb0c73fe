"""Members of an ensemble side by side, in this process: the same network as one after the other."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import keras
import numpy as np
import pytest

import pbd
from pbd.compression.context import Context
from pbd.compression.members import MemberTask, keep_busy
from pbd.compression.step import StepResult, settings_of
from pbd.errors import PbdError
from pbd.executors.serial import SerialExecutor
from pbd.networks import graph
from tests.compression.test_recipes import compress, scaled, teacher

pytestmark = pytest.mark.usefixtures("eager")
FINE_TUNE = pbd.FineTune(epochs=1, learning_rate=0.03, loss="cross_entropy")
COPIES = pbd.Ensemble([[pbd.PruneWeights(0.2), FINE_TUNE]], copies=2, mean="logits")


@pytest.mark.parametrize(
    ("members", "workers", "expected"),
    [(2, 1, False), (2, 2, True), (3, 2, True), (2, 3, True), (2, 4, False), (5, 4, True), (9, 8, True), (4, 8, False)],
)
def test_members_are_side_by_side_if_more_than_half_of_the_workers_are_busy(
    members: int, workers: int, expected: bool
) -> None:
    assert keep_busy(members, workers) is expected


@pytest.fixture
def ran_each(monkeypatch: pytest.MonkeyPatch) -> list[list[MemberTask]]:
    """Let the serial executor have two workers; return the tasks of each call of `run_each`."""
    ran, run_each = list[list[MemberTask]](), SerialExecutor.run_each

    def noted(self: SerialExecutor, functions: Any, progress: Any) -> Any:
        ran.append(functions)
        return run_each(self, functions, progress)

    monkeypatch.setattr(SerialExecutor, "collective_size", 2)
    monkeypatch.setattr(SerialExecutor, "run_each", noted)
    return ran


def test_members_side_by_side_make_the_network_of_members_one_after_the_other(
    ran_each: list[list[MemberTask]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    side_by_side = compress(tmp_path / "side by side", pbd.PruneWeights(0.1), COPIES)
    assert [len(tasks) for tasks in ran_each] == [2]
    assert "worker 0: member 2 of 2, step 2 fine_tune: fine-tuning, epoch 1" in capsys.readouterr().out
    monkeypatch.setattr(SerialExecutor, "collective_size", 1)
    one_by_one = compress(tmp_path / "one by one", pbd.PruneWeights(0.1), COPIES)
    assert len(ran_each) == 1
    for one, other in zip(side_by_side.model.get_weights(), one_by_one.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    ours, theirs = (result.report.steps[2] for result in (side_by_side, one_by_one))
    assert (ours.details, ours.events) == (theirs.details, theirs.events)
    assert ours.seconds > 0.0


@dataclass(frozen=True)
class Measured:
    """A step whose network depends on the target."""

    uses_target: bool = True

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        return StepResult(scaled(model, 2.0))


def test_members_that_measure_latencies_are_made_one_after_the_other(
    ran_each: list[list[MemberTask]], tmp_path: Path
) -> None:
    compress(tmp_path, pbd.Ensemble([[Measured()], [FINE_TUNE]]))
    assert not ran_each


@dataclass(frozen=True)
class Counted:
    """Multiplies the weights of the head by a random number of the step."""

    applied: Callable[[], object]

    def apply(self, model: keras.Model, context: Context) -> StepResult:
        self.applied()
        return StepResult(scaled(model, 1.0 + np.random.default_rng(context.seed).random()))


def test_a_stopped_ensemble_goes_on_after_the_steps_that_are_complete(
    ran_each: list[list[MemberTask]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it goes on with one worker."""
    times = [0]

    def applied() -> None:
        times[0] += 1
        if times[0] == 4:
            raise PbdError("there is no such thing. Received: nothing. Give one.")

    ensemble = pbd.Ensemble([[Counted(applied), Counted(applied)]], copies=2)
    with pytest.raises(PbdError) as caught:
        compress(tmp_path / "two", ensemble)
    assert str(caught.value) == "there is no such thing. Received: nothing. Give one."
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    side_by_side = compress(tmp_path / "two", ensemble, resume=True)
    assert len(ran_each) == 2
    assert times[0] == 5, "only the last step of the last member was missing"
    monkeypatch.setattr(SerialExecutor, "collective_size", 1)
    one_by_one = compress(tmp_path / "one", ensemble, resume=True)
    assert times[0] == 6
    for one, other in zip(side_by_side.model.get_weights(), one_by_one.model.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_a_worker_gets_the_networks_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the coordinator would find other settings, and do the step again."""

    def check(self: SerialExecutor, tasks: Any, progress: Any) -> None:
        (step,) = pickle.loads(cloudpickle.dumps(tasks[0])).steps
        assert settings_of(step) == settings_of(tasks[0].steps[0])
        raise PbdError("checked")

    monkeypatch.setattr(SerialExecutor, "collective_size", 2)
    monkeypatch.setattr(SerialExecutor, "run_each", check)
    student = scaled(graph.flatten(teacher()), 0.5)
    with pytest.raises(PbdError, match="checked"):
        compress(tmp_path, pbd.Ensemble([[pbd.DistillInto(student, epochs=1)]], copies=2))
