"""What all tests share: threads, slow tests, and where the optional shared material lies."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")

SHARED = Path(__file__).resolve().parents[2] / "shared"


SEVERAL_PROCESSES = (
    "test_dask",
    "test_dask_cluster",
    "test_executions",
    "test_executors",
    "test_launch",
    "test_same_student",
    "test_teams",
)
"""Files whose tests start several processes: side by side, they would keep each other from the cores."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process; skip slow tests unless PBD_SLOW=1."""
    for item in items:
        name = item.path.stem
        item.add_marker(pytest.mark.xdist_group("several processes" if name in SEVERAL_PROCESSES else name))
    if os.environ.get("PBD_SLOW") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: set PBD_SLOW=1 to run it"))


@pytest.fixture(scope="session")
def shared_teachers() -> Path:
    """The folder of real networks trained by others."""
    folder = SHARED / "teachers"
    if not folder.is_dir():
        pytest.skip("../shared/teachers is absent")
    return folder
