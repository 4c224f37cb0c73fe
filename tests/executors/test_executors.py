"""What executors share, and how serial and MPI workers take groups from a common pool; no TensorFlow."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, UsageError
from pbd.executors import base, open_executor
from pbd.executors.base import Throttle, run_queue
from pbd.executors.mpi import world
from pbd.executors.serial import SerialExecutor
from pbd.records import BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.scheduling import schedulers
from tests.helpers.cluster import PATIENCE_S, without_backend
from tests.helpers.fakes import make_task
from tests.helpers.sleep_tasks import Sleeper, sleeping

pytestmark = pytest.mark.system


def test_progress_is_passed_on_seldom_but_every_change_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, passed = [0.0], list[Progress]()
    monkeypatch.setattr(base.time, "monotonic", lambda: now[0])
    throttle = Throttle(passed.append)
    for step in range(100):
        now[0] = step / 100
        throttle(Progress(0, "a", step, 100, epoch=1 + step // 50))
    throttle(Progress(0, "b", 0, 100))
    assert [event.done for event in passed] == [0, 50, 0], "the first, the next epoch after 0.5 s, the next label"
    now[0] += 0.5
    throttle(Progress(0, "b", 1, 100))
    assert passed[-1].done == 1


def test_what_was_found_keeps_the_seconds_that_it_took_once() -> None:
    def train(group: TaskGroup, emit: ProgressCallback) -> list[BlockResult]:
        return [BlockResult("old", "trained", "x", seconds=9.0, from_journal=True), BlockResult("new", "trained", "x")]

    ((old, new),) = run_queue(train, [TaskGroup((make_task(0),), predicted_s=2.0)], 3, lambda _: None, 0.0)
    assert (old.seconds, new.seconds) == (9.0, pytest.approx(0.0, abs=1.0))
    assert (old.worker, new.worker) == (3, 3)


@pytest.mark.parametrize("scheduler", ["pull", "round_robin"])
def test_serial_workers_share_as_if_they_ran_at_once(scheduler: str, tmp_path: Path) -> None:
    seconds = [0.8, 0.05, 0.05, 0.05, 0.05]
    tasks, costs = sleeping(seconds)
    assignment = schedulers.SCHEDULERS[scheduler](tasks, costs, 2)
    sleeper = Sleeper(tmp_path, {task.layer.name: s for task, s in zip(tasks, seconds, strict=True)})
    results = {
        r.layer: r
        for r in SerialExecutor(ExecutionConfig(workers=2, isolate=False)).run(sleeper, assignment, lambda _: None)
    }
    workers = [results[f"conv{at}"].worker for at in range(5)]
    assert workers == ([0, 1, 1, 1, 1] if scheduler == "pull" else [0, 1, 0, 1, 0])


def test_one_process_executors_refuse_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "3")
    for executor in ("serial", "dask"):
        with pytest.raises(UsageError, match=f"{executor} executor is one process"):
            open_executor(ExecutionConfig(executor=executor))


RANKS = """
import json, sys
from pathlib import Path
from pbd.config import ExecutionConfig
from pbd.executors.mpi.executor import MpiExecutor, SharedCounter
from pbd.scheduling import schedulers
from tests.helpers.sleep_tasks import Sleeper, sleeping
executor = MpiExecutor(ExecutionConfig(isolate=False))
tasks, costs = sleeping([1.0] * 11)
if executor.coordinates:
    for folder in sys.argv[1:]:
        sleeper = Sleeper(Path(folder), {task.layer.name: 0.1 for task in tasks}, waits_for={"conv0": 11})
        assignment = schedulers.pull(tasks, costs, executor.num_workers)
        results = list(executor.run(sleeper, assignment, lambda _: None))
        print(json.dumps([[r.layer, r.worker, r.started_s, r.seconds] for r in results]))
    executor.finish("done")  # a report is not looked into
else:
    executor.serve()
