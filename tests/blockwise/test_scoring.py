"""The scores of a group's blocks are those of the teacher with each of them swapped in, alone, in a copy."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest

from pbd import blocks, data
from pbd.blockwise import scoring
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import DataConfig
from pbd.learning import losses, metrics
from pbd.networks import graph, heads, variants
from pbd.records import BlockKey, BlockTask, Progress
from pbd.system import devices
from tests.helpers.gradients import gradients
from tests.helpers.swapping import swap_blocks

pytestmark = pytest.mark.jax

BLOCK = "decoupled_r1"


@dataclass(frozen=True)
class Scored:
    """What scoring was given, what it said, and the whole validation split."""

    teacher: keras.Model
    tasks: tuple[BlockTask, ...]
    built: dict[BlockKey, keras.Model]
    dataset: data.Dataset
    scores: dict[BlockKey, scoring.Score]
    images: np.ndarray
    labels: np.ndarray


def make_teacher(softmax: bool) -> keras.Model:
    """Return a residual network whose random answers differ from image to image."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(4)
    inputs = keras.Input((32, 32, 1))
    x = keras.ops.square(inputs / 127.5 - 1.0)
    for name in ("first", "second"):
        x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name=name)(x)
    y = keras.layers.Conv2D(16, 3, padding="same", name="third")(x)
    normalise = keras.layers.BatchNormalization()
    y = normalise(y)
    x = keras.layers.Flatten()(keras.layers.Add()([x, y]))
    dense = keras.layers.Dense(10, name="head", activation="softmax" if softmax else None)
    model = keras.Model(inputs, dense(x))
    kernel, bias = dense.get_weights()
    dense.set_weights([8 * (kernel - kernel.mean(axis=0)), bias])
    draws = np.random.default_rng(6)
    scale, shift = draws.uniform(0.5, 1.5, (2, 16)), draws.normal(0.0, 0.1, (2, 16))
    normalise.set_weights([scale[0], shift[0], shift[1], scale[1]])
    return graph.flatten(model)


@pytest.fixture(scope="module", params=[(True, False), (False, True)], ids=["labels, logits", "no labels, softmax"])
def scored(request: pytest.FixtureRequest) -> Scored:
    labelled, softmax = request.param
    config = DataConfig(dataset="digits", validation_fraction=0.05, batch_size=32, labels=labelled)
    dataset = data.load(config, 0)
    teacher = make_teacher(softmax)
    tasks = tuple(task for task in enumerate_tasks(teacher, blocks.get(BLOCK)) if task.skip_reason is None)
    built = {task.key: blocks.build_block(blocks.get(BLOCK), task.layer, 5) for task in tasks}
    images, labels = (np.concatenate(part) for part in zip(*dataset.batches("validation"), strict=True))
    assert len(images) % 32 != 0, "the last batch is smaller"
    return Scored(teacher, tasks, built, dataset, scoring.score(teacher, built, dataset), images, labels)


def probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    scores = heads.remove(model).predict(images, verbose=0).astype("float64")
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_every_block_is_scored(scored: Scored) -> None:
    assert [key.layer for key in scored.scores] == ["second", "third"]


@pytest.mark.usefixtures("eager")
def test_the_metrics_are_those_of_the_swapped_teacher(scored: Scored) -> None:
    expected = probabilities(scored.teacher, scored.images)
    assert len(np.unique(expected.argmax(axis=1))) > 2, "a teacher with constant answers would hide errors"
    for task in scored.tasks:
        alone = swap_blocks(scored.teacher, [task])
        blocks.set_weights(alone, blocks.get_weights(scored.built[task.key]))
        swapped, result = probabilities(alone, scored.images), scored.scores[task.key].metrics
        agreement = np.mean(swapped.argmax(axis=1) == expected.argmax(axis=1))
        assert 0 < agreement < 1
        assert result.agreement == pytest.approx(agreement)
        assert result.kl == pytest.approx(np.mean(np.sum(expected * np.log(expected / swapped), axis=1)), rel=1e-3)
        if scored.dataset.labelled:
            assert result.accuracy == pytest.approx(np.mean(swapped.argmax(axis=1) == scored.labels))
            assert result.accuracy == metrics.accuracy(alone, scored.dataset.batches("validation"))
        else:
            assert result.accuracy is None


@pytest.mark.usefixtures("eager")
def test_the_error_is_normalised_by_the_variance_of_the_target(scored: Scored) -> None:
    activations = graph.truncate(scored.teacher, [key.layer for key in scored.built]).predict(scored.images, verbose=0)
    for key, block in scored.built.items():
        inputs, target = activations[key.layer]
        error = np.mean((block.predict(inputs, verbose=0) - target) ** 2) / np.var(target)
        assert scored.scores[key].nmse == pytest.approx(error, rel=1e-3)


