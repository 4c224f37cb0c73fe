"""Dask executor: who gets what, workers that die or join late, and clusters that are refused."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import pytest

from pbd import energy
from pbd.config import ExecutionConfig
from pbd.errors import BadInputError, EnvironmentMismatchError, MissingInputError, NoWorkersError
from pbd.executors import open_executor
from pbd.executors.base import Executor
from pbd.executors.dask import cluster, connection
from pbd.executors.dask.energy import ClusterMeters
from pbd.executors.dask.executor import DaskExecutor, _letters
from pbd.executors.dask.worker import host
from pbd.records import BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.scheduling import schedulers
from pbd.scheduling.retry import MOST_ATTEMPTS
from tests.helpers.cluster import is_running, wait_until
from tests.helpers.dask_cluster import DaskCluster
from tests.helpers.fakes import make_task
from tests.helpers.sleep_tasks import Sleeper, sleeping

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]


@pytest.fixture(scope="module")
def executor() -> Iterator[DaskExecutor]:
    made = open_executor(ExecutionConfig(executor="dask", workers=3, isolate=False))
    assert isinstance(made, DaskExecutor)
    yield made
    made.stop(KeyboardInterrupt())


@pytest.fixture
def mortal() -> Iterator[DaskExecutor]:
    """Workers for one test: Dask does not start one again that is killed while it starts."""
    made = open_executor(ExecutionConfig(executor="dask", workers=3, isolate=False))
    assert isinstance(made, DaskExecutor)
    yield made
    made.stop(KeyboardInterrupt())


def train(
    executor: Executor,
    sleeper: Sleeper,
    scheduler: str,
    seconds: list[float],
    events: list[Progress] | None = None,
    workers: int = 3,
) -> dict[str, BlockResult]:
    tasks, costs = sleeping(seconds)
    assignment = schedulers.SCHEDULERS[scheduler](tasks, costs, workers)
    emit = events.append if events is not None else lambda _: None
    results = list(executor.run(sleeper, assignment, emit))
    assert sorted(result.layer for result in results) == sorted(task.layer.name for task in tasks)
    return {result.layer: result for result in results}


def durations(seconds: list[float]) -> dict[str, float]:
    return {f"conv{at}": duration for at, duration in enumerate(seconds)}


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


@pytest.mark.parametrize("scheduler", ["pull", "wfd", "work_stealing"])
def test_a_killed_worker_costs_only_what_it_was_training(mortal: DaskExecutor, scheduler: str, tmp_path: Path) -> None:
    seconds = [0.5] * 7
    sleeper = Sleeper(tmp_path, durations(seconds), kills={"conv2": 1})
    results = train(mortal, sleeper, scheduler, seconds)
    assert {result.status for result in results.values()} == {"trained"}
    assert len(sleeper.begun("conv2")) == 2
    again = {name for name in sleeper.seconds if len(sleeper.begun(name)) > 1}
    if scheduler != "work_stealing":  # Dask reruns what a dead worker held: `train_group` then finds it in the journal
        assert again == {"conv2"}


@pytest.mark.parametrize("scheduler", ["pull", "work_stealing"])
def test_a_task_that_always_kills_its_worker_costs_only_itself(
    mortal: DaskExecutor, scheduler: str, tmp_path: Path
) -> None:
    sleeper = Sleeper(tmp_path, durations([0.1] * 6), kills={"conv1": 99})
    results = train(mortal, sleeper, scheduler, [0.1] * 6)
    assert {name for name, result in results.items() if result.status != "trained"} == {"conv1"}
    assert "lost" in results["conv1"].error
    if scheduler == "pull":
        assert len(sleeper.begun("conv1")) == MOST_ATTEMPTS


@pytest.mark.parametrize("scheduler", ["pull", "work_stealing"])
def test_what_is_wrong_with_a_worker_is_said_in_one_line(
    executor: DaskExecutor, scheduler: str, tmp_path: Path
) -> None:
    def message_of(error: Exception) -> str:
        sleeper = Sleeper(tmp_path, durations([0.1]), error=error)
        with pytest.raises(EnvironmentMismatchError if isinstance(error, ImportError) else type(error)) as caught:
            train(executor, sleeper, scheduler, [0.1])
        return str(caught.value)

    assert "no such module" in message_of(ImportError("no such module"))
    assert "\n" not in message_of(ImportError("two\nlines"))
    assert message_of(BadInputError("told by pbd")) == "told by pbd"
    assert message_of(TimeoutError("of the task itself")) == "of the task itself"


def test_a_function_is_called_in_a_worker(executor: DaskExecutor) -> None:
    assert executor.call(os.getpid) != os.getpid()


def test_a_function_that_kills_its_workers_ends_the_run(mortal: DaskExecutor) -> None:
    with pytest.raises(NoWorkersError, match="out of memory"):
        mortal.call(lambda: os.kill(os.getpid(), signal.SIGKILL))


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


def test_too_few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKERS_LIMIT_S", 1.0)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as started:
        config = ExecutionConfig(executor="dask", dask_address=started.scheduler_address, workers=2)
        with pytest.raises(NoWorkersError, match="1 of 2"):
            open_executor(config)


def test_workers_of_several_threads_are_not_stolen_from(tmp_path: Path) -> None:
    level = logging.getLogger("distributed").level
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster:
        made = open_executor(ExecutionConfig(executor="dask", dask_address=cluster.scheduler_address, isolate=False))
        with pytest.raises(EnvironmentMismatchError, match="--nthreads 1"):
            train(made, Sleeper(tmp_path, durations([0.1])), "work_stealing", [0.1], workers=1)
        made.stop(KeyboardInterrupt())
    assert logging.getLogger("distributed").level == level


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 1.0)
    with pytest.raises(NoWorkersError, match=r"127\.0\.0\.1:9"):
        open_executor(ExecutionConfig(executor="dask", dask_address="tcp://127.0.0.1:9"))


def test_a_scheduler_file_gives_its_address(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"address": "tcp://10.0.0.1:8786"}))
    assert connection.scheduler_address(str(path)) == "tcp://10.0.0.1:8786"
    assert connection.scheduler_address("tls://a:1") == "tls://a:1"
    for content in ("", "[]", '{"id": 1}'):
        path.write_text(content)
        with pytest.raises(MissingInputError, match="scheduler file"):
            connection.scheduler_address(str(path))
    with pytest.raises(MissingInputError, match="No such file"):
        connection.scheduler_address(str(tmp_path / "absent.json"))


def test_a_cluster_that_also_listens_on_the_network_is_refused() -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="0.0.0.0", dashboard_address="127.0.0.1:0"
    ) as cluster:
        address = f"tcp://127.0.0.1:{cluster.scheduler_address.rpartition(':')[2]}"
        if "//127." in cluster.scheduler_address:
            pytest.skip("this host has no address but the loopback one")
        with pytest.raises(EnvironmentMismatchError, match="TLS"):
            open_executor(ExecutionConfig(executor="dask", dask_address=address))
        open_executor(ExecutionConfig(executor="dask", dask_address=address, dask_insecure=True)).stop(SystemExit())


def test_workers_that_listen_on_the_network_are_refused() -> None:
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--no-nanny", "--nthreads", "1"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
            try:
                config = ExecutionConfig(executor="dask", dask_address=cluster.scheduler_address, isolate=False)
                made = open_executor(config)
                with pytest.raises(EnvironmentMismatchError, match=r"--host 127\.0\.0\.1"):
                    made.call(os.getpid)
                made.stop(KeyboardInterrupt())
            finally:
                worker.terminate()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://[::1:8786", "tcp://", "://"])
def test_addresses_that_are_none_are_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 1e6)
    with pytest.raises((EnvironmentMismatchError, NoWorkersError)) as caught:
        open_executor(ExecutionConfig(executor="dask", dask_address=address))
    assert "\n" not in str(caught.value)


def test_certificates_that_are_not_there_are_said_in_one_line() -> None:
    import dask

    def refused(settings: dict[str, object], config: ExecutionConfig) -> str:
        with dask.config.set(settings), pytest.raises(EnvironmentMismatchError) as caught:
            open_executor(config)
        return str(caught.value)

    named = ("ca-file", "client.cert", "client.key")
    absent = {f"distributed.comm.tls.{name}": "/absent/file.pem" for name in named}
    assert "must exist" in refused(absent, ExecutionConfig(executor="dask", dask_address="tls://127.0.0.1:9"))
    encrypted = {"distributed.comm.require-encryption": True}
    assert "on this host" in refused(encrypted, ExecutionConfig(executor="dask", workers=1))


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


@pytest.mark.parametrize(
    ("address", "insecure", "private"),
    [
        ("tcp://127.0.0.1:8786", False, True),
        ("tcp://[::1]:8786", False, True),
        ("tcp://localhost:8786", False, True),
        ("tls://10.0.0.1:8786", False, True),
        ("tcp://10.0.0.1:8786", True, True),
        ("tcp://10.0.0.1:8786", False, False),
        ("tcp://127.0.0.1.evil.org:8786", False, False),
        ("ws://gpu-7:8786", False, False),
    ],
)
def test_clusters_open_to_the_network_are_refused(address: str, insecure: bool, private: bool) -> None:
    if private:
        connection.check_privacy(address, insecure)
        return
    with pytest.raises(EnvironmentMismatchError, match="TLS"):
        connection.check_privacy(address, insecure)


def test_tls_without_certificates_is_said_in_one_line() -> None:
    with pytest.raises(EnvironmentMismatchError, match="asks for a certificate") as caught:
        open_executor(ExecutionConfig(executor="dask", dask_address="tls://127.0.0.1:9"))
    assert "\n" not in str(caught.value)


def test_small_things() -> None:
    assert [_letters(number) for number in (0, 25, 26, 701, 702)] == ["a", "z", "aa", "zz", "aaa"]
    assert host("tls://10.0.0.2:40001") == "10.0.0.2"
    assert host("tcp://[::1]:40001") == "::1"