"""


def test_ranks_draw_from_the_pool_whoever_is_free(tmp_path: Path) -> None:
    """The first does not end before all others have begun; rank 0, which holds the counter, is busy with it."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [mpirun, "-n", "3", sys.executable, "-c", RANKS, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=without_backend())
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == 2, "the counter begins anew for every run"
    for rows in runs:
        assert sorted(name for name, *_ in rows) == sorted(f"conv{at}" for at in range(11))
        worker_of = {name: worker for name, worker, *_ in rows}
        assert set(worker_of.values()) == {0, 1, 2}
        assert [name for name, worker in worker_of.items() if worker == worker_of["conv0"]] == ["conv0"]
    assert all(len(list(folder.glob(f"conv{at}.*"))) == 1 for at in range(11) for folder in folders)


DRAWS = """
import sys, time
from pathlib import Path
from pbd.executors.mpi import world
from pbd.executors.mpi.counter import SharedCounter
comm, done = world.join()[0], Path(sys.argv[1])
counter = SharedCounter(comm)
if comm.Get_rank() == 1:
    sending = comm.isend("progress", dest=0, tag=2)
    print([counter.next() for _ in range(3)])
    done.touch()
else:
    latest = time.monotonic() + 20
    while not done.exists() and time.monotonic() < latest:
        time.sleep(0.02)
    assert done.exists(), "the other rank still waits for its next number"
    comm.recv(source=1, tag=2)
counter.close()
"""


def test_a_rank_draws_while_rank_0_computes_and_has_unread_messages(tmp_path: Path) -> None:
    command = ["mpirun", "-n", "2", sys.executable, "-c", DRAWS, str(tmp_path / "done")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=without_backend())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1, 2]\n"


def test_the_launcher_of_another_mpi_is_refused(tmp_path: Path) -> None:
    """As Open MPI's mpirun starts two processes, of which each finds itself alone in MPICH's world."""
    environment = os.environ | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    command = [sys.executable, "-m", "pbd.run", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
    assert done.returncode == EnvironmentMismatchError.exit_code, done.stderr
    assert "must be of the same MPI" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def started_apart(first: str, others: str, limit_s: int) -> subprocess.CompletedProcess[str]:
    """Run a shell command in rank 1 and another one in ranks 0 and 2, which wait for each other so long."""
    script = f"if [ $PMI_RANK = 1 ]; then {first}; else {others}; fi"
    command = [str(Path(sys.executable).parent / "mpirun"), "-n", "3", "sh", "-c", script]
    environment = os.environ | {"PBD_START_LIMIT": str(limit_s)}
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)


@pytest.mark.parametrize(("given", "fits"), [("4", True), ("0", True), ("10m", False), ("-1", False)])
def test_the_limit_of_waiting_is_seconds(given: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBD_START_LIMIT", given)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    with contextlib.nullcontext() if fits else pytest.raises(UsageError), world._ended_by_signals_or_limit():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before


@pytest.mark.parametrize("failing", ["rank 1", "all others"])
def test_a_rank_that_cannot_start_is_heard_of_by_the_others(failing: str, tmp_path: Path) -> None:
    bad = f"exec {sys.executable} -m pbd.run --config {tmp_path}/absent.toml"
    good = f"exec {sys.executable} -m pbd.run --run-dir {tmp_path}/run"
    done = started_apart(*((bad, good) if failing == "rank 1" else (good, bad)), limit_s=600)
    assert done.returncode == 66
    lines = [line for line in done.stderr.splitlines() if "absent.toml" in line]
    assert len(lines) == 1
    assert ("rank 1 on" in lines[0]) == (failing == "rank 1")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_rank_that_never_comes_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    done = started_apart("exit 3", f"exec {sys.executable} -m pbd.run --run-dir {tmp_path}/run", limit_s=4)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("pbd-run:")]
    assert len(said) == 1
    assert "rank 0 waited 4 s for the other ranks to start" in said[0]
    assert "PBD_START_LIMIT=SECONDS" in said[0]
    assert not (tmp_path / "run").exists()
