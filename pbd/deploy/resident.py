"""The memory that a network takes where it is deployed: measured in a process of its own, without Keras.

`python -m pbd.deploy.resident TARGET FILE BATCH HEIGHT WIDTH CHANNELS` prints the bytes.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from pbd.deploy.runtimes import base
from pbd.deploy.targets import TARGETS, Target
from pbd.system import memory

_LIMIT_S = 120.0


def measure(target: Target, path: Path, batch: int, shape: tuple[int, ...]) -> int | None:
    """Return the resident memory, in bytes, that loading a file and one pass add to a process; `None` if unknown.

    The library itself, loaded before, does not count. Keras and TensorFlow are left out: they take seconds to start,
    and their pools hide what a network takes.

    Args:
        target: the target of the file.
        path: the path of the file.
        batch: images in the pass.
        shape: height, width and channels.
    """
    if "tensorflow" in target.runtime.packages_to_run or "keras" in target.runtime.packages_to_run:
        return None
    arguments = [target.name, str(path), str(batch), *map(str, shape)]
    command = [sys.executable, "-m", "pbd.deploy.resident", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=True)
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main(name: str, path: str, *sizes: str) -> None:
    """Print the bytes that a file and one pass take in this process."""
    target = TARGETS[name]
    images = np.zeros([int(size) for size in sizes], np.float32)
    for package in target.runtime.packages_to_run:
        base.load_package(package)
    before = memory.reset_peak()
    target.load(Path(path), threads=1)(images)
    print(memory.peak_host_memory() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
