"""Dask executor: workers that are killed, and a scheduler that dies."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbd.config import ExecutionConfig
from pbd.errors import NoWorkersError
from pbd.executors import open_executor
from pbd.executors.dask.executor import DaskExecutor
from pbd.scheduling import schedulers
from pbd.scheduling.retry import MOST_ATTEMPTS
from tests.helpers.dask_cluster import DaskCluster
from tests.helpers.each_tasks import Begins
from tests.helpers.sleep_tasks import Sleeper, durations, sleeping, train

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]


@pytest.fixture
def mortal() -> Iterator[DaskExecutor]:
    """Workers for one test: Dask does not start one again that is killed while it starts."""
    made = open_executor(ExecutionConfig(executor="dask", workers=2, isolate=False))
    assert isinstance(made, DaskExecutor)
    yield made
    made.stop(KeyboardInterrupt())


ONCE, ALWAYS = {"conv2": 1}, {"conv4": 99}


@pytest.mark.parametrize(
    ("scheduler", "kills"),
    [("pull", ONCE | ALWAYS), ("wfd", ONCE | ALWAYS), ("work_stealing", ONCE), ("work_stealing", ALWAYS)],
)
def test_a_killed_worker_costs_only_what_it_was_training(
    mortal: DaskExecutor, scheduler: str, kills: dict[str, int], tmp_path: Path
) -> None:
    """What kills its worker once is trained by another one; what always does fails alone."""
    seconds = [0.3] * 7
    sleeper = Sleeper(tmp_path, durations(seconds), kills=kills)
    results = train(mortal, sleeper, scheduler, seconds, workers=2)
    failed = {name: result.error for name, result in results.items() if result.status != "trained"}
    assert failed.keys() == kills.keys() & ALWAYS.keys()
    assert all("lost" in error for error in failed.values())
    if "conv2" in kills:
        assert len(sleeper.begun("conv2")) == 2
    again = {name for name in sleeper.seconds if len(sleeper.begun(name)) > 1}
    if scheduler != "work_stealing":  # Dask reruns what a dead worker held: `train_group` then finds it in the journal
        assert again == kills.keys()
        assert len(sleeper.begun("conv4")) == MOST_ATTEMPTS


def test_a_function_whose_worker_is_killed_is_called_again(mortal: DaskExecutor, tmp_path: Path) -> None:
    functions = [Begins(tmp_path, 0, kills=1), Begins(tmp_path, 1)]
    assert mortal.run_each(functions, lambda _: None) == [(0, 1), (1, 1)]
    assert len(list(tmp_path.glob("0.*"))) == 2
    assert len(list(tmp_path.glob("1.*"))) == 1


def test_a_function_that_kills_its_workers_ends_the_run(mortal: DaskExecutor) -> None:
    with pytest.raises(NoWorkersError, match="out of memory"):
        mortal.call(lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("scheduler", ["pull", "work_stealing"])
def test_a_scheduler_that_dies_ends_the_run(scheduler: str, tmp_path: Path) -> None:
    with DaskCluster(tmp_path / "dask") as started:
        process = started.start_scheduler()
        started.start_worker("worker-0")
        made = open_executor(ExecutionConfig(executor="dask", dask_address=started.address, isolate=False))
        try:
            tasks, costs = sleeping([0.2] * 50)
            sleeper = Sleeper(tmp_path, durations([0.2] * 50))
            results = made.run(sleeper, schedulers.SCHEDULERS[scheduler](tasks, costs, 1), lambda _: None)
            next(results)
            process.kill()
            with pytest.raises(NoWorkersError, match="scheduler is gone"):
                list(results)
        finally:
            made.stop(KeyboardInterrupt())
