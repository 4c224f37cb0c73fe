"""A block stops when its error has flattened, and keeps the weights of its best epoch."""

from typing import Any

import numpy as np
import pytest

from pbd import blocks
from pbd.records import BlockKey
from tests.helpers.group_training import Tasks, assert_same_weights, changed, train

pytestmark = pytest.mark.usefixtures("eager")


def test_a_block_that_has_flattened_stops_and_the_others_train_as_they_would_alone(
    context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`second` stops after two epochs of two steps, whatever its errors are; `third` never does."""
    from pbd.blockwise import distiller

    _, tasks = context
    script = {"second": [1.0, 0.1, 0.5, 0.0, 0.0], "third": [0.5, 0.4, 0.3, 0.2, 0.1]}
    checked: list[tuple[str, ...]] = []

    def scripted(distiller: Any, dataset: Any, collective: Any) -> dict[BlockKey, float]:
        checked.append(tuple(key.layer for key in distiller.keys))
        return {key: script[key.layer][len(checked) - 1] for key in distiller.keys}

    monkeypatch.setattr(distiller, "_validation_errors", scripted)
    second = train(changed(context, epochs=4, patience=1), [tasks[0]])["second"]
    checked.clear()
    third = train(changed(context, epochs=4, patience=0), [tasks[1]])["third"]
    for tracing_steps, checks_of_both in ((0, 3), (2, 4), (3, 5)):
        checked.clear()
        monkeypatch.setattr(distiller, "TRACING_STEPS", tracing_steps)
        together = train(changed(context, epochs=4, patience=1), tasks)
        assert checked == checks_of_both * [("second", "third")] + (5 - checks_of_both) * [("third",)]
        assert [len(together[name].loss_history) for name in ("second", "third")] == [2, 4]
        assert [len(together[name].nmse_history) for name in ("second", "third")] == [3, 5]
        assert_same_weights(together["second"], second, atol=1e-6)
        assert_same_weights(together["third"], third, atol=1e-6)
        assert together["third"].loss_history == pytest.approx(third.loss_history, rel=1e-5)


def test_a_block_stops_when_its_own_error_has_flattened(context: tuple[Any, Tasks]) -> None:
    _, tasks = context
    settings = {"epochs": 4, "patience": 2, "block": "decoupled_r2", "block_init": "kernel"}
    idle = train(changed(context, learning_rate=1e-9, **settings), [tasks[0]])["second"]
    assert (len(idle.loss_history), len(idle.nmse_history)) == (2, 3)
    busy = train(changed(context, **settings), [tasks[0]])["second"]
    assert (len(busy.loss_history), len(busy.nmse_history)) == (4, 5)


def test_the_best_epochs_weights_are_returned(context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three epochs is the best of `second`, the start is that of `third`."""
    from pbd.blockwise import distiller

    _, tasks = context
    script = {"second": [4.0, 3.0, 1.0, 2.0], "third": [1.0, 2.0, 3.0, 4.0]}
    weights: dict[str, list[dict[str, np.ndarray]]] = {"second": [], "third": []}

    def scripted(distiller: Any, dataset: Any, collective: Any) -> dict[BlockKey, float]:
        for key, block in zip(distiller.keys, distiller.blocks, strict=True):
            weights[key.layer].append(blocks.get_weights(block))
        return {key: script[key.layer][len(weights[key.layer]) - 1] for key in distiller.keys}

    monkeypatch.setattr(distiller, "_validation_errors", scripted)
    results = train(changed(context, epochs=3, block="decoupled_r2", block_init="kernel"), tasks)
    for name, best in (("second", 2), ("third", 0)):
        for key, value in results[name].weights.items():
            np.testing.assert_array_equal(value, weights[name][best][key], err_msg=key)
    moved = [not np.array_equal(weights["second"][2][key], weights["second"][3][key]) for key in weights["second"][2]]
    assert all(moved)
