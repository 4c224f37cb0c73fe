"""Print SHA-256 digests of the digits student's blocks and weights, to compare two revisions of pbd on one machine.

    python -m experiments.student_digest

A change that only moves or renames code prints the same two lines before and after. No digest is stored in the
repository, because the last bits of float32 results differ between processors.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pbd import command_line
from pbd.command_line import Parser
from pbd.errors import PbdError
from pbd.run_dir.journal import Journal

NAME = "experiments.student_digest"
FLAGS = [
    "--block",
    "decoupled_r2",
    "--executor",
    "serial",
    "--threads-per-worker",
    "1",
    "--layers",
    "conv2_1",
    "conv2_2",
]
FLAGS += ["--epochs", "1", "--fine-tune-epochs", "1", "--costs", "macs", "--seed", "0", "--target", "keras"]


def digest(argv: Sequence[str]) -> None:
    """Run the job in a process of its own and print the digests of its blocks and of its student.

    Raises:
        UsageError: there is an argument.
        PbdError: the run failed; it printed why.
    """
    Parser(NAME, __doc__ or "").parse_args(argv)
    import keras

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "pbd.run", *FLAGS, "--run-dir", str(run_dir)]
        code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
        if code:
            raise PbdError(f"the run must succeed. Received: exit code {code}; see its line above.")
        blocks = sorted(Journal(run_dir).committed_blocks().values(), key=lambda result: result.layer)
        print("blocks ", _digest([result.weights[key] for result in blocks for key in sorted(result.weights)]))
        student = keras.models.load_model(run_dir / "student.keras", compile=False)
        print("student", _digest(student.get_weights()))


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run(NAME, digest, argv)


if __name__ == "__main__":
    sys.exit(main())
