"""The latency bench: exports agree with Keras, the table holds what was asked for, and what is absent is said."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

import pbd
from experiments import latency, runtimes
from experiments.networks import load_teacher
from pbd import cli
from pbd.deploy.latency import BURST, LIMIT_S, WARM_UP, alternate, compare, plan
from pbd.errors import BadInputError, EnvironmentMismatchError, PbdError, UsageError
from pbd.networks import graph


def small_teacher() -> keras.Model:
    """Two convolutions, of which the second is worth replacing, behind a normalisation that has constants."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Normalization(mean=(120.0, 110.0, 100.0), variance=(60.0, 50.0, 40.0))(inputs)
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(x)
    x = keras.layers.Conv2D(32, 3, padding="same", use_bias=False, name="wide")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latency") / "teacher.keras"
    small_teacher().save(path)
    return path


def test_every_runtime_agrees_with_keras_at_every_batch_size(teacher_file: Path) -> None:
    teacher = load_teacher(str(teacher_file), image_size=32)
    networks = {"teacher": teacher, **latency.make_students(teacher, ["two_layer"])}
    assert networks["two_layer"].count_params() < teacher.count_params()
    for runtime in runtimes.RUNTIMES:
        for name, network in networks.items():
            runner = runtimes.make_runner(name, network, runtime)
            for batch in (1, 5, 1):
                images = np.random.default_rng(batch).uniform(0, 255, (batch, 8, 8, 3)).astype("float32")
                assert runner(images).shape == (batch, 4)
                assert runtimes.check_agreement(name, network, runner, images) < 1e-5


def test_a_runtime_that_computes_something_else_is_refused(teacher_file: Path) -> None:
    teacher = load_teacher(str(teacher_file), image_size=32)
    images = np.ones((2, 8, 8, 3), "float32")
    for wrong in (1.01, np.nan):
        with pytest.raises(PbdError, match=r"must agree with Keras to 0\.001"):
            runtimes.check_agreement("it", teacher, lambda images, by=wrong: by * np.asarray(teacher(images)), images)


