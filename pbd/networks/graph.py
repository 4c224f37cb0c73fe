"""Rewrite the graph of a Keras model: flatten it, find its convolutions, truncate it, replace layers."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from pbd.errors import BadInputError
from pbd.networks import heads
from pbd.networks.cost import layer_calls
from pbd.networks.keras_internals import is_functional, positional, producer, set_weights, walk
from pbd.networks.residuals import block_sources, find_residuals
from pbd.system import initial_values

Builder = Callable[[Any], Any]
"""Maps an input tensor to an output tensor."""


def as_functional(model: keras.Model) -> keras.Model:
    """Return the model as a functional model.

    Raises:
        BadInputError: the model is neither functional nor a built sequential model.
    """
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if isinstance(model, keras.Sequential):
        raise BadInputError(
            f"the network must have an input shape. Received: Sequential {model.name!r}, not built. "
            "Call model.build((None, HEIGHT, WIDTH, CHANNELS)) and load its weights again."
        )
    if not is_functional(model):
        raise BadInputError(
            f"the network must be a functional or sequential Keras model. Received: {type(model).__name__}. "
            "Rebuild it with keras.Model(inputs, outputs), from a keras.Input of known shape."
        )
    return model


def in_mode(operation: Any, training: bool | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments with which to call an operation of a graph in training or in inference mode.

    Augmentation layers are in training mode by default, so every pass over a graph must give the mode. As in
    `keras.Model.__call__`, it overrides the mode with which the graph was built.

    Args:
        operation: the layer or operation.
        training: the mode; `None` leaves it as it is.
        kwargs: the other keyword arguments.
    """
    if training is None or "training" not in inspect.signature(operation.call).parameters:
        return dict(kwargs)
    return {**kwargs, "training": training}


class _Cloner:
    """Creates one new layer for each original. Names stay unique when layers of nested models come together.

    Args:
        policies: by name, the dtype policies of the layers that get another one.
        names: names that no copy may have.
    """

    def __init__(self, policies: Mapping[str, str] | None = None, names: Iterable[str] = ()) -> None:
        self.pairs: dict[int, tuple[Any, Any]] = {}
        self._names = set(names)
        self._policies = policies or {}

    def clone(self, operation: Any, owner: str = "") -> Any:
        """Return the copy of an operation, the same one at every call: a shared layer stays shared.

        Args:
            operation: an operation of the original graph.
            owner: name of the model that holds it; becomes a prefix of the copy's name if that name is taken.
        """
        if id(operation) in self.pairs:
            return self.pairs[id(operation)][1]
        config = operation.get_config()
        if operation.name in self._policies:
            config = _with_policy(config, self._policies[operation.name])
        while config.get("name") in self._names:
            config["name"] = f"{owner}_{config['name']}"
        twin = type(operation).from_config(config)
        self._names.add(twin.name)
        self.pairs[id(operation)] = (operation, twin)
        return twin

    def model(self, original: keras.Model, inputs: Any, outputs: Any) -> keras.Model:
        """Return the model of all copies, with the weights and the name of the original; `outputs` may be nested."""
        copy = keras.Model(inputs, keras.tree.flatten(outputs)[0], name=original.name)
        for operation, twin in self.pairs.values():
            if isinstance(operation, keras.Layer) and operation.weights:
                set_weights(twin, operation.get_weights())
        return copy


def _unfold(model: keras.Model, inputs: Any, cloner: _Cloner, training: bool | None = None) -> Any:
    """Call copies of the model's layers on `inputs`; the layers of nested models are called in the models' place.

    Args:
        model: functional.
        inputs: Keras tensors.
        cloner: creates the copies.
        training: the `training` argument with which an outer model calls this model.
    """

    def operation_for(operation: Any) -> Any:
        return operation if isinstance(operation, keras.Model) else cloner.clone(operation, model.name)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        # `training=False` at the call of a nested model holds for all its layers, as in transfer learning.
        inner_training = kwargs.get("training", training)
        args, kwargs = positional(operation, args, kwargs)
        if isinstance(operation, keras.Model):
            return _unfold(as_functional(operation), args[0], cloner, inner_training)
        return operation(*args, **in_mode(operation, inner_training, kwargs))

    return walk(model, inputs, call, operation_for)


