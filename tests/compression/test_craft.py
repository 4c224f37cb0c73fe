"""Layers are replaced in stages: in the order that is said, each on the network so far, all others as they were."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.compression.context import Context
from pbd.compression.craft import Craft
from pbd.compression.progressive import Progressive
from pbd.compression.stages import InStages
from pbd.compression.step import StepResult
from pbd.config import StudentConfig, TrainingConfig
from pbd.costs import memory
from pbd.costs.memory import GIGABYTE, OVERHEAD, Footprint, TaskMemory
from pbd.errors import UsageError
from pbd.learning.distillation import DistillationModel
from pbd.learning.losses import make_loss
from pbd.networks.digest import model_digest
from pbd.run_dir.journal import Journal
from tests.helpers.palette import CLASSES, SHAPE, snapshot
from tests.helpers.step_workers import Stop, Threads, network_and_context

pytestmark = pytest.mark.usefixtures("eager")
layers = keras.layers
CONVOLUTIONS = ["conv0", "conv1", "conv2"]
SETTINGS: dict[str, Any] = {"block": "decoupled_r1", "layers": ("conv*",), "include_unprofitable": True}


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator, classes = np.random.default_rng(seed), np.arange(count) % CLASSES
    pixels = generator.normal(110.0, 30.0, (count, *SHAPE)) + 60.0 * np.eye(CLASSES)[classes][:, None, None, :]
    return np.clip(pixels, 0, 255).astype("uint8"), classes


def teacher() -> keras.Model:
    keras.utils.set_random_seed(4)
    inputs = keras.Input(SHAPE)
    x = layers.Rescaling(1 / 64, -2.0)(inputs)
    for name in CONVOLUTIONS:
        x = layers.Conv2D(6, 3, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(layers.GlobalAveragePooling2D()(x)))


@dataclass(frozen=True)
class Watched(Context):
    """Notes on which network blocks learn, and what its blocks and the trained network are."""

    taught: list[tuple[list[str], str]] = field(default_factory=list)
    """Of each stage, the layers and the digest of their teacher."""
    tuned: list[tuple[dict[str, Any], dict[str, Any], set[str], str]] = field(default_factory=list)
    """Of each training, all weights before and after, the layers that are trained, and the digest afterwards."""
    stop_at: int | None = None

    def train_blocks(self, model: keras.Model, tasks: Any, training: TrainingConfig, block_init: str) -> Any:
        if len(self.taught) == self.stop_at:
            raise Stop
        self.taught.append(([task.layer.name for task in tasks], model_digest(model)))
        return super().train_blocks(model, tasks, training, block_init)

    def fine_tune(self, model: keras.Model, *arguments: Any, **options: Any) -> Any:
        before = snapshot(model)
        state = super().fine_tune(model, *arguments, **options)
        self.tuned.append((before, snapshot(model), set(options["trainable"]), model_digest(model)))
        return state


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Context]:
    """The network and the context of a step."""
    folder = tmp_path_factory.mktemp("run")
    parts = {"train": images(64, 0), "val": images(16, 1), "test": images(8, 2)}
    arrays: dict[str, Any] = {
        f"{axis}_{part}": each for part, both in parts.items() for axis, each in zip("xy", both, strict=True)
    }
    np.savez(folder / "images.npz", **arrays)
    return network_and_context(teacher(), pbd.Data.load(str(folder / "images.npz"), batch_size=64), folder / "run")


def done(
    step: InStages, seen: tuple[keras.Model, Context], folder: Path, **changes: Any
) -> tuple[StepResult | None, Watched]:
    """Return what a step makes of the network, None if it was stopped; and what was noted."""
    model, context = seen
    folder.mkdir(exist_ok=True)
    changes = {"executor": Threads(1), **changes}
    parts = {name: getattr(context, name) for name in Context.__dataclass_fields__}
    watched = Watched(**{**parts, "journal": Journal(folder), **changes})
    watched.seeded()
    try:
        return step.apply(model, watched), watched
    except Stop:
        return None, watched


ORDERS = {
    ("top_down", 2): [["conv1", "conv2"], ["conv0"]],
    ("bottom_up", 1): [["conv0"], ["conv1"], ["conv2"]],
    ("parallel", 1): [CONVOLUTIONS],
}


def craft(order: str = "top_down", size: int = 1, **settings: Any) -> Craft:
    return Craft(order=order, layers_per_stage=size, epochs=1, tune_epochs=1, **(SETTINGS | settings))


TWO: dict[str, Any] = {"layers": ("conv0", "conv2")}
STEPS = {
    "craft": craft(**TWO, tune_learning_rate=0.03),
    "progressive": Progressive(epochs=1, learning_rate=0.03, **(SETTINGS | TWO)),
}


@pytest.mark.parametrize(("order", "size"), ORDERS)
def test_each_stage_learns_from_the_network_so_far(order: str, size: int, seen: Any, tmp_path: Path) -> None:
    step = replace(craft(order, size), epochs=0, tune_epochs=0)
    result, watched = done(step, seen, tmp_path)
    assert result is not None
    assert [names for names, _ in watched.taught] == ORDERS[order, size]
    so_far = [model_digest(seen[0]), *(digest for *_, digest in watched.tuned)]
    assert [digest for _, digest in watched.taught] == so_far[:-1]
    assert model_digest(result.model) == so_far[-1]
    assert [one["layers"] for one in result.details["stages"]] == ORDERS[order, size]
    assert result.details["replaced"] == 3
    assert not {layer.name for layer in result.model.layers} & set(CONVOLUTIONS)
    assert result.details["macs"][1] < result.details["macs"][0]


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Return the layers whose weights differ."""
    pairs = {name: zip(before[name], after[name], strict=True) for name in before}
    return {name for name, each in pairs.items() if any(not np.array_equal(one, two) for one, two in each)}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_stopped_between_stages_goes_on(name: str, seen: Any, tmp_path: Path) -> None:
    whole, watched = done(STEPS[name], seen, tmp_path / "whole")
    changes = [(moved(before, after), trained) for before, after, trained, _ in watched.tuned]
    assert all(changed in (trained, set()) for changed, trained in changes), "the other layers do not move"
    assert any(changed for changed, _ in changes)

    stopped, _ = done(STEPS[name], seen, tmp_path / "parts", stop_at=1)
    assert stopped is None
    resumed, watched = done(STEPS[name], seen, tmp_path / "parts")
    assert whole is not None
    assert resumed is not None
    assert len(watched.taught) == 1
    assert model_digest(resumed.model) == model_digest(whole.model)
    assert resumed.details == whole.details


