"""A child process that works for a worker: what it gives, how its end is noticed, and that the worker outlives it."""

import functools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pbd.collective import Collective, CollectiveLostError
from pbd.errors import MissingInputError, NoWorkersError
from pbd.executors.isolation import retry
from pbd.executors.isolation.base import LostProcessError
from pbd.executors.isolation.child import Child
from pbd.records import Progress, ProgressCallback, TaskGroup
from pbd.run_dir.journal import Journal
from pbd.scheduling.retry import MOST_ATTEMPTS, split_for_retry
from pbd.system import devices
from pbd.system.keras_state import KerasSetup
from tests.helpers import child_tasks, collective_tasks
from tests.helpers.cluster import PATIENCE_S, is_running, wait_until
from tests.helpers.fakes import make_task
from tests.helpers.sleep_tasks import Sleeper
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.system

STALL_LIMIT_S = 1.0


@pytest.fixture(autouse=True)
def _without_a_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child loads TensorFlow only to keep it quiet, or if something is registered with Keras: most need none."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    if "registered" not in request.node.name:
        monkeypatch.setattr(KerasSetup, "here", KerasSetup)


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child(devices.Share(), STALL_LIMIT_S)
    yield child
    child.close()


def ignore(_: Progress) -> None:
    """Take a progress event and do nothing."""


def test_one_process_does_one_thing_after_another(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Progress] = []
    first = child.run(child_tasks.pid, ignore)
    assert first != os.getpid()
    assert child.run(child_tasks.reports, told.append) == "reported"
    assert [event.label for event in told] == ["reporting"]
    assert [record.getMessage() for record in caplog.records if record.name == "pbd.test"] == ["this is odd"]
    with pytest.raises(MissingInputError, match="no such thing") as refused:
        child.run(child_tasks.raises, ignore)
    assert "child_tasks.py" in refused.value.__notes__[0]
    with pytest.raises(RuntimeError, match="pickle"):
        child.run(child_tasks.returns_a_lock, ignore)
    os.kill(first, signal.SIGTERM)  # as a job manager sends it to all processes: the worker decides
    assert child.run(child_tasks.pid, ignore) == first


def test_the_longest_stall_limit_is_a_timeout_that_the_system_takes() -> None:
    child = Child(devices.Share(), sys.float_info.max)
    assert child.run(child_tasks.pid, ignore) != os.getpid()
    child.close()


def test_it_inherits_module_paths_and_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.syspath_prepend(str(tmp_path))
    child = Child(devices.Share(), STALL_LIMIT_S)
    environment, path = child.run(child_tasks.environment, ignore)
    child.close()
    assert environment["KEPT"] == "yes"
    assert not {"PMI_RANK", "OMPI_COMM_WORLD_SIZE"} & environment.keys()
    assert str(tmp_path) in path


def test_files_that_it_leaves_are_removed(child: Child) -> None:
    """TensorFlow removes its temporary files at the end of the process, which a child that is ended has not."""
    left = [child.run(child_tasks.leaves_a_file, ignore)]
    with pytest.raises(LostProcessError):
        child.run(child_tasks.is_killed, ignore)
    left.append(child.run(child_tasks.leaves_a_file, ignore))
    assert left[1].exists()
    child.close()
    assert not any(path.exists() or path.parent.exists() for path in left)


def test_layers_that_were_registered_here_are_known_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")

    @keras.saving.register_keras_serializable("tests")
    class Twice(keras.layers.Layer):
        def call(self, x: object) -> object:
            return 2 * x

    with keras.saving.custom_object_scope({"Within": Twice}):
        child = Child(devices.Share(), 60.0)
    try:
        assert child.run(child_tasks.IsRegistered("tests>Twice"), ignore)
        assert child.run(child_tasks.IsRegistered("Within"), ignore)
        assert not child.run(child_tasks.IsRegistered("tests>Thrice"), ignore)
        assert {"keras", "tensorflow"} <= (loaded := set(child.run(child_tasks.loaded_modules, ignore)))
        assert not {"scipy", "sklearn", "matplotlib"} & loaded, "they take as long to load as Keras itself"
    finally:
        child.close()
        keras.saving.get_custom_objects().pop("tests>Twice")


