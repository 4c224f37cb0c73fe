"""What an MPI launcher tells its processes through their environment, before any MPI library is loaded."""

import os
import sys

RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
PREFIXES = ("PMI", "OMPI_", "PRTE_", "HYDI_", "MPI_LOCAL")
"""Of what MPI launchers set in the environment, all of which would make a child process believe that it is a rank."""
START_LIMIT = "PBD_START_LIMIT"
"""In the environment: for how many seconds ranks wait for one that has not started; none, or 0, is for ever."""


def rank() -> int | None:
    """Return this process's rank as its MPI launcher set it in the environment, `None` without a launcher."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), None)


def size() -> int:
    """Return how many ranks the launcher started, 1 without a launcher."""
    return max([1, *(int(os.environ[name]) for name in SIZE_VARIABLES if name in os.environ)])


def environment_of_a_child() -> dict[str, str]:
    """Return this process's environment for a Python process that is no rank: with its paths of modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    return kept | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
