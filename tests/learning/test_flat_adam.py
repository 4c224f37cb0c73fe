"""Adam on all variables at once takes the same steps as Keras' Adam."""

import keras
import numpy as np
import pytest

from pbd.learning import loop
from pbd.learning.flat_adam import FlatAdam

pytestmark = pytest.mark.jax

SHAPES = ((3, 3, 4, 1), (8,), (), (1, 1, 4, 8), (1, 1, 3))
NAMES = ("depthwise_kernel", "bias", "scale", "kernel", "alpha")


def variables() -> list[keras.Variable]:
    draws = np.random.default_rng(1)
    return [variable(draws.normal(size=shape).astype("float32"), at) for at, shape in enumerate(SHAPES)]


def variable(value: np.ndarray, at: int) -> keras.Variable:
    return keras.Variable(value, name=NAMES[at])


def gradients(step: int) -> list[np.ndarray]:
    draws = np.random.default_rng(step)
    return [draws.normal(scale=0.1**step, size=shape).astype("float32") for shape in SHAPES]


def schedule() -> keras.optimizers.schedules.CosineDecay:
    return keras.optimizers.schedules.CosineDecay(0.01, 5)


def same(ours: list[keras.Variable], theirs: list[keras.Variable]) -> None:
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own.numpy(), other.numpy(), rtol=3e-7, atol=1e-8)


def test_steps_equal_those_of_keras() -> None:
    ours, theirs = variables(), variables()
    optimizers = FlatAdam(schedule()), keras.optimizers.Adam(schedule())
    for step in range(6):
        for optimizer, updated in zip(optimizers, (ours, theirs), strict=True):
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients(step)], updated)
    same(ours, theirs)
    assert int(optimizers[0].iterations.numpy()) == 6
    assert np.any(ours[0].numpy() != variables()[0].numpy())


def test_restricted_to_some_variables_it_goes_on_as_before() -> None:
    ours, theirs = variables(), variables()
    optimizer, reference = FlatAdam(schedule()), keras.optimizers.Adam(schedule())
    for step in range(4):
        given = [keras.ops.convert_to_tensor(g) for g in gradients(step)]
        if step < 2:
            optimizer.apply(given, ours)
            reference.apply(given, theirs)
        else:
            optimizer = optimizer.restricted_to([ours[3], ours[1]])
            optimizer.apply([given[3], given[1]], [ours[3], ours[1]])
            reference.apply([given[1], given[3]], [theirs[1], theirs[3]])
    same(ours, theirs)
    assert int(optimizer.iterations.numpy()) == 4


def with_zeros() -> list[keras.Variable]:
    """Return variables of which each has zeros, both signs, at every third element."""
    values = [each.numpy().copy() for each in variables()]
    for value in values:
        value.reshape(-1)[::3] = 0.0
        value.reshape(-1)[::6] = -0.0
    return [variable(value, at) for at, value in enumerate(values)]


def take_step(optimizer: keras.optimizers.Optimizer, given: list[np.ndarray], updated: list[keras.Variable]) -> None:
    """Take a step; JAX lets an optimiser that scales the loss compute new values only, and change no variable."""
    tensors = [keras.ops.convert_to_tensor(gradient) for gradient in given]
    if keras.backend.backend() != "jax":
        optimizer.apply(tensors, updated)
        return
    state = [variable.value for variable in optimizer.variables]
    values, state = optimizer.stateless_apply(state, tensors, [variable.value for variable in updated])
    for variable, value in zip([*updated, *optimizer.variables], [*values, *state], strict=True):
        variable.assign(value)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_zeros_of_kernels_stay_zero_and_everything_else_is_trained_as_before(precision: str) -> None:
    ours, theirs, start = with_zeros(), with_zeros(), with_zeros()
    kept = loop.adam(0.01, 5, ours, precision, keep_zeros=True, new=ours[:1])
    plain = loop.adam(0.01, 5, theirs, precision)
    scale = 1.0 if precision == "float32" else float(kept.dynamic_scale.numpy())
    for step in range(4):
        given = [scale * gradient for gradient in gradients(step)]
        take_step(kept, given, ours)
        take_step(plain, given, theirs)
    for own, other, first in zip(ours, theirs, start, strict=True):
        free = (first.numpy() != 0) | (not first.name.endswith("kernel") or own is ours[0])
        assert np.array_equal(own.numpy(), np.where(free, other.numpy(), 0))
        assert np.all(other.numpy() != 0)


def test_restricted_to_some_variables_the_same_zeros_stay() -> None:
    ours, start = with_zeros(), with_zeros()
    optimizer = FlatAdam(schedule(), keep_zeros=True)
    optimizer.build(ours)
    ours[0].assign(variables()[0])  # a zero is one of the start, not one of now
    restricted = optimizer.restricted_to([ours[3], ours[0]])
    given = gradients(0)
    restricted.apply([keras.ops.convert_to_tensor(given[index]) for index in (3, 0)], [ours[3], ours[0]])
    assert np.array_equal(ours[3].numpy() != 0, start[3].numpy() != 0)
    assert np.array_equal(ours[0].numpy() == variables()[0].numpy(), start[0].numpy() == 0)


