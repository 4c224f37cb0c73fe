"""Every example runs without changes, on small data; latencies are measured for a moment only."""

import functools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.helpers import bare_runs, short_latencies
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
BARE = {bare_runs.ENVIRONMENT: "1"}
"""One example is measured where it is deployed and has its teacher checked; the others leave both out."""
SBATCH = """#!/usr/bin/env bash
# Runs the batch script here and now, as a job of two tasks.
while [[ $1 == --* ]]; do shift; done
export SLURM_JOB_ID=1 SLURM_NTASKS=2 SLURM_SUBMIT_DIR=$PWD PBD_PYTHON=python
exec bash "$@" --threads-per-worker 1 --no-isolate
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.keras, data.npz, images.npy and images/: three classes that differ in brightness."""
    folder = tmp_path_factory.mktemp("files")
    draws = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = (draws.integers(0, 80, (96, 16, 16, 3)) + 80 * y[:, None, None, None]).astype("uint8")
    np.savez(folder / "data.npz", x_train=x[:72], y_train=y[:72], x_test=x[72:], y_test=y[72:])
    np.save(folder / "images.npy", x)
    for split, rows in (("train", range(72)), ("test", range(72, 96))):
        for row in rows:
            target = folder / "images" / split / f"class{y[row]}" / f"{row}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(target, x[row], scale=False)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    features = keras.layers.Rescaling(1 / 255)(inputs)
    for name in ("conv1", "conv2"):
        features = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name=name)(features)
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(features))
    model = keras.Model(inputs, outputs, name="model")
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=20, verbose=0)
    model.save(folder / "model.keras")
    return folder


def run(command: list[str | Path], **environment: str) -> str:
    settings = os.environ | {"PYTHONPATH": short_latencies.PATHS} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=settings, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_script_runs_in_a_process_of_its_own(files: Path, tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "own_model.py", files / "model.keras", files / "data.npz", tmp_path / "run"]
    assert "layers replaced" in run(command)
    assert (tmp_path / "run" / "student.keras").exists()


@pytest.mark.parametrize(
    ("script", "inputs", "expected"),
    [
        ("arrays.py", [], "parameters"),
        ("image_folder.py", ["model.keras", "images"], "conv2: "),
        ("no_labels.py", ["model.keras", "images.npy"], "agrees with the teacher"),
    ],
)
def test_scripts_run(
    script: str,
    inputs: list[str],
    expected: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, where TensorFlow is loaded."""
    import pbd
    from pbd.deploy import deployment

    monkeypatch.setattr(deployment, "measure", lambda *_, **__: deployment.Deployed((), ()))
    monkeypatch.setattr(pbd, "distill", functools.partial(pbd.distill, isolate=False))
    monkeypatch.setattr(sys, "argv", [script, *(str(files / name) for name in inputs), str(tmp_path / "run")])
    with short_latencies.here():
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert expected in capsys.readouterr().out
    assert (tmp_path / "run" / "student.keras").exists()


def test_the_slurm_script_submits_a_job_that_runs(files: Path, tmp_path: Path) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    path = f"{sbatch.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    run([EXAMPLES / "slurm.sh", files / "model.keras", files / "data.npz", tmp_path / "run"], PATH=path, **BARE)
    assert (tmp_path / "run" / "complete.json").exists()


def test_every_example_is_tested_and_listed() -> None:
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    text = Path(__file__).read_text(encoding="utf-8")
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(name in text and f"`{name}`" in listed for name in scripts)
