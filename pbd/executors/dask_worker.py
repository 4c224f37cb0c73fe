"""What a Dask worker does with the work it is sent: take a device, then train."""

import contextlib
import dataclasses
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import cloudpickle

from pbd import devices
from pbd.errors import EnvironmentMismatchError
from pbd.executors.base import Emit, Seldom, run_queue
from pbd.executors.dask_team import DaskTeam, Membership
from pbd.records import BlockResult, Progress, TaskGroup
from pbd.teamwork import BrokenTeamError, LostTeamError, Team

_SETTLING = threading.Lock()
_threads: int | None = None  # with which this process computes, once it has settled


@dataclasses.dataclass(frozen=True)
class Settings:
    """How workers of this run use their hosts."""

    threads: int | None
    verbose: bool
    workers_of_host: dict[str, int]
    """By host; of a host that joined later, the worker counts as alone."""
    events: str
    """The topic that progress goes to."""
    insecure: bool
    """Whether workers may be reached over the network without TLS."""


@dataclasses.dataclass(frozen=True)
class Done:
    """What a worker sends back."""

    worker: str
    """Its address."""
    results: tuple[BlockResult, ...]
    seconds: float
    """Wall time of the whole."""


def train(pickled: bytes, group: TaskGroup, settings: Settings) -> Done:
    """Train a group with the pickled function, which is only unpickled once this process has its device."""
    from distributed import get_worker

    settle(settings)
    worker = get_worker()
    emit = Seldom(lambda event: worker.log_event(settings.events, _message(worker.address, event)))
    began = time.monotonic()
    (results,) = run_queue(cloudpickle.loads(pickled), [group], 0, emit, began)
    return Done(worker.address, tuple(results), time.monotonic() - began)


def call(pickled: bytes, settings: Settings) -> Any:
    """Call a pickled function without arguments."""
    settle(settings)
    function: Callable[[], Any] = cloudpickle.loads(pickled)
    return function()


def join(pickled: bytes, membership: Membership, settings: Settings) -> Any:
    """Call a pickled function of a team and a progress listener, together with the other members; the first tells."""
    from distributed import get_worker

    settle(settings)
    worker, team = get_worker(), DaskTeam(membership)
    tell = Seldom(lambda event: worker.log_event(settings.events, _message(worker.address, event)))
    function: Callable[[Team, Emit], Any] = cloudpickle.loads(pickled)
    try:
        answer = function(team, tell if team.index == 0 else lambda event: None)
    except (BrokenTeamError, LostTeamError):
        raise
    except BaseException:
        with contextlib.suppress(LostTeamError):
            team.give_up()
        raise
    return answer if team.index == 0 else None


def _message(address: str, event: Progress) -> dict[str, Any]:
    return dataclasses.asdict(event) | {"worker": address}


def settle(settings: Settings) -> None:
    """Take this process's share of its host, once, before any backend is loaded: one GPU, or a part of the cores.

    Raises:
        EnvironmentMismatchError: the worker is open to the network, all GPUs of the host are taken, or an earlier run
            settled it with another number of threads.
    """
    from distributed import get_worker

    from pbd.executors.dask_connection import check_privacy

    check_privacy(get_worker().listen_address, settings.insecure)
    global _threads
    with _SETTLING:
        if _threads is None:
            _threads = _take_share(settings)
        elif settings.threads not in (None, _threads):
            raise EnvironmentMismatchError(
                "a worker keeps the threads that its first run gave it. Received: --threads-per-worker "
                f"{settings.threads}, a worker with {_threads}. Start the workers again, or leave the flag out."
            )


def _take_share(settings: Settings) -> int:
    from distributed import get_worker

    worker = get_worker()
    devices.forget_inherited()
    gpus = () if "CUDA_VISIBLE_DEVICES" in os.environ else devices.gpu_ids()
    number = re.search(r"\d+$", str(worker.name))
    seat = devices.take_seat(gpus, int(number[0]) if number else 0) if gpus else 0
    local_workers = settings.workers_of_host.get(host(worker.address), 1)
    threads = devices.claim(seat, local_workers, settings.threads, settings.verbose)
    devices.load_backend()
    return threads


def host(address: str) -> str:
    """Return the host of a worker's address.

    Example:
        >>> host("tls://10.0.0.2:40001")
        '10.0.0.2'
    """
    return urlsplit(address).hostname or ""
