"""Read and rewrite a Keras graph: flatten it, find its convolutions, truncate it, swap layers."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from pbd.errors import BadInputError
from pbd.networks.cost import layer_calls

Call = Callable[..., Any]
Builder = Callable[[Any], Any]
"""Maps an input tensor to an output tensor."""


def walk(model: keras.Model, inputs: Any, make: Callable[[Any], Any], call: Call) -> Any:
    """Run a functional model's graph on other tensors; `make` gives the operation to use, `call` applies it."""
    return model._run_through_graph(inputs, operation_fn=make, call_fn=call)


def as_functional(model: keras.Model) -> keras.Model:
    """Return the model as a functional one.

    Raises:
        BadInputError: it is neither functional nor a built sequential model.
    """
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs[0], name=model.name)
    if isinstance(model, keras.Sequential) or not hasattr(model, "_run_through_graph"):
        raise BadInputError(
            f"the teacher must be a functional or sequential Keras model. Received: {type(model).__name__}. "
            "Rebuild it with keras.Model(inputs, outputs), from a keras.Input of known shape."
        )
    return model


class _Cloner:
    """Makes fresh layers, one for each original, with names that stay unique when nested models are unfolded."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Any, Any]] = {}
        self._names: set[str] = set()

    def clone(self, operation: Any, owner: str = "") -> Any:
        if id(operation) in self.pairs:
            return self.pairs[id(operation)][1]
        config = operation.get_config()
        while config.get("name") in self._names:
            config["name"] = f"{owner}_{config['name']}"
        twin = type(operation).from_config(config)
        self._names.add(twin.name)
        self.pairs[id(operation)] = (operation, twin)
        return twin

    def copy_weights(self) -> None:
        for original, twin in self.pairs.values():
            if isinstance(original, keras.Layer) and original.weights:
                twin.set_weights(original.get_weights())
                if isinstance(twin, keras.layers.Normalization):
                    twin.finalize_state()  # computes with what it derives from its weights


def _unfold(model: keras.Model, inputs: Any, cloner: _Cloner, training: bool | None = None) -> Any:
    def make(operation: Any) -> Any:
        return operation if isinstance(operation, keras.Model) else cloner.clone(operation, model.name)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        inner_training = kwargs.get("training", training)
        if isinstance(operation, keras.Model):
            return _unfold(as_functional(operation), args[0], cloner, inner_training)
        if inner_training is not None and "training" in inspect.signature(operation.call).parameters:
            kwargs["training"] = inner_training
        return operation(*args, **kwargs)

    return walk(model, inputs, make, call)


def image_shape_of(model: keras.Model) -> tuple[int | None, ...]:
    """Return the height, width and channels that a classifier of images asks for, `None` where it leaves one free.

    Raises:
        BadInputError: the model is of another kind.
    """
    model = as_functional(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise BadInputError(
            "the teacher must have one input and one output. "
            f"Received: {len(model.inputs)} inputs, {len(model.outputs)} outputs. Cut out the branch to compress."
        )
    shapes = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if len(shapes[0]) != 4 or len(shapes[1]) != 2:
        raise BadInputError(
            "the teacher must take images (batch, height, width, channels) and return scores (batch, classes). "
            f"Received: {shapes[0]} to {shapes[1]}: no convolution can be replaced in it."
        )
    return shapes[0][1:]


def flatten(model: keras.Model, image_shape: tuple[int, int, int] | None = None) -> keras.Model:
    """Return a functional copy with its own weights, nested models unfolded, for images of one shape.

    Args:
        model: functional or sequential, one input, one output of shape `(batch, classes)`.
        image_shape: height, width and channels; needed where the model leaves them free.

    Raises:
        BadInputError: the model is of another kind, or does not take such images.
    """
    own_shape = image_shape_of(model)
    model = as_functional(model)
    shape = image_shape or own_shape
    if len(own_shape) != len(shape) or any(
        own not in (None, given) for own, given in zip(own_shape, shape, strict=True)
    ):
        raise BadInputError(f"the teacher takes images of shape {own_shape}. Received: {tuple(shape)}.")
    inputs = keras.Input(shape, dtype=model.inputs[0].dtype, name=model.inputs[0].name.split(":")[0])
    cloner = _Cloner()
    outputs = keras.tree.flatten(_unfold(model, inputs, cloner))[0]
    flat = keras.Model(inputs, outputs, name=model.name)
    cloner.copy_weights()
    return _split_softmax(flat)


def _split_softmax(model: keras.Model) -> keras.Model:
    """Give a softmax that is the last layer's activation a layer of its own, so that `logits` can stop before it."""
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.layers.Activation) or getattr(last, "activation", None) is not keras.activations.softmax:
        return model
    if dict(layer_calls(model))[last] > 1:
        return model
    last.activation = keras.activations.linear
    scores = keras.layers.Activation("softmax", name=f"{last.name}_softmax")(model.outputs[0])
    return keras.Model(model.inputs, scores, name=model.name)


def logits(model: keras.Model) -> keras.Model:
    """Return the flat model up to what its final softmax is fed, on the same layers; all of it where it has none.

    A softmax within another layer counts only once `flatten` has split it off.
    """
    history = model.outputs[0]._keras_history
    last = history.operation
    activates = isinstance(last, keras.layers.Activation) and last.activation is keras.activations.softmax
    ends = activates or type(last).__name__ == "Softmax"
    fed = last._inbound_nodes[history.node_index].input_tensors[0]  # `last.input` is that of its first call
    return keras.Model(model.inputs, fed if ends else model.outputs[0], name=f"{model.name}_logits")


def find_convolutions(model: keras.Model) -> list[tuple[keras.layers.Conv2D, int]]:
    """Return the model's convolutions with a kernel other than 1x1, in graph order, with their number of calls."""
    return [
        (layer, calls)
        for layer, calls in layer_calls(model)
        if isinstance(layer, keras.layers.Conv2D) and tuple(layer.kernel_size) != (1, 1)
    ]


def truncate(model: keras.Model, layer_names: Iterable[str]) -> keras.Model:
    """Return the part of the model that feeds these layers: for each name, the layer's input and its output."""
    layers = {name: model.get_layer(name) for name in layer_names}
    return keras.Model(model.inputs, {name: [layer.input, layer.output] for name, layer in layers.items()})


def swap(model: keras.Model, builders: Mapping[str, Builder]) -> keras.Model:
    """Return a copy of the model in which new layers replace some of its layers; all other weights are kept.

    The new layers stand in the graph themselves, so the copy needs no custom objects to be saved or loaded.

    Args:
        model: a flat functional model (see `flatten`).
        builders: by name of the replaced layer, the function from its input tensor to its output tensor.
    """
    cloner = _Cloner()

    def make(operation: Any) -> Any:
        return operation if operation.name in builders else cloner.clone(operation)

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        build = builders.get(operation.name)
        return build(args[0]) if build else operation(*args, **kwargs)

    inputs = keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype, name=model.inputs[0].name)
    outputs = keras.tree.flatten(walk(model, inputs, make, call))[0]
    copy = keras.Model(inputs, outputs, name=model.name)
    cloner.copy_weights()
    return copy


def run(model: keras.Model, images: Any, training: set[str]) -> Any:
    """Run the model eagerly with the layers named in `training` in training mode and all others in inference mode."""

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation.name in training:
            kwargs["training"] = True
        return operation(*args, **kwargs)

    return walk(model, images, lambda operation: operation, call)
