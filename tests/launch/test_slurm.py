"""The scripts for Slurm on a real cluster of one node: time limits, jobs that are queued again, and dask-jobqueue."""

import importlib.util
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers import played_run
from tests.helpers.cluster import LAUNCH, ROOT, Process, needs_openssl, wait_until, without_backend
from tests.helpers.launching import (
    DIGITS,
    LONGER,
    assert_complete,
    assert_done,
    finished_blocks,
)
from tests.helpers.slurm import Slurm, slurm_cluster, stopped_until_signalled

pytestmark = pytest.mark.launch
PLAYED_JOBQUEUE = """
import runpy, sys
from tests.helpers import played_run
played_run.play()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm cluster of one node."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(slurm: Slurm, script: str, folder: Path, flags: Sequence[str], **changes: str) -> str:
    """Submit a launch script as a job of two tasks, which queues itself again; return the job's number."""
    sbatch = ["--ntasks=2", "--time=10", f"--output={folder}/%j.txt", LAUNCH / script]
    return slurm.submit(*sbatch, *flags, cwd=folder, PBD_HOME=str(ROOT), PBD_REQUEUE="1", **changes)


def output_of(run_dir: Path) -> str:
    """Return what the job printed that has this run directory."""
    job = run_dir.name.removeprefix("slurm-")
    return (run_dir.parents[1] / f"{job}.txt").read_text()


def wait_for_block(slurm: Slurm, job: str, run_dir: Path) -> None:
    """Wait for the first finished block of a job that must not be over."""
    wait_until(lambda: finished_blocks(run_dir) or slurm.is_over(job), "first block")
    assert not slurm.is_over(job), output_of(run_dir)


@needs_openssl
def test_jobs_at_their_time_limit_are_queued_again_and_resume(
    slurm: Slurm, folder: Path, played: dict[str, str]
) -> None:
    """The digits job on MPI and a played one on Dask: Slurm looks for expired limits every 30 s, so both at once.

    Neither may finish before the signal, so the ranks are stopped and the played blocks held until then. Three minutes
    leave a busy machine the time to stop before Slurm kills, and the signal comes within one.
    """
    mpi = submit(slurm, "slurm_mpi.sh", folder, DIGITS)
    dask = submit(slurm, "slurm_dask.sh", folder, LONGER, **played)
    run_dirs = {job: folder / "runs" / f"slurm-{job}" for job in (mpi, dask)}
    wait_for_block(slurm, dask, run_dirs[dask])
    (run_dirs[dask] / played_run.HOLD).touch()
    wait_for_block(slurm, mpi, run_dirs[mpi])
    with stopped_until_signalled(slurm.pids(mpi, "pbd.run"), signal.SIGUSR1):
        kept = {path: path.stat().st_mtime_ns for run_dir in run_dirs.values() for path in finished_blocks(run_dir)}
        for job in run_dirs:
            slurm.limit(job, minutes_left=3)
    wait_until(lambda: all(slurm.field(job, "Restarts") == "1" for job in run_dirs), "jobs that are queued again")
    (run_dirs[dask] / played_run.HOLD).unlink()
    for job in run_dirs:
        slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    wait_until(lambda: all(map(slurm.is_over, run_dirs)), "end of the jobs")
    for job, run_dir in run_dirs.items():
        assert slurm.field(job, "JobState") == "COMPLETED", output_of(run_dir)
        assert_complete(run_dir, workers=2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished block was trained again"
    assert not list(folder.glob(".pbd-dask*")), "the certificates are left"


def test_a_cancelled_job_is_not_queued_again(slurm: Slurm, folder: Path) -> None:
    stopping = folder / "mpirun"
    stopping.write_text("#!/bin/sh\ntrap 'sleep 1; exit 75' TERM USR1\ntouch started\nwhile :; do sleep 0.1; done\n")
    stopping.chmod(0o755)
    job = submit(slurm, "slurm_mpi.sh", folder, [], PBD_MPIRUN=str(stopping))
    wait_until((folder / "started").exists, "start of the job")
    slurm.run("scancel", job)
    wait_until(lambda: slurm.is_over(job), "end of the job")
    assert (slurm.field(job, "JobState"), slurm.field(job, "Restarts")) == ("CANCELLED", "0")


@needs_openssl
def test_a_lost_worker_of_dask_jobqueue_is_replaced_and_all_end_with_the_run(slurm: Slurm, folder: Path) -> None:
    if importlib.util.find_spec("dask_jobqueue") is None:
        pytest.skip("dask-jobqueue is absent")
    script = [sys.executable, "-c", PLAYED_JOBQUEUE, LAUNCH / "jobqueue_slurm.py"]
    command = [*script, "--workers", "2", "--cores", "1", "--interface", "lo", "--", *LONGER, "--run-dir", "my run"]
    quickly = {"DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s"}
    changes = without_backend(SLURM_CONF=str(slurm.settings), **quickly)
    process, run_dir = Process(command, folder / "output.txt", changes, cwd=folder), folder / "my run"
    try:
        wait_until(lambda: finished_blocks(run_dir), "first block", [process])
        (run_dir / played_run.HOLD).touch()
        wait_until(lambda: played_run.held(run_dir) == 2, "block of each worker", [process])
        slurm.run("scancel", slurm.queued()[0])
        wait_until(lambda: played_run.held(run_dir) == 3, "block of the new job", [process])
        (run_dir / played_run.HOLD).unlink()
        assert_done(process, run_dir, workers=2)
    finally:
        process.end()
    wait_until(lambda: not slurm.queued(), "end of the workers' jobs")
