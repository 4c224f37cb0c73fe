"""Dask executor: the worker of each group, calls in workers, and workers that pause."""

import copy
import itertools
import os
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest

from pbd import energy
from pbd.config import ExecutionConfig
from pbd.errors import BadInputError, EnvironmentMismatchError, MissingInputError, NoWorkersError
from pbd.executors import open_executor
from pbd.executors.dask import cluster
from pbd.executors.dask.energy import ClusterMeters
from pbd.executors.dask.executor import DaskExecutor, _letters
from pbd.executors.dask.worker import host
from pbd.records import Progress
from pbd.scheduling import schedulers
from tests.helpers.cluster import wait_until
from tests.helpers.each_tasks import Begins
from tests.helpers.sleep_tasks import Sleeper, durations, sleeping, train

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]


@pytest.fixture(scope="module")
def executor() -> Iterator[DaskExecutor]:
    made = open_executor(ExecutionConfig(executor="dask", workers=3, isolate=False))
    assert isinstance(made, DaskExecutor)
    yield made
    made.stop(KeyboardInterrupt())


@pytest.mark.parametrize("scheduler", sorted(schedulers.SCHEDULERS))
def test_every_group_is_trained_once_and_stamped(executor: DaskExecutor, scheduler: str, tmp_path: Path) -> None:
    seconds, events = [0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], list[Progress]()
    sleeper = Sleeper(tmp_path, durations(seconds))
    began = time.monotonic()
    results = train(executor, sleeper, scheduler, seconds, events)
    whole_s = time.monotonic() - began
    for name, result in results.items():
        assert len(sleeper.begun(name)) == 1
        assert result.status == "trained"
        assert result.worker in range(3)
        assert sleeper.seconds[name] <= result.seconds
        assert result.predicted_s == sleeper.seconds[name]
        assert 0 <= result.started_s <= whole_s - result.seconds
    told = {(event.label, event.worker) for event in events}
    assert told >= {(name, result.worker) for name, result in results.items() if name != "conv6"}


def test_a_static_assignment_is_pinned_to_its_workers(executor: DaskExecutor, tmp_path: Path) -> None:
    results = train(executor, Sleeper(tmp_path, durations([0.05] * 6)), "round_robin", [0.05] * 6)
    assert [results[f"conv{at}"].worker for at in range(6)] == [0, 1, 2, 0, 1, 2]


def test_whoever_comes_free_takes_the_next(executor: DaskExecutor, tmp_path: Path) -> None:
    """The prediction is wrong: all tasks look alike, and one does not end before all others have begun."""
    tasks, costs = sleeping([1.0] * 9)
    for scheduler in ("pull", "work_stealing"):
        folder = tmp_path / scheduler
        folder.mkdir()
        assignment = schedulers.SCHEDULERS[scheduler](tasks, costs, 3)
        sleeper = Sleeper(folder, durations([0.1] * 9), waits_for={"conv0": 9})
        results = executor.run(sleeper, assignment, lambda _: None)
        by_layer = {result.layer: result for result in results}
        assert sum(result.worker == by_layer["conv0"].worker for result in by_layer.values()) == 1, scheduler


def test_workers_know_their_host_and_one_of_a_further_host_measures_it(executor: DaskExecutor) -> None:
    found = executor.readings()
    assert sorted(found) == [0, 1, 2]
    assert {(reading.hosts, reading.traces, reading.notes) for reading in found.values()} == {
        ((energy.host_identity(),), (), ())
    }
    begun = time.time()
    of_this_run, of_the_next = (ClusterMeters(executor._cluster, here="elsewhere") for _ in range(2))
    assert not any(reading.seconds for reading in of_this_run.read().values()), "it is over"
    seconds = sorted(reading.seconds for reading in of_the_next.read().values())
    assert seconds[:2] == [0.0, 0.0]
    assert 0.0 < seconds[2] <= time.time() - begun
    of_the_next.end()
    assert not any(reading.seconds for reading in of_the_next.read().values())


@pytest.mark.parametrize("scheduler", ["pull", "work_stealing"])
def test_an_exception_of_a_task_is_raised_as_it_is(executor: DaskExecutor, scheduler: str, tmp_path: Path) -> None:
    for error in (
        ImportError("no such module"),
        AttributeError("a bug in a block"),
        BadInputError("told by pbd"),
        TimeoutError("of the task itself"),
    ):
        sleeper = Sleeper(tmp_path, durations([0.1]), error=error)
        with pytest.raises(type(error), match=str(error)) as caught:
            train(executor, sleeper, scheduler, [0.1])
        assert type(caught.value) is type(error)


def test_a_function_is_called_in_a_worker(executor: DaskExecutor) -> None:
    assert executor.call(os.getpid) != os.getpid()


def test_each_worker_that_is_free_takes_the_next_function(executor: DaskExecutor, tmp_path: Path) -> None:
    events = list[Progress]()
    functions = [Begins(tmp_path, number, waits_for=5 if number == 0 else 0) for number in range(5)]
    assert executor.run_each(functions, events.append) == [(number, 1) for number in range(5)]
    worker_of = {event.label: event.worker for event in events}
    assert [label for label, worker in worker_of.items() if worker == worker_of["function 0"]] == ["function 0"]
    with pytest.raises(MissingInputError, match="no such thing"):
        executor.run_each([Begins(tmp_path, 9, fails=True)], events.append)