def test_a_kernel_of_small_weights_takes_steps_that_are_smaller_by_as_much() -> None:
    signs = np.random.default_rng(2).choice([-1, 1], size=(3, 3, 4, 8)).astype("float32")
    pruned = signs.copy()
    pruned[..., 1:] = 0
    ours = [keras.Variable(value, name="kernel") for value in (signs, 0.005 * signs, 0.005 * pruned, 0 * signs)]
    ours.append(keras.Variable(0.005 * np.ones(8, "float32"), name="gamma"))
    before = [each.numpy() for each in ours]
    loop.adam(0.01, 100, ours, scale_steps=True).apply([keras.ops.ones(each.shape) for each in ours], ours)
    steps = [float(np.mean(old - new.numpy())) for old, new in zip(before, ours, strict=True)]
    np.testing.assert_allclose(steps, [0.01, 0.001, 0.001, 0.0001, 0.01], rtol=1e-3)


def test_scales_of_steps_are_those_of_the_start_also_if_restricted() -> None:
    ours, theirs = variables(), variables()
    for pair in zip(ours, theirs, strict=True):
        for each in pair:
            each.assign(0.01 * each)
    whole, part = (loop.adam(0.01, 5, given, scale_steps=True) for given in (ours, theirs))
    ours[3].assign(100 * ours[3])
    theirs[3].assign(100 * theirs[3])
    part = part.restricted_to([theirs[3], theirs[0]])
    given = [keras.ops.convert_to_tensor(gradient) for gradient in gradients(0)]
    whole.apply(given, ours)
    part.apply([given[3], given[0]], [theirs[3], theirs[0]])
    for at in (0, 3):
        np.testing.assert_array_equal(ours[at].numpy(), theirs[at].numpy())


@pytest.mark.parametrize("scale_steps", [False, True])
def test_a_single_variable_is_trained(scale_steps: bool) -> None:
    ours, theirs = (variable(np.full((3, 3, 4, 1), 0.5, "float32"), 3) for _ in range(2))
    for each, optimizer in (ours, FlatAdam(0.1, scale_steps=scale_steps)), (theirs, keras.optimizers.Adam(0.1)):
        optimizer.apply([keras.ops.ones(each.shape)], [each])
    same([ours], [theirs])
    assert not np.array_equal(ours.numpy(), np.full((3, 3, 4, 1), 0.5))


def test_a_variable_without_a_gradient_keeps_its_value() -> None:
    ours = variables()
    optimizer = FlatAdam(0.01)
    given = [keras.ops.convert_to_tensor(g) for g in gradients(0)]
    optimizer.apply([None, *given[1:]], ours)
    assert np.array_equal(ours[0].numpy(), variables()[0].numpy())
    assert not np.array_equal(ours[1].numpy(), variables()[1].numpy())


def test_constraints_hold_after_a_step() -> None:
    layers = [
        keras.layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(0.5), bias_constraint="non_neg")
        for _ in range(2)
    ]
    draws = np.random.default_rng(3)
    for layer in layers:
        layer.build((None, 5))
        layer.set_weights([draws.normal(size=(5, 3)), np.zeros(3)] if layer is layers[0] else layers[0].get_weights())
    for optimizer, layer in zip((FlatAdam(0.1), keras.optimizers.Adam(0.1)), layers, strict=True):
        for _ in range(3):
            given = [keras.ops.ones(variable.shape) for variable in layer.trainable_variables]
            optimizer.apply(given, layer.trainable_variables)
    same(layers[0].trainable_variables, layers[1].trainable_variables)
    assert np.linalg.norm(layers[0].get_weights()[0], axis=0).max() <= 0.5 + 1e-6


def test_without_any_gradient_it_raises() -> None:
    with pytest.raises(ValueError, match="no gradient"):
        FlatAdam(0.01).apply([None] * len(SHAPES), variables())


def test_unknown_variables_are_refused() -> None:
    optimizer = FlatAdam(0.01)
    optimizer.build(variables())
    with pytest.raises(ValueError, match="it was built on"):
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients(0)], variables())


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 1.0},
        {"clipvalue": 1.0},
        {"global_clipnorm": 1.0},
        {"weight_decay": 0.01},
        {"use_ema": True},
        {"loss_scale_factor": 8.0},
        {"gradient_accumulation_steps": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_unsupported_options_are_refused(options: dict[str, float]) -> None:
    """They are refused in the constructor, and in the next step if they are set later."""
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        FlatAdam(0.01, **options)
    optimizer = FlatAdam(0.01)
    setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients(0)], variables())


def test_it_is_rebuilt_from_its_config() -> None:
    optimizer = FlatAdam.from_config(FlatAdam(schedule()).get_config())
    assert float(optimizer.learning_rate) == pytest.approx(0.01)
    assert not optimizer.keep_zeros
    assert FlatAdam.from_config(FlatAdam(0.1, keep_zeros=True).get_config()).keep_zeros
    assert FlatAdam.from_config(FlatAdam(0.1, scale_steps=True).get_config()).scale_steps
