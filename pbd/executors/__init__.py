"""Executors run a function on groups of tasks; this package is the only place that knows MPI."""

from pbd.config import ExecutionConfig
from pbd.errors import UsageError
from pbd.executors import launcher
from pbd.executors.base import Executor


def open_executor(config: ExecutionConfig) -> Executor:
    """Return the executor that the settings name; `auto` is MPI under `mpirun`, else serial.

    Raises:
        EnvironmentMismatchError: MPI is not installed, or its launcher belongs to another MPI.
        UsageError: the number of workers contradicts the number of ranks.
    """
    name = config.executor
    if name == "auto":
        name = "mpi" if launcher.rank() is not None else "serial"
    if name == "mpi":
        from pbd.executors.mpi import MpiExecutor

        return MpiExecutor(config.workers)
    if launcher.size() > 1:
        raise UsageError(f"the serial executor is one process. Received: {launcher.size()} ranks. Drop mpirun.")
    from pbd.executors.serial import SerialExecutor

    return SerialExecutor(config.workers or 1)
