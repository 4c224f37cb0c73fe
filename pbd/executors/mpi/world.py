"""Start and end of an MPI job: a rank that cannot start is reported to all others, and any rank can end the job."""

import contextlib
import os
import platform
import signal
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from pbd import stop_signals
from pbd.errors import EnvironmentMismatchError, PbdError, StoppedError, UsageError
from pbd.executors.mpi import start_limit
from pbd.run_dir import error_files
from pbd.system import launcher, silence

_RANK_0_PRINTS_FIRST_S = 0.5
_LIMIT_STEP_S = 2.0
_LAUNCHER_READS_S = 0.3
_LAUNCHER_KILLS_S = 5.0


def join() -> tuple[Any, int, int]:
    """Wait for all ranks to start.

    Returns:
        The communicator of all ranks, this rank's number on its host, and the number of ranks on its host.

    Raises:
        EnvironmentMismatchError: there is no MPI library, or the launcher belongs to another one.
        PbdError: a rank cannot start; message and exit code are its own.
    """
    with _ended_by_signals_or_limit():
        comm = _world()
        failures = comm.allgather(None)
        local_rank, local_ranks = _local_position(comm)
    for rank, failure in enumerate(failures):
        if failure is not None:
            host, code, message = failure
            error = PbdError(f"rank {rank} on {host} could not start: {message}")
            error.exit_code = code
            raise error
    return comm, local_rank, local_ranks


def report_failed_start(error: PbdError) -> None:
    """In a rank that cannot start: report the error to the ranks that wait in `join`."""
    with contextlib.suppress(PbdError), _ended_by_signals_or_limit():
        comm = _world()
        comm.allgather((platform.node(), error.exit_code, str(error)))
        _local_position(comm)


def _local_position(comm: Any) -> tuple[int, int]:
    from mpi4py import MPI

    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    position = host.Get_rank(), host.Get_size()
    host.Free()
    return position


@contextlib.contextmanager
def _ended_by_signals_or_limit() -> Iterator[None]:
    """Let the kernel end this process, and thereby the launcher end the job, on a signal or at the start limit.

    `MPI_Init` waits for every rank without releasing the interpreter lock, so that no Python handler would run. The
    limit is set by the environment; `pbd-run` sets it.
    """
    if not stop_signals.in_main_thread():
        yield
        return
    limit = _start_limit()
    with stop_signals.handled_by(signal.SIG_DFL, signal.SIGALRM), limit:
        yield


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore further signals to stop within the block, in which this rank leaves: the other ranks wait for its end."""
    with stop_signals.handled_by(signal.SIG_IGN):
        yield


def _start_limit() -> contextlib.AbstractContextManager[None]:
    value = os.environ.get(launcher.START_LIMIT, "0")
    if not value.isdecimal():
        raise UsageError(
            f"{launcher.START_LIMIT} must be seconds, 0 for no limit. Received: {value!r}. Give 600, for example."
        )
    if int(value) == 0:
        return contextlib.nullcontext()
    rank = launcher.rank() or 0
    message = (
        f"pbd-run: rank {rank} waited {value} s for the other ranks to start, and one did not start. Read the output "
        f"of the launcher, and check that pbd runs on all hosts; {launcher.START_LIMIT}=SECONDS sets a longer limit."
    )
    # Higher ranks wait a little longer, so that usually only one rank prints the message.
    return start_limit.ended_after(int(value) + _LIMIT_STEP_S * min(rank, 2), message)


def _world() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentMismatchError(
            f"the mpi executor needs mpi4py and an MPI library. Received: {error}. Install them with pip: mpi4py mpich."
        ) from error
    announced, actual = launcher.size(), MPI.COMM_WORLD.Get_size()
    if announced not in (1, actual):
        raise EnvironmentMismatchError(
            f"mpirun and mpi4py must be of the same MPI. Received: a launcher of {announced} ranks, a communicator "
            f"of {actual}. Use the mpirun that belongs to mpi4py's library."
        )
    return MPI.COMM_WORLD


def allows_threads() -> bool:
    """Return whether several threads may call MPI at once."""
    from mpi4py import MPI

    return MPI.Query_thread() == MPI.THREAD_MULTIPLE


@signals_ignored()
def abort(error: BaseException) -> NoReturn:
    """Print an error and end all ranks at once: after an exception in one rank the others would wait for ever."""
    from mpi4py import MPI

    if isinstance(error, PbdError | KeyboardInterrupt):
        reason = error if isinstance(error, PbdError) else StoppedError()
        if MPI.COMM_WORLD.Get_rank() != 0:
            time.sleep(_RANK_0_PRINTS_FIRST_S)
        silence.print_error(f"pbd-run: {reason}")
        code = reason.exit_code
    else:
        line = error_files.summary(error)
        silence.print_error("".join(traceback.format_exception(error)).rstrip() if line is None else f"pbd-run: {line}")
        code = PbdError.exit_code
    time.sleep(_LAUNCHER_READS_S)  # the launcher drops output that it has not read when it receives the abort
    MPI.COMM_WORLD.Abort(code)
    time.sleep(_LAUNCHER_KILLS_S)  # Abort may return before the launcher has ended this process
    os._exit(code)
