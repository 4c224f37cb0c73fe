"""Start a Dask cluster on this machine, or join one that was started elsewhere, and know its workers."""

import contextlib
import ipaddress
import json
import logging
import time
from asyncio import CancelledError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import distributed

from pbd import devices
from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, MissingInputError, NoWorkersError

CONNECT_S = 25.0
PATIENCE_S = 60.0
"""How long to wait for workers: for as many as were asked for at the start, for any once all are gone."""
MOST_LOCAL_CPU_WORKERS = 8
"""Without GPUs, how many workers are started here at most where nobody says how many."""


class Cluster:
    """A client of a Dask cluster; the workers are numbered in the order of their names, newcomers after them.

    Raises:
        EnvironmentMismatchError: the cluster is open to the network, or wants certificates.
        MissingInputError: the scheduler file cannot be read.
        NoWorkersError: nobody answers at the address, or there are fewer workers than asked for after a minute.
    """

    def __init__(self, config: ExecutionConfig) -> None:
        logging.getLogger("distributed").setLevel(logging.WARNING if config.verbose else logging.CRITICAL)
        self._numbers: dict[str, int] = {}
        self._number_of_name: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            if config.dask_address is None:
                where: Any = stack.enter_context(_local_cluster(config))
            else:
                where = scheduler_address(config.dask_address)
                check_privacy(where, config.dask_insecure)
            self.client = stack.enter_context(_connected(where))
            self._wait_for_workers(config.workers or 1)
            self._open = stack.pop_all()
        self._last_seen = time.monotonic()
        self.present()

    @property
    def num_workers(self) -> int:
        """How many workers there have been so far."""
        return len(self._number_of_name)

    def number(self, address: str) -> int:
        """Return the number of the worker that is, or was, at this address."""
        if address not in self._numbers:
            self._number_newcomers()
        if address not in self._numbers:  # it came and went between two looks
            self._numbers[address] = self._number_of_name.setdefault(address, self.num_workers)
        return self._numbers[address]

    def present(self) -> set[str]:
        """Return the addresses of the workers that are there now.

        Raises:
            NoWorkersError: there has been none for a minute, or the scheduler is gone.
        """
        try:
            present = set(self.client.nthreads())
            if present - self._numbers.keys():
                self._number_newcomers()
        except (OSError, TimeoutError, CancelledError) as error:
            raise scheduler_lost() from error
        now = time.monotonic()
        if present:
            self._last_seen = now
        elif now - self._last_seen > PATIENCE_S:
            raise NoWorkersError(
                f"all Dask workers have been gone for {PATIENCE_S:.0f} s. Finished blocks are kept: start workers, and "
                "go on with --resume --run-dir DIR."
            )
        return present & self._numbers.keys()

    def _number_newcomers(self) -> None:
        """Number new workers by name: one that was started again under its name keeps its number."""
        names = {address: str(info["name"]) for address, info in self.client.scheduler_info()["workers"].items()}
        for address, name in sorted(names.items(), key=lambda named: (len(named[1]), named[1])):
            self._numbers[address] = self._number_of_name.setdefault(name, self.num_workers)

    def check_single_threads(self) -> None:
        """Refuse workers that would train several groups at once, each on all of the worker's cores.

        Raises:
            EnvironmentMismatchError: a worker has more than one thread.
        """
        several = [address for address, threads in self.client.nthreads().items() if threads > 1]
        if several:
            raise EnvironmentMismatchError(
                f"work stealing needs workers of one thread. Received: more at {several[0]}. "
                "Start them with --nthreads 1, or use --scheduler pull."
            )

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        self._open.close()

    def _wait_for_workers(self, wanted: int) -> None:
        try:
            self.client.wait_for_workers(wanted, timeout=PATIENCE_S)
        except (TimeoutError, OSError) as error:
            raise NoWorkersError(
                f"too few Dask workers after {PATIENCE_S:.0f} s. Received: {len(self.client.nthreads())} of {wanted}. "
                "Start more, or lower --workers."
            ) from error


def scheduler_lost() -> NoWorkersError:
    """Return what is said when the scheduler no longer answers."""
    return NoWorkersError(
        "the Dask scheduler is gone. Finished blocks are kept: start it and its workers again, and go on with "
        "--resume --run-dir DIR."
    )


def _local_cluster(config: ExecutionConfig) -> Any:
    """Start single-threaded workers, each in a process of its own that ends with this one."""
    default = devices.physical_gpus() or min(MOST_LOCAL_CPU_WORKERS, devices.available_cores())
    return distributed.LocalCluster(
        n_workers=config.workers or default,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.WARNING if config.verbose else logging.CRITICAL,
    )


def _connected(where: Any) -> Any:
    own = distributed.Security().get_connection_args("client")
    if str(where).startswith("tls://") and own.get("ssl_context") is None:
        raise EnvironmentMismatchError(
            f"a tls:// cluster asks for a certificate. Received: none, for {where}. Name the files in Dask's settings: "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …__TLS__CLIENT__CERT, …__TLS__CLIENT__KEY."
        )
    try:
        return distributed.Client(where, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise NoWorkersError(
            f"no Dask scheduler answers. Received: {where}, after {CONNECT_S:.0f} s. Start one, or correct "
            "--dask-address."
        ) from error
    except (TypeError, RuntimeError, ValueError) as error:
        raise EnvironmentMismatchError(
            f"cannot join the Dask cluster at {where}. Received: {error}. Correct --dask-address or Dask's settings."
        ) from error


def scheduler_address(given: str) -> str:
    """Return the address itself, or the one that a scheduler file holds."""
    if "://" in given:
        return given
    try:
        return str(json.loads(Path(given).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it holds no scheduler's address"
        raise MissingInputError(
            f"--dask-address is tls://HOST:PORT, tcp://HOST:PORT or a scheduler file. Received: {given!r} ({reason}). "
            "Start the scheduler with --scheduler-file and give that file."
        ) from error


def check_privacy(address: str, insecure: bool) -> None:
    """Refuse a cluster that anybody on the network could send code to.

    Raises:
        EnvironmentMismatchError: it is not encrypted, not on this host, and the user does not insist.
    """
    parts = urlsplit(address)
    if insecure or parts.scheme == "tls" or _is_loopback(parts.hostname or ""):
        return
    raise EnvironmentMismatchError(
        "a Dask cluster on the network must use TLS: whoever reaches it runs code on every worker. "
        f"Received: {address}. Start it with certificates (launch/README.md) and give tls://…, or insist with "
        "--dask-insecure."
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
