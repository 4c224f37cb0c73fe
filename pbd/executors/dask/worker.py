"""Functions that run in a Dask worker: set-up of its device and task runner, training, collectives."""

import contextlib
import dataclasses
import functools
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import cloudpickle

from pbd.collective import CollectiveAbortedError, CollectiveLostError
from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, StoppedError
from pbd.executors.base import Throttle, run_queue
from pbd.executors.dask.collective import CollectiveMember, DaskCollective
from pbd.executors.dask.results import TaskError
from pbd.executors.isolation import retry, runner
from pbd.executors.isolation.base import LostProcessError, TaskRunner
from pbd.executors.isolation.messages import picklable
from pbd.executors.isolation.runner import Pickled
from pbd.records import BlockResult, Progress, ProgressCallback, TaskGroup
from pbd.system import backend, devices
from pbd.system.keras_state import KerasSetup

P = ParamSpec("P")
T = TypeVar("T")
_set_up_lock = threading.Lock()
_current: "_WorkerState | None" = None
_replaced: "list[_WorkerState]" = []
"""Earlier states whose runners still work: of other runs, on workers with several threads."""
_ended_runs: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run for its workers."""

    config: ExecutionConfig
    workers_of_host: dict[str, int]
    """The number of workers by host; a worker on a host that joined later counts as the only one there."""
    run: str
    """The topic of the run's progress events."""
    keras: KerasSetup
    """The coordinator's state of Keras."""


@dataclasses.dataclass(frozen=True)
class GroupResults:
    """The results of a group."""

    worker: str
    """The worker's address."""
    results: tuple[BlockResult, ...]
    seconds: float
    """Wall time of the group."""