def test_an_object_that_cannot_be_unpickled_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    """It may be of a module that a worker on another host lacks, and have nothing to do with the teacher."""
    import keras

    absent = b"cabsent_module\nThing\n."
    try:
        KerasSetup({"Absent": absent, "Present": pickle.dumps(len)}, {}).apply()
        assert keras.saving.get_custom_objects()["Present"] is len
    finally:
        keras.saving.get_custom_objects().pop("Present", None)
    assert "Absent cannot be loaded" in caplog.text
    assert "absent_module" in caplog.text


def test_an_idle_child_is_released_until_there_is_work(child: Child) -> None:
    first = child.run(child_tasks.pid, ignore)
    child.release()
    assert not is_running(first)
    assert child.run(child_tasks.pid, ignore) != first
    assert child.run(child_tasks.reports, lambda event: child.release()) == "reported", "one that works is left alone"


def test_work_of_another_thread_is_lost_if_the_runner_is_closed(child: Child) -> None:
    started = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(child.run, child_tasks.sleeps_and_reports, lambda event: started.set())
        assert started.wait(PATIENCE_S)
        child.close()
        with pytest.raises(LostProcessError, match="SIGKILL"):
            work.result(PATIENCE_S)
    assert child.run(child_tasks.pid, ignore) != os.getpid(), "it starts again"


ENDS = {
    child_tasks.is_killed: "SIGKILL.*out of memory",
    child_tasks.crashes: "SIGSEGV",
    child_tasks.exits_silently: "ended with code 0",
    child_tasks.exits_with_output: "ended with code 3: no space left on device",
}
HANGS = (child_tasks.sleeps_for_ever, child_tasks.is_stopped, child_tasks.spins_for_ever)


@pytest.mark.parametrize("work", ENDS, ids=lambda work: work.__name__)
def test_its_end_is_detected_and_a_new_process_does_the_next_work(child: Child, work: Callable[..., None]) -> None:
    first = child.run(child_tasks.pid, ignore)
    with pytest.raises(LostProcessError, match=ENDS[work]):
        child.run(work, ignore)
    assert child.run(child_tasks.pid, ignore) not in (first, os.getpid())


def test_a_crash_leaves_an_error_file_that_names_layers_signal_and_output(child: Child, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {}, [])
    named = r"SIGABRT: Check failed: size > 0 \(see errors/conv1@two_layer\+1-\w+\.txt in the run directory\)"
    with pytest.raises(LostProcessError, match=named):
        child.run(child_tasks.Aborts(journal), ignore)
    (file,) = (tmp_path / "run" / "errors").iterdir()
    content = file.read_text()
    for words in (
        "SIGABRT",
        "layers: conv1, conv2",
        "Check failed: size > 0",
        "Fatal Python error: Aborted",
        "child_tasks.py",
    ):
        assert words in content
    with pytest.raises(LostProcessError, match=r"SIGSEGV$"):
        child.run(child_tasks.crashes, ignore)
    assert list(file.parent.iterdir()) == [file], "work without a run directory has no file"


@pytest.mark.parametrize("work", HANGS, ids=lambda work: work.__name__)
def test_a_process_that_hangs_is_ended(child: Child, work: Callable[..., None]) -> None:
    first = child.run(child_tasks.pid, ignore)
    child._stall_limit_s = STALL_LIMIT_S if work is not child_tasks.spins_for_ever else 0.2
    with pytest.raises(LostProcessError, match="hung: it sent no message"):
        child.run(work, ignore)
    assert not is_running(first)


def test_computing_before_a_hang_does_not_hide_it(child: Child) -> None:
    with pytest.raises(LostProcessError, match=r"hung: it sent no message for [3-9] s"):
        child.run(child_tasks.Busy(1.2 * STALL_LIMIT_S, then=child_tasks.sleeps_for_ever), ignore)


def test_a_process_that_computes_or_reports_does_not_hang(child: Child) -> None:
    assert child.run(child_tasks.Busy(2.5 * STALL_LIMIT_S), ignore) == "done"
    assert child.run(child_tasks.sleeps_and_reports, ignore) == "done"


