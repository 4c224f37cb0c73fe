"""For the tests: a real Slurm cluster of one node, this machine, which runs as the user of the tests."""

import contextlib
import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.cluster import PATIENCE_S, Process, environment, free_port, wait_until

SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again waits until its credentials have expired: by default two minutes.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,builtin_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=65536 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster; `settings` is the path of its slurm.conf."""

    settings: Path

    def run(self, *words: str | Path, cwd: Path | None = None, **changes: str) -> str:
        """Run one of Slurm's commands, and return what it prints."""
        command = [str(word) for word in words]
        env = environment(SLURM_CONF=str(self.settings), **changes)
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=env, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *words: str | Path, cwd: Path, **changes: str) -> str:
        """Submit a batch job, and return its number."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd, **changes).strip()

    def field(self, job: str, name: str) -> str:
        """Return a field of `scontrol show job`."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", job)))[name]

    def is_over(self, job: str) -> bool:
        return self.field(job, "JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def limit(self, job: str, minutes_left: int) -> None:
        """Set a running job's time limit, in whole minutes, so that this is left or up to a minute less."""
        hours, minutes, _ = self.field(job, "RunTime").split(":")
        limit = int(hours) * 60 + int(minutes) + minutes_left
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")

    def pids(self, job: str, module: str) -> list[int]:
        """Return the processes of a job that run a module of Python."""
        mark = f"SLURM_JOB_ID={job}\0".encode()
        return [
            pid
            for pid in _pids()
            if _read(pid, "cmdline").split(b"\0")[1:3] == [b"-m", module.encode()] and mark in _read(pid, "environ")
        ]

    def queued(self) -> list[str]:
        """Return the numbers of the jobs that wait, run or end."""
        return self.run("squeue", "--noheader", "--format=%i").split()


@contextlib.contextmanager
def stopped_until_signalled(pids: Sequence[int], number: signal.Signals) -> Iterator[None]:
    """Stop processes, and let them go on when this signal waits for one of them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        wait_until(lambda: any(_is_pending(pid, number) for pid in pids), number.name)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _is_pending(pid: int, number: signal.Signals) -> bool:
    masks = re.findall(rb"^S[ih][gd]Pnd:\s*(\w+)", _read(pid, "status"), re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """Start munged, slurmctld and slurmd; cancel all jobs and end the daemons afterwards."""
    munged, controller, node = (_program(name) for name in ("munged", "slurmctld", "slurmd"))
    settings = _write_files(folder)
    env = environment(SLURM_CONF=str(settings))
    with contextlib.ExitStack() as running:
        _start(running, [munged, "--foreground", *_munge_flags(folder / "munge")], folder / "munged.txt", env)
        wait_until((folder / "munge" / "socket").exists, "munged")
        _start(running, [controller, "-D"], folder / "slurmctld.txt", env)
        _start(running, [node, "-D"], folder / "slurmd.txt", env)
        slurm = Slurm(settings)
        wait_until(lambda: _is_idle(env), "idle node")
        running.callback(_cancel_all, slurm)
        yield slurm


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    """Return a file of /proc, empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip(f"{name} (slurm-wlm, munge) is absent")
    return path


def _write_files(folder: Path) -> Path:
    """Write slurm.conf and the key of munge; return the path of the former."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700)
    (folder / "munge" / "key").write_bytes(secrets.token_bytes(128))
    (folder / "munge" / "key").chmod(0o600)
    settings = folder / "slurm.conf"
    names = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": folder}
    settings.write_text(SETTINGS.format(controller_port=free_port(), node_port=free_port(), **names))
    return settings


def _munge_flags(folder: Path) -> list[str]:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return ["--force", *(f"--{flag}={folder / name}" for flag, name in files.items())]


def _start(running: contextlib.ExitStack, command: Sequence[str], log: Path, env: dict[str, str]) -> None:
    running.callback(Process(command, log, env).end)


def _is_idle(env: dict[str, str]) -> bool:
    asked = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=PATIENCE_S, env=env)
    return asked.stdout.strip() == "idle"


def _cancel_all(slurm: Slurm) -> None:
    slurm.run("scancel", "--user", getpass.getuser())
    wait_until(lambda: not slurm.queued(), "end of all jobs")
