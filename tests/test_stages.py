"""The three stages of the test suite: together they select every test, and no test twice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import STAGES
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[1]


def selected(stage: str) -> tuple[list[str], int]:
    """Return the tests of a stage, and how many tests were looked at for it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=--import-mode=importlib"]
    done = subprocess.run([*command, "-m", stage], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.strip().splitlines()
    tests = [line for line in lines if "::" in line]
    counts = re.match(r"(\d+)/(\d+) tests collected", last)
    assert counts, last
    assert int(counts[1]) == len(tests)
    return tests, int(counts[2])


def test_every_test_is_in_one_stage() -> None:
    """For `unit` every module is read; for the other stages modules without such tests are not."""
    stages = {stage: selected(stage) for stage in STAGES}
    tests = [test for of_stage, _ in stages.values() for test in of_stage]
    assert len(tests) == len(set(tests)), "a test is in several stages"
    _, total = stages["unit"]
    assert len(tests) == total, "a test is in no stage"


@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_every_stage_is_run(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "\ntest: fast unit system" in text if file == "Makefile" else "\nmake test" in text
