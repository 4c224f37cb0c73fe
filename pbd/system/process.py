"""Preparation of a process for training, undone at the end: a library call leaves its caller's process as it was."""

import contextlib
import logging
import random
from collections.abc import Iterator

import numpy as np

from pbd.system import backend, devices


@contextlib.contextmanager
def prepared(share: devices.Share) -> Iterator[None]:
    """Claim a share of the host and load the backend for the block.

    At the end, the environment variables, the thread limits, TensorFlow's log level, and the global random states of
    Python and NumPy are restored. Keras stays loaded.

    Raises:
        EnvironmentMismatchError: no backend is installed, or there are fewer GPUs than workers.
    """
    # Keras draws default seeds from Python's generator, so that building a layer advances its state.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    logger = logging.getLogger("tensorflow")  # `backend.load` hides its warnings
    level = logger.level
    try:
        with devices.claimed(share):
            backend.load()
            yield
    finally:
        logger.setLevel(level)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
