"""One bad block costs only itself; errors that are not of a block end the group."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from pbd import blocks
from pbd.errors import MissingInputError, StoppedError
from pbd.records import BlockKey, Layer, Progress
from pbd.run_dir import error_files
from tests.helpers.group_training import Tasks, assert_same_weights, changed, group_of, ignore, train


@pytest.mark.jax
def test_nan_in_one_block_costs_only_that_block(context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd.blockwise import train_group

    _, tasks = context
    adapted = changed(context, epochs=2)
    clean = train(changed(context, epochs=2), [tasks[0]])["second"]
    initialise, calls = train_group.initialise, []

    def poisoned(built: dict[BlockKey, Any], *arguments: Any) -> None:
        initialise(built, *arguments)
        calls.append(sorted(key.layer for key in built))
        third = built[tasks[1].key]
        # All weights: on a CPU, XLA's maximum of not a number and 0 is 0, so that an activation hides it.
        weights = blocks.get_weights(third).items()
        blocks.set_weights(third, {key: np.full_like(value, np.nan) for key, value in weights})

    monkeypatch.setattr(train_group, "initialise", poisoned)
    events: list[Progress] = []
    results = {r.layer: r for r in train_group.train_group(adapted, group_of(adapted, tasks), events.append)}
    assert calls == [["second", "third"]], "no second attempt, one by one"
    assert all(math.isfinite(event.loss) for event in events if event.loss is not None), "it left at once"
    assert results["third"].status == "failed"
    assert "--learning-rate" in results["third"].error
    assert (results["third"].weights, results["third"].nmse, results["third"].score) == ({}, None, None)
    assert results["second"].status == "trained"
    assert_same_weights(results["second"], clean, atol=1e-6)


@pytest.mark.usefixtures("eager")
def test_a_block_that_is_not_finite_and_was_not_trained_did_not_diverge(
    context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pbd.blockwise import train_group

    def poison(built: dict[BlockKey, Any], *_: Any) -> None:
        (block,) = built.values()
        block.set_weights([np.full_like(weight, np.nan) for weight in block.get_weights()])

    monkeypatch.setattr(train_group, "initialise", poison)
    result = train(changed(context, epochs=0), [context[1][0]])["second"]
    assert result.status == "failed"
    assert "before any training" in result.error


@pytest.mark.usefixtures("eager")
def test_a_diverged_block_whose_start_was_good_keeps_it(context: tuple[Any, Tasks]) -> None:
    _, tasks = context
    settings = {"block": "decoupled_r2", "block_init": "fitted"}
    start = train(changed(context, epochs=0, **settings), [tasks[0]])["second"]
    adapted = changed(context, learning_rate=1e30, **settings)
    result = train(adapted, [tasks[0]])["second"]
    assert not np.isfinite([*result.loss_history, *result.nmse_history]).all()
    assert len(result.loss_history) < 6, "it left when it diverged"
    assert (result.status, result.error) == ("trained", None)
    assert_same_weights(result, start)
    assert result.nmse == pytest.approx(start.nmse)
    committed = adapted.journal.committed_blocks()[result.key]
    assert_same_weights(committed, start)


@pytest.mark.usefixtures("eager")
def test_a_block_that_fails_costs_only_itself(context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd.blockwise import train_group

    adapted, tasks = changed(context, epochs=1), context[1]
    build_block = blocks.build_block

    def broken(design: blocks.BlockDesign, layer: Layer, seed: int) -> Any:
        if layer.name == "second":
            try:
                raise MemoryError("no room")
            except MemoryError as error:
                raise TypeError("cannot be built") from error
        return build_block(design, layer, seed)

    announced: list[error_files.ErrorTarget | None] = []
    monkeypatch.setattr(error_files, "_observer", announced.append)
    monkeypatch.setattr(blocks, "build_block", broken)
    results = {r.layer: r for r in train_group.train_group(adapted, group_of(adapted, tasks), ignore)}
    layers = [target.layers for target in announced if target is not None and target.layers]
    assert layers == [("second", "third"), ("second",), ("third",)], "for the error files of processes that crash"
    assert announced[-1] is None
    assert results["second"].status == "failed"
    line, _, file = str(results["second"].error).partition(". See ")
    assert line == "TypeError: cannot be built (root cause: MemoryError: no room)"
    content = adapted.journal.file(file.removesuffix(" in the run directory.")).read_text()
    assert "task: second@" in content
    assert "in broken" in content
    assert len(list(adapted.journal.file("errors").glob("*+*.txt"))) == 1, "the attempt in one pass is recorded, too"
    assert results["third"].status == "trained"


def test_a_worker_that_does_not_see_the_run_directory_says_so(context: tuple[Any, Tasks]) -> None:
    adapted = dataclasses.replace(changed(context), teacher_path="/absent/teacher.keras")
    with pytest.raises(MissingInputError, match="share"):
        train(adapted, context[1])


@pytest.mark.usefixtures("eager")
def test_divergence_is_a_failure_with_a_remedy(context: tuple[Any, Tasks]) -> None:
    result = train(changed(context, learning_rate=1e30), [context[1][0]])["second"]
    assert result.status == "failed"
    assert "--learning-rate" in result.error
    assert result.weights == {}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("error", [StoppedError(), BrokenPipeError("the worker is gone")])
def test_an_error_of_the_progress_callback_is_no_failure_of_the_group(
    context: tuple[Any, Tasks], error: Exception
) -> None:
    from pbd.blockwise import train_group

    def stop(_: Progress) -> None:
        raise error

    adapted = changed(context, epochs=1)
    with pytest.raises(type(error)):
        train_group.train_group(adapted, group_of(adapted, context[1]), stop)
