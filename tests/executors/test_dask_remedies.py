"""Refusals of Dask clusters: each remedy is followed, and works."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker

from pbd import run
from pbd.config import ExecutionConfig
from pbd.executors.dask import cluster, connection, results, worker
from pbd.executors.isolation import runner
from pbd.system import devices
from pbd.system.keras_state import KerasSetup
from tests.helpers.cluster import LAUNCH, PATIENCE_S, free_port, needs_openssl, wait_until
from tests.helpers.dask_cluster import DaskCluster, local_cluster
from tests.helpers.remedies import in_message, refusal


def join(address: str | None, **settings: Any) -> None:
    """Join a cluster as a run does at its start, and leave it."""
    cluster.Cluster(ExecutionConfig(executor="dask", dask_address=address, **settings)).close()


def options(command: Any) -> set[str]:
    """Return the flags of one of Dask's commands."""
    return {flag for parameter in command.params for flag in parameter.opts}


def refused_soon(action: Callable[[], object], remedy: str) -> None:
    """Check a refusal that comes after a time limit, which is short here; what follows has the usual limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "CONNECT_S", 0.5)
        patch.setattr(cluster, "WORKERS_LIMIT_S", 0.5)
        refusal(action, remedy)


@pytest.mark.fast
def test_a_scheduler_is_started_where_none_answers() -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    refused_soon(lambda: join(address), "Start one, or correct --dask-address.")
    with local_cluster(scheduler_port=port) as started:
        join(address)
        join(started.scheduler_address)


@pytest.mark.fast
@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "tcp://127.0.0.1:x"])
def test_an_address_that_is_none_is_corrected(address: str) -> None:
    refusal(lambda: join(address), "Correct --dask-address or Dask's settings.")
    with local_cluster() as started:
        join(started.scheduler_address)


@pytest.mark.fast
def test_workers_are_added_or_fewer_are_asked_for() -> None:
    with local_cluster() as started:
        address = started.scheduler_address
        refused_soon(lambda: join(address, workers=2), "Received: 1 of 2. Start more, or lower --workers.")
        join(started.scheduler_address, workers=1)
        started.scale(2)
        join(started.scheduler_address, workers=2)


@pytest.mark.fast
def test_work_is_stolen_from_workers_of_one_thread() -> None:
    def check(address: str) -> None:
        joined = cluster.Cluster(ExecutionConfig(executor="dask", dask_address=address))
        try:
            joined.check_single_threads()
        finally:
            joined.close()

    with local_cluster(threads_per_worker=2) as several:
        message = refusal(lambda: check(several.scheduler_address), "--nthreads 1, or use --scheduler pull.")
    flag, threads = re.search(r"Start them with (\S+) (\d)", message).groups()  # type: ignore[union-attr]
    assert flag in options(dask_worker)
    with local_cluster(threads_per_worker=int(threads)) as single:
        check(single.scheduler_address)
    config = run.parse(["--executor", "dask", *in_message(r"or use (.*)\.", message).split()])
    assert config.execution.scheduler == "pull"


@pytest.mark.fast
def test_an_open_cluster_is_closed_or_allowed() -> None:
    message = refusal(lambda: connection.check_privacy("tcp://10.0.0.1:8786", False), "launch/README.md")
    assert "make_certificates.sh" in (LAUNCH / "README.md").read_text()
    connection.check_privacy(in_message(r"give (tls://)…", message) + "10.0.0.1:8786", insecure=False)
    flag, host = re.search(r"with (--host) ([\d.]+),", message).groups()  # type: ignore[union-attr]
    assert flag in options(dask_scheduler) & options(dask_worker)
    connection.check_privacy(f"tcp://{host}:8786", insecure=False)
    config = run.parse(["--executor", "dask", in_message(r"allow it with (--[\w-]+)", message)])
    connection.check_privacy("tcp://10.0.0.1:8786", config.execution.dask_insecure)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    subprocess.run([LAUNCH / "make_certificates.sh", tmp_path / "tls"], check=True, timeout=PATIENCE_S)
    return tmp_path / "tls"


@contextlib.contextmanager
def dask_environment(variables: dict[str, Path]) -> Iterator[None]:
    """Let Dask have read these environment variables at its start."""
    read = dask.config.collect_env({name: str(path) for name, path in variables.items()})
    with dask.config.set(dask.config.merge(dask.config.config, read)):
        yield


@needs_openssl
@pytest.mark.fast
def test_a_client_joins_over_tls_with_the_settings_that_are_named(certificates: Path) -> None:
    own = {"ca_file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
    ca, cert, key = (str(certificates / name) for name in own.values())
    security = distributed.Security(
        tls_ca_file=ca,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
        tls_client_cert=cert,
        tls_client_key=key,
        require_encryption=True,
    )
    with local_cluster(protocol="tls://", security=security) as started:
        message = refusal(lambda: join(started.scheduler_address), "asks for a certificate")
        first, *others = in_message(r"settings: (.*)\.", message).split(", ")
        names = [first, *(name.replace("…", first.removesuffix("__TLS__CA_FILE")) for name in others)]
        files = [certificates / own[next(part for part in own if name.lower().endswith(part))] for name in names]
        absent = dict.fromkeys(names, certificates / "absent.pem")
        with dask_environment(absent):
            message = refusal(lambda: join(started.scheduler_address), "must exist")
        corrected = in_message(r"Correct (\w+)\*", message)
        assert all(name.startswith(corrected) for name in names)
        with dask_environment(dict(zip(names, files, strict=True))):
            join(started.scheduler_address)


@pytest.mark.system
def test_a_scheduler_writes_the_file_that_is_asked_for(tmp_path: Path) -> None:
    with DaskCluster(tmp_path / "dask") as started:
        file = started.scheduler_file
        message = refusal(lambda: connection.scheduler_address(str(file)), "and give that file.")
        flag = in_message(r"Start the scheduler with (--[\w-]+)", message)
        words = ["dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        scheduler = started.start("scheduler", started.host, [*words, flag, file])
        wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"), "scheduler file", [scheduler])
        with connection.connect(ExecutionConfig(executor="dask", dask_address=str(file))):
            pass


ABSENT = b"cabsent_module\nthing\n."
"""A pickle of something that cannot be imported here."""


def cannot_run() -> object:
    """Get the result of a task whose function the worker cannot import."""
    future: Future[int] = Future()
    future.set_exception(ImportError("no module\npbd"))
    return results.result_of(future)


def cannot_be_unpickled() -> object:
    """Get a result that this process cannot unpickle."""
    future: Future[bytes] = Future()
    future.set_result(ABSENT)
    return results.result_of(future, runner.unpickled)


@pytest.mark.fast
@pytest.mark.parametrize("lack", [cannot_run, runner.Pickled(ABSENT), cannot_be_unpickled])
def test_workers_are_started_where_pbd_can_be_imported(lack: Callable[[], object]) -> None:
    message = refusal(lack, "every worker must have this pbd")
    words = in_message(r"Start the workers where python (.*) works\.", message).split()
    help_text = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert help_text.returncode == 0
    assert "--dask-address" in help_text.stdout


@pytest.fixture
def set_up_anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], object]:
    """Set up a worker in this process with a number of threads, without a task runner."""
    here = SimpleNamespace(listen_address="tcp://127.0.0.1:1", address="tcp://127.0.0.1:1", name="0")
    monkeypatch.setattr(distributed, "get_worker", lambda: here)
    monkeypatch.setattr(devices.Share, "claim", lambda share: share.threads or 2)
    monkeypatch.setattr(devices, "gpu_ids", lambda: ())
    monkeypatch.setattr(worker.runner, "open_runner", lambda *_: "runner")
    monkeypatch.setattr(worker, "_current", None)

    def set_up(threads: int | None) -> object:
        config = ExecutionConfig(executor="dask", threads_per_worker=threads, isolate=True)
        return worker.set_up_worker(worker.Settings(config, {}, "run", KerasSetup()))

    return set_up


@pytest.mark.fast
def test_a_worker_is_started_again_for_another_number_of_threads(
    set_up_anew: Callable[[int | None], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_anew(1)
    message = refusal(lambda: set_up_anew(2), "Start the workers again, or leave the flag out.")
    flag = in_message(r"Received: (--[\w-]+ \d),", message).split()
    assert run.parse(flag).execution.threads_per_worker == 2
    assert set_up_anew(None) == "runner"
    monkeypatch.setattr(worker, "_current", None)  # a new process
    assert set_up_anew(2) == "runner"
