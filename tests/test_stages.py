"""The stages of the test suite: together they select every test, and no test twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import is_left_out
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[1]


COLLECT = """
import json, sys
import pytest
from pbd.system import backend

backend.dedicate_process()
backend.load()

class Collector:
    def pytest_collection_finish(self, session):
        stages = {"fast", "unit", "launch", "system"}
        rows = [(item.nodeid, str(item.path), sorted(stages & {mark.name for mark in item.iter_markers()}))
                for item in session.items]
        print("COLLECTED", json.dumps(rows))

sys.exit(pytest.main(["--collect-only", "-q", "-o", "addopts=--import-mode=importlib"], plugins=[Collector()]))
"""


def test_every_test_is_in_one_stage_whose_run_reads_its_module() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECT], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("COLLECTED"))
    tests = json.loads(line.removeprefix("COLLECTED"))
    assert len(tests) > 2000
    assert [name for name, _, stages in tests if len(stages) != 1] == []
    unread = [name for name, path, (stage,) in tests if is_left_out(Path(path), stage)]
    assert unread == [], "a run of their stage leaves out their modules"


@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_every_stage_is_run(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    if file == "Makefile":
        assert "\ntest: fast unit_and_launch jax system" in text
        assert "$(MAKE) --jobs 2 --no-print-directory unit launch\n" in text
    else:
        assert "\nmake test" in text
