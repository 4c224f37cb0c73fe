"""Random state of this process: seeded for a run, and restored at the end of a library call."""

import contextlib
import random
import sys
from collections.abc import Iterator

import numpy as np

from pbd.system import keras_state

_KERAS_ATTRIBUTES = ("global_random_seed", "global_seed_generator")
"""Where Keras keeps the seed of `keras.utils.set_random_seed` and the generator of unseeded `keras.random` calls."""


def seed(value: int) -> None:
    """Seed Python, NumPy and Keras, from which Keras layers without a seed of their own derive theirs.

    Unlike `keras.utils.set_random_seed` this leaves TensorFlow's global seed alone, which no Keras layer uses and which
    could not be restored.

    Args:
        value: a seed in [0, 2**32).
    """
    keras_state.set_attribute(_KERAS_ATTRIBUTES[0], value)
    keras_state.set_attribute(_KERAS_ATTRIBUTES[1], None)  # Keras makes a new one from Python's state
    random.seed(value)
    np.random.seed(value)


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Restore the random state of Python, NumPy and Keras at the end of the block."""
    python_state, numpy_state, keras_attributes = random.getstate(), np.random.get_state(), _keras_attributes()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        _set_keras_attributes(keras_attributes)


def _keras_attributes() -> dict[str, object]:
    if "keras" not in sys.modules:
        return dict.fromkeys(_KERAS_ATTRIBUTES)
    return {name: keras_state.get_attribute(name) for name in _KERAS_ATTRIBUTES}


def _set_keras_attributes(attributes: dict[str, object]) -> None:
    if "keras" in sys.modules:
        for name, value in attributes.items():
            keras_state.set_attribute(name, value)
