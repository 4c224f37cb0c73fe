"""Latency: networks in their targets take turns, and the figures are those asked for."""

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
from experiments import latency
from pbd import cli
from pbd.deploy import targets
from pbd.deploy.latency import BURST, LIMIT_S, WARM_UP, Times, alternate, plan
from pbd.deploy.runtimes import onnx
from pbd.errors import BadInputError, UsageError
from tests.deploy.small_networks import classifier

needs_onnx = pytest.mark.skipif(targets.TARGETS["onnx-int8"].obstacle() is not None, reason="ONNX Runtime is absent")


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latency") / "teacher.keras"
    classifier().save(path)
    return path


def test_networks_take_turns_and_each_is_timed_every_round() -> None:
    order: list[str] = []

    def runner(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda images: order.append(name) or images

    times = alternate([runner(name) for name in "tab"], np.zeros(1), rounds=4)
    assert [len(taken) for taken in times] == [4, 4, 4]
    burst = WARM_UP + BURST
    bursts = [set(order[at : at + burst]) for at in range(0, len(order), burst)]
    assert all(len(names) == 1 for names in bursts), "a burst is one network's"
    turns = ["".join(name for names in bursts[at : at + 3] for name in names) for at in range(0, len(bursts), 3)]
    assert len(turns) == 4
    assert set(turns) == {"tab", "bat"}


@pytest.mark.parametrize("pass_s", [1e-4, 1e-3, 1e-2, 0.05, 0.06, 0.2, 0.6, 30.0])
def test_measuring_takes_no_longer_than_it_may(pass_s: float) -> None:
    rounds, warm_up, burst = plan(pass_s)
    assert 3 <= rounds <= 15
    assert burst >= 1
    assert rounds * (warm_up + burst) * pass_s <= max(LIMIT_S, 3 * pass_s) * 1.001


def test_ratios_are_taken_within_rounds() -> None:
    """A change of the machine's speed between rounds meets both networks."""
    times = Times(1, (np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 2.0])), passes=1)
    assert times.times_as_fast(1, reference=0) == 2.0
    assert times.times_as_fast(0, reference=1) == 0.5
    assert times.quartiles(0) == (1.5, 2.0, 3.0)


@needs_onnx
def test_models_and_targets_are_measured_beside_the_first() -> None:
    model, random_state = classifier(), random.getstate()
    rows = pbd.measure_latency({"one": model, "two": model}, [1, 3], ["onnx", "onnx-int8"])
    assert [(row.batch, row.target, row.model) for row in rows] == [
        (batch, target, name) for batch in (1, 3) for target in ("onnx", "onnx-int8") for name in ("one", "two")
    ]
    for row in rows:
        assert 0 < row.q1_s <= row.seconds <= row.q3_s
        assert row.rounds >= 3
    assert [row.times_as_fast for row in rows[::4]] == [1.0, 1.0]
    assert all(1 / 3 < row.times_as_fast < 3 for row in rows[1::4]), "a network is about as fast as itself"
    assert rows[0].size_bytes == pytest.approx(rows[1].size_bytes, rel=0.01), "the names of nodes contain a counter"
    assert rows[1].size_bytes > rows[2].size_bytes
    assert random.getstate() == random_state


def test_keras_is_measured_where_nothing_else_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "onnx", "litert"):
        monkeypatch.setattr(type(targets.TARGETS[name].runtime), "packages", ("no_such_package",))
    rows = pbd.measure_latency({"one": classifier()}, [2])
    assert [(row.target, row.times_as_fast) for row in rows] == [("keras", 1.0)]


@needs_onnx
def test_the_number_of_threads_is_that_of_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    load = onnx.Onnx.load
    monkeypatch.setattr(onnx.Onnx, "load", lambda self, path, count: threads.append(count) or load(self, path, count))
    pbd.measure_latency({"one": classifier()}, [1], ["onnx"])
    pbd.measure_latency({"one": classifier()}, [1], ["onnx"], threads=2)
    assert threads == [1, 2]


def test_a_target_counts_once() -> None:
    assert [row.target for row in pbd.measure_latency({"one": classifier()}, [1], ["keras", "keras"])] == ["keras"]
    assert [row.target for row in pbd.measure_latency({"one": classifier()}, 1, "keras")] == ["keras"]


