"""What all tests share: threads, slow tests, and where the optional shared material lies."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")

LONGEST = "test_same_student.py"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip slow tests unless PBD_SLOW=1; begin with the file that takes longest, so that no process is left with it."""
    items.sort(key=lambda item: item.path.name != LONGEST)
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
