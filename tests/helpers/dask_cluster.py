"""For the tests: a Dask scheduler and workers that are started apart from a job."""

import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.cluster import LAUNCH, PATIENCE_S, Process, wait_until, without_backend
from tests.helpers.hosts import Host


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


@contextlib.contextmanager
def local_cluster(**options: Any) -> Iterator[Any]:
    """Yield a Dask cluster in this process, of one worker with one thread unless options say otherwise."""
    import distributed

    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**settings | {"host": "127.0.0.1", "protocol": "tcp://"} | options) as started:
        yield started
