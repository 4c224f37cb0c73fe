"""What child processes inherit from a rank."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pbd.system import launcher

pytestmark = pytest.mark.fast


def test_only_module_paths_that_python_reads_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Any] = ["/some/folder", Path("/a/path"), None, ""]
    monkeypatch.setattr(sys, "path", paths)
    assert launcher.child_environment()["PYTHONPATH"] == f"/some/folder{os.pathsep}{os.getcwd()}"
