"""Every scheduler on real Dask and MPI workers, with tasks that sleep: the order that the replay predicts."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import measured_runs
from experiments.measured_runs import Execution, order
from experiments.sleep_tasks import schedulers_of
from pbd.errors import PbdError

pytestmark = pytest.mark.system

MEAN_S = 0.6


@pytest.fixture(scope="module", params=["dask", "mpi"])
def done(request: pytest.FixtureRequest) -> list[Execution]:
    pytest.importorskip({"dask": "distributed", "mpi": "mpi4py"}[request.param])
    return measured_runs.execute(request.param, workers=2, mean_s=MEAN_S)


def test_every_task_of_every_case_slept_once(done: list[Execution]) -> None:
    cases = {one.case for one in done}
    assert len(cases) == 3
    assert [one.scheduler for one in done] == schedulers_of(done[0].executor) * len(cases)
    for one in done:
        for timeline in (one.predicted, one.measured):
            trained = [name for spans in timeline for span in spans for name in span.group.layer_names]
            assert sorted(trained) == sorted(set(trained))
            assert len(trained) == (13 if "VGG16" in one.case else 8)


def told_s(one: Execution) -> list[float]:
    """Return how long each worker was told to sleep, with the tasks that it got: a busy machine delays tasks."""
    seconds = {span.group.layer_names: span.ended_s - span.started_s for timeline in one.predicted for span in timeline}
    return [sum(seconds[span.group.layer_names] for span in timeline) for timeline in one.measured]


def as_long_as_told(one: Execution) -> Execution:
    """Return an execution as if each task had taken the time that it was told to sleep."""
    totals = told_s(one)
    longest = max(range(len(totals)), key=totals.__getitem__)
    last = replace(one.measured[longest][-1], started_s=0.0, ended_s=totals[longest])
    return replace(one, measured=((last,),))


def test_schedulers_come_out_in_the_order_of_their_replays(done: list[Execution]) -> None:
    """Which workers got which tasks; only what is to differ by a third or more is looked at."""
    for case in {one.case for one in done}:
        found = order([as_long_as_told(one) for one in done if one.case == case], margin=0.3)
        assert found.pairs >= (0 if "VGG16" in case else 3)
        assert found.broken == ()


def test_idle_time_is_reported_where_the_replay_has_it(done: list[Execution]) -> None:
    six_ones = {one.scheduler: one for one in done if one.case.endswith("repeated")}
    idle = {name: 1 - sum(told_s(one)) / (2 * max(told_s(one))) for name, one in six_ones.items()}
    assert idle["round_robin"] > idle["pull"]
    assert six_ones["round_robin"].idle_share > 0.1
    for one in done:
        busy_s, idle_s = (sum(getattr(worker, part) for worker in one.workers) for part in ("busy_s", "idle_s"))
        assert busy_s + idle_s == pytest.approx(2 * one.measured_s)
        assert busy_s >= 2 * MEAN_S  # nobody sleeps for less than it was told


def test_a_run_that_fails_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PbdError, match=r"pbd.run on dask failed: .*many") as refusal:
        measured_runs.train("dask", "pull", 2, ["--epochs", "many"], tmp_path / "run")
    assert "\n" not in str(refusal.value)
