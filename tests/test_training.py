"""Training a group: errors, targets, names, and one bad block that costs only itself."""

import numpy as np
import pytest

from pbd.config import RunConfig
from pbd.journal import Journal
from pbd.records import LayerTask, Progress, TaskGroup


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> "tuple[object, list[LayerTask]]":
    """A context for training on 320 digits; the teacher's graph holds operations with Keras' own names."""
    import keras

    from pbd import datasets, graph, training

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
    config = RunConfig.of(train_limit=320, batch_size=32, epochs=6)
    data = datasets.load(config.data, 0)
    made = training.TrainingContext(
        str(folder / "run" / "teacher.keras"), config.data, data.image_shape, config.training, "two_layer", 0, journal
    )
    tasks = graph.enumerate_tasks(training.load_teacher(made.teacher_path), "two_layer")
    return made, [task for task in tasks if not task.skip_reason]


def test_blocks_learn_are_scored_and_are_written(context: tuple) -> None:
    from pbd import training

    made, tasks = context
    events: list[Progress] = []
    results = training.train_group(made, TaskGroup(tuple(tasks)), events.append)
    assert [result.layer_name for result in results] == ["second", "third"]
    for result in results:
        assert result.status == "trained", result.error
        assert len(result.loss_history) == 6
        assert result.loss_history[-1] < 0.5 * result.loss_history[0]
        assert 0 < result.nmse < 0.5
        assert 0 <= result.val_accuracy <= 1
    assert set(made.journal.committed_blocks()) >= {"second", "third"}
    assert [event.done for event in events if event.label.startswith("second")] == list(range(1, 61))


def test_the_score_is_that_of_the_swapped_teacher(context: tuple) -> None:
    from pbd import blocks, evaluation, graph, training

    made, tasks = context
    teacher = training.load_teacher(made.teacher_path)
    dataset = training.load_dataset(made.data, made.seed, made.image_shape)
    built = {task.layer_name: blocks.build_block("two_layer", task, 5) for task in tasks}
    scores = training.score(teacher, built, dataset)
    images = np.concatenate([np.asarray(x) for x, _ in dataset.batches("validation")])
    for task in tasks:
        alone = graph.swap(teacher, [task], "two_layer")
        blocks.set_weights(alone, blocks.get_weights(built[task.layer_name]))
        assert scores[task.layer_name].val_accuracy == evaluation.accuracy(alone, dataset.batches("validation"))
        fed, target = graph.truncate(teacher, [task.layer_name]).predict(images, verbose=0)[task.layer_name]
        error = np.mean((built[task.layer_name].predict(fed, verbose=0) - target) ** 2) / np.var(target)
        assert scores[task.layer_name].nmse == pytest.approx(error, rel=1e-3)


def test_a_block_that_fails_costs_only_itself(context: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    from pbd import blocks, training

    made, tasks = context
    whole = blocks.build_block

    def broken(block: str, task: LayerTask, seed: int) -> object:
        if task.layer_name == "second":
            raise MemoryError("no room")
        return whole(block, task, seed)

    monkeypatch.setattr(blocks, "build_block", broken)
    results = {r.layer_name: r for r in training.train_group(made, TaskGroup(tuple(tasks)), lambda _: None)}
    assert (results["second"].status, results["second"].error) == ("failed", "MemoryError: no room")
    assert results["third"].status == "trained"


def test_divergence_is_a_failure_with_a_remedy(context: tuple) -> None:
    import dataclasses

    from pbd import training

    made, tasks = context
    wild = dataclasses.replace(made, training=dataclasses.replace(made.training, learning_rate=1e30))
    result = training.train_group(wild, TaskGroup((tasks[0],)), lambda _: None)[0]
    assert result.status == "failed"
    assert "--learning-rate" in result.error
    assert result.weights == {}


def test_zero_epochs_leave_the_first_weights(context: tuple) -> None:
    import dataclasses

    from pbd import blocks, training

    made, tasks = context
    idle = dataclasses.replace(made, training=dataclasses.replace(made.training, epochs=0))
    result = training.train_group(idle, TaskGroup((tasks[0],)), lambda _: None)[0]
    first = blocks.get_weights(blocks.build_block("two_layer", tasks[0], made.seed))
    assert result.loss_history == ()
    assert all(np.array_equal(result.weights[key], first[key]) for key in first)
