"""A process that hangs is ended, one that computes, waits on purpose or was stopped itself is not; no TensorFlow."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pbd.errors import NoWorkersError, StoppedError
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
}


@pytest.mark.parametrize("work", WORK)
def test_only_one_that_hangs_is_ended(work: str) -> None:
    body = "\n".join(f"    {line}" for line in WORK[work].splitlines())
    imports = "import threading, time\nfrom pbd.system import watchdog"
    script = f"{imports}\nwith watchdog.watching({LIMIT_S}):\n{body}\nprint('done')"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT)
    if work in ("sleeps", "waits for a lock"):
        assert told.returncode == StoppedError.exit_code, told.stderr
        assert "this process hung" in told.stderr
    else:
        assert (told.returncode, told.stdout) == (0, "done\n"), told.stderr


def test_one_whose_output_nobody_takes_is_left_alone() -> None:
    script = (
        "from pbd.system import watchdog\n"
        f"with watchdog.watching({LIMIT_S}):\n    print('x' * 1_000_000, flush=True)\n    print('done')"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as blocked:
        time.sleep(LIMIT_S + 3)
        assert blocked.stdout is not None
        assert blocked.stdout.read().endswith("done\n")
    assert blocked.returncode == 0


def test_the_time_in_which_it_was_stopped_itself_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    patience = Timeout(5.0, tick_s=1.0)
    for after_s, lost in ((1.0, False), (3600.0, False), (1.0, False), (1.0, True)):
        now[0] += after_s
        assert patience.lost() == lost
    patience.renew()
    assert not patience.lost()


RANKS = f"""
import os, sys, time
from pathlib import Path
from pbd.system import watchdog
from pbd.config import ExecutionConfig
from pbd.executors.mpi.executor import MpiExecutor
executor = MpiExecutor(ExecutionConfig(isolate=False, stall_limit={LIMIT_S}))
(Path(sys.argv[1]) / str(executor._comm.Get_rank())).write_text(str(os.getpid()))
with watchdog.watching({LIMIT_S}):
    for _ in range(int(sys.argv[2])):
        watchdog.touch()
        time.sleep(0.1)
"""


def started(folder: Path, steps: int) -> "subprocess.Popen[str]":
    command = [
        str(Path(sys.executable).parent / "mpirun"),
        "-n",
        "3",
        sys.executable,
        "-c",
        RANKS,
        str(folder),
        str(steps),
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_ranks_that_are_there_are_left_alone(tmp_path: Path) -> None:
    job = started(tmp_path, steps=50)
    _, said = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, said


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_was_stopped_ends_the_job(rank: int, tmp_path: Path) -> None:
    job = started(tmp_path, steps=6000)
    wait_until(lambda: all((tmp_path / str(r)).exists() and (tmp_path / str(r)).read_text() for r in range(3)), "ranks")
    time.sleep(1.5)
    pids = [int((tmp_path / str(r)).read_text()) for r in range(3)]
    os.kill(pids[rank], signal.SIGSTOP)
    _, said = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == NoWorkersError.exit_code, said
    assert f"rank {rank} was not heard of" in said
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all are gone")
