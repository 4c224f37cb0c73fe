"""The paper's scheme beside ours: the same blocks, the ratios of what was measured, and what a step is made of."""

import csv
import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from experiments import block_phase, operations, scaling, speed, time_breakdown
from experiments.block_phase import Measured, Setup
from experiments.operations import Row
from experiments.speed import Difference
from experiments.time_breakdown import Watch
from pbd.errors import PbdError
from pbd.records import Assignment, BlockResult, Progress, TaskGroup
from pbd.run_dir.journal import Journal
from tests.helpers.cluster import PATIENCE_S

NAMES = ("first", "second")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small network and images for it."""
    import keras

    folder = tmp_path_factory.mktemp("speed")
    keras.utils.set_random_seed(5)
    inputs = x = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="second")(x)
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, outputs).save(folder / "teacher.keras")
    draws, labels = np.random.default_rng(0), np.arange(80) % 3
    images = draws.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    return {"teacher": str(folder / "teacher.keras"), "dataset": str(folder / "data.npz")}


def setup(files: dict[str, str], run_dir: Path, **settings: Any) -> Setup:
    how = {"train_limit": None, "batch_size": 16, "augment": "flip_crop", "epochs": 3, "learning_rate": 0.003}
    how |= {"image_size": None, "block": "decoupled_r2", "block_init": "fitted", "seed": 1}
    return Setup("task", 1, 1, str(run_dir), **files, **how | settings)


class InProcess:
    """Stands for an executor of one worker in this process."""

    num_workers = 1

    def run(
        self, train_group: Callable[..., list[BlockResult]], assignment: Assignment, emit: Any
    ) -> Iterator[BlockResult]:
        for group in assignment.groups:
            yield from train_group(group, emit)


@pytest.mark.usefixtures("eager")
def test_both_schemes_train_the_same_blocks(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    from pbd.blockwise import train_group as training

    found, loads, load_model = {}, [], keras.models.load_model
    monkeypatch.setattr(keras.models, "load_model", lambda *a, **k: loads.append(a) or load_model(*a, **k))
    for scheme in ("paper", "task"):
        Journal.create(tmp_path / scheme, {})
        context, tasks = block_phase.load(setup(files, tmp_path / scheme))
        loads.clear()
        if scheme == "paper":
            results = list(block_phase.plan(scheme, context, tasks, InProcess(), block_phase.ignore)())
        else:
            results = training.train_group(context, TaskGroup(tuple(tasks)), block_phase.ignore)
        assert [result.layer for result in results] == list(NAMES)
        assert len(loads) == (2 * len(NAMES) if scheme == "paper" else 0), "once for every two epochs"
        assert all(len(result.loss_history) == 3 for result in results)
        assert all(0.0 <= result.val_accuracy <= 1.0 for result in results)
        found[scheme] = speed.weights_of(tmp_path / scheme)
    assert set(found["paper"]) == set(NAMES)
    assert speed.compare(found["paper"], found["task"]).largest < 1e-5
    fresh = {name: {key: value + 1.0 for key, value in block.items()} for name, block in found["task"].items()}
    assert speed.compare(found["paper"], fresh).largest == pytest.approx(1.0, abs=1e-3)


def test_blocks_of_other_layers_are_not_compared() -> None:
    one, other = {"a": {"k": np.ones(2)}}, {"b": {"k": np.ones(2)}}
    assert speed.compare(one, {"a": {"k": np.array([1.0, 0.5])}}) == Difference(0.5, 0.5)
    with pytest.raises(PbdError, match="must train the same blocks"):
        speed.compare(one, other)


def test_schemes_take_turns_and_each_run_is_compared_with_the_first(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Setup] = []
    monkeypatch.setattr(speed, "measure", lambda one: made.append(one) or Measured(float(len(made)), {}))
    monkeypatch.setattr(speed, "weights_of", lambda _: {"a": {"k": np.array([float(len(made))])}})
    cases = [("paper", 1), ("task", 1), ("paper", 2), ("task", 2), ("data", 2), ("copies", 2), ("automatic", 2)]
    assert speed.cases(block_phase.SCHEMES, [1, 2]) == cases
    done = list(speed.alternate(setup(files, tmp_path), cases, repeats=2, folder=tmp_path))
    assert [(one.scheme, one.workers) for one in made] == 2 * cases
    assert [case for case, _, _ in done] == 2 * cases
    assert len({one.run_dir for one in made}) == 14
    assert [measured.seconds for _, measured, _ in done] == list(range(1, 15))
    assert [apart.largest for _, _, apart in done] == list(range(14))


def test_ratios_are_medians_of_runs_that_stood_side_by_side() -> None:
    seconds = {("paper", 1): [10.0, 40.0, 12.0], ("task", 1): [2.0, 10.0, 2.0], ("paper", 2): [8.0, 8.0, 8.0]}
    seconds |= {("task", 2): [1.0, 2.0, 4.0], ("data", 2): [1.0, 2.5, 1.0], ("copies", 2): [2.5, 12.0, 2.5]}
    rows = {(row.scheme, row.workers): row for row in speed.summarise(seconds)}
    ours = rows["task", 1]
    assert (ours.seconds, ours.fastest_s, ours.slowest_s, ours.times_as_fast, ours.gain) == (2.0, 2.0, 10.0, 5.0, 1.0)
    assert rows["paper", 1].times_as_fast == 1.0
    assert (rows["task", 2].times_as_fast, rows["task", 2].gain) == (4.0, 2.0)
    assert rows["data", 2].gain == 2.0, "over one worker, who trains by tasks"
    assert rows["paper", 2].gain == 1.5
    assert rows["copies", 2].times_as_fast is None
    assert rows["copies", 2].gain == pytest.approx(1.6), "twice the work in 1.25 times the time"
    printed = as_text(speed.as_table(list(rows.values()), Difference(2e-7, 3e-6)))
    for words in ("2.0 (2.0-10.0) │", " 5.00 │", "2.0e-07", "3.0e-06"):
        assert words in printed
    (alone, ours) = speed.summarise({("paper", 2): [3.0], ("task", 2): [1.0]})
    assert (alone.gain, ours.times_as_fast) == (None, 3.0)
    assert speed.summarise({("task", 1): [1.0]})[0].times_as_fast is None


def test_where_the_seconds_go_is_told_from_progress() -> None:
    times = iter([0.0, 10.0, 12.0, 16.0, 21.0, 23.0, 26.0])
    watch = Watch(clock=lambda: next(times))
    watch.start()
    watch(Progress(1, "another worker's", 3, 8, 1))
    for epoch, done in ((1, 1), (1, 2), (1, 4), (2, 5), (2, 6)):
        watch(Progress(0, "a", done, 6, epoch))
    watch(Progress(0, "scoring a", 6, 6, 2))
    spent = watch.spent(ended=40.0)
    assert spent == {
        "first weights, tracing": 8.0,  # the first step has 2 of the first 10 seconds
        "steps": 2 + 2 + 4 + 2 + 2,
        "checks between epochs": 3.0 + 3.0,
        "scoring and saving": 14.0,
    }
    assert sum(spent.values()) == 40.0
    parts = time_breakdown.split(spent, steps=6, alone_s={"data": 0.25, "teacher": 0.5}, waiting_s=4.0)
    assert (parts["steps: data"], parts["steps: teacher"], parts["steps: blocks"]) == (1.5, 3.0, 7.5)
    assert (parts["scoring and saving"], parts["waiting for others"]) == (10.0, 4.0)
    assert tuple(parts) == time_breakdown.PARTS
    printed = as_text(speed.spending_table({("task", 1): [parts, parts]}))
    assert "task, 1" in printed
    assert "7.5" in printed


def as_text(table: Table) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_images_and_built_in_networks_have_the_size_that_is_asked_for(tmp_path: Path) -> None:
    import keras

    for flags, size in (([], None), (["--image-size", "24"], 24)):
        settings = speed.parse(flags)
        assert speed.as_setup(settings, 1, "").data.image_size == size
        saved = speed.save_teacher("digits_cnn", tmp_path, settings.image_size)
        assert keras.models.load_model(saved).input_shape[1:3] == (size or 32, size or 32)


@pytest.mark.system
def test_a_measurement_is_a_process_of_its_own(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "speed.csv"
    arguments = ["--teacher", files["teacher"], "--dataset", files["dataset"], "--batch-size", "16", "--epochs", "1"]
    arguments += ["--schemes", "task", "--workers", "1", "--repeats", "1", "--csv", str(table)]
    assert speed.main(arguments) == 0
    with table.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["scheme"], row["workers"]) == ("task", "1")
    assert float(row["seconds"]) > 0
    assert capsys.readouterr().out.count("workers: 1: ") == 1


@pytest.mark.system
def test_predictions_rest_on_one_thread_and_one_core(files: dict[str, str]) -> None:
    arguments = ["--teacher", files["teacher"], "--dataset", files["dataset"], "--batch-size", "16", "--epochs", "1"]
    command = [sys.executable, "-m", "experiments.scaling", *arguments, "--workers", "1", "2"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=Path(__file__).parents[2])
    assert told.returncode == 0, told.stderr
    assert "1 of 1 threads per worker" in " ".join(told.stdout.split()), "which may take two lines"
    assert [line.split()[1] for line in told.stdout.splitlines() if line.startswith("│")] == ["1", "2"]


@pytest.mark.parametrize(
    ("program", "arguments", "code", "said"),
    [
        (speed, ["--workers", "0"], 2, "argument --workers: must be a whole number above 0. Received: '0'"),
        (speed, ["--epochs", "few"], 2, "argument --epochs: must be a whole number above 0"),
        (speed, ["--block-init", "zeros"], 2, "argument --block-init: invalid choice: 'zeros'"),
        (speed, ["--learning-rate", "-1"], 2, "learning_rate must be positive"),
        (speed, ["--teacher", "resnet65"], 2, "Received: 'resnet65'. Did you mean 'resnet56'?"),
        (scaling, ["--network-gbit", "0"], 2, "argument --network-gbit: must be a whole number above 0"),
        (speed, ["--csv", "nowhere/speed.csv"], 66, "Received: 'nowhere/speed.csv'"),
        (operations, ["--rounds", "0"], 2, "argument --rounds: must be a whole number above 0"),
        (operations, ["--fast"], 2, "unrecognized arguments: --fast"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(
    program: Any, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("decoupled_r2", {"depthwise, forward": 4, "depthwise, kernel gradient": 4, "Concatenate and gradient": 2}),
        (
            "two_layer",
            {"depthwise, forward": 4, "depthwise, input gradient": 2, "BatchNormalization and gradient": 4},
        ),
    ],
)
def test_a_step_is_counted_and_measured(files: dict[str, str], block: str, expected: dict[str, int]) -> None:
    import keras

    from experiments import step_operations
    from pbd import blocks
    from pbd.blockwise.tasks import enumerate_tasks

    teacher = keras.models.load_model(files["teacher"])
    tasks = [task for task in enumerate_tasks(teacher, blocks.get(block)) if task.layer.name in NAMES]
    built = {task.layer.name: blocks.build_block(blocks.get(block), task.layer, seed=0) for task in tasks}
    kinds: dict[str, int] = {}
    for operation, times in step_operations.count(teacher, built, batch_size=4).items():
        kinds[operation.kind] = kinds.get(operation.kind, 0) + times
    assert expected.items() <= kinds.items()
    assert ("depthwise, input gradient" in kinds) == (block == "two_layer"), "a block's input needs no gradient"
    assert kinds["squared error and gradient"] == 2
    assert kinds["teacher: Conv2D 3x3"] == 3
    assert kinds["optimiser"] == 1
    if block == "two_layer":
        return
    rows, step_ms = operations.measure(teacher, built, batch_size=4, rounds=2)
    assert {row.kind for row in rows} == set(kinds)
    assert step_ms > 0
    assert all(row.one_ms >= 0 for row in rows)


def test_the_gradient_of_a_convolution_is_computed_without_its_forward_pass() -> None:
    import tensorflow as tf

    from experiments import step_operations

    forward, kernel, inputs = step_operations._pointwise((2, 4, 4, 3), 5, use_bias=False)
    tensors = [tf.random.stateless_normal(shape, (0, 0)) for shape in kernel.shapes]
    x, weights, upstream = tensors
    np.testing.assert_allclose(inputs.function(*tensors), upstream @ tf.transpose(weights[0, 0]), rtol=1e-5, atol=1e-5)
    expected = tf.einsum("bijc,bijd->cd", x, upstream)
    np.testing.assert_allclose(kernel.function(*tensors)[0, 0], expected, rtol=1e-4, atol=1e-4)
    assert forward.function(x, weights).shape == upstream.shape
    graph = tf.function(kernel.function).get_concrete_function(*tensors).graph
    wanted, seen = [graph.outputs[0].op], set()
    while wanted:
        op = wanted.pop()
        seen.add(op.type)
        wanted += [tensor.op for tensor in op.inputs]
    assert "Conv2DBackpropFilter" in seen
    assert "Conv2D" not in seen


def test_the_table_sums_what_occurs_in_a_step() -> None:
    rows = [Row("a", "1x2", 3, 1.0), Row("a", "2x2", 1, 2.0), Row("b", "1", 10, 0.5)]
    printed = as_text(operations.as_table(rows, step_ms=14.0))
    for words in ("│ a ", " 5.00 │", "50.0%", " 10.00 │", "The step takes 1.40 times the sum"):
        assert words in printed
    operation = operations.as_row(
        dataclasses.make_dataclass("Fake", ["kind", "shapes"])("c", ((2, 3), (1,))), 7, call_s=0.001, seconds=0.009
    )
    assert operation == Row("c", "2x3, 1", 7, pytest.approx(2.0))
