"""What a Dask worker does with the work it is sent: take a device, then train."""

import contextlib
import dataclasses
import os
import re
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import cloudpickle

from pbd import devices
from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError
from pbd.executors import workplace
from pbd.executors.base import Seldom, run_queue
from pbd.executors.dask_team import DaskTeam, Membership
from pbd.executors.workplace import LostProcessError, Packed, Workplace
from pbd.records import BlockResult, Progress, TaskGroup
from pbd.teamwork import BrokenTeamError, LostTeamError

_SETTLING = threading.Lock()
_settled: "_Settled | None" = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How workers of this run use their hosts."""

    config: ExecutionConfig
    workers_of_host: dict[str, int]
    """By host; of a host that joined later, the worker counts as alone."""
    events: str
    """The topic that progress goes to."""


@dataclasses.dataclass(frozen=True)
class Done:
    """What a worker sends back."""

    worker: str
    """Its address."""
    results: tuple[BlockResult, ...]
    seconds: float
    """Wall time of the whole."""


def train(pickled: bytes, group: TaskGroup, settings: Settings) -> Done:
    """Train a group with the pickled function, which is only unpickled where the work is done."""
    from distributed import get_worker

    train_group = workplace.training_in(settle(settings), Packed(pickled))
    worker = get_worker()
    emit = Seldom(lambda event: worker.log_event(settings.events, _message(worker.address, event)))
    began = time.monotonic()
    (results,) = run_queue(train_group, [group], 0, emit, began)
    return Done(worker.address, tuple(results), time.monotonic() - began)


@dataclasses.dataclass(frozen=True)
class _Pickling:
    """A function whose result stays pickled on its way through the worker, which has no use for it."""

    function: Packed[Any]

    def __call__(self, *arguments: Any) -> bytes:
        return cloudpickle.dumps(self.function(*arguments))


def call(pickled: bytes, settings: Settings) -> bytes:
    """Call a pickled function without arguments; return its result, pickled."""
    return workplace.call_in(settle(settings), _Pickling(Packed(pickled)))


def join(pickled: bytes, membership: Membership, settings: Settings) -> bytes | None:
    """Call a pickled function of a team and a progress listener, together with the other members.

    Returns:
        The first member's result, pickled.
    """
    from distributed import get_worker

    place = settle(settings)
    worker, team = get_worker(), DaskTeam(membership)
    tell = Seldom(lambda event: worker.log_event(settings.events, _message(worker.address, event)))
    try:
        answer = place.do(_Pickling(Packed(pickled)), tell if team.index == 0 else lambda event: None, team)
    except (BrokenTeamError, LostTeamError):
        raise
    except LostProcessError as error:
        raise LostTeamError(str(error)) from error
    except BaseException:
        with contextlib.suppress(LostTeamError):
            team.give_up()
        raise
    return answer if team.index == 0 else None


def _message(address: str, event: Progress) -> dict[str, Any]:
    return dataclasses.asdict(event) | {"worker": address}


def settle(settings: Settings) -> Workplace:
    """Take this worker's share of its host, once, before any backend is loaded: one GPU, or a part of the cores.

    Returns:
        Where the worker does its work.

    Raises:
        EnvironmentMismatchError: the worker is open to the network, all GPUs of the host are taken, or an earlier run
            settled it with another number of threads.
    """
    from distributed import get_worker

    from pbd.executors.dask_connection import check_privacy

    check_privacy(get_worker().listen_address, settings.config.dask_insecure)
    global _settled
    config = settings.config
    with _SETTLING:
        _settled = _settled or _take_share(settings)
        threads, wanted = _settled.threads, config.threads_per_worker
        if wanted not in (None, threads):
            raise EnvironmentMismatchError(
                "a worker keeps the threads that its first run gave it. Received: --threads-per-worker "
                f"{wanted}, a worker with {threads}. Start the workers again, or leave the flag out."
            )
        if (_settled.isolate, _settled.stall_limit) != (config.isolate, config.stall_limit):  # another run's
            _settled.place.close()
            _settled = _open(_settled.share, threads, config)
        return _settled.place


@dataclasses.dataclass(frozen=True)
class _Settled:
    """How this worker works."""

    share: devices.Share
    threads: int
    isolate: bool
    stall_limit: float
    place: Workplace


def _open(share: devices.Share, threads: int, config: ExecutionConfig) -> _Settled:
    if not config.isolate:
        devices.load_backend()
    place = workplace.open_workplace(config, share)
    return _Settled(share, threads, config.isolate, config.stall_limit, place)


def _take_share(settings: Settings) -> _Settled:
    from distributed import get_worker

    worker = get_worker()
    devices.forget_inherited()
    gpus = () if "CUDA_VISIBLE_DEVICES" in os.environ else devices.gpu_ids()
    number = re.search(r"\d+$", str(worker.name))
    seat = devices.take_seat(gpus, int(number[0]) if number else 0) if gpus else 0
    local_workers = settings.workers_of_host.get(host(worker.address), 1)
    config = settings.config
    share = devices.Share(seat, local_workers, config.threads_per_worker, config.verbose)
    return _open(share, share.claim(), config)


def host(address: str) -> str:
    """Return the host of a worker's address.

    Example:
        >>> host("tls://10.0.0.2:40001")
        '10.0.0.2'
    """
    return urlsplit(address).hostname or ""
