"""The stages of the test suite: together they run every test, and no test twice.

Every run of the stage `unit` checks this of all tests (see `conftest.pytest_itemcollected`).
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]


REFUSED = {
    "a test must have one stage": "@pytest.mark.fast\n@pytest.mark.system\ndef test(): pass",
    "a module must name the stages of its tests": "def test(): pass\ntest = getattr(pytest.mark, 'fast')(test)",
}


@pytest.mark.system
def test_what_no_run_or_several_runs_would_test_fails(tmp_path: Path) -> None:
    for number, test in enumerate(REFUSED.values()):
        (tmp_path / f"test_{number}.py").write_text(f"import pytest\n{test}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-m", "unit", "-n", "1", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert f"{len(REFUSED)} failed" in done.stdout
    for message in REFUSED:
        assert message in done.stdout


@pytest.mark.fast
@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_every_stage_is_run(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    if file == "Makefile":
        assert "\ntest: fast unit_and_launch jax system" in text
        assert "$(MAKE) --jobs 2 --no-print-directory unit launch\n" in text
    else:
        assert "\nmake test" in text
