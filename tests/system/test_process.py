"""A process that trains for a library call is afterwards as it was before."""

import os
import subprocess
import sys

from tests.helpers.cluster import PATIENCE_S

PREPARE = """
import logging, os, random, sys, threadpoolctl
import numpy as np
from pbd.config import ExecutionConfig
from pbd.executors import open_executor

def state():
    return (
        dict(os.environ), [(lib["filepath"], lib["num_threads"]) for lib in threadpoolctl.threadpool_info()],
        random.getstate(), np.random.get_state()[1].tolist(), logging.getLogger("tensorflow").level,
    )

def work():
    import keras
    random.random(), np.random.rand()
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "1"
    return keras.layers.Dense(2)(np.ones((1, 3))).shape

before = state()
executor = open_executor(ExecutionConfig(executor="serial", isolate=False, threads_per_worker=1))
assert executor.call(work) == (1, 2)
executor.finish(None)
after = state()
added = {name: value for name, value in after[0].items() if before[0].get(name) != value}
assert not any(name.startswith(("PBD", "OMP", "TF_NUM", "TF_CPP", "TF_FORCE", "XLA", "CUDA")) for name in added), added
assert all(after[0].get(name) == value for name, value in before[0].items())
assert dict(after[1]).items() >= dict(before[1]).items(), (before[1], after[1])
assert after[2:] == before[2:]
assert "tensorflow" in sys.modules
"""


def test_a_library_call_leaves_the_process_as_it_was() -> None:
    """TensorFlow itself sets variables when it is imported for the first time: only those may be new."""
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PREPARE], env=inherited, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
