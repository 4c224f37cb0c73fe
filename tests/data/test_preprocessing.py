"""Images as the teacher takes them: preprocessed, resized, with its number of channels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pbd.data import load
from pbd.data.resizing import resized_bilinearly
from pbd.errors import BadInputError, UsageError
from tests.helpers.batches import same, taken
from tests.helpers.numbered_images import arrays, config, one_line

pytestmark = pytest.mark.usefixtures("few_threads")


@pytest.mark.parametrize("sides", [(8, 8), (9, 50), (64, 33), (32, 33)])
def test_images_are_resized_as_by_tensorflow(sides: tuple[int, int]) -> None:
    import tensorflow as tf

    images = np.random.default_rng(0).uniform(0, 255, (5, *sides, 2))
    expected = tf.image.resize(images, (32, 33), "bilinear").numpy()
    np.testing.assert_array_equal(resized_bilinearly(images, 32, 33), expected)


def test_preprocessing_matches_the_teachers_own(npz: Callable[..., Path]) -> None:
    from keras.applications import mobilenet_v2, vgg16

    path = npz()
    raw = taken(load(config(path), 0).batches("test"))[0][0]
    for name, function in (("vgg16", vgg16), ("mobilenet_v2", mobilenet_v2)):
        images = taken(load(config(path, preprocess=name), 0).batches("test"))[0][0]
        np.testing.assert_allclose(images, function.preprocess_input(raw.copy()), atol=1e-4)
    np.testing.assert_allclose(taken(load(config(path, preprocess="unit"), 0).batches("test"))[0][0], raw / 255)
    assert same([(raw, raw)], [(taken(load(config(path, preprocess="auto"), 0).batches("test"))[0][0], raw)])


def test_unknown_or_unfit_preprocessing_is_refused(npz: Callable[..., Path]) -> None:
    one_line(UsageError, "vgg16", dataset=npz(), preprocess="vgg_16")
    one_line(BadInputError, "1 channels", preprocess="vgg16")
    path = npz(**{name: (a / 255.0 if name[0] == "x" else a) for name, a in arrays().items()})
    one_line(BadInputError, "--preprocess none", dataset=path, preprocess="unit")
    assert load(config(path), 0).image_shape == (6, 6, 3)


def test_grayscale_is_repeated_for_a_colour_teacher() -> None:
    data = load(config(), 0, (32, None, 3))
    images = taken(data.batches("test", limit=4))[0][0]
    assert images.shape == (4, 32, 32, 3)
    assert np.array_equal(images[..., 0], images[..., 2])


def test_arrays_are_resized_only_when_asked(npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "64x64x3", "32x32x3", "--image-size 64", image_shape=(64, 64, 3))
    one_line(BadInputError, "64x64x3", "16x16x3", image_size=16, image_shape=(64, 64, 3))
    data = load(config(image_size=64), 0, (64, 64, 3))
    assert taken(data.training_batches(0, 1))[0][0].shape == (8, 64, 64, 3)


def test_colour_does_not_become_grayscale_by_itself(npz: Callable[..., Path]) -> None:
    one_line(BadInputError, "channels", dataset=npz(), image_shape=(6, 6, 1))
