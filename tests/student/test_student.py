"""From accepted blocks to a student: nothing else changes, statistics are the true ones, a scope is fine-tuned."""

from collections.abc import Callable
from dataclasses import replace

import keras
import numpy as np
import pytest

from experiments.paper_scheme import output_with
from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.collective import Collective
from pbd.config import RunConfig
from pbd.data import Dataset, WorkerShare
from pbd.learning import metrics
from pbd.learning.batch_statistics import recalibrate_batch_norm
from pbd.learning.metrics import Metrics
from pbd.networks import graph
from pbd.records import BlockResult, BlockTask
from pbd.student import adaptation, assemble
from pbd.student.checkpoints import FineTuneState
from tests.helpers.local_workers import builder
from tests.helpers.palette import batches, make_teacher, moved_layers, predict, snapshot, trained_teacher
from tests.helpers.thread_collective import run_threads

layers = keras.layers
BLOCK = "two_layer"


@pytest.fixture
def teacher() -> keras.Model:
    return make_teacher()


@pytest.fixture
def tasks(teacher: keras.Model) -> tuple[BlockTask, ...]:
    return enumerate_tasks(teacher, blocks.get(BLOCK), include_unprofitable=True)


@pytest.fixture
def accepted(tasks: tuple[BlockTask, ...]) -> dict[str, BlockResult]:
    """Blocks for `a` and `b` with random weights; the stem's was not accepted."""
    generator = np.random.default_rng(5)
    results = {}
    for task in tasks[1:]:
        weights = blocks.get_weights(blocks.build_block(blocks.get(BLOCK), task.layer, seed=0))
        moved = {key: value * generator.uniform(0.5, 1.5, value.shape) for key, value in weights.items()}
        moved = {key: value.astype("float32") for key, value in moved.items()}
        results[task.layer.name] = BlockResult(task.layer.name, "trained", BLOCK, weights=moved, val_accuracy=1.0)
    return results


@pytest.fixture
def assembled(teacher: keras.Model, tasks: tuple[BlockTask, ...], accepted: dict[str, BlockResult]) -> keras.Model:
    return assemble.assemble(teacher, tasks, accepted)


def block_layers(accepted: dict[str, BlockResult]) -> set[str]:
    return {key.split("/")[0] for result in accepted.values() for key in result.weights}


def test_an_assembled_block_equals_the_teacher_with_it_swapped(
    teacher: keras.Model, tasks: tuple[BlockTask, ...], accepted: dict[str, BlockResult]
) -> None:
    images = batches()[0]
    for task in tasks[1:]:
        name = task.layer.name
        block = blocks.build_block(blocks.get(BLOCK), task.layer, seed=1)
        blocks.set_weights(block, accepted[name].weights)
        swapped = keras.Model(teacher.inputs[0], output_with(teacher, name, block))
        small = assemble.assemble(teacher, tasks, {name: accepted[name]})
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


def test_without_accepted_blocks_the_student_is_the_teacher(
    teacher: keras.Model, dataset: Dataset, tasks: tuple[BlockTask, ...]
) -> None:
    students = builder(teacher, dataset, tasks, RunConfig.of(block=BLOCK, fine_tune_epochs=2))
    assembled = students.assemble({})
    copy, measured = assembled.model, assembled.metrics
    assert (measured.agreement, measured.kl) == (1.0, pytest.approx(0.0, abs=1e-9))
    np.testing.assert_array_equal(predict(copy, batches()[0]), predict(teacher, batches()[0]))
    before = Metrics(0.5, 1.0, 0.0)
    assert students.fine_tune(copy, {}, before) == FineTuneState(before, 0.003)
    np.testing.assert_array_equal(predict(copy, batches()[0]), predict(teacher, batches()[0]))