@pytest.mark.parametrize(("name", "block"), [("craft", "decoupled_r1"), ("progressive", "two_layer")])
def test_two_workers_make_the_same_student(name: str, block: str, seen: Any, tmp_path: Path) -> None:
    step = replace(STEPS[name], block=block, layers=("conv1",))
    alone, _ = done(step, seen, tmp_path / "alone")
    together, _ = done(step, seen, tmp_path / "together", executor=Threads(2))
    assert alone is not None
    assert together is not None
    for expected, actual in zip(alone.model.get_weights(), together.model.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_blocks_that_are_still_random_are_tuned_as_such(seen: Any, tmp_path: Path) -> None:
    begins = list[Any]()

    def noted(*_: Any, **options: Any) -> None:
        begins.append(options["distillation"])
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watched, "fine_tune", noted)
        for epochs in (0, 1):
            step = replace(STEPS["craft"], epochs=epochs, block_init="noise", layers=("conv1",))
            done(step, seen, tmp_path / str(epochs))
    assert [each.from_random_weights for each in begins] == [True, False]


def test_the_loss_of_a_stage_is_the_local_one_plus_lambda_times_that_of_the_classes(seen: Any, tmp_path: Path) -> None:
    step, weight = Progressive(epochs=1, class_weight=0.25, **SETTINGS), 0.25
    inputs: dict[str, Any] = {}

    def noted(_: Watched, model: keras.Model, settings: StudentConfig, **options: Any) -> None:
        inputs["first"] = keras.models.clone_model(model), model.get_weights(), settings, options
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watched, "fine_tune", noted)
        done(replace(step, layers=("conv1",)), seen, tmp_path)
    student, weights, settings, options = inputs["first"]
    student.set_weights(weights)
    (feature,) = options["distillation"].features
    assert (feature.teacher, feature.factor) == (("conv1",), 1 / weight)
    batch, labels = images(16, 5)
    batch = batch.astype("float32")
    model = DistillationModel(student, options["teacher"], make_loss(settings), 16, (feature,))
    loss = float(model.compute_loss(y=labels, y_pred=model(batch)))

    def outputs(network: keras.Model, name: str) -> np.ndarray:
        part = keras.Model(network.inputs[0], network.get_layer(name).output)
        return keras.ops.convert_to_numpy(part(batch))

    local = np.mean((outputs(student, feature.student[0]) - outputs(options["teacher"], "conv1")) ** 2)
    logits = outputs(student, "logits")
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    of_classes = -logarithms[np.arange(16), labels].mean()
    assert weight * loss == pytest.approx(local + weight * of_classes, rel=1e-4)


def blocks_of_two_gigabytes(context: Any, tasks: Any) -> Footprint:
    each = TaskMemory(features=int(2 * GIGABYTE), activations=0, weights=0, moment=0)
    return Footprint(-OVERHEAD, {task.key: each for task in tasks}, free=int(100 * GIGABYTE))


def test_blocks_of_a_stage_are_trained_in_groups_that_fit(
    seen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "footprint", blocks_of_two_gigabytes)
    step = replace(craft(size=3), tune_epochs=0)
    whole, split = Threads(1), Threads(1)
    expected, _ = done(step, seen, tmp_path / "whole", executor=whole)
    limited = seen[1].config.replace(memory_limit=4.5)
    actual, _ = done(step, seen, tmp_path / "split", executor=split, config=limited)
    assert (whole.groups, split.groups) == ([CONVOLUTIONS], [CONVOLUTIONS[:2], CONVOLUTIONS[2:]])
    assert expected is not None
    assert actual is not None
    for one, two in zip(expected.model.get_weights(), actual.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_block_that_does_not_fit_is_refused_before_the_first_stage(
    seen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "footprint", blocks_of_two_gigabytes)
    executor, small = Threads(1), seen[1].config.replace(memory_limit=1.5)
    with pytest.raises(UsageError, match=r"1\.5 GB, but conv0 is predicted to need 2\.00 GB. Give a higher limit"):
        done(craft(), seen, tmp_path, executor=executor, config=small)
    assert executor.groups == []


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="top_down"):
        Craft(order="topdown")
    with pytest.raises(UsageError, match="two_layer"):
        Craft(block="two_layers")
    with pytest.raises(UsageError, match="class_weight must be positive"):
        Progressive(class_weight=0.0)
    with pytest.raises(UsageError, match="layers_per_stage must be at least 1"):
        Progressive(layers_per_stage=0)
