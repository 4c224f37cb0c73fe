"""Ranks of MPI jobs, with a stand-in for mpi4py: when MPI is chosen, how one rank ends the job, and its losses."""

import os
import platform
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from pbd import stop_signals
from pbd.collective import CollectiveLostError
from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, StoppedError
from pbd.executors import open_executor
from pbd.executors.mpi import world
from pbd.executors.mpi.collective import MpiCollective
from pbd.executors.mpi.executor import MpiExecutor

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("launcher", "workers", "expected"),
    [
        ({}, None, "serial"),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, None, "serial"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, 1, "serial"),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, 2, "mpi"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, None, "mpi"),
        ({"PMIX_RANK": "0"}, None, "mpi"),
    ],
)
def test_mpi_is_chosen_for_several_ranks(
    launcher: dict[str, str], workers: int | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm sets the variables of a launcher for one process, too, where mpi4py may be absent."""
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    config = ExecutionConfig(workers=workers, isolate=False)
    if expected == "serial":
        assert open_executor(config).name == "serial"
    else:
        with pytest.raises(EnvironmentMismatchError, match="the mpi executor needs mpi4py"):
            open_executor(config)


@pytest.fixture
def _stopping_signals() -> Iterator[None]:
    """Handle signals as a command does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    with stop_signals.raised():
        yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_stopping_signals")
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_is_stopped_twice_ends_the_job(second: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm signals the ranks and their launcher, which forwards the signal: if `abort` raised, all would wait."""
    codes = list[int]()

    def receive_second(*_: object) -> None:
        os.kill(os.getpid(), second)

    def exit_with(code: int) -> None:
        codes.append(code)
        raise SystemExit

    ranks = SimpleNamespace(Get_rank=lambda: 0, Abort=receive_second)
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=ranks)))
    monkeypatch.setattr(world.time, "sleep", receive_second)
    monkeypatch.setattr(world.os, "_exit", exit_with)
    executor = MpiExecutor.__new__(MpiExecutor)
    executor._ended, executor.coordinates = False, True
    executor._runner = SimpleNamespace(close=receive_second)
    with pytest.raises(SystemExit):
        executor.stop(KeyboardInterrupt())
    assert codes == [StoppedError.exit_code]
    with pytest.raises(KeyboardInterrupt):
        receive_second()  # a session that is over leaves the handlers as they were


class OneRank:
    """The communicator of a single rank."""

    exchanges = 0

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def Iallreduce(self, sent: np.ndarray, received: np.ndarray, op: object = None) -> SimpleNamespace:
        received[:] = sent
        self.exchanges += 1
        answers = iter((False, True))
        return SimpleNamespace(Test=lambda: next(answers))

    def allgather(self, value: str) -> list[str]:
        return [value]


def test_a_second_loss_at_one_attempt_is_not_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other members, which know of the first, are about to begin the next attempt, and exchange something else."""
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(MAX=max)))
    communicator = OneRank()
    collective = MpiCollective(communicator)
    collective.start()
    collective.disconnect("the training process was killed")
    assert communicator.exchanges == 1
    collective.disconnect("and the next one, too")
    with pytest.raises(CollectiveLostError, match=f"^rank 0 on {platform.node()}: the training process was killed$"):
        collective.all_reduce_sum(np.ones(1))
    assert communicator.exchanges == 1
    collective.start()
    assert collective.all_reduce_sum(np.ones(1)) == 1.0