def test_statistics_are_those_of_the_inputs_on_these_batches(assembled: keras.Model) -> None:
    """Of the first block as of the teacher's own normalisation, whose inputs the blocks have shifted."""
    before, momentum = snapshot(assembled), assembled.get_layer("a_pbd_bn1").momentum
    own_momentum = assembled.get_layer("norm").momentum
    trainable = {layer.name: layer.trainable for layer in assembled.layers}
    recalibrate_batch_norm(assembled, batches())
    reached = keras.Model(assembled.inputs[0], assembled.get_layer("a_pbd_bn1").input)
    inputs = np.stack([predict(reached, batch) for batch in batches()])
    norm = assembled.get_layer("a_pbd_bn1")
    np.testing.assert_allclose(norm.moving_mean, inputs.mean(axis=(0, 1, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, inputs.var(axis=(0, 1, 2, 3)), rtol=1e-4)
    assert norm.momentum == momentum
    assert assembled.get_layer("norm").momentum == own_momentum
    assert {layer.name: layer.trainable for layer in assembled.layers} == trainable
    assert moved_layers(before, assembled) == {"a_pbd_bn1", "a_pbd_bn2", "b_pbd_bn1", "b_pbd_bn2", "norm"}
    for name in ("a_pbd_bn1", "b_pbd_bn2", "norm"):
        for old, new in zip(before[name][:2], assembled.get_layer(name).get_weights()[:2], strict=True):
            np.testing.assert_array_equal(old, new)


def test_statistics_of_one_batch_forget_the_old_ones(assembled: keras.Model) -> None:
    """On that batch, inference then computes what training mode does, through every block and the teacher's own."""
    (batch,) = batches(1)
    recalibrate_batch_norm(assembled, [batch])
    normalisations = {layer.name for layer in assembled.layers if isinstance(layer, layers.BatchNormalization)}
    assert len(normalisations) == 5
    expected = np.asarray(assembled(batch, training=True))
    recalibrate_batch_norm(assembled, [batch])
    np.testing.assert_allclose(predict(assembled, batch), expected, rtol=1e-3, atol=1e-3)


def test_statistics_do_not_depend_on_how_images_fall_into_batches(assembled: keras.Model) -> None:
    """Of the first normalisation, whose inputs no other one changes."""
    images = np.concatenate(batches())
    norm, found = assembled.get_layer("a_pbd_bn1"), []
    for parts in ([images], [images[:-1], images[-1:]], [images[:1], images[1:]]):
        recalibrate_batch_norm(assembled, parts)
        found.append([np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)])
    for split in found[1:]:
        np.testing.assert_allclose(split, found[0], rtol=1e-4, atol=1e-5)


def test_statistics_of_a_shared_normalisation_are_those_of_all_its_inputs() -> None:
    images = np.random.default_rng(1).normal(size=(40, 4, 4, 3)).astype(np.float32)
    inputs, norm = keras.Input((4, 4, 3)), layers.BatchNormalization()
    norm_inputs = [inputs, 10.0 * inputs + 5.0]
    maps = layers.Add()([norm(each) for each in norm_inputs])
    model = graph.flatten(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(maps))))
    (shared,) = (layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    shared.moving_variance.assign(np.full(3, np.nan))
    recalibrate_batch_norm(model, [images[:32], images[32:]])
    both = np.concatenate([images, 10 * images + 5])
    np.testing.assert_allclose(shared.moving_mean, both.mean(axis=(0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(shared.moving_variance, both.var(axis=(0, 1, 2)), rtol=1e-3)


def test_statistics_that_workers_share_are_those_of_one(
    teacher: keras.Model, dataset: Dataset, accepted: dict[str, BlockResult], tasks: tuple[BlockTask, ...]
) -> None:
    """Of five batches, one worker has three; validation images are shared, too."""
    dataset = replace(dataset, batch_size=20)
    models = [assemble.assemble(teacher, tasks, accepted) for _ in range(3)]
    alone = adaptation.adapt(models[2], teacher, {}, dataset).metrics

    def recalibrate(collective: Collective) -> Metrics:
        part = dataset.shared(WorkerShare(collective.index, collective.size))
        return adaptation.adapt(models[collective.index], teacher, {}, part, collective).metrics

    for measured, model in zip(run_threads(2, recalibrate), models, strict=False):
        assert measured.accuracy == alone.accuracy
        assert measured.kl == pytest.approx(alone.kl, rel=1e-4)
        for own, expected in zip(model.get_weights(), models[2].get_weights(), strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)


def test_statistics_of_a_normalisation_that_was_frozen_in_the_teacher_shift_too(
    tasks: tuple[BlockTask, ...], teacher: keras.Model, accepted: dict[str, BlockResult]
) -> None:
    """Keras leaves the statistics of a frozen one alone, even in training mode."""
    teacher.get_layer("norm").trainable = False
    assembled = assemble.assemble(teacher, tasks, accepted)
    before = snapshot(assembled)
    recalibrate_batch_norm(assembled, batches())
    assert "norm" in moved_layers(before, assembled)
    assert not assembled.get_layer("norm").trainable


SCOPES: dict[str, Callable[[set[str], set[str]], set[str]]] = {
    "blocks": lambda ours, every: ours,
    "all": lambda ours, every: every,
    "no_1x1_dense": lambda ours, every: every - {"point", "logits"},
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_tunes_exactly_what_it_names(
    scope: str,
    teacher: keras.Model,
    tasks: tuple[BlockTask, ...],
    assembled: keras.Model,
    accepted: dict[str, BlockResult],
    two_steps: Dataset,
) -> None:
    assembled.get_layer("stem").trainable = False
    trainable = {layer.name: layer.trainable for layer in assembled.layers}
    before, teachers = snapshot(assembled), snapshot(teacher)
    students = builder(
        teacher,
        two_steps,
        tasks,
        RunConfig.of(block=BLOCK, fine_tune_epochs=1, fine_tune_scope=scope, fine_tune_learning_rate=0.01),
    )
    worst = Metrics(0.0, 0.0, 100.0)
    students.fine_tune(assembled, accepted, worst)
    assert moved_layers(before, assembled) == SCOPES[scope](block_layers(accepted), set(before))
    assert {layer.name: layer.trainable for layer in assembled.layers} == trainable
    assert moved_layers(teachers, teacher) == set()


def test_no_epochs_leave_the_student_as_it_is(
    teacher: keras.Model,
    tasks: tuple[BlockTask, ...],
    assembled: keras.Model,
    accepted: dict[str, BlockResult],
    dataset: Dataset,
) -> None:
    before, measured = snapshot(assembled), Metrics(0.25, 0.5, 2.0)
    students = builder(teacher, dataset, tasks, RunConfig.of(block=BLOCK, fine_tune_epochs=0))
    assert students.fine_tune(assembled, accepted, measured) == FineTuneState(measured, 0.003)
    assert moved_layers(before, assembled) == set()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_student_says_how_it_came_to_be(
    epochs: int, able: keras.Model, tasks: tuple[BlockTask, ...], accepted: dict[str, BlockResult], two_steps: Dataset
) -> None:
    config = RunConfig.of(block=BLOCK, fine_tune_epochs=epochs, fine_tune_learning_rate=0.003)
    before = snapshot(able)
    small = builder(able, two_steps, tasks, config).build(accepted)
    assert moved_layers(before, able) == set()
    assert len(small.history) == epochs
    assert small.metrics.score >= small.assembled.score
    (measured,) = metrics.evaluate(able, [small.model], two_steps.batches("validation"), True)
    assert (small.metrics.accuracy, small.metrics.agreement) == (measured.accuracy, measured.agreement)
    assert small.metrics.kl == pytest.approx(measured.kl, rel=1e-4)
    assert not small.model.compiled
    assert {name for name in before if name not in snapshot(small.model)} == {"a", "b"}
    assert (small.events, small.restored) == ((), {})


@pytest.fixture(scope="module")
def able(dataset: Dataset) -> keras.Model:
    """The teacher, trained: what a bad block costs shows in its accuracy."""
    return trained_teacher(dataset)
