"""Layers of the teacher replace the worst blocks until the accuracy target is met."""

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blocks.initialisation import initialise
from pbd.blockwise.tasks import enumerate_tasks
from pbd.config import RunConfig
from pbd.data import Dataset
from pbd.learning import metrics
from pbd.networks import graph
from pbd.records import BlockResult, BlockTask
from pbd.student.builder import worst_blocks
from tests.helpers.local_workers import builder
from tests.helpers.palette import batches, make_dataset, moved_layers, predict, snapshot

FULL_RANK = "decoupled_r3"


@pytest.fixture
def full_rank(teacher: keras.Model) -> tuple[BlockTask, ...]:
    """Tasks of a design that can equal the layer itself."""
    return enumerate_tasks(teacher, blocks.get(FULL_RANK), include_unprofitable=True)


@pytest.fixture
def one_bad(teacher: keras.Model, full_rank: tuple[BlockTask, ...]) -> dict[str, BlockResult]:
    """A block for `a` that nearly equals the layer, and one for `b` that outputs noise."""
    return {task.layer.name: made_block(teacher, task, garbage=task.layer.name == "b") for task in full_rank[1:]}


def made_block(teacher: keras.Model, task: BlockTask, garbage: bool) -> BlockResult:
    """Return a block that nearly equals its layer, or one that outputs large noise."""
    name, design = task.layer.name, blocks.get(FULL_RANK)
    block, prefix = blocks.build_block(design, task.layer, seed=0), graph.truncate(teacher, [name])
    images = [np.asarray(batches(1)[0])]
    initialise({task.key: block}, [task], {FULL_RANK: design}, teacher, prefix, images, "kernel", 0)
    weights = blocks.get_weights(block)
    if garbage:
        generator = np.random.default_rng(1)
        weights = {key: generator.normal(0.0, 5.0, value.shape).astype("float32") for key, value in weights.items()}
    return BlockResult(name, "trained", FULL_RANK, weights=weights, val_accuracy=1.0, val_kl=1.0 if garbage else 0.01)


def accuracy_target(target: float | None, **settings: object) -> RunConfig:
    config = RunConfig.of(block=FULL_RANK, **({"fine_tune_epochs": 0} | settings))
    return config if target is None else config.replace(target_accuracy_drop=target)


def test_the_worst_layer_is_restored_until_the_target_is_met(
    teacher: keras.Model, dataset: Dataset, full_rank: tuple[BlockTask, ...], one_bad: dict[str, BlockResult]
) -> None:
    before = snapshot(teacher)
    small = builder(teacher, dataset, full_rank, accuracy_target(0.25)).build(dict(one_bad))
    (whole,) = metrics.evaluate(teacher, [teacher], dataset.batches("validation"), True)
    assert small.assembled.score < whole.score - 0.25, "otherwise there is nothing to restore"
    assert list(small.restored) == ["b"]
    assert f"{small.assembled.score:.4f} < {whole.score - 0.25:.4f}" in small.restored["b"]
    (line,) = small.events
    assert line.startswith("restored b: ")
    for one, other in zip(small.model.get_layer("b").get_weights(), teacher.get_layer("b").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert f"{small.assembled.score:.4f} -> validation accuracy {small.metrics.score:.4f}" in line
    assert small.metrics.score >= whole.score - 0.25
    names = {layer.name for layer in small.model.layers}
    assert "b" in names
    assert "a" not in names
    assert moved_layers(before, teacher) == set()
    (measured,) = metrics.evaluate(teacher, [small.model], dataset.batches("validation"), True)
    assert measured.accuracy == small.metrics.accuracy


def test_without_a_target_nothing_is_restored(
    teacher: keras.Model, dataset: Dataset, full_rank: tuple[BlockTask, ...], one_bad: dict[str, BlockResult]
) -> None:
    small = builder(teacher, dataset, full_rank, accuracy_target(None)).build(dict(one_bad))
    assert (small.events, small.restored) == ((), {})
    assert not {"a", "b"} & {layer.name for layer in small.model.layers}


def test_a_target_that_is_met_restores_nothing(
    teacher: keras.Model, dataset: Dataset, full_rank: tuple[BlockTask, ...], one_bad: dict[str, BlockResult]
) -> None:
    small = builder(teacher, dataset, full_rank, accuracy_target(1.0)).build(dict(one_bad))
    assert (small.events, small.restored) == ((), {})


@pytest.mark.parametrize("labelled", [True, False])
def test_where_every_block_is_bad_the_student_ends_as_the_teacher(
    labelled: bool, teacher: keras.Model, full_rank: tuple[BlockTask, ...]
) -> None:
    dataset = make_dataset(labelled)
    bad = {task.layer.name: made_block(teacher, task, garbage=True) for task in full_rank}
    small = builder(teacher, dataset, full_rank, accuracy_target(0.0)).build(dict(bad))
    assert set(small.restored) == {"stem", "a", "b"}
    assert [len(line.split(":")[0].split(",")) for line in small.events] == [2, 1], "half of those left, each time"
    assert list(snapshot(small.model)) == list(snapshot(teacher))
    for one, other in zip(small.model.get_weights(), teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(predict(small.model, batches()[0]), predict(teacher, batches()[0]))
    assert (small.metrics.agreement, small.metrics.kl) == (1.0, pytest.approx(0.0, abs=1e-9))
    judged = "accuracy" if labelled else "agreement"
    assert all(f"validation {judged}" in line for line in small.events)


@pytest.mark.usefixtures("eager")
def test_a_student_made_again_is_fine_tuned_again(
    teacher: keras.Model, two_steps: Dataset, full_rank: tuple[BlockTask, ...], one_bad: dict[str, BlockResult]
) -> None:
    """At so small a rate the garbage stays garbage."""
    settings = {"fine_tune_epochs": 2, "fine_tune_learning_rate": 1e-4}
    small = builder(teacher, two_steps, full_rank, accuracy_target(0.1, **settings)).build(dict(one_bad))
    assert next(iter(small.restored)) == "b"
    assert [row["epoch"] for row in small.history[:4]] == [1, 2, 3, 4]
    assert [row["learning_rate"] for row in small.history[:4]] == pytest.approx([1e-4, 5e-5, 1e-4, 5e-5])


@pytest.mark.parametrize(
    ("share", "worst"),
    [
        (1.0, ("a",)),
        (0.61, ("a",)),
        (0.59, ("a", "c")),
        (0.29, ("a", "c", "b")),
        (0.0, ("a", "c", "b")),
    ],
)
def test_as_many_of_the_worst_blocks_as_the_others_may_cost(share: float, worst: tuple[str, ...]) -> None:
    costs = {"a": 4.0, "b": 2.0, "c": 3.0, "d": 1.0, "e": 0.0}
    accepted = {name: BlockResult(name, "trained", "x", val_kl=cost) for name, cost in costs.items()}
    assert worst_blocks(accepted, share) == worst
    accepted["e"] = BlockResult("e", "trained", "x", val_kl=float("nan"))
    assert worst_blocks(accepted, share)[0] == "e"
