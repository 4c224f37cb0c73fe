"""Joining the world of MPI ranks, where one that cannot start is heard of by all, and ending it from any of them."""

import contextlib
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from pbd.errors import EnvironmentMismatchError, PbdError, StoppedError
from pbd.executors import launcher

START_LIMIT_VARIABLE = "PBD_START_LIMIT"
_START_LIMIT_S = 600
_RANK_0_SPEAKS_FIRST_S = 0.5
_LAUNCHER_READS_S = 0.3
_LAUNCHER_KILLS_S = 5.0


def join() -> Any:
    """Return the communicator of all ranks, once every one of them can start.

    Raises:
        EnvironmentMismatchError: there is no MPI library, or the launcher is another one's.
        PbdError: a rank cannot start; the message is its own, and so is the exit code.
    """
    with _ended_unless_all_come():
        comm = _world()
        answers = comm.allgather(None)
    for rank, said in enumerate(answers):
        if said is not None:
            host, code, message = said
            error = PbdError(f"rank {rank} on {host} could not start: {message}")
            error.exit_code = code
            raise error
    return comm


def stay_away(error: PbdError) -> None:
    """In a rank that cannot start: tell those that wait for it in `join`."""
    with contextlib.suppress(EnvironmentMismatchError), _ended_unless_all_come():
        _world().allgather((platform.node(), error.exit_code, str(error)))


@contextlib.contextmanager
def _ended_unless_all_come() -> Iterator[None]:
    """Have the kernel end this process, and so the launcher all ranks, if one does not come in time.

    Nothing in Python could: MPI's own start waits for every rank, without letting go of the interpreter.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may change signals
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(os.environ.get(START_LIMIT_VARIABLE, _START_LIMIT_S)))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentMismatchError(
            f"the mpi executor needs mpi4py and an MPI library. Received: {error}. Install them with pip: mpi4py mpich."
        ) from error
    announced, found = launcher.size(), MPI.COMM_WORLD.Get_size()
    if announced not in (1, found):
        raise EnvironmentMismatchError(
            f"mpirun and mpi4py must be of the same MPI. Received: a launcher of {announced} ranks, a communicator "
            f"of {found}. Use the mpirun that belongs to mpi4py's library."
        )
    return MPI.COMM_WORLD


def abort(error: BaseException) -> NoReturn:
    """End every rank at once: an exception in one rank alone would leave the others waiting for ever."""
    from mpi4py import MPI

    if isinstance(error, PbdError | KeyboardInterrupt):
        told = error if isinstance(error, PbdError) else StoppedError()
        if MPI.COMM_WORLD.Get_rank() != 0:
            time.sleep(_RANK_0_SPEAKS_FIRST_S)
        print(f"pbd-run: {told}", file=sys.__stderr__, flush=True)
        code = told.exit_code
    else:
        traceback.print_exception(error, file=sys.__stderr__)
        sys.__stderr__.flush()
        code = PbdError.exit_code
    time.sleep(_LAUNCHER_READS_S)  # what it has not read when it hears of the abort is lost
    MPI.COMM_WORLD.Abort(code)
    time.sleep(_LAUNCHER_KILLS_S)  # Abort may return before the launcher has ended this process
    os._exit(code)
