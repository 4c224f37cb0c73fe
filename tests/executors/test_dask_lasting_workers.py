"""Workers that were there before the run and remain after it: late ones, their threads, their processes."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import distributed
import pytest

from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError
from pbd.executors import open_executor
from pbd.executors.dask.executor import DaskExecutor
from pbd.records import BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.scheduling import schedulers
from tests.helpers.cluster import is_running, wait_until
from tests.helpers.fakes import make_task
from tests.helpers.sleep_tasks import Sleeper, durations, sleeping

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]


@dataclass(frozen=True)
class Reporter:
    """Trains for a minute and tells of it all the time; leaves its process number."""

    file: Path

    def __call__(self, group: TaskGroup, emit: ProgressCallback) -> list[BlockResult]:
        self.file.write_text(str(os.getpid()))
        for step in range(600):
            emit(Progress(0, "telling", step, 600))
            time.sleep(0.1)
        return []


def test_a_worker_that_joins_late_gets_work(tmp_path: Path) -> None:
    """The second group does not end before all others have begun."""
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        made = open_executor(ExecutionConfig(executor="dask", dask_address=cluster.scheduler_address, isolate=False))
        try:
            assert made.num_workers == 1
            tasks, costs = sleeping([0.1] * 4)
            sleeper = Sleeper(tmp_path, durations([0.1] * 4), waits_for={"conv1": 4})
            results = made.run(sleeper, schedulers.pull(tasks, costs, 1), lambda _: None)
            first = next(results)
            cluster.scale(2)
            workers = {result.worker for result in [first, *results]}
        finally:
            made.stop(KeyboardInterrupt())
    assert workers == {0, 1}
    assert made.num_workers == 2


def test_a_worker_keeps_the_threads_of_its_first_run() -> None:
    def called(threads: int | None) -> int:
        config = ExecutionConfig(executor="dask", dask_address=cluster.scheduler_address, threads_per_worker=threads)
        made = open_executor(config)
        try:
            return made.call(lambda: int(os.environ["TF_NUM_INTRAOP_THREADS"]))
        finally:
            made.stop(KeyboardInterrupt())

    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        assert called(1) == 1
        assert called(None) == 1
        with pytest.raises(EnvironmentMismatchError, match="Start the workers again"):
            called(2)


def test_the_processes_of_lasting_workers_end_with_the_run(tmp_path: Path) -> None:
    """Whether they do nothing by then or are in the middle of something; the next run gets new ones."""

    def opened() -> DaskExecutor:
        made = open_executor(ExecutionConfig(executor="dask", dask_address=cluster.scheduler_address))
        assert isinstance(made, DaskExecutor)
        return made

    reporter = Reporter(tmp_path / "pid")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        made = opened()
        idle = made.call(os.getpid)
        os.kill(idle, 0)
        made.finish(None)
        wait_until(lambda: not is_running(idle), "the idle one ends")
        made = opened()
        made._submit(cloudpickle.dumps(reporter), TaskGroup((make_task(0),)), made._cluster.snapshot())
        wait_until(lambda: reporter.file.exists() and reporter.file.read_text(), "the group begins")
        busy = int(reporter.file.read_text())
        assert is_running(busy)
        assert busy != idle
        made.stop(KeyboardInterrupt())
        wait_until(lambda: not is_running(busy), "the busy one ends")
