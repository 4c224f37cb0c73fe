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
from tests.helpers.cluster import PATIENCE_S

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_backend")]


def ignore(_: Progress) -> None:
    """Take a progress event and do nothing."""


def test_the_serial_collective_has_one_member() -> None:
    executor = SerialExecutor(ExecutionConfig(workers=3, isolate=False))
    assert executor.run_collective(collective_tasks.sums, ignore, max_workers=3) == (1, [1.0, 1.0])


# MPI


def ranks(
    count: int, work: str, isolate: bool, most: int = 9, checkpoint: str = "no_checkpoint"
) -> subprocess.CompletedProcess[str]:
    """Let so many ranks do something of `tests.helpers.collective_tasks`; the first prints what it gives."""
    script = (
        "import json\nfrom pathlib import Path\nfrom pbd.config import ExecutionConfig\n"
        "from pbd.executors.base import no_checkpoint\n"
        "from pbd.executors.mpi.executor import MpiExecutor\nfrom tests.helpers import collective_tasks\n"
        f"executor = MpiExecutor(ExecutionConfig(isolate={isolate}))\n"
        "try:\n    if executor.coordinates:\n"
        f"        reply = executor.run_collective(collective_tasks.{work}, lambda event: None, {most}, {checkpoint})\n"
        "        print(json.dumps(reply), flush=True)\n"
        "        executor.finish(None)\n"
        "    else:\n"
        "        executor.serve()\n"
        "except BaseException as error:\n    executor.stop(error)\n    raise\n"
    )
    command = [Path(sys.executable).parent / "mpirun", "-n", str(count), sys.executable, "-c", script]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=root)


in_children = pytest.mark.parametrize("isolate", [False, True])


@in_children
@pytest.mark.parametrize(("count", "most", "size", "total"), [(2, 9, 2, 11.0), (3, 9, 3, 111.0), (3, 2, 2, 11.0)])
def test_ranks_add_up(count: int, most: int, size: int, total: float, isolate: bool) -> None:
    done = ranks(count, "sums", isolate, most)
    assert json.loads(done.stdout) == [size, [total, size * (size + 1) / 2]], done.stderr


@in_children
def test_after_an_abort_all_ranks_continue(isolate: bool) -> None:
    assert json.loads(ranks(3, "aborts_once", isolate).stdout) == ["aborted", "summed"]


@pytest.mark.parametrize("place", [0, 2])
def test_a_rank_that_loses_its_child_retries_with_all_others(place: int, tmp_path: Path) -> None:
    done = ranks(3, f"KilledOnce(Path({str(tmp_path)!r}), {place})", isolate=True)
    assert json.loads(done.stdout) == [3, 3.0], done.stderr
    assert (tmp_path / "died").exists()


def test_a_loss_takes_precedence_over_an_abort(tmp_path: Path) -> None:
    """Both at the same sum: nobody may go on with something else while the others begin again."""
    done = ranks(3, f"AbortsWhileAnotherDies(Path({str(tmp_path)!r}))", isolate=True)
    assert json.loads(done.stdout) == 7, done.stderr


def test_a_rank_that_always_loses_its_child_ends_the_job() -> None:
    done = ranks(2, "kills_the_second", isolate=True)
    assert done.returncode == NoWorkersError.exit_code
    cause = f"rank 1 on {platform.node()}: the training process was ended by SIGKILL (out of memory?)"
    assert f"pbd-run: {cause}, at each of 3 attempts" in done.stderr


def test_all_ranks_count_attempts_by_the_checkpoints_that_rank_0_sees(tmp_path: Path) -> None:
    """Over NFS another rank may see an old checkpoint: it alone would give up."""
    work = f"KilledOften(Path({str(tmp_path)!r}), 1, times={MOST_ATTEMPTS})"
    done = ranks(2, work, isolate=True, checkpoint="collective_tasks.NewInRank0()")
    assert json.loads(done.stdout) == 2.0, done.stderr


@in_children
@pytest.mark.parametrize(
    ("work", "said"), [("raises_in_the_second", "run directory"), ("raises_after_the_last_sum", "no space")]
)
def test_a_rank_that_leaves_ends_the_job(work: str, said: str, isolate: bool) -> None:
    done = ranks(2, work, isolate)
    assert done.returncode == MissingInputError.exit_code
    assert said in done.stderr


# Dask


@pytest.fixture(params=[False, True], ids=["in workers", "in children"])
def executor(request: pytest.FixtureRequest) -> Iterator[DaskExecutor]:
    made = open_executor(ExecutionConfig(executor="dask", workers=3, isolate=request.param))
    assert isinstance(made, DaskExecutor)
    yield made
    made.stop(KeyboardInterrupt())


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
