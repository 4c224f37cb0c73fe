"""Batch statistics of a student do not rest on batches of few images."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pbd.data import Dataset, WorkerShare
from tests.helpers.thread_collective import run_threads

if TYPE_CHECKING:
    from pbd.collective import Collective

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("eager")]


def test_what_lies_behind_a_normalisation_of_dense_outputs_varies_with_any_batch_size(dataset: Dataset) -> None:
    import keras

    from pbd.student.adaptation import adapt

    inputs = keras.Input(dataset.image_shape)
    x = keras.layers.Dense(4, name="hidden")(keras.layers.Flatten()(inputs))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))  # of one image alone, its outputs are constant
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(4)(x))
    teacher = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))

    def statistics(batch_size: int, workers: int) -> list[np.ndarray]:
        students: list[keras.Model] = [keras.models.clone_model(teacher) for _ in range(workers)]

        def adapted(collective: "Collective") -> None:
            student, share = students[collective.index], WorkerShare(collective.index, collective.size)
            student.set_weights(teacher.get_weights())
            data = dataclasses.replace(dataset, batch_size=batch_size, worker=share)
            adapt(student, teacher, {}, data, collective)

        run_threads(workers, adapted)
        return [np.asarray(each) for each in students[0].get_layer("norm").get_weights()[2:]]

    mean, variance = statistics(32, 1)
    assert (variance > 0).all()
    for batch_size, workers in ((1, 1), (1, 2)):
        for ours, theirs in zip(statistics(batch_size, workers), (mean, variance), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
