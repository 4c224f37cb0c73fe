"""From accepted blocks to a student: nothing else changes, statistics are the true ones, the best epoch stays."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks, evaluation, graph, student
from pbd.config import RunConfig, StudentConfig
from pbd.datasets import Dataset, IndexedSplit
from pbd.datasets.images import ArrayImages
from pbd.progress import NullProgress
from pbd.records import BlockResult, LayerTask

layers = keras.layers
BLOCK = "two_layer"
SHAPE = (8, 8, 3)
CLASSES = 3


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Images of three colours: a small network learns them in a few steps."""
    generator = np.random.default_rng(0)

    def split(count: int) -> IndexedSplit:
        labels = np.arange(count, dtype="int32") % CLASSES
        pixels = generator.normal(size=(count, *SHAPE)) + 2.0 * np.eye(CLASSES)[labels][:, None, None, :]
        return IndexedSplit.whole(ArrayImages(pixels.astype("float32"), SHAPE), labels)

    return Dataset("colours", split(96), split(48), split(48), CLASSES, SHAPE, 16, "none", "none", seed=0)


@pytest.fixture
def teacher() -> keras.Model:
    keras.utils.set_random_seed(2)
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, padding="same", name="stem", activation="relu")(inputs)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, padding="same", name="a")(x))
    y = layers.Conv2D(8, 3, padding="same", name="b", activation="relu")(layers.ReLU()(x))
    x = layers.Conv2D(12, 1, name="point")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x), name="teacher")


@pytest.fixture
def tasks(teacher: keras.Model) -> tuple[LayerTask, ...]:
    return graph.enumerate_tasks(teacher, BLOCK, include_unprofitable=True)


@pytest.fixture
def accepted(tasks: tuple[LayerTask, ...]) -> dict[str, BlockResult]:
    """Blocks for `a` and `b` with random weights; the stem's was not accepted."""
    generator = np.random.default_rng(5)
    results = {}
    for task in tasks[1:]:
        weights = blocks.get_weights(blocks.build_block(BLOCK, task, seed=0))
        moved = {key: value * generator.uniform(0.5, 1.5, value.shape) for key, value in weights.items()}
        moved = {key: value.astype("float32") for key, value in moved.items()}
        results[task.layer_name] = BlockResult(task.layer_name, "trained", BLOCK, weights=moved, val_accuracy=1.0)
    return results


@pytest.fixture
def assembled(teacher: keras.Model, tasks: tuple[LayerTask, ...], accepted: dict[str, BlockResult]) -> keras.Model:
    return student.assemble(teacher, tasks, accepted, BLOCK)


def batches(count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(3).normal(1.0, 2.0, (count, 10, *SHAPE)).astype("float32"))


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))


def snapshot(model: keras.Model) -> dict[str, list[np.ndarray]]:
    return {layer.name: [weight.copy() for weight in layer.get_weights()] for layer in model.layers if layer.weights}


def moved_layers(before: dict[str, list[np.ndarray]], model: keras.Model) -> set[str]:
    after = snapshot(model)
    return {n for n in before if any(not np.array_equal(x, y) for x, y in zip(before[n], after[n], strict=True))}


def block_layers(accepted: dict[str, BlockResult]) -> set[str]:
    return {key.split("/")[0] for result in accepted.values() for key in result.weights}


def ignore(_: Any) -> None:
    """Take a progress event and do nothing."""


def test_an_assembled_block_equals_the_teacher_with_it_swapped(
    teacher: keras.Model, tasks: tuple[LayerTask, ...], accepted: dict[str, BlockResult]
) -> None:
    images = batches()[0]
    for task in tasks[1:]:
        name = task.layer_name
        block = blocks.build_block(BLOCK, task, seed=1)
        blocks.set_weights(block, accepted[name].weights)
        swapped = keras.Model(teacher.inputs, graph.swap_each(teacher, {name: block})[name])
        small = student.assemble(teacher, tasks, {name: accepted[name]}, BLOCK)
        np.testing.assert_allclose(predict(small, images), predict(swapped, images), rtol=1e-5, atol=1e-6)


