"""Collectives of MPI ranks and of Dask workers: sums are right, and no member waits for one that failed or died."""

import json
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pbd.config import ExecutionConfig
from pbd.errors import MissingInputError, NoWorkersError
from pbd.executors import open_executor
from pbd.executors.dask.executor import DaskExecutor
from pbd.executors.serial import SerialExecutor
from pbd.records import Progress
from pbd.scheduling.retry import MOST_ATTEMPTS
from tests.helpers import collective_tasks
from tests.helpers.cluster import PATIENCE_S, wait_until

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]


def ignore(_: Progress) -> None:
    """Take a progress event and do nothing."""


def test_the_serial_collective_has_one_member() -> None:
    executor = SerialExecutor(ExecutionConfig(workers=3, isolate=False))
    assert executor.run_collective(collective_tasks.sums, ignore, max_workers=3) == (1, [1.0, 1.0])


# MPI


def call(work: str, most: int = 9, checkpoint: str = "no_checkpoint") -> str:
    """Return the arguments of a collective that does something of `tests.helpers.collective_tasks`."""
    return f"(collective_tasks.{work}, lambda event: None, {most}, {checkpoint})"


def ranks(count: int, isolate: bool, *calls: str) -> subprocess.CompletedProcess[str]:
    """Let so many ranks do this, one collective after the other; the first prints what each gives, in a line."""
    script = (
        "import json\nfrom pathlib import Path\nfrom pbd.config import ExecutionConfig\n"
        "from pbd.executors.base import no_checkpoint\n"
        "from pbd.executors.mpi.executor import MpiExecutor\nfrom tests.helpers import collective_tasks\n"
        f"executor = MpiExecutor(ExecutionConfig(isolate={isolate}))\n"
        "try:\n    if executor.coordinates:\n"
        f"        for arguments in ({''.join(f'{each}, ' for each in calls)}):\n"
        "            print(json.dumps(executor.run_collective(*arguments)), flush=True)\n"
        "        executor.finish('done')\n"
        "    else:\n"
        "        executor.serve()\n"
        "except BaseException as error:\n    executor.stop(error)\n    raise\n"
    )
    command = [Path(sys.executable).parent / "mpirun", "-n", str(count), sys.executable, "-c", script]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=root)


def printed(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """Return what each collective gave, as the first rank printed it."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


in_children = pytest.mark.parametrize("isolate", [False, True])


@in_children
def test_ranks_add_up_and_continue_after_an_abort(isolate: bool) -> None:
    done = ranks(3, isolate, call("sums"), call("aborts_once"), call("sums", most=2))
    assert printed(done) == [[3, [111.0, 6.0]], ["aborted", "summed"], [2, [11.0, 3.0]]]


@pytest.fixture(scope="module")
def recovered(no_backend: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what collectives of one job gave, each of which has lost children of ranks."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("first", "last", "aborts", "often")}
    first, last, aborts, often = (f"Path({str(folder)!r})" for folder in folders.values())
    calls = [call(f"KilledOnce({first}, 0)"), call(f"KilledOnce({last}, 2)"), call(f"AbortsWhileAnotherDies({aborts})")]
    work = f"KilledOften({often}, 1, times={MOST_ATTEMPTS})"
    calls.append(call(work, most=2, checkpoint="collective_tasks.NewInRank0()"))
    results = dict(zip(folders, printed(ranks(3, True, *calls)), strict=True))
    assert all(list(folder.iterdir()) for folder in folders.values()), "children were lost"
    return results


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_rank_that_loses_its_child_retries_with_all_others(place: str, recovered: dict[str, Any]) -> None:
    assert recovered[place] == [3, 3.0]


def test_a_loss_takes_precedence_over_an_abort(recovered: dict[str, Any]) -> None:
    """Both at the same sum: nobody may go on with something else while the others begin again."""
    assert recovered["aborts"] == 7


def test_all_ranks_count_attempts_by_the_checkpoints_that_rank_0_sees(recovered: dict[str, Any]) -> None:
    """Over NFS another rank may see an old checkpoint: it alone would give up."""
    assert recovered["often"] == 2.0


def test_a_rank_that_always_loses_its_child_ends_the_job() -> None:
    done = ranks(2, True, call("kills_the_second"))
    assert done.returncode == NoWorkersError.exit_code
    cause = f"rank 1 on {platform.node()}: the training process was ended by SIGKILL (out of memory?)"
    assert f"pbd-run: {cause}, at each of 3 attempts" in done.stderr


@in_children
@pytest.mark.parametrize(
    ("work", "said"), [("raises_in_the_second", "run directory"), ("raises_after_the_last_sum", "no space")]
)
def test_a_rank_that_leaves_ends_the_job(work: str, said: str, isolate: bool) -> None:
    done = ranks(2, isolate, call(work))
    assert done.returncode == MissingInputError.exit_code
    assert said in done.stderr


# Dask


@pytest.fixture(scope="module", params=[False, True], ids=["in workers", "in children"])
def opened(request: pytest.FixtureRequest, no_backend: None) -> Iterator[DaskExecutor]:
    made = open_executor(ExecutionConfig(executor="dask", workers=3, isolate=request.param))
    assert isinstance(made, DaskExecutor)
    yield made
    made.stop(KeyboardInterrupt())


@pytest.fixture
def executor(opened: DaskExecutor) -> DaskExecutor:
    """Three workers, of which an earlier test may have lost one: its nanny starts it again."""
    wait_until(lambda: len(opened._cluster.snapshot().ready) == 3, "three workers")
    return opened


def ask(executor: DaskExecutor, work: Any, most: int = 9, during: Callable[[], None] | None = None) -> Any:
    """Return what the collective gives, or the error that it ends with; fail if it hangs."""
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(executor.run_collective(work, ignore, most))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    if during is not None:
        time.sleep(0.7)
        during()
    thread.join(PATIENCE_S)
    assert answers, "it hangs"
    return answers[0]


def test_dask_workers_add_up_and_none_waits_for_one_that_failed(executor: DaskExecutor, tmp_path: Path) -> None:
    assert ask(executor, collective_tasks.sums) == (3, [111.0, 6.0])
    assert ask(executor, collective_tasks.sums, most=2) == (2, [11.0, 3.0])
    assert ask(executor, collective_tasks.aborts_once) == ["aborted", "summed"]
    assert ask(executor, collective_tasks.slow_sum, during=executor._cluster.register_all_reduce) == 3.0, (
        "another run registers the plug-in, too"
    )
    for work, said in (
        (collective_tasks.raises_in_the_second, "run directory"),
        (collective_tasks.raises_after_the_last_sum, "no space"),
        (collective_tasks.Unreadable(tmp_path), "nothing to read"),
    ):
        error = ask(executor, work)
        assert isinstance(error, MissingInputError)
        assert said in str(error)
    assert ask(executor, collective_tasks.sums) == (3, [111.0, 6.0]), "all are free again"


@pytest.mark.parametrize("place", [0, 2])
def test_a_collective_that_loses_a_worker_retries(executor: DaskExecutor, tmp_path: Path, place: int) -> None:
    size, total = ask(executor, collective_tasks.KilledOnce(tmp_path, place))
    assert size == total
    assert size in (2, 3), "the nanny may have started another by then"
    assert (tmp_path / "died").exists()
