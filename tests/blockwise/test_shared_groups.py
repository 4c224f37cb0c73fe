"""A group that a collective trains: the same blocks as from one worker, and failures of one member."""

from typing import Any

import numpy as np
import pytest

from pbd.collective import Collective
from pbd.records import BlockKey, BlockResult, TaskGroup
from tests.helpers.group_training import Tasks, changed, committed, group_of, ignore, train
from tests.helpers.thread_collective import run_threads

pytestmark = pytest.mark.usefixtures("eager")


def train_in_threads(context: Any, tasks: Tasks, size: int) -> list[dict[str, BlockResult]]:
    """Train the tasks in one group in a collective of `size` threads; return the results of each."""
    from pbd.blockwise import train_group

    def work(collective: Collective) -> dict[str, BlockResult]:
        results = train_group.train_group(context, group_of(context, tasks), ignore, collective)
        return {result.layer: result for result in results}

    return run_threads(size, work)


@pytest.fixture
def teacher_per_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every thread load a teacher of its own, as every process does, and forget which work was announced last."""
    from pbd.blockwise import context
    from pbd.run_dir import error_files

    monkeypatch.setattr(error_files, "_current", None)
    monkeypatch.setattr(context, "load_teacher", context.load_teacher.__wrapped__)
    monkeypatch.setattr(context, "forget_teacher", lambda: None)


@pytest.mark.usefixtures("teacher_per_thread")
def test_a_collective_trains_blocks_that_read_the_same_channels_as_those_of_one_worker(
    context: tuple[Any, Tasks],
) -> None:
    """Each member chooses the channels of one block, and gets those of the other."""
    settings = {"block": "narrow_r50", "block_init": "fitted", "epochs": 1}
    alone = train(changed(context, **settings), context[1])
    first = set(range(12))
    assert any(set(result.weights[f"{name}_pbd_select/indices"]) != first for name, result in alone.items())
    for results in train_in_threads(changed(context, **settings), context[1], 2):
        for name, result in results.items():
            assert result.status == "trained", result.error
            indices, expected = (each.weights[f"{name}_pbd_select/indices"] for each in (result, alone[name]))
            np.testing.assert_array_equal(indices, expected)
            assert result.nmse == pytest.approx(alone[name].nmse, rel=1e-3)


@pytest.mark.usefixtures("teacher_per_thread")
def test_a_collective_trains_the_same_blocks_as_one_worker(
    context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`second` flattens after an epoch, and all trace a graph without it."""
    from pbd.blockwise import distiller

    errors, checked = distiller._validation_errors, []

    def flat(distiller: Any, dataset: Any, collective: Collective) -> dict[BlockKey, float]:
        checked.append(tuple(key.layer for key in distiller.keys))
        return {key: 1.0 if key.layer == "second" else e for key, e in errors(distiller, dataset, collective).items()}

    monkeypatch.setattr(distiller, "_validation_errors", flat)
    monkeypatch.setattr(distiller, "TRACING_STEPS", 0)
    settings = {"block": "decoupled_r2", "block_init": "kernel", "epochs": 2, "patience": 1}
    adapted, shared = changed(context, **settings), changed(context, **settings)
    alone = train(adapted, context[1])
    for results in train_in_threads(shared, context[1], 2):
        assert results.keys() == alone.keys()
        for name, result in results.items():
            assert result.loss_history == pytest.approx(alone[name].loss_history, rel=1e-4)
            assert result.nmse_history == pytest.approx(alone[name].nmse_history, rel=1e-4)
            assert result.nmse == pytest.approx(alone[name].nmse, rel=1e-4)
            assert result.val_accuracy == alone[name].val_accuracy
            assert result.val_kl == pytest.approx(alone[name].val_kl, rel=1e-3)
            for key, weight in result.weights.items():
                np.testing.assert_allclose(weight, alone[name].weights[key], atol=1e-5)
    assert committed(shared) == {"second", "third"}
    assert checked.count(("third",)) == 3, "once alone, once by each of the collective"


@pytest.mark.usefixtures("teacher_per_thread")
def test_a_block_that_fails_for_one_worker_of_a_collective_costs_only_itself(
    context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pbd.blockwise import train_group

    adapted, initialise_blocks = changed(context, block="decoupled_r2", epochs=1), train_group._initialise

    def broken(context: Any, group: TaskGroup, *arguments: Any) -> None:
        if arguments[-1].index == 1 and "second" in group.layer_names:
            raise MemoryError("injected")
        initialise_blocks(context, group, *arguments)

    monkeypatch.setattr(train_group, "_initialise", broken)
    for results in train_in_threads(adapted, context[1], 2):
        assert results["third"].status == "trained"
        assert results["second"].status == "failed"
        assert str(results["second"].error).startswith("MemoryError: injected. See errors/second@decoupled_r2-")
    assert committed(adapted) == {"third"}
    assert "training second failed: MemoryError: injected" in caplog.text