def test_models_that_cannot_be_compared_are_refused() -> None:
    small, large = classifier(), keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(BadInputError, match="of the same fixed shape"):
        pbd.measure_latency({"small": small, "large": large})
    with pytest.raises(BadInputError, match="return scores"):
        pbd.measure_latency({"large": large})
    with pytest.raises(BadInputError, match="of the same fixed shape"):
        pbd.measure_latency({"free": keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])})
    for settings in ({"batch_sizes": [0]}, {"threads": 0}):
        with pytest.raises(UsageError, match="threads of at least 1"):
            pbd.measure_latency({"small": small}, **settings)
    with pytest.raises(UsageError, match="needs a model"):
        pbd.measure_latency({})
    for models in (small, [small]):
        with pytest.raises(UsageError, match=r"models must be a mapping from names. Received: (Functional|list)"):
            pbd.measure_latency(models)
    with pytest.raises(UsageError, match=r"a network must be a keras.Model. Received: str"):
        pbd.measure_latency({"small": "small.keras"})
    for settings in ({"batch_sizes": 1.5}, {"batch_sizes": ["1"]}, {"threads": "1"}):
        with pytest.raises(UsageError, match="must be of type int"):
            pbd.measure_latency({"small": small}, **settings)
    with pytest.raises(UsageError, match="Did you mean 'keras'"):
        pbd.measure_latency({"small": small}, targets=["keros"])


def test_the_command_prints_a_table_or_json(teacher_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["latency", str(teacher_file), str(teacher_file), "--batch-sizes", "2", "--target", "keras"]
    assert cli.command(command) == 0
    assert "speedup" in capsys.readouterr().out
    assert cli.command([*command, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["target"], row["batch"]) == (str(teacher_file), "keras", 2)


@needs_onnx
def test_the_experiment_has_a_row_for_each_student(
    teacher_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "latency.csv"
    arguments = ["--target", "onnx", "keras", "--batch-sizes", "2", "3", "--block", "two_layer", "three_layer"]
    assert latency.main(["--teacher", str(teacher_file), *arguments, "--csv", str(table)]) == 0
    with table.open() as file:
        rows = [(row["batch"], row["target"], row["model"]) for row in csv.DictReader(file)]
    models = ("teacher", "two_layer", "three_layer")
    assert rows == [(batch, target, model) for batch in "23" for target in ("onnx", "keras") for model in models]
    assert capsys.readouterr().out.count("three_layer") == 4


def test_a_student_of_ones_own_is_measured_beside_its_teacher(
    teacher_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--teacher", str(teacher_file), "--student", str(teacher_file)]
    assert latency.main([*files, "--target", "keras", "--batch-sizes", "2"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["model", "teacher", "student"]


def test_an_absent_runtime_is_left_out_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(targets.TARGETS["onnx"].runtime), "packages", ("numpy", "no_such_package"))
    console = Console(width=120, record=True)
    assert "onnx" not in latency.installed(console)
    assert "left out: onnx needs no_such_package: pip install 'pbd[onnx]'\n" in console.export_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch-sizes", "0"], 2, "argument --batch-sizes: must be a whole number above 0. Received: '0'"),
        (["--target", "cuda"], 2, "unknown target. Received: 'cuda'"),
        (["--speed"], 2, "unrecognized arguments: --speed"),
        (["--teacher", "VGG17"], 2, "Received: 'VGG17'. Did you mean 'VGG1"),
        (["--teacher", "nowhere.keras"], 66, "Received: 'nowhere.keras', no such file"),
        (["--student", "nowhere.keras"], 66, "Received: 'nowhere.keras', no such file"),
        (["--csv", "nowhere/latency.csv"], 66, "Received: 'nowhere/latency.csv'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    arguments: list[str], code: int, message: str, teacher_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--teacher" not in arguments:
        arguments = [*arguments, "--teacher", str(teacher_file)]
    assert latency.main(arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latency: ")
    assert message in line


def test_an_unknown_block_is_refused_in_one_line(teacher_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--teacher", str(teacher_file), "--block", "two_layers", "--target", "keras"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("Received: 'two_layers'. Did you mean 'two_layer'?")
