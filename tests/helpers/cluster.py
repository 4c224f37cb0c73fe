"""For the tests: programs in sessions of their own, their environment, and waiting for them."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers import short_latencies

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
PATIENCE_S = 300.0
"""How long a test waits for anything before it fails: several times what a busy machine takes."""
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is absent")

_PR_SET_PDEATHSIG = 1


def environment(**changes: str) -> dict[str, str]:
    """Return an environment in which every program is this Python's, and no thread setting of the tests counts.

    Runs measure latencies for a moment only.
    """
    own = {name: value for name, value in os.environ.items() if "THREADS" not in name and "DASK" not in name}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own |= {"PATH": path, "PYTHONPATH": short_latencies.PATHS, "PBD_PYTHON": sys.executable}
    return own | {"TF_CPP_MIN_LOG_LEVEL": "3"} | changes


def without_backend(**changes: str) -> dict[str, str]:
    """Return such an environment for processes that import the tests and load no TensorFlow."""
    return environment(PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL="0") | changes


def report_of(run_dir: Path) -> dict:
    """Return a finished run's report."""
    return json.loads((run_dir / "report.json").read_text(encoding="utf-8"))


def is_running(pid: int) -> bool:
    """Return whether there is such a process, which has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(there: Callable[[], object], what: str, processes: Sequence["Process"] = ()) -> None:
    """Wait for something; fail after `PATIENCE_S`, or as soon as a process that should bring it has ended."""
    until = time.monotonic() + PATIENCE_S
    while not there():
        for process in processes:
            assert process.running, f"{process.command} ended before {what}:\n{process.said()}"
        if time.monotonic() >= until:
            said = "".join(f"\n{process.command}:\n{process.said()}" for process in processes)
            pytest.fail(f"no {what} after {PATIENCE_S:.0f} s{said}")
        time.sleep(0.1)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return candidate.getsockname()[1]


def _end_with_the_tests() -> None:
    """Ask the kernel to end this process if pytest itself is killed, which then cleans up nothing."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # where the tests themselves run behind a shell, it is ignored
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Process:
    """A program in a session of its own, which can be ended with everything that it started."""

    command: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] = field(default_factory=environment, repr=False)
    cwd: Path | None = None

    def __post_init__(self) -> None:
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(word) for word in self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                cwd=self.cwd,
                start_new_session=True,
                preexec_fn=_end_with_the_tests,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Return the exit code; a program that takes longer is ended, and the test fails with what it said."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            pytest.fail(f"{self.command} did not end within {timeout_s:.0f} s:\n{self.said()}")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def family(self) -> list[int]:
        """Return the processes of its session that are alive."""
        return [pid for pid, session, state in _processes() if session == self.pid and state != "Z"]

    def kill(self) -> None:
        """Kill it and all that it started, without a chance to say good-bye."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

    def end(self) -> None:
        """Ask it to end, and kill what has not ended after five seconds."""
        if self.running:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self.kill()


def _processes() -> Iterator[tuple[int, int, str]]:
    """Yield pid, session and state of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                yield int(entry.name), int(session), state


def processes_with(mark: str) -> list[str]:
    """Return the command lines of all processes with a mark (a folder of the test, say) there or in the environment."""
    found = []
    for pid, _, state in _processes():
        if state != "Z" and pid not in (os.getpid(), os.getppid()):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if mark.encode() in line + Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found