def test_only_accepted_layers_are_replaced(
    teacher: keras.Model, assembled: keras.Model, accepted: dict[str, BlockResult]
) -> None:
    names = {layer.name for layer in assembled.layers}
    assert not {"a", "b"} & names
    assert block_layers(accepted) <= names
    for name in ("stem", "norm", "point", "logits"):
        for ours, theirs in zip(
            assembled.get_layer(name).get_weights(), teacher.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_without_accepted_blocks_the_student_is_the_teacher(teacher: keras.Model, dataset: Dataset) -> None:
    tasks = graph.enumerate_tasks(teacher, BLOCK, include_unprofitable=True)
    copy = student.assemble(teacher, tasks, {}, BLOCK)
    np.testing.assert_array_equal(predict(copy, batches()[0]), predict(teacher, batches()[0]))
    student.reestimate_statistics(copy, {}, batches())
    assert student.fine_tune(copy, dataset, StudentConfig(fine_tune_epochs=2), 0.5, {}, ignore) == ()
    np.testing.assert_array_equal(predict(copy, batches()[0]), predict(teacher, batches()[0]))


def test_statistics_are_those_of_the_inputs_on_these_batches(
    assembled: keras.Model, accepted: dict[str, BlockResult]
) -> None:
    before, momentum = snapshot(assembled), assembled.get_layer("a_pbd_bn1").momentum
    student.reestimate_statistics(assembled, accepted, batches())
    reached = keras.Model(assembled.inputs, assembled.get_layer("a_pbd_bn1").input)
    inputs = np.stack([predict(reached, batch) for batch in batches()])
    norm = assembled.get_layer("a_pbd_bn1")
    np.testing.assert_allclose(norm.moving_mean, inputs.mean(axis=(0, 1, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, inputs.var(axis=(1, 2, 3)).mean(axis=0), rtol=1e-4)
    assert norm.momentum == momentum
    assert moved_layers(before, assembled) == {"a_pbd_bn1", "a_pbd_bn2", "b_pbd_bn1", "b_pbd_bn2"}
    for name in ("a_pbd_bn1", "b_pbd_bn2"):
        for old, new in zip(before[name][:2], assembled.get_layer(name).get_weights()[:2], strict=True):
            np.testing.assert_array_equal(old, new)


def test_statistics_of_one_batch_forget_the_old_ones(assembled: keras.Model, accepted: dict[str, BlockResult]) -> None:
    """On that batch, inference then computes what training mode does, through every block."""
    (batch,) = batches(1)
    student.reestimate_statistics(assembled, accepted, [batch])
    normalisations = {name for name in block_layers(accepted) if "_bn" in name}
    expected = graph.run(assembled, keras.ops.convert_to_tensor(batch), training=normalisations)
    student.reestimate_statistics(assembled, accepted, [batch])
    np.testing.assert_allclose(predict(assembled, batch), expected, rtol=1e-3, atol=1e-3)


SCOPES: dict[str, Callable[[set[str], set[str]], set[str]]] = {
    "blocks": lambda ours, every: ours,
    "all": lambda ours, every: every,
    "no_1x1_dense": lambda ours, every: every - {"point", "logits"},
}


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_tunes_exactly_what_it_names(
    scope: str, assembled: keras.Model, accepted: dict[str, BlockResult], dataset: Dataset
) -> None:
    assembled.get_layer("stem").trainable = False
    trainable = {layer.name: layer.trainable for layer in assembled.layers}
    before = snapshot(assembled)
    config = StudentConfig(fine_tune_epochs=1, fine_tune_scope=scope, fine_tune_learning_rate=0.01)
    student.fine_tune(assembled, dataset, config, 0.0, accepted, ignore)
    assert moved_layers(before, assembled) == SCOPES[scope](block_layers(accepted), set(before))
    assert {layer.name: layer.trainable for layer in assembled.layers} == trainable


def test_no_epochs_leave_the_student_as_it_is(
    assembled: keras.Model, accepted: dict[str, BlockResult], dataset: Dataset
) -> None:
    before = snapshot(assembled)
    assert student.fine_tune(assembled, dataset, StudentConfig(fine_tune_epochs=0), 0.25, accepted, ignore) == ()
    assert moved_layers(before, assembled) == set()


def test_fine_tuning_learns_and_then_never_falls_below_what_it_had(
    assembled: keras.Model, accepted: dict[str, BlockResult], dataset: Dataset
) -> None:
    events: list[Any] = []
    student.reestimate_statistics(assembled, accepted, [images for images, _ in dataset.batches("train")])
    start = evaluation.accuracy(assembled, dataset.batches("validation"))
    config = StudentConfig(fine_tune_epochs=5, fine_tune_learning_rate=0.01)
    history = student.fine_tune(assembled, dataset, config, start, accepted, events.append)
    learned = evaluation.accuracy(assembled, dataset.batches("validation"))
    assert learned == pytest.approx(max([start, *(row["val_accuracy"] for row in history)]))
    assert learned > 0.8
    assert len(history) == 5
    assert (events[-1].done, events[-1].total) == (5 * 6, 5 * 6)

    before = snapshot(assembled)
    wreck = StudentConfig(fine_tune_epochs=2, fine_tune_learning_rate=100.0)
    history = student.fine_tune(assembled, dataset, wreck, learned, accepted, ignore)
    assert max(row["val_accuracy"] for row in history) < learned
    assert moved_layers(before, assembled) == set(), "batch statistics included"


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_student_says_how_it_came_to_be(
    epochs: int, teacher: keras.Model, tasks: tuple[LayerTask, ...], accepted: dict[str, BlockResult], dataset: Dataset
) -> None:
    config = RunConfig.of(block=BLOCK, fine_tune_epochs=epochs, fine_tune_learning_rate=0.01)
    before = snapshot(teacher)
    small = student.make(teacher, dataset, tasks, accepted, config, NullProgress())
    assert moved_layers(before, teacher) == set()
    assert len(small.history) == epochs
    assert small.val_accuracy >= small.assembled_accuracy
    assert small.val_accuracy == pytest.approx(evaluation.accuracy(small.model, dataset.batches("validation")))
    assert not small.model.compiled
    assert {name for name in before if name not in snapshot(small.model)} == {"a", "b"}
