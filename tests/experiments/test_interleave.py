"""Commands that take turns: never two at once, with all their processes, and only their own time counts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import interleave
from pbd.errors import PbdError
from tests.helpers.cluster import PATIENCE_S, is_running, wait_until

pytestmark = pytest.mark.fast

NOTES = """
import subprocess, sys, time
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
for _ in range(150):
    sys.stdout.write(f"{time.time()}\\n")
    sys.stdout.flush()
    time.sleep(0.005)
if len(sys.argv) > 1:
    child.wait()
"""


def test_one_has_the_machine_and_the_others_are_stopped(tmp_path: Path) -> None:
    commands = {
        tmp_path / "one": [sys.executable, "-c", NOTES],
        tmp_path / "two": [sys.executable, "-c", NOTES, NOTES],
    }
    turns_s = [0.15, 0.3]
    jobs = interleave.run(commands, turns_s)
    for job, turn_s in zip(jobs, turns_s, strict=True):
        assert job.process.returncode == 0
        assert len(job.turns) > 1
        assert min(ended - began for began, ended in job.turns[:-1]) >= turn_s
        noted = [float(line) for line in job.output.read_text().split()]
        assert len(noted) > 20
        inside = [any(began <= moment <= ended for began, ended in job.turns) for moment in noted]
        assert all(inside), "it went on while it was stopped"
        assert job.seconds_until(noted[0]) < job.seconds_until(noted[-1]) <= job.seconds_until(time.time())
    (first, second) = ([(began, ended) for began, ended in job.turns] for job in jobs)
    assert min(ended - began for began, ended in first[:-1]) < turns_s[1]
    assert all(a[1] <= b[0] or b[1] <= a[0] for a in first for b in second)
    whole_s = max(ended for _, ended in first + second) - first[0][0]
    assert sum(job.seconds_until(time.time()) for job in jobs) <= whole_s


def test_time_in_which_it_was_stopped_does_not_count() -> None:
    job = interleave.Job(None, Path("said"), [(10.0, 12.0), (20.0, 23.0)])
    assert [job.seconds_until(moment) for moment in (9.0, 11.0, 15.0, 20.5, 99.0)] == [0.0, 1.0, 2.0, 2.5, 5.0]


def test_a_signal_ends_all_in_order(tmp_path: Path) -> None:
    """What is stopped hears of no signal; left so, it would hold its memory for ever."""
    sleeper = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
    script = "from pathlib import Path; from experiments import interleave; "
    script += f"interleave.run(dict.fromkeys([Path('a'), Path('b')], {sleeper}), [0.2, 0.2])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment) as running:
        said = [tmp_path / "a", tmp_path / "b"]
        wait_until(lambda: all(path.exists() and path.read_text() for path in said), "both")
        running.terminate()
        assert running.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert not any(is_running(int(path.read_text())) for path in said)


def test_one_that_fails_ends_all(tmp_path: Path) -> None:
    commands = {
        tmp_path / "good": [sys.executable, "-c", "import time; time.sleep(600)"],
        tmp_path / "bad.txt": [sys.executable, "-c", "print('first', flush=True); raise SystemExit('no such thing')"],
    }
    with pytest.raises(PbdError, match=r"^bad failed: no such thing$"):
        interleave.run(commands, [0.2, 0.2])
