"""Functions that run a network outside of Keras' training loop, compiled where the backend needs it."""

from collections.abc import Callable
from typing import Any

import keras

from pbd.system import backend


def compiled(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs a network, as one compiled call on JAX; on other backends, the function itself.

    JAX compiles every operation that runs outside of a compiled function, for every shape: a network takes longer that
    way than as a whole. TensorFlow and torch run operations one by one at once.

    Args:
        model: the network; the function may change its variables, and no others.
        function: maps arrays to arrays.
    """
    if backend.name() != "jax":
        return function
    import jax

    variables = model.variables

    @jax.jit
    def run(values: list[Any], *args: Any) -> tuple[Any, dict[int, Any]]:
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            outputs = function(*args)
        after = [scope.get_current_value(variable) for variable in variables]
        pairs = enumerate(zip(values, after, strict=True))
        return outputs, {index: new for index, (old, new) in pairs if new is not None and new is not old}

    def call(*args: Any) -> Any:
        outputs, changed = run([variable.value for variable in variables], *args)
        for index, value in changed.items():
            variables[index].assign(value)
        return outputs

    return call


def outputs(model: keras.Model, images: Any) -> Any:
    """Return the outputs of a network in inference mode as NumPy arrays, in their structure; nothing is traced.

    Args:
        model: a model with one input.
        images: (batch, height, width, channels).
    """
    if backend.name() == "jax":
        return model.predict_on_batch(images)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(images, training=False))
