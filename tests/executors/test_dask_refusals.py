"""Dask clusters that are refused, in one line: unreachable, too small, open to the network, without certificates."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import distributed
import pytest

from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, MissingInputError, NoWorkersError
from pbd.executors import open_executor
from pbd.executors.dask import cluster, connection
from tests.helpers.sleep_tasks import Sleeper, durations, train

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]


def test_too_few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKERS_LIMIT_S", 1.0)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as started:
        config = ExecutionConfig(executor="dask", dask_address=started.scheduler_address, workers=2)
        with pytest.raises(NoWorkersError, match="1 of 2"):
            open_executor(config)


def test_workers_of_several_threads_are_not_stolen_from(tmp_path: Path) -> None:
    level = logging.getLogger("distributed").level
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster:
        made = open_executor(ExecutionConfig(executor="dask", dask_address=cluster.scheduler_address, isolate=False))
        with pytest.raises(EnvironmentMismatchError, match="--nthreads 1"):
            train(made, Sleeper(tmp_path, durations([0.1])), "work_stealing", [0.1], workers=1)
        made.stop(KeyboardInterrupt())
    assert logging.getLogger("distributed").level == level


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 1.0)
    with pytest.raises(NoWorkersError, match=r"127\.0\.0\.1:9"):
        open_executor(ExecutionConfig(executor="dask", dask_address="tcp://127.0.0.1:9"))


def test_a_scheduler_file_gives_its_address(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"address": "tcp://10.0.0.1:8786"}))
    assert connection.scheduler_address(str(path)) == "tcp://10.0.0.1:8786"
    assert connection.scheduler_address("tls://a:1") == "tls://a:1"
    for content in ("", "[]", '{"id": 1}'):
        path.write_text(content)
        with pytest.raises(MissingInputError, match="scheduler file"):
            connection.scheduler_address(str(path))
    with pytest.raises(MissingInputError, match="No such file"):
        connection.scheduler_address(str(tmp_path / "absent.json"))


def test_a_cluster_that_also_listens_on_the_network_is_refused() -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="0.0.0.0", dashboard_address="127.0.0.1:0"
    ) as cluster:
        address = f"tcp://127.0.0.1:{cluster.scheduler_address.rpartition(':')[2]}"
        if "//127." in cluster.scheduler_address:
            pytest.skip("this host has no address but the loopback one")
        with pytest.raises(EnvironmentMismatchError, match="TLS"):
            open_executor(ExecutionConfig(executor="dask", dask_address=address))
        open_executor(ExecutionConfig(executor="dask", dask_address=address, dask_insecure=True)).stop(SystemExit())


def test_workers_that_listen_on_the_network_are_refused() -> None:
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--no-nanny", "--nthreads", "1"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
            try:
                config = ExecutionConfig(executor="dask", dask_address=cluster.scheduler_address, isolate=False)
                made = open_executor(config)
                with pytest.raises(EnvironmentMismatchError, match=r"--host 127\.0\.0\.1"):
                    made.call(os.getpid)
                made.stop(KeyboardInterrupt())
            finally:
                worker.terminate()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://[::1:8786", "tcp://", "://"])
def test_addresses_that_are_none_are_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 1e6)
    with pytest.raises((EnvironmentMismatchError, NoWorkersError)) as caught:
        open_executor(ExecutionConfig(executor="dask", dask_address=address))
    assert "\n" not in str(caught.value)


def test_certificates_that_are_not_there_are_said_in_one_line() -> None:
    import dask

    def refused(settings: dict[str, object], config: ExecutionConfig) -> str:
        with dask.config.set(settings), pytest.raises(EnvironmentMismatchError) as caught:
            open_executor(config)
        return str(caught.value)

    named = ("ca-file", "client.cert", "client.key")
    absent = {f"distributed.comm.tls.{name}": "/absent/file.pem" for name in named}
    assert "must exist" in refused(absent, ExecutionConfig(executor="dask", dask_address="tls://127.0.0.1:9"))
    encrypted = {"distributed.comm.require-encryption": True}
    assert "on this host" in refused(encrypted, ExecutionConfig(executor="dask", workers=1))


@pytest.mark.parametrize(
    ("address", "insecure", "private"),
    [
        ("tcp://127.0.0.1:8786", False, True),
        ("tcp://[::1]:8786", False, True),
        ("tcp://localhost:8786", False, True),
        ("tls://10.0.0.1:8786", False, True),
        ("tcp://10.0.0.1:8786", True, True),
        ("tcp://10.0.0.1:8786", False, False),
        ("tcp://127.0.0.1.evil.org:8786", False, False),
        ("ws://gpu-7:8786", False, False),
    ],
)
def test_clusters_open_to_the_network_are_refused(address: str, insecure: bool, private: bool) -> None:
    if private:
        connection.check_privacy(address, insecure)
        return
    with pytest.raises(EnvironmentMismatchError, match="TLS"):
        connection.check_privacy(address, insecure)


def test_tls_without_certificates_is_said_in_one_line() -> None:
    with pytest.raises(EnvironmentMismatchError, match="asks for a certificate") as caught:
        open_executor(ExecutionConfig(executor="dask", dask_address="tls://127.0.0.1:9"))
    assert "\n" not in str(caught.value)
