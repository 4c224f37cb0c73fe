"""Classes and functions of a user's script, which has no main guard, reach all kinds of workers; no TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.system
SCRIPT = """
import os, sys
from dataclasses import dataclass
from pbd.config import ExecutionConfig
from pbd.executors import open_executor
from pbd.records import BlockResult
from pbd.scheduling import schedulers
from tests.helpers.sleep_tasks import sleeping


@dataclass(frozen=True)
class Design:
    name: str

    def __call__(self, *arguments):
        return Design(f"{self.name} in another process: {os.getpid() != CALLER}")


def main(executor):
    mine, ignore = Design("mine"), lambda event: None
    called, collective = executor.call(mine), executor.run_collective(mine, ignore, max_workers=2)
    assert isinstance(called, Design) and isinstance(collective, Design)
    tasks, costs = sleeping([0.0, 0.0])
    train_group = lambda group, progress: [BlockResult(name, "trained", mine.name) for name in group.layer_names]
    results = list(executor.run(train_group, schedulers.pull(tasks, costs, 2), ignore))
    executor.finish("done")  # nobody reads the report
    print(called.name, collective.name, [result.design for result in results], sep="; ")


CALLER = os.getpid()
executor = open_executor(ExecutionConfig(executor=sys.argv[1], workers=2))
assert __file__ == sys.argv[0], "the main module is as before"
main(executor) if executor.coordinates else executor.serve()
"""


@pytest.mark.parametrize("name", ["serial", "dask", "mpi"])
def test_workers_unpickle_what_the_main_script_defines(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [str(Path(sys.executable).parent / "mpirun"), "-n", "2"] if name == "mpi" else []
    paths = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "TF_CPP_MIN_LOG_LEVEL": "0"}
    command = [*launcher, sys.executable, str(script), name]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    elsewhere = "mine in another process: True"
    assert done.stdout.splitlines() == [f"{elsewhere}; {elsewhere}; ['mine', 'mine']"]
