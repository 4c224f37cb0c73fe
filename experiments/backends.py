"""The digits job on several backends, from one teacher: seconds, accuracy, and how far the blocks are from the first's.

    python -m experiments.backends tensorflow=.venv/bin/python jax=JAXENV/bin/python torch=JAXENV/bin/python

Each argument names a backend of Keras and a Python that has it; the first one also trains the teacher, for all.
Each run has one thread. The difference of blocks is that of the same-student test: the largest difference of a weight,
over the largest weight of its variable.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pbd import command_line
from pbd.command_line import Parser, positive
from pbd.errors import MissingInputError, PbdError
from pbd.run_dir.journal import Journal

NAME = "experiments.backends"
BACKENDS = ("tensorflow", "jax", "torch")
SETTINGS = ["--block", "decoupled_r2", "--executor", "serial", "--threads-per-worker", "1", "--costs", "macs"]
SETTINGS += ["--target", "keras"]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong; the message is one line.
        MissingInputError: there is no such Python.
    """
    parser = Parser(NAME, __doc__ or "")
    parser.add_argument("pythons", metavar="BACKEND=PYTHON", nargs="+", type=_python)
    parser.add_argument("--epochs", type=positive, default=3, help="of each block (default: 3)")
    parser.add_argument("--fine-tune-epochs", type=positive, default=2, help="of the student (default: 2)")
    settings = parser.parse_args(argv)
    for _, python in settings.pythons:
        if shutil.which(python) is None:
            raise MissingInputError(f"PYTHON must be a program. Received: {python!r}, no such program.")
    return settings


def _python(text: str) -> tuple[str, str]:
    backend, _, python = text.partition("=")
    if backend not in BACKENDS or not python:
        raise argparse.ArgumentTypeError(
            f"must be BACKEND=PYTHON, with {', '.join(BACKENDS)} as BACKEND. Received: {text!r}"
        )
    return backend, python


def compare(settings: argparse.Namespace) -> None:
    """Run the job on each backend and print a line for each.

    Raises:
        PbdError: a run failed; it printed why.
    """
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
    """Make a run, and return its seconds.

    Raises:
        PbdError: it failed; it printed why.
    """
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [python, "-m", "pbd.run", *arguments, "--run-dir", str(run_dir)]
    began = time.monotonic()
    code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
    if code:
        raise PbdError(f"the run on {backend} must succeed. Received: exit code {code}; see its line above.")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run(NAME, lambda arguments: compare(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
