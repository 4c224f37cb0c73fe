"""`run_each` in this process and on MPI ranks: each function in one worker; no TensorFlow. For Dask see `test_dask`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pbd.config import ExecutionConfig
from pbd.errors import MissingInputError, NoWorkersError
from pbd.executors.serial import SerialExecutor
from pbd.records import Progress
from tests.helpers.cluster import PATIENCE_S, without_backend
from tests.helpers.each_tasks import Begins

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]

RANKS = """
import json, sys
from pathlib import Path
from pbd.config import ExecutionConfig
from pbd.errors import MissingInputError
from pbd.executors.mpi.executor import MpiExecutor
from tests.helpers.each_tasks import Begins
executor, folders, events = MpiExecutor(ExecutionConfig(isolate=False)), [Path(each) for each in sys.argv[1:]], []
try:
    if executor.coordinates:
        functions = [Begins(folders[0], number, waits_for=5 if number == 0 else 0) for number in range(5)]
        print(json.dumps(executor.run_each(functions, events.append)), flush=True)
        print(json.dumps([[event.label, event.worker] for event in events]), flush=True)
        fails = Begins(folders[1], 0, fails=True)
        executor.run_each([fails, *(Begins(folders[1], number, waits_for=2) for number in range(1, 9))], events.append)
    else:
        executor.serve()
except MissingInputError as error:
    executor.stop(error)
    print(json.dumps(str(error)), flush=True)
"""


def test_each_rank_that_is_free_takes_the_next_function_and_all_raise_an_error_of_pbd(tmp_path: Path) -> None:
    """The first function does not end before all others have begun, so one rank calls it and no other one."""
    folders = [tmp_path / "complete", tmp_path / "failed"]
    for folder in folders:
        folder.mkdir()
    command = [Path(sys.executable).parent / "mpirun", "-n", "2", sys.executable, "-c", RANKS, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=without_backend())
    assert done.returncode == 0, done.stderr
    results, events, *errors = map(json.loads, done.stdout.splitlines())
    assert results == [[number, 1] for number in range(5)]
    worker_of = dict(events)
    assert set(worker_of.values()) <= {0, 1}
    assert [label for label, worker in worker_of.items() if worker == worker_of["function 0"]] == ["function 0"]
    assert errors == ["there is no such thing."] * 2
    assert len(list(folders[1].iterdir())) < 9, "no rank begins another function after the error"


def test_a_function_is_called_again_if_its_training_process_is_lost(tmp_path: Path) -> None:
    events = list[Progress]()
    executor = SerialExecutor(ExecutionConfig(isolate=True))
    try:
        assert executor.run_each([Begins(tmp_path, 0, kills=1), Begins(tmp_path, 1)], events.append) == [(0, 1), (1, 1)]
        with pytest.raises(NoWorkersError, match="at each of 3 attempts"):
            executor.run_each([Begins(tmp_path, 2, kills=9)], events.append)
        with pytest.raises(MissingInputError, match="no such thing"):
            executor.run_each([Begins(tmp_path, 3, fails=True)], events.append)
    finally:
        executor.stop(KeyboardInterrupt())
    assert [event.label for event in events] == ["function 0", "function 1"]
