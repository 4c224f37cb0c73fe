"""The same blocks and the same student, however they were computed (one seed, one kind of device)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.records import BlockKey, BlockResult
from pbd.run_dir.journal import Journal
from tests.faults.jobs import make_teacher
from tests.helpers.cluster import PATIENCE_S

BATCH, STEPS_PER_EPOCH, EPOCHS = 64, 7, 2
COMMON = ["--batch-size", str(BATCH), "--train-limit", str(BATCH * STEPS_PER_EPOCH), "--epochs", str(EPOCHS)]
COMMON += ["--fine-tune-epochs", "2", "--threads-per-worker", "1", "--max-accuracy-drop", "1", "--augment", "flip"]
WAYS = {
    "serial grouped": ([], ["--executor", "serial"]),
    "serial one by one": ([], ["--executor", "serial", "--no-group"]),
    "serial, in the same process": ([], ["--executor", "serial", "--no-isolate"]),
    "serial, three queues": ([], ["--executor", "serial", "--workers", "3", "--scheduler", "wfd"]),
    "two ranks, contiguous": (["mpirun", "-n", "2"], ["--scheduler", "contiguous"]),
    "four ranks, wfd": (["mpirun", "-n", "4"], ["--scheduler", "wfd"]),
    "four ranks, one by one": (["mpirun", "-n", "4"], ["--scheduler", "round_robin", "--no-group"]),
    "two ranks, pulling": (["mpirun", "-n", "2"], ["--scheduler", "pull"]),
    "two ranks, sharing every batch": (["mpirun", "-n", "2"], ["--parallel", "data"]),
    "three ranks, sharing every batch": (["mpirun", "-n", "3"], ["--parallel", "data"]),
    "two Dask workers, sharing every batch": ([], ["--executor", "dask", "--workers", "2", "--parallel", "data"]),
    "two Dask workers, pulling": ([], ["--executor", "dask", "--workers", "2", "--no-group"]),
    "two Dask workers, stealing": ([], ["--executor", "dask", "--workers", "2", "--scheduler", "work_stealing"]),
}
IMPATIENT = ["--patience", "1", "--epochs", "5", "--block-init", "kernel", "--learning-rate", "0.06"]
IMPATIENT += ["--batch-size", "16", "--train-limit", "400", "--fine-tune-epochs", "0"]
IMPATIENT_WAYS = {
    "serial grouped, impatient": ([], ["--executor", "serial", *IMPATIENT]),
    "two ranks, sharing every batch, impatient": (["mpirun", "-n", "2"], ["--parallel", "data", *IMPATIENT]),
}
CONTROL = {"another seed": ([], ["--executor", "serial", "--seed", "1"])}


def start(launcher: list[str], arguments: list[str], timeout: int = 300) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if "THREADS" not in k}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [*launcher, sys.executable, "-m", "pbd.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network with four convolutions to replace; its weights are random but fixed."""
    return make_teacher(tmp_path_factory.mktemp("teacher") / "residual.keras")


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    """What `blocks_of` has run so far reports, by way."""
    return {}


@pytest.fixture(scope="module")
def blocks_of(
    teacher: Path, reports: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[BlockKey, BlockResult]]:
    """Return a function that runs one of the ways, once, and returns its blocks."""
    runs: dict[str, Path] = {}

    def run(way: str) -> dict[BlockKey, BlockResult]:
        if way not in runs:
            launcher, arguments = (WAYS | IMPATIENT_WAYS | CONTROL)[way]
            directory = tmp_path_factory.mktemp("runs") / "run"
            told = start(launcher, [*COMMON, *arguments, "--teacher", str(teacher), "--run-dir", str(directory)])
            assert told.returncode == 0, told.stdout + told.stderr
            runs[way] = directory
            reports[way] = json.loads((directory / "report.json").read_text())
            assert not (directory / "assembled.keras").exists(), "it is for the workers alone"
        return Journal(runs[way]).committed_blocks()

    return run


def largest_difference(ours: dict[BlockKey, BlockResult], theirs: dict[BlockKey, BlockResult]) -> float:
    """Return the largest difference of any weight, over the largest weight of its variable."""
    assert ours.keys() == theirs.keys()
    differences = [
        np.abs(weight - theirs[layer].weights[key]).max() / max(np.abs(weight).max(), 1e-12)
        for layer, result in ours.items()
        for key, weight in result.weights.items()
    ]
    return float(max(differences))


SLOW = {
    "serial one by one",
    "serial, in the same process",
    "serial, three queues",
    "two ranks, contiguous",
    "four ranks, wfd",
    "three ranks, sharing every batch",
    "four ranks, one by one",
    "two Dask workers, sharing every batch",
    "two Dask workers, pulling",
    "two Dask workers, stealing",
}
"""What others come near to (Dask: `test_dask_cluster.py`, over TLS); all ways together take minutes."""


