"""Several workers train one model as one worker would, each on its part of every batch."""

from typing import Any

import keras
import numpy as np
import pytest

from pbd.collective import SINGLE, Collective
from pbd.data import Dataset, WorkerShare
from pbd.learning import loop
from pbd.learning.flat_adam import FlatAdam
from tests.helpers.palette import CLASSES, SHAPE, make_dataset
from tests.helpers.thread_collective import run_threads

layers = keras.layers
EPOCHS = 3


class Watch(keras.callbacks.Callback):
    """Records the losses, and stops training after a number of steps, or at the first loss below a limit."""

    def __init__(self, most: int = 10**6, limit: float = -np.inf) -> None:
        super().__init__()
        self.losses: list[float] = []
        self._most, self._limit = most, limit

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.losses.append(float((logs or {})["loss"]))
        self.model.stop_training = len(self.losses) == self._most or self.losses[-1] < self._limit


def network() -> keras.Model:
    keras.utils.set_random_seed(7)
    inputs = keras.Input(SHAPE)
    frozen = layers.Conv2D(4, 3, name="frozen")(inputs)
    x = layers.Conv2D(6, 3, activation="tanh")(frozen)
    model = keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))
    model.get_layer("frozen").trainable = False
    return Classifier(model)


class Classifier(keras.Model):
    """Cross entropy, and a metric of its own."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self.network = network
        self.traced = 0
        self.largest = keras.metrics.Mean(name="largest")

    def call(self, images: Any) -> Any:
        self.traced += 1
        return self.network(images)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        self.largest.update_state(keras.ops.mean(keras.ops.max(y_pred, axis=-1)))
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True))


def trainer(model: keras.Model, data: Dataset, collective: Collective) -> loop.Trainer:
    optimizer = loop.adam(0.01, EPOCHS * data.steps_per_epoch, model.trainable_variables)
    return loop.trainer(model, optimizer, data, collective)


def fit(model: keras.Model, data: Dataset, collective: Collective, watch: Watch) -> dict[str, list[float]]:
    trains = trainer(model, data, collective)
    first = trains.fit(0, 1, [watch])
    later = trains.fit(1, EPOCHS, [watch])
    return {name: first[name] + later[name] for name in first}


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[FlatAdam]:
    """The optimisers whose step was traced, in order."""
    traced, update = [], FlatAdam._update_moments
    monkeypatch.setattr(FlatAdam, "_update_moments", lambda self, g: traced.append(self) or update(self, g))
    return traced


def test_several_workers_train_as_one_worker_does(updates: list[FlatAdam]) -> None:
    """Three workers cannot share batches of 16 images evenly; each step is traced once."""
    size = 3
    data, whole, alone = make_dataset(), network(), Watch()
    expected = fit(whole, data, SINGLE, alone)
    models, watches = [network() for _ in range(size)], [Watch() for _ in range(size)]

    def work(collective: Collective) -> dict[str, list[float]]:
        return fit(
            models[collective.index],
            data.shared(WorkerShare(collective.index, size)),
            collective,
            watches[collective.index],
        )

    for history in run_threads(size, work):
        assert history.keys() == expected.keys() == {"loss", "largest"}
        for name, values in expected.items():
            assert history[name] == pytest.approx(values, rel=1e-4)
    start = network().get_weights()
    for model, watch in zip(models, watches, strict=True):
        assert watch.losses == pytest.approx(alone.losses, rel=1e-4)
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), models[0].get_weights(), strict=True))
        for own, other, before in zip(model.get_weights(), whole.get_weights(), start, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-4 * max(1e-3, np.abs(other - before).max()))
    assert expected["loss"][-1] < expected["loss"][0]
    if keras.backend.backend() == "tensorflow":  # on JAX Keras traces a step twice, in torch not
        assert [model.traced for model in (whole, *models)] == [1] * (1 + size)
        assert len(updates) == len(set(map(id, updates))) == 1 + size


def test_a_step_on_labels_is_traced_once(updates: list[FlatAdam]) -> None:
    history = loop.fit_on_labels(network().network, make_dataset(), EPOCHS, 0.01, lambda event: None, "teacher")
    assert len(updates) == 1
    assert len(history) == EPOCHS
    assert history[0].keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}


@pytest.mark.usefixtures("eager")
def test_a_loss_that_stops_training_stops_it_on_all_workers_at_the_same_step() -> None:
    data, alone = make_dataset(), Watch()
    trainer(network(), data, SINGLE).fit(0, EPOCHS, [alone])
    limit = (alone.losses[1] + alone.losses[2]) / 2  # within an epoch, where losses of single workers differ from it
    models, watches = [network(), network()], [Watch(limit=limit), Watch(limit=limit)]

    def work(collective: Collective) -> None:
        mine = data.shared(WorkerShare(collective.index, 2))
        trains = trainer(models[collective.index], mine, collective)
        trains.fit(0, EPOCHS, [watches[collective.index]])

    run_threads(2, work)
    assert [len(watch.losses) for watch in watches] == [3, 3]


@pytest.mark.usefixtures("eager")
def test_all_workers_see_a_loss_that_is_not_finite() -> None:
    models, watches = [network(), network()], [Watch(), Watch()]
    poisoned = make_dataset()
    poisoned.train.images.array[: len(poisoned.train) // 2] = np.nan

    def work(collective: Collective) -> None:
        mine = poisoned.shared(WorkerShare(collective.index, 2))
        trains = trainer(models[collective.index], mine, collective)
        trains.fit(0, 1, [watches[collective.index]])

    run_threads(2, work)
    np.testing.assert_array_equal(watches[0].losses, watches[1].losses)
    assert np.isnan(watches[0].losses[-1])
