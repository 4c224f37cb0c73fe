"""Initial values of weights, drawn with NumPy where the backend is JAX.

JAX compiles each operation for each shape. For a network of many shapes, Keras' initialisers therefore take seconds to
compile, also where weights from a file or from another network replace the values at once.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pbd.system import backend, keras_state

_LARGEST = 2.0
"""Truncated normal values lie within so many standard deviations, as in Keras."""
_SEEDS = 2**64
_thread = threading.local()
_lock = threading.Lock()
_originals: list[tuple[Any, str, Any]] = []
"""Owner, name and value of all that is replaced."""
_blocks = 0
"""Blocks that are open in any thread."""


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """On JAX, draw the initial weights of the layers that this thread builds in the block with NumPy.

    Constant values are those of Keras. Random ones have the distribution of Keras' initialiser and depend on its seed
    alone. What has no seed of its own (a `SeedGenerator`), and other initialisers, are left to Keras. So is what a
    layer draws without adding it as a weight: such values are not saved in files, so every process must draw the same
    ones.
    """
    if backend.name() != "jax":
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _blocks
    _thread.depth = getattr(_thread, "depth", 0) + 1
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _replace()


def _leave() -> None:
    global _blocks
    _thread.depth -= 1
    with _lock:
        _blocks -= 1
        if _blocks == 0:
            while _originals:
                setattr(*_originals.pop())


def _replace() -> None:
    """Replace the functions with which Keras' initialisers compute values; other threads still get Keras' values."""
    import keras

    _mark_weights(keras.layers.Layer)
    random = keras_state.random_functions()
    for name, draw in (("normal", _normal), ("truncated_normal", _truncated_normal), ("uniform", _uniform)):
        _wrap(random, name, draw)
    for initializer, value in ((keras.initializers.Zeros, 0), (keras.initializers.Ones, 1)):
        _wrap(initializer, "__call__", _constant(value))


def _mark_weights(layer: Any) -> None:
    """Let the functions that are replaced know whether a layer adds a weight."""
    original = layer.add_weight

    def add_weight(*args: Any, **kwargs: Any) -> Any:
        _thread.weights = getattr(_thread, "weights", 0) + 1
        try:
            return original(*args, **kwargs)
        finally:
            _thread.weights -= 1

    _set(layer, "add_weight", add_weight)


def _wrap(owner: Any, name: str, on_host: Callable[..., Any]) -> None:
    import jax

    original = getattr(owner, name)

    def function(*args: Any, **kwargs: Any) -> Any:
        adds_weight = getattr(_thread, "depth", 0) and getattr(_thread, "weights", 0)
        value = on_host(*args, **kwargs) if adds_weight else None
        # Keras would convert an array of NumPy, which JAX compiles for each shape; `device_put` only copies.
        return original(*args, **kwargs) if value is None else jax.device_put(value)

    _set(owner, name, function)


def _set(owner: Any, name: str, value: Any) -> None:
    _originals.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _constant(value: int) -> Callable[..., Any]:
    def values(_: Any, shape: Any, dtype: Any = None, **others: Any) -> np.ndarray | None:
        return None if others else np.full(shape, value, _numpy_type(dtype))

    return values


def _normal(shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, seed: Any = None) -> Any:
    if not isinstance(seed, int):
        return None
    return _as_type(np.random.default_rng(seed % _SEEDS).normal(mean, stddev, shape), dtype)


def _truncated_normal(shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, seed: Any = None) -> Any:
    if not isinstance(seed, int):
        return None
    draws = np.random.default_rng(seed % _SEEDS)
    values = draws.standard_normal(shape)
    while (outside := np.abs(values) > _LARGEST).any():
        values[outside] = draws.standard_normal(np.count_nonzero(outside))
    return _as_type(values * stddev + mean, dtype)


def _uniform(shape: Any, minval: float = 0.0, maxval: float = 1.0, dtype: Any = None, seed: Any = None) -> Any:
    if not isinstance(seed, int):
        return None
    return _as_type(np.random.default_rng(seed % _SEEDS).uniform(minval, maxval, shape), dtype)


def _as_type(values: Any, dtype: Any) -> np.ndarray | None:
    """Return the values in a type of floating-point numbers; `None` for another type."""
    numpy_type = _numpy_type(dtype)
    return np.asarray(values).astype(numpy_type) if numpy_type.name.startswith(("float", "bfloat")) else None


def _numpy_type(dtype: Any) -> np.dtype:
    import jax.numpy as jnp
    import keras

    return jnp.dtype(keras.backend.standardize_dtype(dtype))
