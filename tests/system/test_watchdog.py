"""Hang detection ends processes that hang, and none that compute, wait on purpose or were stopped; no TensorFlow."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pbd.errors import NoWorkersError, PbdError, StoppedError
from pbd.system import watchdog
from pbd.system.watchdog import Timeout
from tests.helpers.cluster import PATIENCE_S, wait_until

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 2

WORK = {
    "sleeps": "time.sleep(1e6)",
    "waits for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "computes": "until = time.monotonic() + 4\nwhile time.monotonic() < until: pass",
    "waits on purpose": "for _ in range(8): watchdog.touch(); time.sleep(0.5)",
    "is done soon": "time.sleep(1)",
    "sleeps in silence": "with silence.silenced(2): time.sleep(1e6)",
    "computes with a tenth of a core": """
own = os.getpid()
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
rival = os.fork()
while rival == 0 and os.getppid() == own: pass
os.nice(10)  # a weight of 110, the rival's is 1024
until = time.monotonic() + 4
while time.monotonic() < until: pass
os.kill(rival, signal.SIGKILL)
""",
}
HANGS = ("sleeps", "sleeps in silence", "waits for a lock")


@pytest.mark.parametrize("work", WORK)
def test_only_a_process_that_hangs_is_ended(work: str) -> None:
    body = "\n".join(f"    {line}" for line in WORK[work].splitlines())
    imports = "import os, signal, threading, time\nfrom pbd.system import silence, watchdog"
    script = f"{imports}\nwith watchdog.watching({LIMIT_S}):\n{body}\nprint('done')"
    command = [sys.executable, "-c", script]
    # A session of its own: Linux shares out cores by session before it looks at niceness.
    options = {"capture_output": True, "text": True, "cwd": ROOT, "start_new_session": True}
    done = subprocess.run(command, timeout=PATIENCE_S, **options)
    if work in HANGS:
        assert done.returncode == StoppedError.exit_code, done.stderr
        assert "this process hung" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_process_whose_output_is_blocked_is_left_alone() -> None:
    script = (
        "from pbd.system import watchdog\n"
        f"with watchdog.watching({LIMIT_S}):\n    print('x' * 1_000_000, flush=True)\n    print('done')"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as blocked:
        time.sleep(LIMIT_S + 3)
        assert blocked.stdout is not None
        assert blocked.stdout.read().endswith("done\n")
    assert blocked.returncode == 0


def test_a_download_may_take_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.02)
    errors: list[PbdError] = []
    with watchdog.watching(0.1, errors.append):
        with watchdog.waiting():
            time.sleep(0.4)
        assert not errors
        wait_until(lambda: bool(errors), "the process hangs after the download")


def test_time_in_which_the_process_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    timeout = Timeout(5.0, tick_s=1.0)
    for after_s, expired in ((1.0, False), (3600.0, False), (1.0, False), (1.0, True)):
        now[0] += after_s
        assert timeout.expired() == expired
    timeout.renew()
    assert not timeout.expired()


RANKS = f"""
import os, sys, time
from pathlib import Path
from pbd.system import watchdog
from pbd.config import ExecutionConfig
from pbd.executors.mpi.executor import MpiExecutor
executor = MpiExecutor(ExecutionConfig(isolate=False, stall_limit={LIMIT_S}))
rank = executor._comm.Get_rank()
(Path(sys.argv[1]) / str(rank)).write_text(str(os.getpid()))
with watchdog.watching({LIMIT_S}, executor.abort):
    if sys.argv[3:] == [str(rank)]:
        time.sleep(1e6)
    for _ in range(int(sys.argv[2])):
        watchdog.touch()
        time.sleep(0.1)
