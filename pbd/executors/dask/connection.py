"""Connection to a Dask cluster: one that is started on this machine, or an existing one."""

import contextlib
import ipaddress
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask
import distributed

from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, MissingInputError, NoWorkersError, PbdError
from pbd.system import devices

CONNECT_S = 25.0
MOST_LOCAL_CPU_WORKERS = 8
"""The default number of local workers on hosts without GPUs is the number of cores, at most this."""
_OF_NANNIES = ("PYTHONHASHSEED", "__DASK_PARENT_PID")
"""The environment variables that nannies always set in this process."""


@contextlib.contextmanager
def connect(config: ExecutionConfig) -> Iterator[Any]:
    """Yield a client of the configured cluster; without an address, of a local cluster that ends with the block.

    Raises:
        EnvironmentMismatchError: the cluster is open to the network, or requires certificates.
        MissingInputError: the scheduler file cannot be read.
        NoWorkersError: no scheduler answers at the address.
    """
    with contextlib.ExitStack() as stack:
        where = "on this host" if config.dask_address is None else f"at {config.dask_address}"
        try:
            client = _client(stack, config)
        except PbdError:
            raise
        except FileNotFoundError as error:
            raise EnvironmentMismatchError(
                f"the files that Dask's settings name must exist. Received: {error}. Correct "
                "DASK_DISTRIBUTED__COMM__TLS__*."
            ) from error
        except (OSError, TimeoutError) as error:
            raise NoWorkersError(
                f"no Dask scheduler answers. Received: {where}, after {CONNECT_S:.0f} s",
                "Start one, or correct --dask-address.",
            ) from error
        except (TypeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise EnvironmentMismatchError(
                f"cannot join or start the Dask cluster {where}. Received: {reason}. Correct --dask-address or Dask's "
                "settings."
            ) from error
        yield client


def _client(stack: contextlib.ExitStack, config: ExecutionConfig) -> Any:
    if config.dask_address is None:
        cluster = stack.enter_context(_local_cluster(config))
        return stack.enter_context(distributed.Client(cluster, timeout=CONNECT_S, set_as_default=False))
    address = scheduler_address(config.dask_address)
    distributed.comm.get_address_host_port(address)  # with an invalid address a client takes a minute to fail
    check_privacy(address, config.dask_insecure)
    security = distributed.Security().get_connection_args("client")
    if address.startswith("tls://") and security.get("ssl_context") is None:
        raise EnvironmentMismatchError(
            f"a tls:// cluster asks for a certificate. Received: none, for {address}. Name the files in Dask's "
            "settings: DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …__TLS__CLIENT__CERT, …__TLS__CLIENT__KEY."
        )
    client = stack.enter_context(distributed.Client(address, timeout=CONNECT_S, set_as_default=False))
    check_privacy(client.scheduler_info()["address"], config.dask_insecure)  # it may also listen on other addresses
    return client


@contextlib.contextmanager
def _local_cluster(config: ExecutionConfig) -> Iterator[Any]:
    """Start single-threaded workers in child processes, which end with the block or with this process.

    Nannies write into the environment of this process, and the scheduler into Dask's settings: both are restored. The
    single thread that Dask gives to each BLAS is left out, since workers claim their share of the host.
    """
    durations = "distributed.scheduler.default-task-durations"
    settings = {"distributed.nanny.pre-spawn-environ": {}, durations: dict(dask.config.get(durations))}
    before = {name: os.environ.get(name) for name in _OF_NANNIES}
    try:
        with dask.config.set(settings), _started(config) as cluster:
            yield cluster
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _started(config: ExecutionConfig) -> Any:
    """Return a cluster on this host, which ends when it is left as a context manager."""
    default = devices.physical_gpus() or min(MOST_LOCAL_CPU_WORKERS, devices.available_cores())
    return distributed.LocalCluster(
        n_workers=config.workers or default,
        threads_per_worker=1,
        worker_class=_Nanny,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.WARNING if config.verbose else logging.CRITICAL,
    )


class _Nanny(distributed.Nanny):
    """Starts its worker without importing the main script there: without a main guard, the import would run it."""

    async def instantiate(self) -> Any:
        with _hidden_main_script:
            return await super().instantiate()


class _HiddenMainScript:
    """Within its blocks, which may overlap, `multiprocessing` finds no main script that it could import elsewhere."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._removed = threading.Lock(), 0, dict[str, Any]()

    def __enter__(self) -> None:
        main = vars(sys.modules["__main__"])
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._removed = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
                main["__spec__"] = None

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                vars(sys.modules["__main__"]).update(self._removed)


_hidden_main_script = _HiddenMainScript()


def scheduler_address(setting: str) -> str:
    """Return an address as it is, or the address in a scheduler file.

    Raises:
        MissingInputError: it is neither.
    """
    if "://" in setting:
        return setting
    try:
        return str(json.loads(Path(setting).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "no scheduler's address in it"
        raise MissingInputError(
            f"--dask-address is tls://HOST:PORT, tcp://HOST:PORT or a scheduler file. Received: {setting!r} "
            f"({reason}). Start the scheduler with --scheduler-file and give that file."
        ) from error


def check_privacy(address: str, insecure: bool) -> None:
    """Refuse a cluster to which anybody on the network can send code.

    Args:
        address: the address of the scheduler or of a worker.
        insecure: whether the user allows it.

    Raises:
        EnvironmentMismatchError: the address is neither encrypted nor a loopback address, and `insecure` is not set.
    """
    parts = urlsplit(address)
    if insecure or parts.scheme == "tls" or _is_loopback(parts.hostname or ""):
        return
    raise EnvironmentMismatchError(
        "a Dask cluster on the network must use TLS: whoever reaches it runs code on every worker. "
        f"Received: {address}. Start it with certificates (launch/README.md) and give tls://…, start all of it "
        "with --host 127.0.0.1, or allow it with --dask-insecure."
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