def test_networks_take_turns_and_each_is_timed_every_round() -> None:
    order = []

    def runner(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda images: order.append(name) or images

    times = alternate({name: runner(name) for name in "tab"}, np.zeros(1), rounds=4)
    assert {name: len(taken) for name, taken in times.items()} == {"t": 4, "a": 4, "b": 4}
    burst = WARM_UP + BURST
    bursts = [set(order[at : at + burst]) for at in range(0, len(order), burst)]
    assert all(len(names) == 1 for names in bursts), "a burst is one network's"
    turns = ["".join(name for names in bursts[at : at + 3] for name in names) for at in range(0, len(bursts), 3)]
    assert len(turns) == 4
    assert set(turns) == {"tab", "bat"}


def test_the_table_and_the_file_have_the_rows_asked_for(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "latency.csv"
    arguments = ["--runtimes", "onnx", "tensorflow", "--batches", "2", "3", "--block", "two_layer", "three_layer"]
    code = latency.main(["--teacher", str(teacher_file), *arguments, "--rounds", "2", "--csv", str(table)])
    assert code == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    expected = [
        (runtime, batch, block)
        for runtime in ("onnx", "tensorflow")
        for batch in "23"
        for block in ("two_layer", "three_layer")
    ]
    assert [(row["runtime"], row["batch"], row["student"]) for row in rows] == expected
    for row in rows:
        assert 0 < float(row["student_q1_ms"]) <= float(row["student_ms"]) <= float(row["student_q3_ms"])
        assert float(row["times_as_fast"]) > 0
        assert float(row["difference"]) < 1e-5
    said = capsys.readouterr().out
    assert "Largest difference from Keras" in said
    assert said.count("three_layer") == 4


def test_a_student_of_ones_own_is_measured_beside_its_teacher(
    teacher_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--teacher", str(teacher_file), "--student", str(teacher_file)]
    assert latency.main([*files, "--runtimes", "tensorflow", "--batches", "2", "--rounds", "3"]) == 0
    assert "│ tensorflow │     2 │ teacher │" in capsys.readouterr().out


def test_an_absent_runtime_is_left_out_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = runtimes.Runtime(runtimes.RUNTIMES["onnx"].make_runner, ("numpy", "no_such_package"), "export")
    monkeypatch.setitem(runtimes.RUNTIMES, "onnx", absent)
    console = Console(width=120, record=True)
    assert latency.installed(["onnx", "tensorflow"], console) == ["tensorflow"]
    assert (
        console.export_text() == "onnx is left out: it needs no_such_package. Get it with pip install 'pbd[export]'\n"
    )
    with pytest.raises(EnvironmentMismatchError, match="none of those asked for"):
        latency.installed(["onnx"], console)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--batches", "0"], 2, "argument --batches: must be a whole number above 0. Received: '0'"),
        (["--rounds", "many"], 2, "argument --rounds: must be a whole number above 0. Received: 'many'"),
        (["--runtimes", "cuda"], 2, "argument --runtimes: invalid choice: 'cuda'"),
        (["--speed"], 2, "unrecognized arguments: --speed"),
        (["--teacher", "VGG17"], 2, "Received: 'VGG17'. Did you mean 'VGG1"),
        (["--teacher", "nowhere.keras"], 66, "Received: 'nowhere.keras', no such file"),
        (["--student", "nowhere.keras"], 66, "Received: 'nowhere.keras', no such file"),
        (["--csv", "nowhere/latency.csv"], 66, "Received: 'nowhere/latency.csv'"),
    ],
)
def test_wrong_arguments_are_said_in_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("latency: ")
    assert said in lines[0]


def test_an_unknown_block_is_said_in_one_line(teacher_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--teacher", str(teacher_file), "--block", "two_layers"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("Received: 'two_layers'. Did you mean 'two_layer'?")


def test_a_student_is_timed_beside_its_teacher_with_one_image_and_with_a_batch() -> None:
    teacher = graph.flatten(small_teacher())
    student = latency.make_students(teacher, ["decoupled_r2"])["decoupled_r2"]
    weights = [value.copy() for value in teacher.get_weights()]
    rows = compare(teacher, student, training_batch=8)
    assert [row.batch for row in rows] == [1, 8]
    for row in rows:
        assert 0 < row.teacher_q1_s <= row.teacher_s <= row.teacher_q3_s
        assert 0 < row.student_q1_s <= row.student_s <= row.student_q3_s
        assert row.times_as_fast > 0
        assert row.rounds >= 3
    for before, now in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, now)
    assert len(compare(teacher, student, training_batch=1)) == 1


def test_a_network_and_itself_are_about_as_fast() -> None:
    model = graph.flatten(small_teacher())
    (row,) = compare(model, model, training_batch=1)
    assert 1 / 3 < row.times_as_fast < 3


@pytest.mark.parametrize("pass_s", [1e-4, 1e-3, 1e-2, 0.05, 0.06, 0.2, 0.6, 30.0])
def test_measuring_takes_no_longer_than_it_may(pass_s: float) -> None:
    rounds, warm_up, burst = plan(pass_s)
    assert 3 <= rounds <= 15
    assert burst >= 1
    assert rounds * (warm_up + burst) * pass_s <= max(LIMIT_S, 3 * pass_s) * 1.001


def test_models_are_measured_beside_the_first_one() -> None:
    model, random_state = small_teacher(), random.getstate()
    for fold in (True, False):
        rows = pbd.measure_latency({"one": model, "two": model}, batch_sizes=[1, 3], fold=fold)
        assert [(row.batch, row.model) for row in rows] == [(1, "one"), (1, "two"), (3, "one"), (3, "two")]
        for row in rows:
            assert 0 < row.q1_s <= row.seconds <= row.q3_s
            assert row.rounds >= 3
        assert [row.times_as_fast for row in rows[::2]] == [1.0, 1.0]
        assert all(1 / 3 < row.times_as_fast < 3 for row in rows[1::2])
    assert random.getstate() == random_state


def test_models_that_cannot_be_compared_are_refused() -> None:
    small, large = small_teacher(), keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(BadInputError, match="of the same fixed shape"):
        pbd.measure_latency({"small": small, "large": large})
    with pytest.raises(BadInputError, match="cannot rewrite 'large' for inference"):
        pbd.measure_latency({"large": large})
    with pytest.raises(BadInputError, match="of the same fixed shape"):
        pbd.measure_latency({"free": keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])})
    with pytest.raises(UsageError, match="batch sizes of at least 1"):
        pbd.measure_latency({"small": small}, batch_sizes=[0])
    with pytest.raises(UsageError, match="needs a model"):
        pbd.measure_latency({})


def test_the_command_prints_a_table_or_json(teacher_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["latency", str(teacher_file), str(teacher_file), "--batch-sizes", "2"]
    assert cli.command(command) == 0
    assert "times as fast" in capsys.readouterr().out
    assert cli.command([*command, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["batch"], row["times_as_fast"]) == (str(teacher_file), 2, 1.0)
