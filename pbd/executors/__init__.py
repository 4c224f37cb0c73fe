"""Executors run a function on groups of tasks; this package is the only place that knows MPI."""

import os

from pbd.config import ExecutionConfig
from pbd.executors.base import Executor

LAUNCHER_RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


def launcher_rank() -> int | None:
    """Return this process's rank as its MPI launcher set it in the environment, `None` without a launcher."""
    return next((int(os.environ[name]) for name in LAUNCHER_RANK_VARIABLES if name in os.environ), None)


def open_executor(config: ExecutionConfig) -> Executor:
    """Return the executor that the settings name; `auto` is MPI under `mpirun`, else serial.

    Raises:
        EnvironmentMismatchError: MPI is not installed, or its launcher belongs to another MPI.
        UsageError: the number of workers contradicts the number of ranks.
    """
    name = config.executor
    if name == "auto":
        name = "mpi" if launcher_rank() is not None else "serial"
    if name == "mpi":
        from pbd.executors.mpi import MpiExecutor

        return MpiExecutor(config.workers)
    from pbd.executors.serial import SerialExecutor

    return SerialExecutor(config.workers or 1)
