"""Played jobs on clusters started apart from them: joined in three ways, growing, losing workers and links."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pbd.run_dir.journal import Journal
from tests.helpers import played_run
from tests.helpers.cluster import Process, needs_openssl, report_of, wait_until
from tests.helpers.dask_cluster import DaskCluster
from tests.helpers.hosts import cut_link, several_hosts

pytestmark = pytest.mark.system
BLOCKS = played_run.LAYERS
ONE_BY_ONE = ["--no-group", "--epochs", "3"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler and two workers on the loopback address, one joined by address, one by scheduler file."""
    with DaskCluster(tmp_path_factory.mktemp("dask") / "a b") as started:
        started.start_scheduler()
        started.start_worker("worker-0")
        started.start_worker("worker-1", by=started.scheduler_file)
        yield started


def finished(job: Process, run_dir: Path) -> dict:
    """Wait for a job that must succeed, and return its report."""
    assert job.wait() == 0, job.said()
    report = report_of(run_dir)
    assert {row["status"] for row in report["blocks"]} == {"accepted"}
    return report


def trainers(report: dict) -> dict[str, int]:
    """Return which worker trained which layer."""
    return {row["layer"]: row["worker"] for row in report["blocks"] if row["worker"] is not None}


def arrived(run_dir: Path) -> dict[str, float]:
    """Return the blocks that are with the coordinator, which notes the worker and the seconds that each took."""
    blocks = Journal(run_dir).committed_blocks()
    return {key.layer: result.seconds for key, result in blocks.items() if result.worker is not None}


def begun(run_dir: Path) -> int:
    """Return how many trainings of layers have begun."""
    return len(list(played_run.begun(run_dir).iterdir()))


def test_joined_by_a_file_a_third_worker_takes_tasks_and_a_killed_one_costs_only_its_running_task(
    plain: DaskCluster, tmp_path: Path
) -> None:
    """Two workers begin; in the middle a third one joins, and one is killed together with what watches over it."""
    run_dir = tmp_path / "run"
    job = plain.run(*ONE_BY_ONE, "--workers", "2", "--run-dir", run_dir, "--dask-address", plain.scheduler_file)
    wait_until(lambda: arrived(run_dir), "first block", [job])
    (run_dir / played_run.HOLD).touch()
    plain.start_worker("worker-2")
    wait_until(lambda: played_run.held(run_dir) == 3, "block of every worker", [job])
    before = arrived(run_dir)
    assert len(before) < BLOCKS, "nothing was left to do: the test says nothing"
    victim = next(process for process in plain.processes if process.log.stem == "worker-1")
    victim.kill()
    (run_dir / played_run.HOLD).unlink()

    report = finished(job, run_dir)
    assert (report["executor"], len(report["workers"])) == ("dask", 3)
    took = trainers(report)
    assert len(took) == BLOCKS
    assert 2 in took.values(), f"the third worker took nothing: {took}"
    after = {row["layer"]: row["seconds"] for row in report["blocks"] if row["layer"] in before}
    assert after == before, "a finished block was trained again"
    assert begun(run_dir) == BLOCKS + 1, "only what the killed worker was at was begun again"


@needs_openssl
def test_over_tls_the_same_blocks_and_nothing_without_the_certificates(tmp_path: Path) -> None:
    flags = ["--workers", "2", "--no-isolate"]
    with DaskCluster(tmp_path / "dask", tls=True) as started:
        started.start_scheduler()
        assert started.address.startswith("tls://")
        for name in ("worker-0", "worker-1"):
            started.start_worker(name)
        job = started.run(*flags, "--dask-address", started.address, "--run-dir", tmp_path / "run")
        assert len(set(trainers(finished(job, tmp_path / "run")).values())) == 2
        for result in Journal(tmp_path / "run").committed_blocks().values():
            np.testing.assert_equal(result.weights, played_run.weights_of(result.layer))
        settings, started.settings = started.settings, {}
        stranger = started.run(*flags, "--dask-address", started.address, "--run-dir", tmp_path / "stranger")
        started.settings = settings
        assert stranger.wait() == 78, stranger.said()
        assert "Traceback" not in stranger.said()
        assert not (tmp_path / "stranger").exists()


@needs_openssl
def test_hosts_with_addresses_of_their_own_one_of_which_is_cut_off(tmp_path: Path) -> None:
    """Three hosts on a bridge: scheduler and job on the first, a worker on each other; then a cable is pulled."""
    quickly = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s"}  # the least that Dask takes
    run_dir = tmp_path / "run"
    flags = [*ONE_BY_ONE, "--workers", "2", "--run-dir", run_dir, "--no-isolate"]
    with several_hosts(3) as hosts, DaskCluster(tmp_path / "dask", hosts[0], dict(quickly), tls=True) as started:
        started.start_scheduler()
        assert started.address.startswith("tls://10.77.0.1:")
        for number, host in enumerate(hosts[1:]):
            started.start_worker(f"worker-{number}", host)
        job = started.run(*flags, "--dask-address", started.address)
        wait_until(lambda: len(arrived(run_dir)) >= 3, "third block", [job])
        cut_link(hosts[2])
        before = arrived(run_dir)
        report = finished(job, run_dir)
    took = trainers(report)
    assert len(took) == BLOCKS
    assert set(took.values()) == {0, 1}, "each worker had its part before the cut"
    assert {row["layer"]: row["seconds"] for row in report["blocks"] if row["layer"] in before} == before


def test_an_open_cluster_on_the_network_is_refused(tmp_path: Path) -> None:
    with several_hosts(1) as hosts, DaskCluster(tmp_path / "dask", hosts[0]) as started:
        started.start_scheduler()
        job = started.run("--run-dir", tmp_path / "run", "--dask-address", started.address)
        assert job.wait() == 78
        assert "--dask-insecure" in job.said()
        assert not (tmp_path / "run").exists()