@pytest.mark.usefixtures("eager")
def test_blocks_are_scored_on_some_of_many_images(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MOST_IMAGES", 40)
    events = list[Progress]()
    some = scoring.score(scored.teacher, scored.built, scored.dataset, emit=events.append)
    assert (events[-1].done, events[-1].total) == (40, 40)
    expected = probabilities(scored.teacher, scored.images[:40])
    for task in scored.tasks:
        alone = swap_blocks(scored.teacher, [task])
        blocks.set_weights(alone, blocks.get_weights(scored.built[task.key]))
        swapped = probabilities(alone, scored.images[:40])
        kl = np.mean(np.sum(expected * np.log(expected / swapped), axis=1))
        assert some[task.key].metrics.kl == pytest.approx(kl, rel=1e-3)


def test_blocks_that_are_the_layer_are_perfect(scored: Scored) -> None:
    inputs = keras.Input(scored.teacher.get_layer("third").input.shape[1:])
    twin = keras.layers.Conv2D(16, 3, padding="same", name="twin")
    block = keras.Model(inputs, twin(inputs))
    twin.set_weights(scored.teacher.get_layer("third").get_weights())
    key = BlockKey("third", "twin")
    score = scoring.score(scored.teacher, {key: block}, scored.dataset)[key]
    assert score.nmse < 1e-9
    assert score.metrics.agreement == 1.0
    assert score.metrics.kl < 1e-7


@pytest.mark.parametrize(("batch_size", "fills_up"), [(32, False), (6, True)])
def test_batches_that_are_cut_give_the_same_scores(
    scored: Scored, monkeypatch: pytest.MonkeyPatch, batch_size: int, fills_up: bool
) -> None:
    """If five images fit, four are scored at once; a batch of six leaves a remainder of two."""
    seen: list[int] = []
    pad_batches = scoring.pad_batches

    def counted(batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, int]]:
        for images, labels, count in pad_batches(batches):
            seen.append(len(images))
            yield images, labels, count

    monkeypatch.setattr(scoring, "pad_batches", counted)
    limit = 5 * variants.bytes_per_image(scored.teacher, list(scored.built))
    monkeypatch.setattr(scoring, "most_bytes", lambda: limit)
    dataset = dataclasses.replace(scored.dataset, batch_size=batch_size)
    again = scoring.score(scored.teacher, scored.built, dataset)
    assert set(seen) == {4}
    assert (4 * len(seen) > len(scored.images)) == fills_up
    for name, score in scored.scores.items():
        assert again[name].nmse == pytest.approx(score.nmse, rel=1e-5)
        assert again[name].metrics.agreement == score.metrics.agreement
        assert again[name].metrics.accuracy == score.metrics.accuracy
        assert again[name].metrics.kl == pytest.approx(score.metrics.kl, rel=1e-4)


def test_an_accelerator_scores_more_at_once_than_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_accelerator, expected in ((False, 8), (True, 256)):
        monkeypatch.setattr(devices, "has_accelerator", lambda has_accelerator=has_accelerator: has_accelerator)
        assert scoring.images_at_once(2**20, scoring.most_bytes()) == expected


def test_scoring_changes_nothing(scored: Scored) -> None:
    before = [value.copy() for value in scored.teacher.get_weights()]
    events: list[Progress] = []
    again = scoring.score(scored.teacher, scored.built, scored.dataset, emit=events.append)
    assert [event.done for event in events] == sorted({event.done for event in events}), "no batch is told twice"
    assert (events[0].done, events[-1].done, events[-1].total) == (0, len(scored.images), len(scored.images))
    assert again == scored.scores
    for old, new in zip(before, scored.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_gradient_of_the_error_is_that_of_its_definition() -> None:
    ops, draws = keras.ops, np.random.default_rng(2)
    pair = [draws.normal(size=(5, 3, 4, 2)).astype("float32") for _ in range(2)]
    weights = draws.normal(size=5).astype("float32")

    def result(error: Callable[[Any, Any], Any]) -> list[np.ndarray]:
        loss, by_inputs = gradients(lambda output, target: ops.sum(weights * error(output, target)), pair)
        return [loss, *by_inputs]

    defined = result(lambda output, target: ops.mean((output - target) ** 2, axis=(1, 2, 3)))
    for ours, expected in zip(result(losses.squared_error), defined, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
