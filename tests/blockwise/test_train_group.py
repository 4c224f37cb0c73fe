"""Training a group: blocks learn, are scored and are written, in every precision and without labels."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from pbd import blocks
from pbd.records import BlockResult, Progress, TaskGroup
from tests.helpers.group_training import Tasks, assert_same_weights, changed, committed, group_of, train


@pytest.mark.jax
def test_blocks_learn_are_scored_and_are_written(context: tuple[Any, Tasks]) -> None:
    from pbd.blockwise import train_group

    adapted, tasks = changed(context, block="decoupled_r2", train_limit=320), context[1]
    events: list[Progress] = []
    results = train_group.train_group(adapted, group_of(adapted, tasks), events.append)
    assert [result.layer for result in results] == ["second", "third"]
    for result in results:
        assert result.status == "trained", result.error
        assert len(result.loss_history) == 6
        assert len(result.nmse_history) == 7
        assert result.loss_history[-1] < 0.5 * result.loss_history[0]
        assert 0 < result.nmse < 0.5
        assert result.nmse == pytest.approx(min(result.nmse_history), rel=1e-3), "of its best epoch, on all images"
        assert 0 <= result.val_accuracy <= 1
        assert 0 <= result.val_agreement <= 1
        assert result.val_kl > 0
    assert committed(adapted) >= {"second", "third"}
    training = [event for event in events if event.label.startswith("second")]
    assert [(event.done, event.total) for event in training] == [(step, 60) for step in range(1, 61)]
    assert {event.label for event in events if event not in training} == {"scoring second … third (2)"}


def trained(context: tuple[Any, Tasks], block: str, precision: str) -> BlockResult:
    """Return a block for `second` that learned in this precision."""
    settings = {"block": block, "precision": precision, "epochs": 3, "block_init": "noise", "train_limit": 320}
    return train(changed(context, **settings), context[1][:1])["second"]


@pytest.mark.parametrize(
    ("block", "precision", "apart"), [("decoupled_r2", "bfloat16", 0.1), ("two_layer", "float16", 0.02)]
)
def test_in_half_precision_nearly_the_same_block_is_trained(
    block: str, precision: str, apart: float, context: tuple[Any, Tasks]
) -> None:
    received, expected = (trained(context, block, each) for each in (precision, "float32"))
    assert {value.dtype for value in received.weights.values()} == {np.dtype("float32")}
    assert received.nmse == pytest.approx(expected.nmse, rel=apart)
    assert received.loss_history[-1] < 0.9 * received.loss_history[0]
    kernel = next(name for name in expected.weights if "kernel" in name)
    assert not np.array_equal(received.weights[kernel], expected.weights[kernel])


@pytest.mark.usefixtures("eager")
def test_a_block_that_is_not_trained_has_the_batch_statistics_of_its_inputs(context: tuple[Any, Tasks]) -> None:
    for result in train(changed(context, epochs=0, block="two_layer", block_init="fitted"), context[1]).values():
        means = [value for name, value in result.weights.items() if "moving_mean" in name]
        assert len(means) == 2
        assert all(np.abs(mean).max() > 0 for mean in means)
        assert result.nmse < 0.9, "worse than a constant without these statistics"


@pytest.mark.usefixtures("eager")
def test_a_fitted_block_has_a_small_error_before_any_training(context: tuple[Any, Tasks]) -> None:
    adapted = changed(context, epochs=0, block="decoupled_r2", block_init="fitted")
    results = train(adapted, context[1])
    for result in results.values():
        assert result.status == "trained", result.error
        assert result.design == "decoupled_r2"
        assert result.loss_history == ()
        assert result.nmse_history == (), "no epochs, no learning curve"
        assert result.nmse < 0.1


@pytest.mark.usefixtures("eager")
def test_without_labels_blocks_are_scored_by_agreement(context: tuple[Any, Tasks]) -> None:
    adapted, tasks = changed(context, epochs=1), context[1]
    unlabelled = dataclasses.replace(adapted, data=dataclasses.replace(adapted.data, labels=False))
    for result in train(unlabelled, tasks).values():
        assert result.status == "trained", result.error
        assert result.val_accuracy is None
        assert 0 <= result.val_agreement <= 1
        assert result.score == result.val_agreement
        assert result.val_kl > 0


@pytest.mark.usefixtures("eager")
def test_a_block_in_the_run_directory_is_not_trained_again(
    context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker was lost after it had written a block of its group: whoever gets the group next trains the rest."""
    from pbd.blockwise import train_group

    adapted, tasks = changed(context, epochs=1), context[1]
    first = train(adapted, [tasks[1]])["third"]
    train_in_one_pass, trained = train_group._train_in_one_pass, []

    def watched(context: Any, group: TaskGroup, *rest: Any) -> list[BlockResult]:
        trained.append(group.layer_names)
        return train_in_one_pass(context, group, *rest)

    monkeypatch.setattr(train_group, "_train_in_one_pass", watched)
    results = train(adapted, tasks)
    assert trained == [("second",)]
    assert_same_weights(results["third"], first)
    assert (results["second"].from_journal, results["third"].from_journal) == (False, True)
    assert set(train(adapted, tasks)) == {"second", "third"}
    assert trained == [("second",)]


@pytest.mark.usefixtures("eager")
def test_zero_epochs_leave_the_first_weights(context: tuple[Any, Tasks]) -> None:

    adapted, tasks = changed(context, epochs=0), context[1]
    result = train(adapted, [tasks[0]])["second"]
    first = blocks.get_weights(blocks.build_block(blocks.get("two_layer"), tasks[0].layer, adapted.seed))
    assert result.loss_history == ()
    assert result.nmse_history == ()
    assert all(np.array_equal(result.weights[key], first[key]) for key in first if "moving" not in key)