@pytest.mark.parametrize("scheduler", ["pull", "wfd"])
def test_a_paused_worker_gets_no_work_and_keeps_none_waiting(
    executor: DaskExecutor, scheduler: str, tmp_path: Path
) -> None:
    """Dask pauses workers that are short of memory: they finish what they do, and begin nothing."""

    def set_status(status: str, seconds: float) -> None:
        worker = distributed.get_worker()
        time.sleep(seconds)
        worker.loop.add_callback(setattr, worker, "status", distributed.Status[status])
        time.sleep(seconds)

    client, workers = executor._cluster._client, executor._cluster.snapshot()
    victim = next(address for address in workers.ready if executor._cluster.number(address) == 1)
    pausing = client.submit(set_status, "paused", 0.7, workers=[victim], pure=False)  # a group waits behind this
    try:
        results = train(executor, Sleeper(tmp_path, durations([0.1] * 7)), scheduler, [0.1] * 7)
        pausing.result()
    finally:
        client.run(lambda dask_worker: setattr(dask_worker, "status", distributed.Status.running), workers=[victim])
    assert {result.worker for result in results.values()} == {0, 2}


class Unreadable:
    """Can be sent, but not read: as if worker and coordinator had different versions of something."""

    def __reduce__(self) -> tuple[object, ...]:
        return getattr, (os, "no_such_name")


def test_what_cannot_be_read_ends_the_run(executor: DaskExecutor) -> None:
    with pytest.raises(EnvironmentMismatchError, match="no_such_name"):
        executor.call(Unreadable)


def test_nothing_is_asked_of_a_worker_that_is_paused(executor: DaskExecutor) -> None:
    """It paused while the call waited behind something else on it."""

    def pause() -> None:
        worker = distributed.get_worker()
        worker.loop.add_callback(setattr, worker, "status", distributed.Status.paused)
        time.sleep(1.5)

    client, workers = executor._cluster._client, executor._cluster.snapshot()
    first = min(workers.ready, key=executor._cluster.number)
    pausing = client.submit(pause, workers=[first], pure=False)
    try:
        wait_until(lambda: executor._cluster.has_started(pausing.key), "pause")
        assert executor.call(lambda: distributed.get_worker().address) in workers.ready - {first}
        pausing.result()
    finally:
        client.run(lambda dask_worker: setattr(dask_worker, "status", distributed.Status.running), workers=[first])


def test_a_result_that_arrives_as_its_worker_leaves_is_kept(executor: DaskExecutor, tmp_path: Path) -> None:
    """A future is done, but was not yet when it was looked at; then its worker is gone."""
    sleeper = Sleeper(tmp_path, durations([0.05] * 3))
    tasks, costs = sleeping([0.05] * 3)
    client = executor._cluster
    snapshot, submit, sent = client.snapshot, client.submit, []

    def keep(*what: Any, **options: Any) -> "distributed.Future":
        sent.append(submit(*what, **options))
        return sent[-1]

    def late() -> cluster.WorkersSnapshot:
        if not sent:
            return snapshot()
        wait_until(lambda: all(future.done() for future in sent), "results")
        return cluster.WorkersSnapshot(frozenset(), frozenset())

    client.snapshot, client.submit = late, keep
    try:
        results = list(executor.run(sleeper, schedulers.pull(tasks, costs, 3), lambda _: None))
    finally:
        del client.snapshot, client.submit
    assert {result.status for result in results} == {"trained"}
    assert all(len(sleeper.begun(f"conv{at}")) == 1 for at in range(3))


def test_a_collective_has_a_member_even_if_no_worker_is_ready_now(
    executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a plan in data parallelism would divide the batches among no workers."""
    now = executor._cluster.snapshot()
    snapshots = itertools.chain([cluster.WorkersSnapshot(now.present, frozenset())], itertools.repeat(now))
    monkeypatch.setattr(executor._cluster, "snapshot", lambda: next(snapshots))
    assert executor.collective_size == 3


def test_patience_is_lost_after_a_minute_without_hope(executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(cluster, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    for hopeful, after_s in ((True, 0.0), (False, 500.0), (False, 59.0), (True, 2.0), (False, 100.0), (False, 59.0)):
        now[0] += after_s
        executor._cluster.check_usable(hopeful)
    now[0] += 2.0
    with pytest.raises(NoWorkersError, match="--resume"):
        executor._cluster.check_usable(False)
    executor._cluster.check_usable(True)


def test_a_cluster_of_this_process_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED"):
        monkeypatch.delenv(name, raising=False)
    nanny, durations_set = "distributed.nanny", "distributed.scheduler.default-task-durations"
    before = dict(os.environ), *(copy.deepcopy(dask.config.get(key)) for key in (nanny, durations_set))
    executor = open_executor(ExecutionConfig(executor="dask", workers=1, threads_per_worker=3, isolate=False))
    try:
        train(executor, Sleeper(tmp_path, durations([0.0])), "work_stealing", [0.0], workers=1)
        environment = executor.call(lambda: dict(os.environ))
    finally:
        executor.stop(KeyboardInterrupt())
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "OPENBLAS_NUM_THREADS" not in environment
    assert (dict(os.environ), dask.config.get(nanny), dask.config.get(durations_set)) == before


def test_small_things() -> None:
    assert [_letters(number) for number in (0, 25, 26, 701, 702)] == ["a", "z", "aa", "zz", "aaa"]
    assert host("tls://10.0.0.2:40001") == "10.0.0.2"
    assert host("tcp://[::1]:40001") == "::1"
