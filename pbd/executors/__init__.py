"""Executors train groups of layers on workers. Only this package knows MPI and Dask."""

from pbd.config import ExecutionConfig
from pbd.errors import EnvironmentMismatchError, UsageError
from pbd.executors.base import Executor
from pbd.system import launcher


def open_executor(config: ExecutionConfig) -> Executor:
    """Return the configured executor; `auto` selects MPI under an `mpirun` of several ranks, else serial.

    Raises:
        EnvironmentMismatchError: MPI or Dask is not installed, its launcher belongs to another MPI, or there are
            fewer GPUs than workers.
        NoWorkersError: the Dask cluster does not answer or has too few workers.
        UsageError: the number of workers contradicts the number of ranks.
    """
    name = config.executor
    if name == "auto":
        # A single rank needs no MPI; with `--workers 4`, MPI refuses it and names `mpirun -n 4`.
        under_mpirun = launcher.rank() is not None and config.workers not in (None, 1)
        name = "mpi" if under_mpirun or not launcher.has_one_rank() else "serial"
    if name == "mpi":
        from pbd.executors.mpi.executor import MpiExecutor

        return MpiExecutor(config)
    if launcher.size() > 1:
        raise UsageError(f"the {name} executor is one process. Received: {launcher.size()} ranks. Drop mpirun.")
    if name == "dask":
        try:
            from pbd.executors.dask.executor import DaskExecutor
        except ImportError as error:
            raise EnvironmentMismatchError(
                f"the dask executor needs dask.distributed. Received: {error}. Install it: pip install 'pbd[dask]'."
            ) from error
        return DaskExecutor(config)
    from pbd.executors.serial import SerialExecutor

    return SerialExecutor(config)
