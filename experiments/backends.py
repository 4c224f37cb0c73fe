"""The digits job on several backends, from one teacher: seconds, accuracy, and how far the blocks are from the first's.

    python -m experiments.backends tensorflow=.venv/bin/python jax=JAXENV/bin/python torch=JAXENV/bin/python

Each argument names a backend of Keras and a Python that has it; the first one also trains the teacher, for all.
Each run has one thread. The difference of blocks is that of the same-student test: the largest difference of a weight,
over the largest weight of its variable.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from pbd.run_dir.journal import Journal

SETTINGS = ["--block", "decoupled_r2", "--executor", "serial", "--threads-per-worker", "1", "--costs", "macs"]
SETTINGS += ["--target", "keras"]


def main() -> None:
    """Run the job on each backend and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", metavar="BACKEND=PYTHON", nargs="+", type=lambda text: text.split("=", 1))
    parser.add_argument("--epochs", type=int, default=3, help="of each block (default: 3)")
    parser.add_argument("--fine-tune-epochs", type=int, default=2, help="of the student (default: 2)")
    settings = parser.parse_args()
    epochs = ["--epochs", str(settings.epochs), "--fine-tune-epochs", str(settings.fine_tune_epochs)]
    with tempfile.TemporaryDirectory() as name:
        folder, teacher = Path(name), Path(name, "teacher.keras")
        for backend, python in settings.pythons:
            if not teacher.exists():
                _run(backend, python, [*SETTINGS, "--epochs", "1", "--fine-tune-epochs", "0"], folder / "first")
                (folder / "first" / "teacher.keras").rename(teacher)
            given = ["--teacher", str(teacher), "--dataset", "digits"]
            seconds = _run(backend, python, [*SETTINGS, *epochs, *given], folder / backend)
            _print(folder, settings.pythons[0][0], backend, seconds)


def _run(backend: str, python: str, arguments: list[str], run_dir: Path) -> float:
    """Make a run, and return its seconds."""
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [python, "-m", "pbd.run", *arguments, "--run-dir", str(run_dir)]
    began = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _print(folder: Path, reference: str, backend: str, seconds: float) -> None:
    report = json.loads((folder / backend / "report.json").read_text())
    blocks_s, fine_tune_s = report["timing"]["distill_s"], report["timing"]["fine_tune_s"]
    difference = largest_difference(folder / reference, folder / backend)
    print(
        f"{backend:10}  {seconds:6.1f} s, blocks {blocks_s:5.1f} s, fine-tuning {fine_tune_s:5.1f} s; "
        f"test accuracy {report['student']['test_accuracy']:.2%}; blocks differ from {reference}'s by {difference:.1e}",
        flush=True,
    )


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference of a weight of the blocks of two runs, over the largest of its variable."""
    ours, theirs = Journal(one).committed_blocks(), Journal(other).committed_blocks()
    return max(
        float(np.abs(weight - theirs[key].weights[name]).max() / max(np.abs(weight).max(), 1e-12))
        for key, block in ours.items()
        for name, weight in block.weights.items()
    )


if __name__ == "__main__":
    main()
