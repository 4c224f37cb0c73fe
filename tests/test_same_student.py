"""The same blocks and the same student, however they were computed (one seed, one kind of device)."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.errors import CannotCreateError, CorruptStateError
from pbd.records import BlockKey, BlockResult
from pbd.run_dir.journal import Journal
from pbd.system import backend
from tests.faults.jobs import make_digits, make_teacher
from tests.helpers.cluster import PATIENCE_S, environment, without_backend
from tests.helpers.dask_cluster import DaskCluster

pytestmark = pytest.mark.usefixtures("eager_module")
Settings = dict[str, Any]
BATCH, STEPS_PER_EPOCH, EPOCHS = 64, 7, 2
COMMON: Settings = {"batch_size": BATCH, "epochs": EPOCHS, "augment": "flip"}
COMMON |= {"fine_tune_epochs": 0, "threads_per_worker": 1, "max_accuracy_drop": 1.0, "costs": "macs", "isolate": False}
COMMON |= {"allow_weak_teacher": True, "target": "keras"}
LAYERS = ["a1", "a2", "b1"]
COMMON |= {"layers": LAYERS}
IMPATIENT: Settings = {"patience": 1, "epochs": 5, "block_init": "kernel", "learning_rate": 0.06}
IMPATIENT |= {"batch_size": 16, "train_limit": 400}
IN_PROCESS: dict[str, Settings] = {
    "serial grouped": {},
    "serial, in a child process": {"isolate": True},
    "serial one by one": {"group": False},
    "serial, three queues": {"workers": 3, "scheduler": "wfd"},
    "serial grouped, impatient": IMPATIENT,
}
"""Runs in the process of the tests."""
DASK: Settings = {"executor": "dask"}
JOBS: dict[tuple[str, ...], dict[str, Settings]] = {
    ("mpirun", "-n", "2"): {
        "two ranks, contiguous": {"scheduler": "contiguous", "isolate": True, "costs": "auto"},
        "two ranks, pulling": {"scheduler": "pull"},
        "two ranks, sharing every batch": {"parallel": "data"},
        "two ranks, sharing every batch, impatient": {"parallel": "data", **IMPATIENT},
    },
    ("mpirun", "-n", "3"): {
        "three ranks, sharing every batch": {"parallel": "data"},
        "three ranks, wfd": {"scheduler": "wfd"},
        "three ranks, one by one": {"scheduler": "round_robin", "group": False},
    },
    (): {
        "two Dask workers, pulling": {**DASK, "group": False, "isolate": True},
        "two Dask workers, sharing every batch": {**DASK, "parallel": "data"},
        "two Dask workers, stealing": {**DASK, "scheduler": "work_stealing"},
    },
}
"""Runs of other processes, by what starts them: each job makes its runs one after the other."""
WAYS = [*IN_PROCESS, *(way for runs in JOBS.values() for way in runs)]
REFERENCE = "serial grouped"
ROUNDING = 1e-4 if backend.name() == "tensorflow" else 3e-4
"""Largest difference of blocks; XLA fuses the operations of a group otherwise than those of a single block."""
TUNED = ("serial, in a child process", "two ranks, pulling", "three ranks, wfd", "two Dask workers, pulling")
"""Ways whose students are fine-tuned, and compared as well."""


def ways(*names: str) -> list[Any]:
    """Return parameters for these ways, those of other processes in the stage of such tests."""
    return [pytest.param(name, marks=[pytest.mark.system] * (name not in IN_PROCESS)) for name in names]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network with four convolutions to replace; its weights are random but fixed."""
    return make_teacher(tmp_path_factory.mktemp("teacher") / "residual.keras")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits of the training, and a batch of others for all that is measured."""
    return make_digits(tmp_path_factory.mktemp("images") / "digits.npz", BATCH * STEPS_PER_EPOCH, BATCH)


@pytest.fixture(scope="module")
def run_dir_of(teacher: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes the run of a way, if there is none yet, and returns its run directory."""
    folder = tmp_path_factory.mktemp("runs")

    def settings(way: str, own: Settings) -> Settings:
        where = {"teacher": str(teacher), "dataset": str(images), "run_dir": str(folder / way)}
        where |= {"executor": "serial"} if way in IN_PROCESS else {}
        return {**COMMON, **where, "fine_tune_epochs": 2 if way in (REFERENCE, *TUNED) else 0, **own}

    def run(way: str) -> Path:
        if (folder / way).exists():
            return folder / way
        if way in IN_PROCESS:
            import pbd
            from pbd.deploy import deployment

            with pytest.MonkeyPatch.context() as patch:  # in all stages; runs of other processes leave it out as well
                patch.setattr(deployment, "measure", lambda *_, **__: deployment.Deployed((), ()))
                pbd.distill(**settings(way, IN_PROCESS[way]))
        else:
            launcher, runs = next((launcher, runs) for launcher, runs in JOBS.items() if way in runs)
            with contextlib.nullcontext({}) if launcher else dask_workers(folder / "dask") as workers:
                start([*launcher], [settings(each, own | workers) for each, own in runs.items()])
        return folder / way

    return run


