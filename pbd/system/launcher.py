"""Variables that MPI launchers set for their processes, read before any MPI library is loaded."""

import os
import sys

RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
PREFIXES = ("PMI", "OMPI_", "PRTE_", "HYDI_", "MPI_LOCAL")
"""Prefixes of the variables of MPI launchers; a child process that inherits one takes itself for a rank."""
START_LIMIT = "PBD_START_LIMIT"
"""Environment variable: seconds for which ranks wait for a rank that has not started; absent or 0: without limit."""


def rank() -> int | None:
    """Return this process's rank as set by its MPI launcher, `None` without a launcher."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), None)


def size() -> int:
    """Return the number of ranks that the launcher started, 1 without a launcher."""
    return max([1, *(int(os.environ[name]) for name in SIZE_VARIABLES if name in os.environ)])


def has_one_rank() -> bool:
    """Return whether there is no launcher, or one that says that it started a single rank."""
    return rank() is None or (size() == 1 and any(name in os.environ for name in SIZE_VARIABLES))


def child_environment() -> dict[str, str]:
    """Return the environment for a Python child process that is no rank, with this process's module paths.

    Entries of `sys.path` that are not strings are left out: Python itself does not import from them.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    return kept | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path if isinstance(path, str))}
