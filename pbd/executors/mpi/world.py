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

from pbd.errors import EnvironmentMismatchError, NoWorkersError, PbdError, StoppedError, UsageError
from pbd.executors.mpi import start_limit
from pbd.system import launcher
from pbd.system.watchdog import TICK_S, Timeout

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_RANK_0_SPEAKS_FIRST_S = 0.5
_NEXT_SPEAKS_AFTER_S = 2.0
_LAUNCHER_READS_S = 0.3
_LAUNCHER_KILLS_S = 5.0
_FEWEST_BEATS = 5


def join() -> tuple[Any, int, int]:
    """Wait until every rank can start; return their communicator, this rank's number on its host, and how many it has.

    Raises:
        EnvironmentMismatchError: there is no MPI library, or the launcher is another one's.
        PbdError: a rank cannot start; the message is its own, and so is the exit code.
    """
    with _ended_unless_all_come():
        comm = _world()
        answers = comm.allgather(None)
        local_rank, local_ranks = _on_this_host(comm)
    for rank, said in enumerate(answers):
        if said is not None:
            host, code, message = said
            error = PbdError(f"rank {rank} on {host} could not start: {message}")
            error.exit_code = code
            raise error
    return comm, local_rank, local_ranks


def stay_away(error: PbdError) -> None:
    """In a rank that cannot start: tell those that wait for it in `join`."""
    with contextlib.suppress(PbdError), _ended_unless_all_come():
        comm = _world()
        comm.allgather((platform.node(), error.exit_code, str(error)))
        _on_this_host(comm)


def _on_this_host(comm: Any) -> tuple[int, int]:
    from mpi4py import MPI

    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    found = host.Get_rank(), host.Get_size()
    host.Free()
    return found


@contextlib.contextmanager
def _ended_unless_all_come() -> Iterator[None]:
    """Have the kernel end this process, and so the launcher all ranks, on signals, or if one does not come in time.

    Nothing in Python could: MPI's own start waits for every rank, without letting go of the interpreter. There is a
    limit where the environment sets one, as `pbd-run` does.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may change signals
        yield
        return
    limit = _start_limit()
    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, *STOPPING)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        with limit:
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _start_limit() -> contextlib.AbstractContextManager[None]:
    given = os.environ.get(launcher.START_LIMIT, "0")
    if not given.isdecimal():
        raise UsageError(f"{launcher.START_LIMIT} must be seconds, 0 for no limit. Received: {given!r}.")
    if int(given) == 0:
        return contextlib.nullcontext()
    rank = launcher.rank() or 0
    words = (
        f"pbd-run: rank {rank} waited {given} s for the other ranks to start, and one did not come. See what the "
        f"launcher says of it, and whether pbd runs on its host; {launcher.START_LIMIT}=SECONDS has all wait longer."
    )
    return start_limit.ended_after(int(given) + _NEXT_SPEAKS_AFTER_S * min(rank, 2), words)


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


def allows_threads() -> bool:
    """Return whether several threads may use MPI at once."""
    from mpi4py import MPI

    return MPI.Query_thread() == MPI.THREAD_MULTIPLE


class HeartbeatMonitor:
    """Rank 0 and each of the others tell each other, about once a second, that they are there.

    It sees what no library does: a rank that was stopped, or whose host is gone.

    Args:
        comm: of all ranks, who all make one at the same time.
        limit_s: for how long nothing may be heard of a rank; a few beats at least.
    """

    def __init__(self, comm: Any, limit_s: float) -> None:
        self._comm = comm.Dup()
        rank, size = comm.Get_rank(), comm.Get_size()
        limit_s = max(limit_s, _FEWEST_BEATS * TICK_S)
        self._others = {other: Timeout(limit_s) for other in (range(1, size) if rank == 0 else (0,))}
        self._sending: dict[int, Any] = {}

    def exchange(self) -> PbdError | None:
        """Send and receive; return what is wrong, if a rank has been silent for too long."""
        for other, patience in self._others.items():
            while self._comm.iprobe(source=other):
                self._comm.recv(source=other)
                patience.renew()
            if other not in self._sending or self._sending[other].Test():
                self._sending[other] = self._comm.isend(None, dest=other)
            if patience.lost():
                return NoWorkersError(
                    f"rank {other} was not heard of for {patience.silent_s:.0f} s: stopped, or its host gone? "
                    "What was finished is kept: go on with --resume --run-dir DIR."
                )
        return None


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
