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

from pbd.collective import CollectiveAbortedError, CollectiveLostError
from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, StoppedError
from pbd.executors.base import Throttle, run_queue
from pbd.executors.dask.collective import CollectiveMember, DaskCollective
from pbd.executors.isolation import retry, runner
from pbd.executors.isolation.base import LostProcessError, TaskRunner
from pbd.executors.isolation.runner import Pickled
from pbd.records import BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.system import backend, devices
from pbd.system.keras_state import KerasSetup

_SETTLING = threading.Lock()
_current: "_SetUp | None" = None
_over: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Settings:
    """How workers of this run use their hosts."""

    config: ExecutionConfig
    workers_of_host: dict[str, int]
    """By host; of a host that joined later, the worker counts as alone."""
    run: str
    """The topic that progress goes to, of this run alone."""
    keras: KerasSetup
    """The coordinator's."""


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

    train_group = retry.training_in(set_up_worker(settings), Pickled(pickled))
    worker, emit = get_worker(), _teller(settings)
    began = time.monotonic()
    (results,) = run_queue(train_group, [group], 0, emit, began)
    return Done(worker.address, tuple(results), time.monotonic() - began)


@dataclasses.dataclass(frozen=True)
class _Pickling:
    """A function whose result stays pickled on its way through the worker, which has no use for it."""

    function: Pickled[Any]

    def __call__(self, *arguments: Any) -> bytes:
        return cloudpickle.dumps(self.function(*arguments))


def call(pickled: bytes, settings: Settings) -> bytes:
    """Call a pickled function without arguments; return its result, pickled."""
    return retry.call_in(set_up_worker(settings), _Pickling(Pickled(pickled)))


def join(pickled: bytes, membership: CollectiveMember, settings: Settings) -> bytes | None:
    """Call a pickled function of a collective and a progress listener, together with the other members.

    Returns:
        The first member's result, pickled.
    """
    place, collective = set_up_worker(settings), DaskCollective(membership)
    tell = _teller(settings, aloud=collective.index == 0)
    try:
        answer = place.run(_Pickling(Pickled(pickled)), tell, collective)
    except (CollectiveAbortedError, CollectiveLostError):
        raise
    except LostProcessError as error:
        raise CollectiveLostError(str(error)) from error
    except BaseException:
        with contextlib.suppress(CollectiveLostError):
            collective.abort()
        raise
    return answer if collective.index == 0 else None


def _teller(settings: Settings, aloud: bool = True) -> ProgressCallback:
    """Return what tells a run of progress; once that is over, what is being done for it ends there."""
    from distributed import get_worker

    worker = get_worker()

    def tell(event: Progress) -> None:
        if settings.run in _over:
            raise StoppedError()
        if aloud:
            worker.log_event(settings.run, dataclasses.asdict(event) | {"worker": worker.address})

    return Throttle(tell)


def leave(run: str) -> None:
    """End what is done here for a run that is over, and hold nothing until there is work again."""
    _over.add(run)
    if _current is not None:
        _current.place.release()


def set_up_worker(settings: Settings) -> TaskRunner:
    """Take this worker's share of its host, once, before any backend is loaded: one GPU, or a part of the cores.

    Returns:
        Where the worker does its work.

    Raises:
        EnvironmentMismatchError: the worker is open to the network, all GPUs of the host are taken, or an earlier run
            settled it with another number of threads.
    """
    from distributed import get_worker

    from pbd.executors.dask.connection import check_privacy

    check_privacy(get_worker().listen_address, settings.config.dask_insecure)
    global _current
    config = settings.config
    with _SETTLING:
        _current = _current or _take_share(settings)
        threads, wanted = _current.threads, config.threads_per_worker
        if wanted not in (None, threads):
            raise EnvironmentMismatchError(
                "a worker keeps the threads that its first run gave it. Received: --threads-per-worker "
                f"{wanted}, a worker with {threads}. Start the workers again, or leave the flag out."
            )
        if _current.how != _how(settings):  # another run's
            _current.place.close()
            _current = _open(_current.share, threads, settings)
        return _current.place


@dataclasses.dataclass(frozen=True)
class _SetUp:
    """How this worker works."""

    share: devices.Share
    threads: int
    how: tuple[bool, float, KerasSetup]
    place: TaskRunner


def _how(settings: Settings) -> tuple[bool, float, KerasSetup]:
    """Return what a runner depends on that runs may want otherwise."""
    return settings.config.isolate, settings.config.stall_limit, settings.keras


def _open(share: devices.Share, threads: int, settings: Settings) -> _SetUp:
    if not settings.config.isolate:
        backend.load()
        settings.keras.apply()
    place = runner.open_runner(settings.config, share, settings.keras)
    return _SetUp(share, threads, _how(settings), place)


def _take_share(settings: Settings) -> _SetUp:
    from distributed import get_worker

    worker = get_worker()
    devices.forget_inherited()
    gpus = () if "CUDA_VISIBLE_DEVICES" in os.environ else devices.gpu_ids()
    number = re.search(r"\d+$", str(worker.name))
    seat = devices.take_seat(gpus, int(number[0]) if number else 0) if gpus else 0
    local_workers = settings.workers_of_host.get(host(worker.address), 1)
    config = settings.config
    share = devices.Share(seat, local_workers, config.threads_per_worker, config.verbose)
    return _open(share, share.claim(), settings)


def host(address: str) -> str:
    """Return the host of a worker's address.

    Example:
        >>> host("tls://10.0.0.2:40001")
        '10.0.0.2'
    """
    return urlsplit(address).hostname or ""