def test_what_interrupts_the_worker_ends_its_child(child: Child, tmp_path: Path) -> None:
    def interrupt(event: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.run(child_tasks.Begins(tmp_path / "pid"), interrupt)
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert child.run(child_tasks.pid, ignore) != os.getpid()


def test_it_never_outlives_its_worker(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\nfrom pbd.system import devices\n"
        "from pbd.executors.isolation.child import Child\nfrom tests.helpers import child_tasks\n"
        "work = child_tasks.Begins(pathlib.Path(sys.argv[1]))\n"
        "Child(devices.Share(), 60).run(work, lambda event: None)\n"
    )
    file, root = tmp_path / "pid", Path(__file__).resolve().parents[2]
    worker = subprocess.Popen([sys.executable, "-c", script, str(file)], cwd=root)
    wait_until(lambda: file.exists() and file.read_text(), "the child begins")
    pid = int(file.read_text())
    assert is_running(pid)
    worker.kill()
    worker.wait()
    wait_until(lambda: not is_running(pid), "the child ends")


# Collectives


def in_children(size: int, work: Callable[[Collective, ProgressCallback], object]) -> list[object]:
    """Let a collective work, each member in a child of its own; return what each gives, or the error it ends with."""

    def member(collective: Collective) -> object:
        child = Child(devices.Share(), 60.0)
        try:
            return child.run(work, ignore, collective)
        except (LostProcessError, CollectiveLostError) as error:
            return type(error)
        finally:
            child.close()

    return run_threads(size, member)


def test_children_add_up_through_their_workers() -> None:
    assert in_children(3, collective_tasks.sums) == [(3, [111.0, 6.0]), None, None], (
        "only the first says what came of it"
    )
    assert in_children(2, collective_tasks.aborts_once) == [["aborted", "summed"], None]


def test_a_lost_child_ends_the_collective(tmp_path: Path) -> None:
    assert in_children(2, collective_tasks.KilledOnce(tmp_path, index=1)) == [CollectiveLostError, LostProcessError]


# Attempts


def test_each_retry_splits_the_group() -> None:
    tasks = tuple(make_task(at) for at in range(5))
    halves = split_for_retry(TaskGroup(tasks, predicted_s=5.0))
    assert [part.layer_names for part in halves] == [("conv0", "conv1", "conv2"), ("conv3", "conv4")]
    singles = [part for half in halves for part in split_for_retry(half)]
    assert [part.tasks for part in singles] == [(task,) for task in tasks]
    assert {part.attempt for part in singles} == {MOST_ATTEMPTS}
    assert split_for_retry(singles[0]) == ()
    assert [part.attempt for part in split_for_retry(TaskGroup(tasks[:1]))] == [2]


def test_a_task_that_loses_its_process_costs_only_itself(child: Child, tmp_path: Path) -> None:
    names = [f"conv{at}" for at in range(5)]
    sleeper = Sleeper(tmp_path, dict.fromkeys(names, 0.0), kills={"conv1": 99, "conv3": 1})
    train = retry.retrying(child, sleeper)
    results = {result.layer: result for result in train(TaskGroup(tuple(map(make_task, range(5)))), ignore)}
    assert results.keys() == set(names)
    assert {name for name, result in results.items() if result.status == "failed"} == {"conv1"}
    assert "SIGKILL" in results["conv1"].error
    assert len(sleeper.begun("conv1")) == results["conv1"].attempts == MOST_ATTEMPTS
    assert [results[name].attempts for name in ("conv0", "conv2", "conv3", "conv4")] == [3, 3, 3, 3]


def test_a_function_that_always_kills_its_process_raises(child: Child, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    with pytest.raises(NoWorkersError, match=r"SIGKILL.*--resume"):
        retry.retry_lost(lambda: child.run(child_tasks.is_killed, ignore))


class LosesItsProcess:
    """Loses its process every time, and before that leaves something new at some of them."""

    def __init__(self, journal: Journal, leaves: Sequence[int]) -> None:
        self._journal, self._leaves, self.begun = journal, leaves, 0

    def __call__(self) -> None:
        self.begun += 1
        if self.begun in self._leaves:
            self._journal.write_bytes("tuning/place.npz", bytes([self.begun]))
        raise LostProcessError(f"loss {self.begun}")


@pytest.mark.parametrize(("writes", "attempts"), [((), 3), ((1,), 3), ((2,), 4), ((1, 2, 4, 6), 8)])
def test_losses_are_counted_since_the_last_checkpoint(writes: Sequence[int], attempts: int, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {}, [])
    loses = LosesItsProcess(journal, writes)
    with pytest.raises(NoWorkersError, match=f"loss {attempts}"):
        retry.retry_lost(loses, checkpoint=functools.partial(journal.last_written, "tuning", ".npz"))
    assert loses.begun == attempts
