"""Every activation of Keras in every form that pbd writes: graph mode and eager mode compute the same."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blockwise import tasks
from pbd.deploy import inference_form
from pbd.networks import folding, fusion
from tests.helpers.swapping import swap_blocks

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 8)).astype(np.float32)
TOLERANCE = 1e-4
NO_ACTIVATIONS = {"get", "serialize", "deserialize", "threshold", "glu"}
"""Of keras.activations: functions of another kind, and activations that need arguments or change the shape."""
NAMED = {name: getattr(keras.activations, name) for name in dir(keras.activations) if name not in NO_ACTIVATIONS}
FUNCTIONS = sorted({function: name for name, function in reversed(NAMED.items()) if callable(function)}.values())
"""The first name of each function: some have several."""
ACTIVATIONS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: layers.Activation(name) for name in FUNCTIONS},
    "LeakyReLU(0.1)": lambda: layers.LeakyReLU(negative_slope=0.1),
    "LeakyReLU(0.3)": lambda: layers.LeakyReLU(negative_slope=0.3),
    "PReLU": lambda: layers.PReLU(alpha_initializer=keras.initializers.Constant(0.3), shared_axes=[1, 2]),
    "ELU(0.5)": lambda: layers.ELU(alpha=0.5),
    "ReLU(6)": lambda: layers.ReLU(max_value=6.0),
    "ReLU(slope)": lambda: layers.ReLU(negative_slope=0.1),
    "ReLU(threshold)": lambda: layers.ReLU(threshold=0.3),
    "Softmax": layers.Softmax,
    "operation": lambda: lambda x: keras.ops.leaky_relu(x, negative_slope=0.1),
}
INEXACT = ("mish", "LeakyReLU(0.1)", "LeakyReLU(0.3)", "ReLU(slope)", "operation")
"""Those that TensorFlow computes wrongly behind some sums."""
BRANCHES = ("plain", "residual", "behind_dropout", "separable", "depthwise", "dense")


def normalised(x: Any, layer: keras.Layer) -> Any:
    return layers.BatchNormalization(moving_mean_initializer=keras.initializers.RandomNormal(stddev=1.0))(layer(x))


def branch(form: str, x: Any, name: str) -> Any:
    """Return what comes before an activation: a layer, its normalisation, and an addition or none."""
    settings: dict[str, Any] = {"padding": "same", "use_bias": False, "name": name}
    if form == "separable":
        return layers.Add()([x, normalised(x, layers.SeparableConv2D(8, 3, **settings))])
    if form == "depthwise":
        return layers.Add()([normalised(x, layers.DepthwiseConv2D(3, **settings)), x])
    if form == "dense":
        return layers.Add()([normalised(x, layers.Dense(8, use_bias=False, name=name)), x])
    y = normalised(x, layers.Conv2D(8, 3, **settings))
    if form == "behind_dropout":
        return layers.Dropout(0.5)(layers.Add()([layers.Dropout(0.5)(y), x]))
    return y if form == "plain" else layers.Add()([y, x])


def network(activation: str, forms: tuple[str, ...] = BRANCHES) -> keras.Model:
    """Return a network in which the activation follows every kind of branch."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(IMAGES.shape[1:])
    outputs = [layers.Flatten()(ACTIVATIONS[activation]()(branch(form, inputs, form))) for form in forms]
    return keras.Model(inputs, outputs[0] if len(outputs) == 1 else layers.Concatenate()(outputs))


def student_of(teacher: keras.Model) -> keras.Model:
    design = blocks.get("decoupled_r2")
    return swap_blocks(teacher, [task for task in tasks.enumerate_tasks(teacher, design) if not task.skip_reason])


def assert_same_in_graph_mode(model: keras.Model, expected: np.ndarray) -> None:
    model.compile(jit_compile=False)  # XLA has no such kernels
    outputs, expected = (
        each.reshape(len(IMAGES), -1, IMAGES[0].size) for each in (model.predict_on_batch(IMAGES), expected)
    )
    differences = np.abs(outputs - expected).max(axis=(0, 2)) / np.abs(expected).max(axis=(0, 2))
    assert (differences <= TOLERANCE).all(), differences  # behind each branch


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_folded_student_computes_in_graph_mode_what_the_student_computes_eagerly(activation: str) -> None:
    """One at a time: in a network of many branches, TensorFlow 2.21 does not use its wrong kernels."""
    student = student_of(network(activation, ("plain", "residual")))
    folded = inference_form.fold(student)
    assert any(layer.name.endswith("_filtered") for layer in folded.layers) == (activation in INEXACT)
    assert_same_in_graph_mode(folded, np.asarray(student(IMAGES, training=False)))


@pytest.mark.parametrize("activation", ["relu", "LeakyReLU(0.1)", "operation"])
def test_every_branch_computes_the_same_before_and_after_folding(activation: str) -> None:
    student = student_of(network(activation))
    expected = np.asarray(student(IMAGES, training=False))
    assert_same_in_graph_mode(student, expected)
    assert_same_in_graph_mode(inference_form.fold(student), expected)


@pytest.mark.parametrize(("activation", "exact"), [("relu", True), ("silu", True), ("LeakyReLU(0.1)", False)])
def test_sums_are_written_only_before_activations_that_are_computed_exactly(activation: str, exact: bool) -> None:
    assert set(folding.find_foldable(network(activation))) == (set(BRANCHES) if exact else {"plain"})
    folded = inference_form.fold(student_of(network(activation, ("plain",))))
    assert any(isinstance(layer, layers.Concatenate) for layer in folded.layers) == (not exact)


@pytest.mark.parametrize(("activation", "exact"), [("elu", True), ("mish", False)])
def test_a_sum_of_a_convolution_with_bias_is_recognised(activation: str, exact: bool) -> None:
    inputs = keras.Input(IMAGES.shape[1:])
    x = layers.Conv2D(8, 1, name="biased")(inputs) + layers.Conv2D(8, 1, use_bias=False)(inputs)
    model = keras.Model(inputs, ACTIVATIONS[activation]()(x))
    assert fusion.misfused(model) == (set() if exact else {"biased"})
