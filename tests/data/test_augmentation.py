"""Augmentation: what it does to images, and that NumPy alone computes what TensorFlow's operations give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pbd.config import AUGMENTATIONS
from pbd.data import load
from pbd.data.augmentation import OPERATIONS, affine_maps, interpolates
from pbd.data.feeds.sampling import augmented
from pbd.data.random_numbers import uniform
from tests.helpers.batches import same, taken
from tests.helpers.numbered_images import config

SIDES = [(32, 32), (17, 40), (8, 3), (1, 5), (2, 40)]
ROUNDING = 1e-3 * 255
NAMES = [name for name in AUGMENTATIONS if OPERATIONS[name]]


def images_of(height: int, width: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, height, width, 3)).astype(dtype)


@pytest.mark.parametrize("seeds", [(3, 0), (2**32 - 1, 2**33 + 5), (0, 1)])
def test_random_numbers_are_those_of_tensorflow(seeds: tuple[int, int]) -> None:
    import tensorflow as tf

    expected = tf.random.stateless_uniform([77, 4], tf.constant(seeds, tf.int64), alg="philox").numpy()
    np.testing.assert_array_equal(uniform(*seeds, 77), expected)
    np.testing.assert_array_equal(uniform(*seeds, 72, first=5), expected[5:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sides", SIDES)
def test_images_are_sampled_as_by_tensorflow(name: str, sides: tuple[int, int]) -> None:
    import tensorflow as tf

    from pbd.data.feeds import tf_augment

    images = images_of(*sides)
    expected = tf_augment.augmented(tf.constant(images), name, (7, 3)).numpy()
    maps = affine_maps(name, len(images), *sides, seed=7, step=3)
    result = augmented(np, images, maps, interpolates(name))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING if interpolates(name) else 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_jax_samples_as_numpy_does(name: str, dtype: str) -> None:
    jax = pytest.importorskip("jax")
    images = images_of(17, 40, dtype)
    maps = affine_maps(name, len(images), 17, 40, seed=7, step=3)
    result = jax.jit(augmented, static_argnums=(0, 3))(jax.numpy, images, maps, interpolates(name))
    expected = augmented(np, images, maps, interpolates(name))
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING if interpolates(name) else 0)


@pytest.mark.fast
def test_every_augmentation_has_operations() -> None:
    assert list(OPERATIONS) == list(AUGMENTATIONS)
    assert affine_maps("none", 2, 5, 7, seed=1, step=2).tolist() == [[1, 0, 0, 0, 1, 0]] * 2


@pytest.mark.fast
@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_a_batch_has_the_maps_of_the_batch(name: str) -> None:
    whole = affine_maps(name, 10, 6, 9, seed=3, step=4)
    assert (whole.shape, whole.dtype) == ((10, 6), np.float32)
    np.testing.assert_array_equal(affine_maps(name, 4, 6, 9, seed=3, step=4, first=5), whole[5:9])
    assert not np.array_equal(whole, affine_maps(name, 10, 6, 9, seed=3, step=5))


@pytest.mark.fast
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_flips_and_crops_move_pixels(dtype: str) -> None:
    images = images_of(16, 24, dtype)
    padded = np.pad(images, [(0, 0), (2, 2), (3, 3), (0, 0)], mode="symmetric")
    moved = augmented(np, images, affine_maps("flip_crop", len(images), 16, 24, seed=0, step=1), bilinear=False)
    assert moved.dtype == images.dtype
    for image, whole in zip(moved, padded, strict=True):
        places = [whole[row : row + 16, column : column + 24] for row in range(5) for column in range(7)]
        assert any(np.array_equal(image, place) or np.array_equal(image[:, ::-1], place) for place in places)


@pytest.mark.usefixtures("few_threads")
@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_augmentation_changes_training_images_reproducibly(npz: Callable[..., Path], name: str) -> None:
    path = npz()
    plain, data = load(config(path), 0), load(config(path, augment=name), 0)
    before, after = taken(plain.training_batches(0, 1)), taken(data.training_batches(0, 1))
    assert same(after, taken(data.training_batches(0, 1)))
    changed = [np.any(a != b) for (x, _), (z, _) in zip(before, after, strict=True) for a, b in zip(x, z, strict=True)]
    assert 0.2 < np.mean(changed) <= 1
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(before, after, strict=True))
    assert same(taken(plain.batches("validation")), taken(data.batches("validation")))


@pytest.mark.usefixtures("few_threads")
def test_a_flip_mirrors_and_a_crop_moves_whole_pixels() -> None:
    import tensorflow as tf

    from pbd.data.feeds.tf_augment import augmented

    images = np.random.default_rng(0).uniform(0, 255, (64, 16, 12, 3)).astype(np.float32)
    flipped = augmented(tf.constant(images), "flip", (1, 2)).numpy()
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)]
    assert 16 < sum(mirrored) < 48
    assert all(m or np.array_equal(a, b) for m, a, b in zip(mirrored, flipped, images, strict=True))
    padded = np.pad(images, ((0, 0), (2, 2), (1, 1), (0, 0)), "symmetric")
    places = set()
    for crop, whole in zip(augmented(tf.constant(images), "crop", (1, 2)).numpy(), padded, strict=True):
        (place,) = [(i, j) for i in range(5) for j in range(3) if np.array_equal(crop, whole[i : i + 16, j : j + 12])]
        places.add(place)
    assert len(places) > 10


@pytest.mark.usefixtures("few_threads")
def test_a_rotation_of_a_disc_leaves_it_where_it_is() -> None:
    import tensorflow as tf

    from pbd.data.feeds.tf_augment import augmented

    y, x = np.mgrid[:33, :33] - 16.0
    disc = np.broadcast_to((100.0 * np.exp(-(x**2 + y**2) / 72))[..., np.newaxis], (8, 33, 33, 1)).astype(np.float32)
    assert np.abs(augmented(tf.constant(disc), "rotate", (0, 0)).numpy() - disc).max() < 2.0
