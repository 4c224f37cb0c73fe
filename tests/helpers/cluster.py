"""For the tests: small jobs, and clusters of processes that are started apart, on one host or on made-up ones."""

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
PATIENCE_S = 300.0
"""How long a test waits for anything before it fails: several times what a busy machine takes."""

_PR_SET_PDEATHSIG = 1


def environment(**changes: str) -> dict[str, str]:
    """Return an environment in which every program is this Python's, and no thread setting of the tests counts."""
    own = {name: value for name, value in os.environ.items() if "THREADS" not in name and "DASK" not in name}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return own | {"PATH": path, "PBD_PYTHON": sys.executable, "TF_CPP_MIN_LOG_LEVEL": "3"} | changes


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
        assert time.monotonic() < until, f"no {what} after {PATIENCE_S:.0f} s"
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


@dataclass
class Host:
    """Where processes are started: this host, or a network namespace that stands for another one."""

    address: str = "127.0.0.1"
    namespace: str | None = None
    port: str = ""
    """The bridge's end of its cable."""

    def command(self, words: Sequence[str | Path]) -> list[str | Path]:
        return [*words] if self.namespace is None else ["ip", "netns", "exec", self.namespace, *words]


@dataclass
class DaskCluster:
    """A scheduler and workers, each started as a user would start them on machines of their own."""

    folder: Path
    host: Host = field(default_factory=Host)
    settings: dict[str, str] = field(default_factory=dict)
    """Dask's settings, in the environment of every process."""
    tls: bool = False
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        if self.tls:
            certificates = self.folder / "tls"
            subprocess.run([LAUNCH / "make_certificates.sh", certificates], check=True, timeout=PATIENCE_S)
            self.settings |= tls_settings(certificates)

    @property
    def scheduler_file(self) -> Path:
        return self.folder / "scheduler.json"

    @property
    def address(self) -> str:
        return json.loads(self.scheduler_file.read_text())["address"]

    def start(self, name: str, host: Host, words: Sequence[str | Path]) -> Process:
        """Start Python with these words on a host."""
        process = Process(
            host.command([sys.executable, "-m", *words]), self.folder / f"{name}.log", without_backend(**self.settings)
        )
        self.processes.append(process)
        return process

    def start_scheduler(self) -> Process:
        protocol = "tls" if self.tls else "tcp"
        words = ["dask", "scheduler", "--host", f"{protocol}://{self.host.address}", "--port", "0"]
        words += ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(self.scheduler_file)]
        process = self.start("scheduler", self.host, words)
        wait_until(self._is_announced, "scheduler file", [process])
        return process

    def _is_announced(self) -> bool:
        """Return whether the scheduler has written its file to the end."""
        return self.scheduler_file.exists() and self.scheduler_file.read_text().rstrip().endswith("}")

    def start_worker(self, name: str, host: Host | None = None, by: str | Path | None = None) -> Process:
        """Start a worker; `by` is the scheduler's address (the default) or its file."""
        host = host or self.host
        scheduler = ["--scheduler-file", by] if isinstance(by, Path) else [by or self.address]
        words = ["dask", "worker", *scheduler, "--name", name, "--nthreads", "1", "--memory-limit", "0"]
        words += ["--dashboard-address", "127.0.0.1:0", "--host", host.address, "--death-timeout", "60"]
        return self.start(name, host, words)

    def run(self, *flags: str | Path) -> Process:
        """Start the job itself, a played run, on the scheduler's host."""
        job = ["tests.helpers.played_run", "--executor", "dask"]
        return self.start(f"job-{uuid.uuid4().hex}", self.host, [*job, *flags])

    def __enter__(self) -> "DaskCluster":
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.end()


def tls_settings(certificates: Path) -> dict[str, str]:
    """Return Dask's settings for the certificates in a folder, as the launch scripts give them."""
    command = ["bash", "-c", 'source "$0" && dask_settings "$1"', LAUNCH / "dask.sh", certificates]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def why_no_namespaces() -> str | None:
    """Return why network namespaces cannot be made here, `None` where they can."""
    if shutil.which("ip") is None:
        return "ip (iproute2) is absent"
    try:
        with _made_hosts(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"


@contextlib.contextmanager
def several_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts with addresses of their own (10.77.0.1, …), each on a cable to one bridge; skip where that fails."""
    reason = _namespaces()
    if reason:
        pytest.skip(reason)
    with _made_hosts(count) as hosts:
        yield hosts


_namespaces = functools.cache(why_no_namespaces)


@contextlib.contextmanager
def _made_hosts(count: int) -> Iterator[list[Host]]:
    mark = f"pbd{uuid.uuid4().hex[:6]}"
    hosts = [Host(f"10.77.0.{number + 1}", f"{mark}h{number}", f"port{number}") for number in range(count)]
    switch = f"{mark}sw"
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in hosts:
            _plug_in(host, switch)
        yield [dataclasses.replace(host, port=f"{switch}/{host.port}") for host in hosts]
    finally:
        for name in (switch, *(str(host.namespace) for host in hosts)):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=PATIENCE_S)


def _plug_in(host: Host, switch: str) -> None:
    name = str(host.namespace)
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("-n", switch, "link", "set", host.port, "master", "bridge", "up")
    _ip("-n", name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")


def cut_link(host: Host) -> None:
    """Pull the host's cable: packets are lost from now on, and nobody is told."""
    switch, port = host.port.split("/")
    _ip("-n", switch, "link", "set", port, "nomaster")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=PATIENCE_S)
