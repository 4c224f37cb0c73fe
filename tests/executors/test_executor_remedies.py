"""Refusals of executors, and the ends of runs that can be resumed: each remedy is followed, and works."""

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pbd import run
from pbd.config import ExecutionConfig
from pbd.errors import StoppedError
from pbd.executors import open_executor
from pbd.executors.dask import cluster, results, worker
from pbd.executors.isolation import retry
from pbd.executors.isolation.base import LostProcessError
from pbd.executors.mpi import heartbeat, world
from pbd.run_dir.journal import Journal
from pbd.system import watchdog
from tests.helpers.cluster import PATIENCE_S, without_backend
from tests.helpers.dask_cluster import local_cluster
from tests.helpers.remedies import EXTRAS, in_message, provides, refusal


@pytest.fixture(autouse=True)
def _no_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Dask workers in this process claim no share of the host."""
    monkeypatch.setattr(worker, "set_up", lambda settings: None)


def open_and_stop(**settings: Any) -> None:
    open_executor(ExecutionConfig(**{"isolate": False, **settings})).stop(KeyboardInterrupt())


@pytest.mark.fast
@pytest.mark.parametrize("executor", ["serial", "dask"])
def test_one_process_is_started_without_mpirun(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "3")
    refusal(lambda: open_and_stop(executor=executor), "Drop mpirun.")
    monkeypatch.delenv("PMI_SIZE")
    with local_cluster() as started:
        open_and_stop(executor=executor, dask_address=started.scheduler_address if executor == "dask" else None)


@pytest.mark.fast
def test_the_extra_of_the_dask_executor_installs_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "pbd.executors.dask.executor", raising=False)
        without.setitem(sys.modules, "pbd.executors.dask.cluster", None)
        without.setitem(sys.modules, "distributed", None)
        message = refusal(lambda: open_executor(ExecutionConfig(executor="dask")))
    assert any(provides(one, "distributed") for one in EXTRAS[in_message(r"pip install 'pbd\[(\w+)\]'", message)])
    with local_cluster() as started:
        open_and_stop(executor="dask", dask_address=started.scheduler_address)


def fake_mpi(ranks: int) -> SimpleNamespace:
    """Return a stand-in for mpi4py whose communicator has this many ranks."""
    communicator = SimpleNamespace(Get_size=lambda: ranks)
    return SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=communicator))


@pytest.mark.fast
def test_packages_of_mpi_are_those_of_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    message = refusal(world._world, "Install them with pip: ")
    named = in_message(r"with pip: (.*)\.", message).split()
    assert [re.split(">=", requirement)[0] for requirement in EXTRAS["mpi"]] == named
    assert importlib.metadata.packages_distributions()["mpi4py"] == [named[0]]
    monkeypatch.setitem(sys.modules, "mpi4py", fake_mpi(1))
    world._world()


@pytest.mark.fast
def test_the_launcher_is_that_of_the_mpi_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", fake_mpi(1))
    refusal(world._world, "Use the mpirun that belongs to mpi4py's library.")
    monkeypatch.setitem(sys.modules, "mpi4py", fake_mpi(2))
    world._world()


@pytest.mark.fast
def test_the_start_limit_is_given_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBD_START_LIMIT", "10m")
    message = refusal(world._start_limit)
    name = in_message(r"^(\w+) must be seconds", message)
    for seconds in (in_message(r"Give (\d+), for example", message), in_message(r"(\d) for no limit", message)):
        monkeypatch.setenv(name, seconds)
        with world._start_limit():
            pass


RANKS = """
from pbd.command_line import run
from pbd.config import ExecutionConfig
from pbd.executors import open_executor
def command(arguments):
    executor = open_executor(ExecutionConfig(workers=2, isolate=False))
    if executor.coordinates:
        executor.finish("done")
    else:
        executor.serve()
raise SystemExit(run("ranks", command, ()))
"""


@pytest.mark.system
def test_as_many_ranks_are_started_as_workers_are_wanted() -> None:
    def started(command: str) -> subprocess.CompletedProcess[str]:
        words = [str(Path(sys.executable).parent / command.split()[0]), *command.split()[1:], sys.executable, "-c"]
        return subprocess.run(
            [*words, RANKS], capture_output=True, text=True, timeout=PATIENCE_S, env=without_backend()
        )

    refused = started("mpirun -n 1")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1, refused.stderr
    followed = started(in_message(r"Use (mpirun -n \d)\.", refused.stderr))
    assert followed.returncode == 0, followed.stderr


GOES_ON = "--resume --run-dir DIR"


def hung_rank() -> None:
    monitor = heartbeat.HeartbeatMonitor.__new__(heartbeat.HeartbeatMonitor)
    monitor._comm = SimpleNamespace(
        iprobe=lambda source: False, isend=lambda *_, dest: SimpleNamespace(Test=lambda: True)
    )
    monitor._timeouts, monitor._sending = {1: SimpleNamespace(expired=lambda: True, silent_s=60.0)}, {}
    raise monitor.exchange() or AssertionError("the rank is not missed")


def hung_process() -> None:
    check = watchdog._HangCheck(60.0)
    check._touches, check._cpu_s = watchdog.count(), 1e9
    check._timeout = SimpleNamespace(expired=lambda: True, silent_s=60.0)  # type: ignore[assignment]
    raise check() or AssertionError("the process is not missed")


def lost_workers() -> None:
    joined = cluster.Cluster.__new__(cluster.Cluster)
    joined._unusable_since = -2 * cluster.WORKERS_LIMIT_S
    joined.check_usable(False)


def lost_process() -> None:
    def attempt() -> None:
        raise LostProcessError("the training process was lost")

    retry.retry_lost(attempt)


def lost_scheduler() -> None:
    future: Future[None] = Future()
    future.cancel()
    results.result_of(future)


def stopped() -> None:
    raise StoppedError()


@pytest.mark.fast
@pytest.mark.parametrize("end", [hung_rank, hung_process, lost_workers, lost_process, lost_scheduler, stopped])
def test_a_run_that_ended_goes_on_with_the_flags_of_its_last_message(end: Callable[[], None], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    Journal.create(run_dir, {})
    message = refusal(end, GOES_ON)
    flags = in_message(r"o on with (--resume --run-dir DIR)", message).replace("DIR", str(run_dir)).split()
    config = run.parse(flags)
    assert (config.execution.resume, config.execution.run_dir) == (True, str(run_dir))
    Journal.resume(run_dir, {})