@contextlib.contextmanager
def dask_workers(folder: Path) -> Iterator[Settings]:
    """Provide two workers for all runs of a job, so that TensorFlow is loaded once in each."""
    with DaskCluster(folder) as cluster:
        cluster.start_scheduler()
        for name in ("worker-0", "worker-1"):
            cluster.start_worker(name)
        yield {"dask_address": cluster.address, "workers": 2}


def start(launcher: list[str], runs: list[Settings]) -> None:
    """Make these runs, one after the other, in one job."""
    command = [*launcher, sys.executable, "-m", "tests.helpers.several_runs", json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def blocks_of(run_dir_of: Callable[[str], Path]) -> Callable[[str], dict[BlockKey, BlockResult]]:
    """Return a function that returns the blocks of the run of a way."""

    def read(way: str) -> dict[BlockKey, BlockResult]:
        assert not (run_dir_of(way) / "assembled.keras").exists(), "it is for the workers alone"
        return Journal(run_dir_of(way)).committed_blocks()

    return read


def report_of(run_dir: Path) -> Mapping[str, Any]:
    return json.loads((run_dir / "report.json").read_text())


def largest_difference(ours: dict[BlockKey, BlockResult], theirs: dict[BlockKey, BlockResult]) -> float:
    """Return the largest difference of any weight, over the largest weight of its variable."""
    assert ours.keys() == theirs.keys()
    differences = [
        np.abs(weight - theirs[block].weights[key]).max() / max(np.abs(weight).max(), 1e-12)
        for block, result in ours.items()
        for key, weight in result.weights.items()
    ]
    return float(max(differences))


COMPARED = [way for way in WAYS if way != REFERENCE and "impatient" not in way]


def test_there_are_twelve_other_ways() -> None:
    assert len(COMPARED) == 12


@pytest.mark.parametrize("way", ways(*COMPARED))
def test_blocks_do_not_depend_on_how_they_were_computed(
    way: str, blocks_of: Callable[[str], dict[BlockKey, BlockResult]]
) -> None:
    reference = blocks_of(REFERENCE)
    assert sorted(key.layer for key in reference) == LAYERS
    difference = largest_difference(reference, blocks_of(way))
    print(f"{way}: largest difference {difference:.1e}")
    assert difference <= ROUNDING


@pytest.mark.system
def test_when_a_block_stops_does_not_depend_on_how_it_was_computed(
    blocks_of: Callable[[str], dict[BlockKey, BlockResult]],
) -> None:
    """Blocks of one group stop in different epochs: the others go on as they would alone."""
    reference, other = (blocks_of(way) for way in WAYS if "impatient" in way)
    epochs = {key: len(result.loss_history) for key, result in reference.items()}
    print(epochs)
    assert min(epochs.values()) < 5
    assert len(set(epochs.values())) > 1, "else no block left another alone"
    assert {key: len(result.loss_history) for key, result in other.items()} == epochs
    assert largest_difference(reference, other) <= ROUNDING


def test_weights_that_differ_are_noticed(blocks_of: Callable[[str], dict[BlockKey, BlockResult]]) -> None:
    """The control: the comparison above can fail."""
    blocks = blocks_of(REFERENCE)
    key, first = next(iter(blocks.items()))
    moved = {name: 1.02 * weight for name, weight in first.weights.items()}
    assert largest_difference(blocks, blocks | {key: dataclasses.replace(first, weights=moved)}) > 1e-2


@pytest.mark.parametrize("way", ways(*TUNED))
def test_the_student_does_not_depend_on_how_many_tuned_it(way: str, run_dir_of: Callable[[str], Path]) -> None:
    """It has a batch normalisation, so that two workers at most share a batch of 64."""
    expected, losses = (
        [row["loss"] for row in report_of(run_dir_of(each))["fine_tune_history"]] for each in (REFERENCE, way)
    )
    assert losses == pytest.approx(expected, rel=1e-3)
    assert expected[1] < expected[0]


def test_training_moves_the_blocks(blocks_of: Callable[[str], dict[BlockKey, BlockResult]]) -> None:
    for result in blocks_of(REFERENCE).values():
        assert len(result.loss_history) == EPOCHS
        assert min(result.nmse_history) < result.nmse_history[0], "else all would agree on the weights of the start"


def test_a_resumed_run_trains_only_what_is_missing_and_gives_the_same(
    teacher: Path, images: Path, run_dir_of: Callable[[str], Path], tmp_path: Path
) -> None:
    import pbd

    whole = run_dir_of("serial one by one")
    directory = shutil.copytree(whole, tmp_path / "run with spaces, é")
    settings = {**COMMON, "executor": "serial", "group": False, "teacher": str(teacher), "dataset": str(images)}
    settings |= {"run_dir": str(directory)}
    lost = sorted((directory / "blocks").glob("*.npz"))[1]
    kept = {path: path.stat().st_mtime_ns for path in (directory / "blocks").glob("*.npz") if path != lost}
    lost.unlink()
    with pytest.raises(CannotCreateError):  # without `resume` a taken directory is refused
        pbd.distill(**settings)
    with pytest.raises(CorruptStateError, match="epochs was 2"):
        pbd.distill(**settings | {"resume": True, "epochs": 1})
    pbd.distill(**settings, resume=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert largest_difference(Journal(whole).committed_blocks(), Journal(directory).committed_blocks()) <= ROUNDING
    report = report_of(directory)
    assert report["groups"] == [[lost.stem.partition("@")[0]]]
    assert abs(report["student"]["test_accuracy"] - report_of(whole)["student"]["test_accuracy"]) < 0.01


@pytest.mark.system
def test_an_exception_in_one_rank_ends_the_job(tmp_path: Path) -> None:
    """Rank 1 fails while the others wait for it: without a guard this hangs for ever."""
    script = (
        "import sys\nfrom pbd import run\nfrom pbd.executors.mpi import executor as mpi\n"
        "from tests.helpers import played_run\n"
        "whole = mpi.MpiExecutor._train\n"
        "def broken(self, *arguments):\n"
        "    if not self.coordinates: raise RuntimeError('injected')\n"
        "    return whole(self, *arguments)\n"
        "mpi.MpiExecutor._train = broken\n"
        "played_run.play()\n"
        f"sys.exit(run.main(['--run-dir', {str(tmp_path / 'run')!r}]))"
    )
    command = ["mpirun", "-n", "2", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=without_backend())
    assert done.returncode == 70, done.stderr
    assert "injected" in done.stderr


@pytest.mark.system
def test_wrong_input_under_mpirun_is_said_once(tmp_path: Path) -> None:
    command = ["mpirun", "-n", "3", sys.executable, "-m", "pbd.run", "--teacher", str(tmp_path / "absent.keras")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment())
    assert done.returncode == 66
    assert done.stderr.count("absent.keras") == 1
    assert "Traceback" not in done.stderr
