"""Steps on JAX: compiled together or one by one, they train what `keras.Model.fit` trains."""

from typing import Any

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("steps are scanned on the JAX backend", allow_module_level=True)

from pbd.data.feeds import device_images
from pbd.learning import scanned_steps
from pbd.learning.flat_adam import FlatAdam
from pbd.learning.loop import _KerasFit
from pbd.learning.scanned_steps import ScannedSteps
from tests.helpers.palette import make_dataset
from tests.learning.test_data_parallel import Watch, network

pytestmark = pytest.mark.jax

EPOCHS = 3


def trained(
    kind: Any, most_steps: int = 10**6, first_data_epoch: int = 0
) -> tuple[list[np.ndarray], dict[str, Any], Watch]:
    """Train a network; return its variables, its history and what a callback saw."""
    model, watch = network(), Watch(most_steps)
    data = make_dataset()
    trainer = kind(model, built_optimizer(model), data)
    history = trainer.fit(0, EPOCHS, [watch], first_data_epoch)
    return [keras.ops.convert_to_numpy(variable) for variable in model.variables], history, watch


def built_optimizer(model: keras.Model) -> FlatAdam:
    optimizer = FlatAdam(keras.optimizers.schedules.CosineDecay(0.01, 50))
    optimizer.build(model.trainable_variables)
    return optimizer


@pytest.fixture
def on_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanned_steps.devices, "has_accelerator", lambda: True)


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for first, second in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, values in one[1].items():
        np.testing.assert_allclose(values, other[1][name], rtol=1e-4)


def test_one_by_one_on_a_cpu() -> None:
    assert_same(trained(ScannedSteps), trained(_KerasFit))


@pytest.mark.usefixtures("on_accelerator")
@pytest.mark.parametrize("most", [512, 3])
def test_an_epoch_in_few_calls(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanned_steps, "MOST_STEPS", most)
    result, steps = trained(ScannedSteps), make_dataset().steps_per_epoch
    assert_same(result, trained(_KerasFit))
    assert len(result[2].losses) == EPOCHS * -(-steps // most)


@pytest.mark.usefixtures("on_accelerator")
def test_images_that_do_not_fit_are_sent_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_images, "MOST_OF_FREE_MEMORY", 0.0)
    assert_same(trained(ScannedSteps), trained(_KerasFit))


@pytest.mark.usefixtures("on_accelerator")
def test_the_epoch_of_the_data_may_differ() -> None:
    shifted, same = trained(ScannedSteps, first_data_epoch=2), trained(ScannedSteps)
    assert shifted[1] != same[1]
    assert_same(shifted, trained(_KerasFit, first_data_epoch=2))


@pytest.mark.usefixtures("on_accelerator")
def test_a_callback_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanned_steps, "MOST_STEPS", 1)
    stopped, whole = trained(ScannedSteps, most_steps=2), trained(ScannedSteps)
    assert len(stopped[2].losses) == 2
    assert stopped[2].losses == pytest.approx(whole[2].losses[:2])
