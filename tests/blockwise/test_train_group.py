"""Training a group: errors, targets, names, early stops, and one bad block that costs only itself."""

import dataclasses
import math
import uuid
from typing import Any

import numpy as np
import pytest

from pbd import blocks
from pbd.collective import Collective
from pbd.config import RunConfig
from pbd.errors import MissingInputError, StoppedError
from pbd.records import BlockKey, BlockResult, BlockTask, Layer, Progress, TaskGroup
from pbd.run_dir import error_files
from pbd.run_dir.journal import Journal
from tests.helpers.thread_collective import run_threads

Tasks = list[BlockTask]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> "tuple[Any, Tasks]":
    """A context for training on 320 digits; the teacher's graph holds operations with Keras' own names."""
    import keras

    from pbd import data
    from pbd.blockwise.context import TrainingContext, load_teacher
    from pbd.blockwise.tasks import enumerate_tasks

    keras.utils.set_random_seed(2)
    inputs = keras.Input((32, 32, 1))
    x = keras.ops.square(inputs / 127.5 - 1.0)
    for name in ("first", "second"):
        x = keras.layers.Conv2D(24, 3, strides=2, padding="same", activation="relu", name=name)(x)
    x = keras.layers.Conv2D(24, 3, padding="same", name="third")(x)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    folder = tmp_path_factory.mktemp("context")
    journal = Journal.create(folder / "run", {})
    keras.Model(inputs, outputs).save(folder / "run" / "teacher.keras")
    keras.utils.clear_session()
    config = RunConfig.of(train_limit=320, batch_size=32, epochs=6, patience=0)
    dataset = data.load(config.data, 0)
    base = TrainingContext(
        teacher_path=str(folder / "run" / "teacher.keras"),
        data=config.data,
        image_shape=dataset.image_shape,
        training=config.training,
        designs={"two_layer": blocks.get("two_layer")},
        block_init="noise",
        seed=0,
        journal=journal,
    )
    tasks = enumerate_tasks(load_teacher(base.teacher_path), blocks.get("two_layer"))
    return base, [task for task in tasks if not task.skip_reason]


def ignore(_: Progress) -> None:
    """Take a progress event and do nothing."""


def changed(context: tuple[Any, Tasks], **training_settings: Any) -> Any:
    """Return the context of a new run with other settings: `block` and `block_init`, or those of the training."""
    base = context[0]
    journal = Journal.create(base.journal.path.parent / uuid.uuid4().hex, {})
    fields = {name: training_settings.pop(name) for name in ("block_init",) if name in training_settings}
    if (block := training_settings.pop("block", None)) is not None:
        fields["designs"] = {block: blocks.get(block)}
    return dataclasses.replace(
        base, training=dataclasses.replace(base.training, **training_settings), journal=journal, **fields
    )


def train(context: Any, tasks: Tasks) -> dict[str, BlockResult]:
    from pbd.blockwise import train_group

    return {r.layer: r for r in train_group.train_group(context, group_of(context, tasks), ignore)}


def committed(context: Any) -> set[str]:
    """Return the layers whose blocks are in the run directory."""
    return {key.layer for key in context.journal.committed_blocks()}


def group_of(context: Any, tasks: Tasks) -> TaskGroup:
    """Return the group of these tasks with the context's design."""
    (design,) = context.designs
    return TaskGroup(tuple(dataclasses.replace(task, design=design) for task in tasks))


def assert_same_weights(one: BlockResult, other: BlockResult, atol: float = 0.0) -> None:
    assert one.weights.keys() == other.weights.keys()
    for key, value in one.weights.items():
        np.testing.assert_allclose(value, other.weights[key], rtol=0.0, atol=atol, err_msg=key)


@pytest.mark.jax
def test_blocks_learn_are_scored_and_are_written(context: tuple[Any, Tasks]) -> None:
    from pbd.blockwise import train_group

    adapted, tasks = changed(context, block="decoupled_r2"), context[1]
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