def ways(*names: str) -> list[Any]:
    """Return parameters of which some are slow."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


@pytest.mark.parametrize("way", ways(*(way for way in WAYS if way != "serial grouped")))
def test_blocks_do_not_depend_on_how_they_were_computed(
    way: str, blocks_of: Callable[[str], dict[BlockKey, BlockResult]]
) -> None:
    reference = blocks_of("serial grouped")
    assert sorted(key.layer for key in reference) == ["a1", "a2", "b1", "b2"]
    difference = largest_difference(reference, blocks_of(way))
    print(f"{way}: largest difference {difference:.1e}")
    assert difference <= 1e-4


@pytest.mark.slow  # alone and in a collective: `test_training.py`
def test_when_a_block_stops_does_not_depend_on_how_it_was_computed(
    blocks_of: Callable[[str], dict[BlockKey, BlockResult]],
) -> None:
    """Blocks of one group stop in different epochs: the others go on as they would alone."""
    reference, *others = (blocks_of(way) for way in IMPATIENT_WAYS)
    epochs = {key: len(result.loss_history) for key, result in reference.items()}
    print(epochs)
    assert min(epochs.values()) < 5
    assert len(set(epochs.values())) > 1, "else no block left another alone"
    for other in others:
        assert {key: len(result.loss_history) for key, result in other.items()} == epochs
        assert largest_difference(reference, other) <= 1e-4


def test_another_seed_gives_other_blocks(blocks_of: Callable[[str], dict[BlockKey, BlockResult]]) -> None:
    """The control: the comparison above can fail."""
    assert largest_difference(blocks_of("serial grouped"), blocks_of("another seed")) > 1e-2


@pytest.mark.parametrize(
    "way",
    ways("serial, in the same process", "two ranks, pulling", "four ranks, wfd", "two Dask workers, pulling"),
)
def test_the_student_does_not_depend_on_how_many_tuned_it(
    way: str, blocks_of: Callable[[str], dict[BlockKey, BlockResult]], reports: dict[str, dict[str, Any]]
) -> None:
    """It has a batch normalisation, so that two workers at most share a batch of 64."""
    for each in ("serial grouped", way):
        blocks_of(each)
    wanted, found = ([row["loss"] for row in reports[w]["fine_tune_history"]] for w in ("serial grouped", way))
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wanted[1] < wanted[0]


def test_training_moves_the_blocks(blocks_of: Callable[[str], dict[BlockKey, BlockResult]]) -> None:
    for result in blocks_of("serial grouped").values():
        assert len(result.loss_history) == EPOCHS
        assert min(result.nmse_history) < result.nmse_history[0], "else all would agree on the weights of the start"


def test_a_resumed_run_trains_only_what_is_missing_and_gives_the_same(teacher: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run with spaces, é"
    arguments = [*COMMON, "--no-group", "--teacher", str(teacher), "--run-dir", str(directory)]
    assert start([], arguments).returncode == 0
    whole, first = Journal(directory).committed_blocks(), json.loads((directory / "report.json").read_text())

    lost = sorted((directory / "blocks").glob("*.npz"))[1]
    kept = {path: path.stat().st_mtime_ns for path in (directory / "blocks").glob("*.npz") if path != lost}
    lost.unlink()
    assert start([], arguments).returncode == 73, "without --resume a taken directory is refused"
    assert start([], [*arguments, "--resume", "--epochs", "1"]).returncode == 76, "other settings are refused"
    told = start([], [*arguments, "--resume"])
    assert told.returncode == 0, told.stdout + told.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert largest_difference(whole, Journal(directory).committed_blocks()) <= 1e-4
    second = json.loads((directory / "report.json").read_text())
    assert second["groups"] == [[lost.stem.partition("@")[0]]]
    assert abs(second["student"]["test_accuracy"] - first["student"]["test_accuracy"]) < 0.01


def test_an_exception_in_one_rank_ends_the_job(teacher: Path, tmp_path: Path) -> None:
    """Rank 1 fails while the others wait for it: without a guard this hangs for ever."""
    shutil.copy(teacher, tmp_path / "t.keras")
    flags = [*COMMON, "--parallel", "task", "--teacher", str(tmp_path / "t.keras"), "--run-dir", str(tmp_path / "run")]
    script = (
        "import sys\nfrom pbd import run\nfrom pbd.executors.mpi import executor as mpi\n"
        "whole = mpi.MpiExecutor._train\n"
        "def broken(self, *arguments):\n"
        "    if not self.coordinates: raise RuntimeError('injected')\n"
        "    return whole(self, *arguments)\n"
        "mpi.MpiExecutor._train = broken\n"
        f"sys.exit(run.main({flags!r}))"
    )
    mpirun = Path(sys.executable).parent / "mpirun"
    told = subprocess.run(
        [mpirun, "-n", "2", sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert told.returncode == 70
    assert "injected" in told.stderr


def test_wrong_input_under_mpirun_is_said_once(tmp_path: Path) -> None:
    told = start(["mpirun", "-n", "3"], ["--teacher", str(tmp_path / "absent.keras")], timeout=PATIENCE_S)
    assert told.returncode == 66
    assert told.stderr.count("absent.keras") == 1
    assert "Traceback" not in told.stderr