def _with_policy(config: Any, policy: str) -> Any:
    """Return the configuration of a layer with another dtype policy, also in the layers inside it."""
    if isinstance(config, list):
        return [_with_policy(value, policy) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        return {**config, "config": {"name": policy}}
    return {key: _with_policy(value, policy) for key, value in config.items()}


def image_shape(model: keras.Model) -> tuple[int | None, int | None, int | None]:
    """Return height, width and channels of an image classifier's input; `None` for a size that the model leaves open.

    Raises:
        BadInputError: the model does not map images to class scores.
    """
    model = as_functional(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise BadInputError(
            "the network must have one input and one output. "
            f"Received: {len(model.inputs)} inputs, {len(model.outputs)} outputs. Cut out the branch to compress."
        )
    shapes = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if len(shapes[0]) != 4 or len(shapes[1]) != 2:
        raise BadInputError(
            "the network must take images (batch, height, width, channels) and return scores (batch, classes). "
            f"Received: {shapes[0]} to {shapes[1]}. If these are feature maps, add the trained classifier: "
            "keras.Sequential([model, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)])."
        )
    _, height, width, channels = shapes[0]
    return height, width, channels


def layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers of a model, and those of nested models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers(layer)
        else:
            yield layer


@initial_values.on_host()
def flatten(model: keras.Model, shape: tuple[int, int, int] | None = None) -> keras.Model:
    """Return a functional copy without nested models, with its own weights, for images of one shape.

    A softmax or sigmoid that is the last layer's activation becomes a layer of its own, so that
    `heads.remove` can stop before it.

    Args:
        model: functional or sequential, one input, one output of shape `(batch, classes)`.
        shape: height, width and channels of the images; required if the model leaves one of them open.

    Raises:
        BadInputError: the model does not map images of this shape to class scores.
    """
    declared = image_shape(model)
    _check_weights(model)
    model = as_functional(model)
    input_shape: tuple[int | None, ...] = shape or declared
    if len(declared) != len(input_shape) or any(a not in (None, b) for a, b in zip(declared, input_shape, strict=True)):
        raise BadInputError(
            f"the teacher takes images of shape {declared}. Received: {tuple(input_shape)}. Resize the images."
        )
    inputs = keras.Input(input_shape, dtype=model.inputs[0].dtype, name=model.inputs[0].name.split(":")[0])
    cloner = _Cloner(names=[inputs.name])
    return heads.split(cloner.model(model, inputs, _unfold(model, inputs, cloner)))


def _check_weights(model: keras.Model) -> None:
    """Refuse layers that Keras has quantised or given adapters: they have other weights than those of their type."""
    for layer in layers(model):
        if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
            raise BadInputError(
                "the layers of the network must have their usual weights. "
                f"Received: {layer.name!r}, quantised or with LoRA adapters. Give the network as it was before."
            )


def find_convolutions(model: keras.Model) -> list[tuple[keras.layers.Conv2D, int]]:
    """Return the model's convolutions with a kernel other than 1x1, in graph order, with their number of calls."""
    return [
        (layer, calls)
        for layer, calls in layer_calls(model)
        if isinstance(layer, keras.layers.Conv2D) and tuple(layer.kernel_size) != (1, 1)
    ]


def truncate(model: keras.Model, layer_names: Iterable[str]) -> keras.Model:
    """Return the model that maps images to `{name: [input, output]}` of layers and residual blocks, sharing layers.

    It computes only the layers on which one of the named ones depends. The name of a residual block is that of its
    addition.
    """
    residuals = find_residuals(model)

    def ends(name: str) -> list[Any]:
        if name in residuals:
            return [residuals[name].input, residuals[name].addition.output]
        layer = model.get_layer(name)
        return [layer.input, layer.output]

    return keras.Model(model.inputs[0], {name: ends(name) for name in layer_names})


@initial_values.on_host()
def swap(model: keras.Model, builders: Mapping[str, Builder]) -> keras.Model:
    """Return a copy of the model in which new layers replace some of its layers; all other weights are kept.

    The new layers are part of the graph itself, so the copy can be saved and loaded without custom objects.

    Args:
        model: a flat functional model (see `flatten`).
        builders: for each layer or residual block to replace, by name, the function from its input tensor to its output
            tensor.
    """
    cloner, sources = _Cloner(), block_sources(model, builders)
    values: dict[str, Any] = {}

    def operation_for(operation: Any) -> Any:
        return operation if operation.name in builders else cloner.clone(operation)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        build = builders.get(operation.name)
        if build is None:
            outputs = operation(*args, **kwargs)
        elif operation.name in sources:
            outputs = build(values[sources[operation.name]])
        else:
            outputs = build(args[0])
        values[operation.name] = outputs
        return outputs

    inputs = _new_input(model)
    values[producer(model.inputs[0])[0].name] = inputs
    return cloner.model(model, inputs, walk(model, inputs, call, operation_for))


@initial_values.on_host()
def with_policies(model: keras.Model, policies: Mapping[str, str]) -> keras.Model:
    """Return a copy of the model in which the layers have other dtype policies; the weights are converted.

    Args:
        model: a flat functional model.
        policies: by name, the policies of the layers that get another one.
    """
    cloner, inputs = _Cloner(policies), _new_input(model)
    return cloner.model(model, inputs, walk(model, inputs, _called, cloner.clone))


def _new_input(model: keras.Model) -> Any:
    """Return a new input like that of a flat model."""
    return keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype, name=model.inputs[0].name)


def _called(operation: Any, *args: Any, **kwargs: Any) -> Any:
    return operation(*args, **kwargs)