def _raises_task_error(function: Callable[P, T]) -> Callable[P, T]:
    """Let a task raise a `TaskError` that can be pickled: of others Dask keeps neither the type nor the exit code."""

    @functools.wraps(function)
    def call_function(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raised = picklable(error)
        # Behind the block, else the first exception would be its context. Dask prepares the classes of causes to be
        # pickled as a whole.
        raise TaskError(raised) from raised

    return call_function


@_raises_task_error
def train(pickled: bytes, group: TaskGroup, settings: Settings) -> GroupResults:
    """Train a group with a pickled function, which is unpickled in the training process only."""
    from distributed import get_worker

    train_group = retry.retrying(set_up_worker(settings), Pickled(pickled))
    worker, progress = get_worker(), _progress_callback(settings)
    began = time.monotonic()
    (results,) = run_queue(train_group, [group], 0, progress, began)
    return GroupResults(worker.address, tuple(results), time.monotonic() - began)


@dataclasses.dataclass(frozen=True)
class _PickledResult:
    """A function that returns its result pickled, so that the worker need not import the result's modules."""

    function: Pickled[Any]

    def __call__(self, *arguments: Any) -> bytes:
        return cloudpickle.dumps(self.function(*arguments))


@_raises_task_error
def call(pickled: bytes, settings: Settings) -> bytes:
    """Call a pickled function without arguments; return its result, pickled."""
    return retry.call_in(set_up_worker(settings), _PickledResult(Pickled(pickled)))


@_raises_task_error
def run_work(pickled: bytes, settings: Settings) -> bytes:
    """Call a pickled function of a collective and a progress callback in this worker alone; return its result, pickled.

    If the training process is lost, the function is called again.
    """
    return retry.run_in(set_up_worker(settings), _PickledResult(Pickled(pickled)), _progress_callback(settings))


@_raises_task_error
def run_member(pickled: bytes, member: CollectiveMember, settings: Settings) -> bytes | None:
    """Call a pickled function of a collective and a progress callback, at the same time as the other members.

    Returns:
        The first member's result, pickled.
    """
    task_runner, collective = set_up_worker(settings), DaskCollective(member)
    progress = _progress_callback(settings, reports=collective.index == 0)
    try:
        result = task_runner.run(_PickledResult(Pickled(pickled)), progress, collective)
    except (CollectiveAbortedError, CollectiveLostError):
        raise
    except LostProcessError as error:
        raise CollectiveLostError(str(error)) from error
    except BaseException:
        with contextlib.suppress(CollectiveLostError):
            collective.abort()
        raise
    return result if collective.index == 0 else None


def _progress_callback(settings: Settings, reports: bool = True) -> ProgressCallback:
    """Return a callback that sends progress to the coordinator, and stops the work once the run has ended."""
    from distributed import get_worker

    worker = get_worker()

    def send(event: Progress) -> None:
        if settings.run in _ended_runs:
            raise StoppedError()
        if reports:
            worker.log_event(settings.run, dataclasses.asdict(event) | {"worker": worker.address})

    return Throttle(send)


def end_run(run: str) -> None:
    """Stop the work of a run that has ended, and free the device until there is work again."""
    _ended_runs.add(run)
    for state in filter(None, (_current, *_replaced)):
        state.runner.release()


@_raises_task_error
def set_up(settings: Settings) -> None:
    """Set up this worker before it has work, so that its training process starts early."""
    set_up_worker(settings)


def set_up_worker(settings: Settings) -> TaskRunner:
    """Return this worker's runner; the first call reserves the worker's share of the host, for all later runs.

    Raises:
        EnvironmentMismatchError: the worker is open to the network, all GPUs of the host are reserved, or an earlier
            run gave the worker another number of threads.
    """
    from distributed import get_worker

    from pbd.executors.dask.connection import check_privacy

    check_privacy(get_worker().listen_address, settings.config.dask_insecure)
    global _current
    with _set_up_lock:
        _current = _current or _first_state(settings)
        threads, requested = _current.threads, settings.config.threads_per_worker
        if requested not in (None, threads):
            raise EnvironmentMismatchError(
                "a worker keeps the threads that its first run gave it. Received: --threads-per-worker "
                f"{requested}, a worker with {threads}. Start the workers again, or leave the flag out."
            )
        if _current.depends_on != _dependencies(settings):  # another run, with other settings
            _current = _replace(_current, settings)
        return _current.runner


@dataclasses.dataclass(frozen=True)
class _WorkerState:
    share: devices.Share
    threads: int
    depends_on: tuple[bool, float, KerasSetup]
    runner: TaskRunner


def _dependencies(settings: Settings) -> tuple[bool, float, KerasSetup]:
    """Return the settings that a runner depends on."""
    return settings.config.isolate, settings.config.stall_limit, settings.keras


def _open(share: devices.Share, threads: int, settings: Settings) -> _WorkerState:
    if not settings.config.isolate:
        backend.use(settings.keras.backend)
        backend.load()
        settings.keras.apply()
    task_runner = runner.open_runner(settings.config, share, settings.keras)
    return _WorkerState(share, threads, _dependencies(settings), task_runner)


def _replace(current: _WorkerState, settings: Settings) -> _WorkerState:
    """Return a state for a run with other settings, and keep those whose runners work.

    Raises:
        EnvironmentMismatchError: Keras is loaded with another backend.
    """
    global _replaced
    working = [state for state in (current, *_replaced) if not state.runner.release()]
    same = (state for state in working if state.depends_on == _dependencies(settings))
    state = next(same, None) or _open(current.share, current.threads, settings)
    _replaced = [other for other in working if other is not state]
    return state


def _first_state(settings: Settings) -> _WorkerState:
    from distributed import get_worker

    worker = get_worker()
    devices.forget_inherited()
    gpus = () if "CUDA_VISIBLE_DEVICES" in os.environ else devices.gpu_ids()
    number = re.search(r"\d+$", str(worker.name))
    gpu = devices.reserve_gpu(gpus, int(number[0]) if number else 0) if gpus else 0
    local_workers = settings.workers_of_host.get(host(worker.address), 1)
    config = settings.config
    share = devices.Share(gpu, local_workers, config.threads_per_worker, config.verbose)
    return _open(share, share.claim(), settings)  # Dask started this process: the claim need not be undone


def host(address: str) -> str:
    """Return the host of a worker's address.

    Example:
        >>> host("tls://10.0.0.2:40001")
        '10.0.0.2'
    """
    return urlsplit(address).hostname or ""
