"""What the tests of launch scripts share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import played_run
from tests.helpers.cluster import processes_with, wait_until


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Changes of the environment by which a launch script starts played runs."""
    wrapper = played_run.python_wrapper(tmp_path_factory.mktemp("played python"))
    return {"PBD_PYTHON": str(wrapper), "PBD_MPIRUN": str(Path(sys.executable).parent / "mpirun")}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with spaces in its name; after the test nothing may run that knows it."""
    folder = tmp_path / "with spaces, é"
    folder.mkdir()
    yield folder
    wait_until(lambda: not processes_with(str(tmp_path)), f"end of {processes_with(str(tmp_path))}")