executor._end()
"""


def start_ranks(folder: Path, steps: int, *hanging: str) -> "subprocess.Popen[str]":
    mpirun = Path(sys.executable).parent / "mpirun"
    command = [mpirun, "-n", "3", sys.executable, "-c", RANKS, str(folder), str(steps), *hanging]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_ranks_that_make_progress_are_left_alone(tmp_path: Path) -> None:
    job = start_ranks(tmp_path, steps=50)
    _, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, errors


def pids_of(folder: Path, ranks: int) -> list[int]:
    """Wait until every rank has written its process number, and return them."""
    files = [folder / str(rank) for rank in range(ranks)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), "ranks")
    return [int(file.read_text()) for file in files]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_rank_ends_the_job(rank: int, tmp_path: Path) -> None:
    job = start_ranks(tmp_path, steps=6000)
    pids = pids_of(tmp_path, 3)
    time.sleep(1.5)
    os.kill(pids[rank], signal.SIGSTOP)
    _, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == NoWorkersError.exit_code, errors
    assert f"rank {rank} sent no heartbeat" in errors
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all are gone")


def test_a_rank_that_hangs_ends_the_job(tmp_path: Path) -> None:
    job = start_ranks(tmp_path, 6000, "1")
    _, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == StoppedError.exit_code, errors
    assert "this process hung" in errors


DISTILL = f"""
import os, sys, time
from pathlib import Path
import pbd
from pbd.pipeline import distill
from pbd.system import launcher, watchdog

def pretend(*arguments):
    (Path(sys.argv[1]) / "0").write_text(str(os.getpid()))
    while sys.argv[2] == "waits":
        watchdog.touch()
        time.sleep(0.1)
    time.sleep(1e6)

distill.run_on = pretend
if launcher.rank() == 1:
    (Path(sys.argv[1]) / "1").write_text(str(os.getpid()))
pbd.distill(isolate=False, stall_limit={LIMIT_S})
"""


def start_script(folder: Path, ranks: int, coordinator: str) -> "subprocess.Popen[str]":
    """Start a script that calls `pbd.distill`, whose coordinator waits or hangs, without pbd-run."""
    command = [Path(sys.executable).parent / "mpirun", "-n", str(ranks), sys.executable, "-c", DISTILL]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "0"}  # then no backend is loaded
    return subprocess.Popen(
        [*command, str(folder), coordinator], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | quiet
    )


def test_a_stopped_rank_ends_a_script_that_calls_distill(tmp_path: Path) -> None:
    job = start_script(tmp_path, 2, "waits")
    pids = pids_of(tmp_path, 2)
    time.sleep(1.5)
    os.kill(pids[1], signal.SIGSTOP)
    _, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == NoWorkersError.exit_code, errors
    assert "rank 1 sent no heartbeat" in errors
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all are gone")


def test_a_coordinator_that_hangs_ends_a_script_that_calls_distill(tmp_path: Path) -> None:
    job = start_script(tmp_path, 2, "hangs")
    _, errors = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == StoppedError.exit_code, errors
    assert "this process hung" in errors


TWO_RUNS = f"""
import os, signal, sys
from pbd.config import ExecutionConfig
from pbd.executors.mpi.executor import MpiExecutor
for run in range(2):
    executor = MpiExecutor(ExecutionConfig(isolate=False, stall_limit={LIMIT_S}))
    if executor.coordinates:
        executor.finish("report")
    else:
        if run == 1 and sys.argv[1] == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        assert executor.serve() == "report"
"""


@pytest.mark.parametrize(("rank_1", "code"), [("present", 0), ("stopped", NoWorkersError.exit_code)])
def test_a_rank_stopped_at_the_end_of_a_run_ends_the_job(rank_1: str, code: int) -> None:
    """The script makes two runs; without heartbeats, rank 0 would wait for ever when MPI ends."""
    command = [Path(sys.executable).parent / "mpirun", "-n", "2", sys.executable, "-c", TWO_RUNS, rank_1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S)
    assert done.returncode == code, done.stderr
    assert ("rank 1 sent no heartbeat" in done.stderr) == (code != 0)
