"""Preparation of a process for training, undone at the end: a library call leaves its caller's process as it was."""

import contextlib
import logging
from collections.abc import Iterator

from pbd.system import backend, devices, random_state


@contextlib.contextmanager
def prepared(share: devices.Share) -> Iterator[None]:
    """Claim a share of the host and load the backend for the block.

    At the end, the environment variables, the thread limits, TensorFlow's log level, and the global random states of
    Python, NumPy and Keras are restored. Keras stays loaded.

    Raises:
        EnvironmentMismatchError: no backend is installed, or there are fewer GPUs than workers.
    """
    logger = logging.getLogger("tensorflow")  # `backend.load` hides its warnings
    level = logger.level
    try:
        # Keras draws default seeds from Python's generator, so building a layer advances the caller's random state.
        with random_state.preserved(), devices.claimed(share):
            backend.load()
            yield
    finally:
        logger.setLevel(level)
