"""What student and teacher see while the student is fine-tuned: the same pixels, whatever random layers they have."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from pbd.learning import ghost_batch_norm
from pbd.learning.batch_statistics import recalibrate_batch_norm
from pbd.learning.distillation import DistillationModel
from pbd.learning.losses import kd_mse
from pbd.networks import graph, variants
from pbd.records import BlockKey

layers = keras.layers
ON_PIXELS: dict[str, Callable[[], keras.Layer]] = {
    "flip": lambda: layers.RandomFlip(seed=1),
    "translation": lambda: layers.RandomTranslation(0.3, 0.3, seed=1),
    "rotation": lambda: layers.RandomRotation(0.3, seed=1),
    "contrast": lambda: layers.RandomContrast(0.9, value_range=(0, 1), seed=1),
    "several": lambda: layers.RandAugment(value_range=(0, 1), seed=1),
    "noise": lambda: layers.GaussianNoise(0.5, seed=1),
    "dropout": lambda: layers.Dropout(0.5, seed=1),
}
BEHIND_WEIGHTS: dict[str, Callable[[], keras.Layer]] = {
    "dropout": lambda: layers.Dropout(0.5, seed=1),
    "spatial dropout": lambda: layers.SpatialDropout2D(0.5, seed=1),
    "gaussian dropout": lambda: layers.GaussianDropout(0.5, seed=1),
    "noise": lambda: layers.GaussianNoise(0.5, seed=1),
    "alpha dropout": lambda: layers.AlphaDropout(0.5, seed=1),
}


@pytest.fixture(autouse=True)
def _eager(eager: None) -> None:
    """Trace nothing."""


def network(pixels: keras.Layer | None = None, features: keras.Layer | None = None) -> keras.Model:
    """Return a flat network with a random layer on its pixels, behind the first weights, or both."""
    keras.utils.set_random_seed(3)
    inputs = x = keras.Input((8, 8, 3))
    x = layers.Normalization(mean=0.5, variance=0.1)(layers.Rescaling(1 / 255)(x))
    x = pixels(x) if pixels else x
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(x))
    x = features(x) if features else x
    return graph.flatten(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")


def both(model: keras.Model, images: np.ndarray, training: bool) -> list[np.ndarray]:
    """Return the logits of a model as a student, and as the teacher of that student."""
    frozen = graph.flatten(model)
    for normalisation in ghost_batch_norm.normalisations(model):
        normalisation.trainable = False  # so that training mode changes nothing but what is random
    pair = DistillationModel(model, frozen, kd_mse, 4)
    return [np.asarray(logits) for logits in pair(keras.ops.convert_to_tensor(images), training=training)]


@pytest.mark.parametrize("name", ON_PIXELS)
def test_both_see_the_same_augmented_pixels(name: str, images: np.ndarray) -> None:
    model = network(pixels=ON_PIXELS[name]())
    plain = np.asarray(model(images, training=False))
    for logits in both(model, images, training=False):
        np.testing.assert_allclose(logits, plain, rtol=1e-5)
    student, teacher = both(model, images, training=True)
    np.testing.assert_allclose(student, teacher, rtol=1e-5)
    assert np.abs(student - plain).max() > 1e-3, "the images are augmented"


@pytest.mark.parametrize("name", BEHIND_WEIGHTS)
def test_noise_behind_weights_acts_in_the_student_only(name: str, images: np.ndarray) -> None:
    model = network(features=BEHIND_WEIGHTS[name]())
    plain = np.asarray(model(images, training=False))
    student, teacher = both(model, images, training=True)
    np.testing.assert_allclose(teacher, plain, rtol=1e-5)
    assert np.abs(student - plain).max() > 1e-3


def test_a_random_layer_beside_the_raw_image(images: np.ndarray) -> None:
    """The image reaches weights on two ways, of which one is augmented."""
    inputs = keras.Input((8, 8, 3))
    flipped = layers.RandomFlip(seed=1)(inputs)
    x = layers.Concatenate()([layers.Conv2D(4, 3)(flipped), layers.Conv2D(4, 3)(inputs)])
    model = graph.flatten(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    student, teacher = both(model, images, training=True)
    np.testing.assert_allclose(student, teacher, rtol=1e-4)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_statistics_and_scores_are_of_images_that_are_not_augmented(name: str, images: np.ndarray) -> None:
    model, bare = network(pixels=ON_PIXELS[name]()), network()
    for one in (model, bare):
        recalibrate_batch_norm(one, [images])
    np.testing.assert_allclose(*(one.get_layer("bn").moving_mean for one in (model, bare)), rtol=1e-5)
    inputs = keras.Input((8, 8, 3))
    block = keras.Model(inputs, layers.Conv2D(4, 3, kernel_initializer="zeros")(inputs))
    scores = variants.run(model, {BlockKey("conv", "zeros"): block}, images)
    np.testing.assert_allclose(scores[0], bare(images, training=False), rtol=1e-4)


def test_a_batch_is_not_split_for_layers_that_draw_inside_other_layers() -> None:
    class Wrapped(layers.Layer):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.inner = [layers.Dropout(0.5)]

        def call(self, x: Any, training: bool = False) -> Any:
            return self.inner[0](x, training=training)

    inputs = keras.Input((4,))
    assert ghost_batch_norm.split_unit(keras.Model(inputs, Wrapped()(inputs)), 64) == 64
    assert ghost_batch_norm.split_unit(keras.Model(inputs, layers.Dense(2)(inputs)), 64) == 1
