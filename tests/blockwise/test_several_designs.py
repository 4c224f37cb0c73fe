"""Several designs for a layer, and blocks without weights, in one group: each block is trained as it would be alone."""

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks, data
from pbd.blockwise.context import TrainingContext, load_teacher
from pbd.blockwise.tasks import enumerate_tasks
from pbd.blockwise.train_group import train_group
from pbd.config import RunConfig
from pbd.records import BlockKey, BlockResult, BlockTask, TaskGroup
from pbd.run_dir.journal import Journal

DESIGNS = {name: blocks.get(name) for name in ("two_layer", "decoupled_r1", "decoupled_r2", "merge", "drop")}
L = keras.layers

pytestmark = pytest.mark.usefixtures("eager_module")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A context for training on a few digits, and the tasks of all designs."""

    base: TrainingContext
    tasks: dict[BlockKey, BlockTask]

    def train(self, keys: Sequence[tuple[str, str]], epochs: int) -> dict[BlockKey, BlockResult]:
        """Train these tasks as a group of a new run."""
        journal = Journal.create(self.base.journal.path.parent / uuid.uuid4().hex, {})
        training = dataclasses.replace(self.base.training, epochs=epochs)
        context = dataclasses.replace(self.base, journal=journal, training=training)
        group = TaskGroup(tuple(self.tasks[BlockKey(*key)] for key in keys))
        results = {result.key: result for result in train_group(context, group, lambda event: None)}
        assert journal.committed_blocks().keys() == results.keys()
        return results


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((32, 32, 1))
    x = L.Conv2D(12, 3, strides=4, padding="same", activation="relu", name="first")(L.Rescaling(1 / 255)(inputs))
    y = L.Conv2D(12, 3, padding="same", activation="relu", name="second")(x)
    y = L.Conv2D(12, 3, padding="same", name="third")(y)
    outputs = L.Dense(10)(L.GlobalAveragePooling2D()(L.Add(name="sum")([x, y])))
    folder = tmp_path_factory.mktemp("designs")
    journal = Journal.create(folder / "run", {})
    path = str(folder / "run" / "teacher.keras")
    keras.Model(inputs, outputs).save(path)
    config = RunConfig.of(train_limit=64, validation_fraction=0.034, batch_size=32, patience=0)
    shape = data.load(config.data, 0).image_shape
    base = TrainingContext(path, config.data, shape, config.training, DESIGNS, "fitted", 0, journal)
    tasks = enumerate_tasks(load_teacher(path), *DESIGNS.values(), include_unprofitable=True)
    return Setting(base, {task.key: task for task in tasks})


@pytest.mark.parametrize("epochs", [0, 1])
def test_designs_in_one_group_are_trained_as_each_alone(setting: Setting, epochs: int) -> None:
    designs = ["two_layer", "decoupled_r2"]
    together = setting.train([(layer, one) for layer in ("second", "third") for one in designs], epochs)
    assert len(together) == 4
    for design in designs:
        alone = setting.train([(layer, design) for layer in ("second", "third")], epochs)
        for key, result in alone.items():
            assert result.status == together[key].status == "trained", (result.error, together[key].error)
            assert result.weights.keys() == together[key].weights.keys()
            for name, weight in result.weights.items():
                np.testing.assert_allclose(together[key].weights[name], weight, rtol=0, atol=1e-5, err_msg=name)
            assert together[key].nmse == pytest.approx(result.nmse, rel=1e-3)
            assert len(result.loss_history) == len(together[key].loss_history) == epochs


@pytest.mark.parametrize("others", [[], [("sum", "merge"), ("second", "decoupled_r1")]], ids=["alone", "with others"])
def test_a_block_without_weights_is_scored_and_not_trained(setting: Setting, others: list[Any]) -> None:
    drop = BlockKey("sum", "drop")
    results = setting.train([drop, *others], epochs=1)
    assert len(results) == 1 + len(others)
    for key, result in results.items():
        assert result.status == "trained", result.error
        assert result.nmse > 0
        assert 0 <= result.val_accuracy <= 1
        assert (len(result.loss_history), len(result.nmse_history)) == ((0, 0) if key == drop else (1, 2))
    assert results[drop].weights == {}


def test_without_epochs_nothing_is_traced_for_training(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd.blockwise import distiller, train_group

    def fail(*_: Any) -> None:
        raise AssertionError("traced")

    monkeypatch.setattr(distiller, "TracedGroup", fail)
    monkeypatch.setattr(train_group, "target_variances", fail)
    (result,) = setting.train([("second", "decoupled_r1")], epochs=0).values()
    assert (result.status, result.loss_history, result.nmse_history) == ("trained", (), ())