@pytest.mark.parametrize("block", ["decoupled_r2", "two_layer"])
@pytest.mark.parametrize(("precision", "apart"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_in_half_precision_nearly_the_same_block_is_trained(
    block: str, precision: str, apart: float, context: tuple[Any, Tasks]
) -> None:
    settings: dict[str, Any] = {"block": block, "epochs": 3, "block_init": "noise"}
    half, single = changed(context, precision=precision, **settings), changed(context, **settings)
    task = context[1][:1]
    (received,), (expected,) = train(half, task).values(), train(single, task).values()
    assert {value.dtype for value in received.weights.values()} == {np.dtype("float32")}
    assert received.nmse == pytest.approx(expected.nmse, rel=apart)
    assert received.loss_history[-1] < 0.9 * received.loss_history[0]
    kernel = next(name for name in expected.weights if "kernel" in name)
    assert not np.array_equal(received.weights[kernel], expected.weights[kernel])


def test_a_fitted_block_has_a_small_error_before_any_training(context: tuple[Any, Tasks]) -> None:
    adapted = changed(context, epochs=0, block="decoupled_r2", block_init="fitted")
    results = train(adapted, context[1])
    for result in results.values():
        assert result.status == "trained", result.error
        assert result.design == "decoupled_r2"
        assert result.loss_history == ()
        assert result.nmse_history == (), "no epochs, no learning curve"
        assert result.nmse < 0.1


def test_a_block_that_has_flattened_stops_and_the_others_train_as_they_would_alone(
    context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`second` stops after two epochs of ten steps, whatever its errors are; `third` never does."""
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
    for tracing_steps, checks_of_both in ((0, 3), (10, 4), (11, 5), (math.inf, 5)):
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
    from pbd import blocks
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


@pytest.mark.jax
def test_nan_in_one_block_costs_only_that_block(context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd import blocks
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


def test_without_labels_blocks_are_scored_by_agreement(context: tuple[Any, Tasks]) -> None:
    adapted, tasks = changed(context, epochs=1), context[1]
    unlabelled = dataclasses.replace(adapted, data=dataclasses.replace(adapted.data, labels=False))
    for result in train(unlabelled, tasks).values():
        assert result.status == "trained", result.error
        assert result.val_accuracy is None
        assert 0 <= result.val_agreement <= 1
        assert result.score == result.val_agreement
        assert result.val_kl > 0


def test_a_block_that_fails_costs_only_itself(context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd import blocks
    from pbd.blockwise import train_group

    adapted, tasks = changed(context), context[1]
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


def test_a_worker_that_does_not_see_the_run_directory_says_so(context: tuple[Any, Tasks]) -> None:
    adapted = dataclasses.replace(changed(context), teacher_path="/absent/teacher.keras")
    with pytest.raises(MissingInputError, match="share"):
        train(adapted, context[1])


def test_divergence_is_a_failure_with_a_remedy(context: tuple[Any, Tasks]) -> None:
    result = train(changed(context, learning_rate=1e30), [context[1][0]])["second"]
    assert result.status == "failed"
    assert "--learning-rate" in result.error
    assert result.weights == {}


def test_zero_epochs_leave_the_first_weights(context: tuple[Any, Tasks]) -> None:
    from pbd import blocks

    adapted, tasks = changed(context, epochs=0), context[1]
    result = train(adapted, [tasks[0]])["second"]
    first = blocks.get_weights(blocks.build_block(blocks.get("two_layer"), tasks[0].layer, adapted.seed))
    assert result.loss_history == ()
    assert result.nmse_history == ()
    assert all(np.array_equal(result.weights[key], first[key]) for key in first)


def train_in_threads(context: Any, tasks: Tasks, size: int) -> list[dict[str, BlockResult]]:
    """Train the tasks in one group in a collective of `size` threads; return the results of each."""
    from pbd.blockwise import train_group

    def work(collective: Collective) -> dict[str, BlockResult]:
        results = train_group.train_group(context, group_of(context, tasks), ignore, collective)
        return {result.layer: result for result in results}

    return run_threads(size, work)


@pytest.fixture
def teacher_per_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every thread load a teacher of its own, as every process does."""
    from pbd.blockwise import context

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
@pytest.mark.parametrize("patience", [0, 1])
def test_a_collective_trains_the_same_blocks_as_one_worker(
    context: tuple[Any, Tasks], monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """With patience, `second` flattens after an epoch, and all trace a graph without it."""
    from pbd.blockwise import distiller

    errors, checked = distiller._validation_errors, []

    def flat(distiller: Any, dataset: Any, collective: Collective) -> dict[BlockKey, float]:
        checked.append(tuple(key.layer for key in distiller.keys))
        return {key: 1.0 if key.layer == "second" else e for key, e in errors(distiller, dataset, collective).items()}

    if patience:
        monkeypatch.setattr(distiller, "_validation_errors", flat)
        monkeypatch.setattr(distiller, "TRACING_STEPS", 0)
    settings = {"block": "decoupled_r2", "block_init": "kernel", "epochs": 2, "patience": patience}
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
    assert checked.count(("third",)) == patience * 3, "once alone, once by each of the collective"


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
