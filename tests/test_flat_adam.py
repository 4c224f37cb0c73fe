"""Adam over all variables at once takes the steps that Keras' own takes."""

import keras
import numpy as np
import pytest

from pbd.flat_adam import FlatAdam

SHAPES = ((3, 3, 4, 1), (8,), (), (1, 1, 4, 8))


def variables() -> list[keras.Variable]:
    draws = np.random.default_rng(1)
    return [keras.Variable(draws.normal(size=shape).astype("float32")) for shape in SHAPES]


def gradients(step: int) -> list[np.ndarray]:
    draws = np.random.default_rng(step)
    return [draws.normal(scale=0.1**step, size=shape).astype("float32") for shape in SHAPES]


def schedule() -> keras.optimizers.schedules.CosineDecay:
    return keras.optimizers.schedules.CosineDecay(0.01, 5)


def same(ours: list[keras.Variable], theirs: list[keras.Variable]) -> None:
    for own, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own.numpy(), other.numpy(), rtol=3e-7, atol=1e-8)


def test_steps_are_those_of_keras() -> None:
    ours, theirs = variables(), variables()
    optimizers = FlatAdam(schedule()), keras.optimizers.Adam(schedule())
    for step in range(6):
        for optimizer, updated in zip(optimizers, (ours, theirs), strict=True):
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients(step)], updated)
    same(ours, theirs)
    assert int(optimizers[0].iterations.numpy()) == 6
    assert np.any(ours[0].numpy() != variables()[0].numpy())


def test_what_leaves_stays_as_it_is_and_the_others_go_on() -> None:
    ours, theirs = variables(), variables()
    optimizers = FlatAdam(0.01), keras.optimizers.Adam(0.01)
    for optimizer, updated in zip(optimizers, (ours, theirs), strict=True):
        optimizer.build(updated)
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients(0)], updated)
        for step in (1, 2):
            left = [keras.ops.convert_to_tensor(g) for g in gradients(step)][1:]
            optimizer.apply(left, updated[1:])
    same(ours, theirs)


def test_no_gradient_is_no_step() -> None:
    ours = variables()
    optimizer = FlatAdam(0.01)
    given = [keras.ops.convert_to_tensor(g) for g in gradients(0)]
    optimizer.apply([None, *given[1:]], ours)
    assert np.array_equal(ours[0].numpy(), variables()[0].numpy())
    assert not np.array_equal(ours[1].numpy(), variables()[1].numpy())


def test_variables_that_it_was_not_built_on_are_refused() -> None:
    optimizer = FlatAdam(0.01)
    optimizer.build(variables())
    with pytest.raises(ValueError, match="it was built on"):
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients(0)], variables())
