"""Ranks of MPI jobs, with a stand-in for mpi4py: how one rank ends the job, and what ranks exchange after a loss."""

import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pbd.errors import StoppedError
from pbd.executors.mpi import world
from pbd.executors.mpi.executor import MpiExecutor
from pbd.pipeline import command

pytestmark = pytest.mark.fast


@pytest.fixture
def _stopping_signals() -> Iterator[None]:
    """Handle signals as a command does."""
    before = {number: signal.getsignal(number) for number in world.STOPPING}
    command.stop_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
