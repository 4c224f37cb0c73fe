"""The bias study: classes that are reduced, what the methods learn from, the table, and what it says."""

import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from experiments import bias, bias_runs
from pbd import data
from pbd.config import Feature
from pbd.networks import files

layers = keras.layers


def network() -> keras.Model:
    """Return a network that knows the digits to some extent: random filters, and a classifier by least squares."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((32, 32, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    for name in ("conv1", "conv2"):
        x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name=name)(x)
    x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x))
    images, labels = bias_runs.load("digits", 50, 32, 32).train
    features = np.asarray(keras.Model(inputs, x)(images))
    augmented = np.c_[features, np.ones(len(features))]
    targets = 5 * np.eye(10)[labels]
    solution = np.linalg.solve(augmented.T @ augmented + 1e-2 * np.eye(augmented.shape[1]), augmented.T @ targets)
    model.get_layer("logits").set_weights([solution[:-1], solution[-1]])
    return model


@pytest.mark.usefixtures("eager")
def test_the_whole_table_is_measured_beside_that_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "load", files.read)  # not checked in a process of its own, which takes seconds
    teacher, table = tmp_path / "teacher.keras", tmp_path / "table.csv"
    network().save(teacher)
    limits = ["--train-limit=40", "--validation-limit=32", "--test-limit=100", "--similarity-images=60"]
    options = [*limits, "--teacher", str(teacher), "--batch-size=32", "--rounds=1", "--percents", "20"]
    methods = ["pruning alone", "FSP", "FSP+KD", "SP+KD", "AT+KD"]
    arguments = ["--quick", *options, "--runs", str(tmp_path / "runs"), "--csv", str(table), "--methods", *methods]
    assert bias.main(arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("Some classes reduced to 20% of their images", "KD beside FSP changes CEV", "theirs AT+KD (852)"):
        assert words in text
    with table.open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(methods)
    assert float(rows["AT+KD"]["their_cev"]) == 851.694
    assert all(0 < float(row["svcca_1"]) < 1 and row["svcca_3"] == row["pies"] == "" for row in rows.values())
    assert all(float(row["cev"]) > 0 for row in rows.values())
    assert len({row["svcca_fc"] for row in rows.values()}) == 5, "each method trains on other losses"

    def repeated(*_: object, **__: object) -> None:
        raise AssertionError("a network that is complete is not analysed again")

    monkeypatch.setattr(pbd, "analyse", repeated, raising=False)
    assert bias.main([*arguments, "--methods", "SP+KD"]) == 0
    with table.open(newline="") as file:
        assert list(csv.DictReader(file)) == [rows["SP+KD"]]


def test_a_share_of_some_classes_is_left_out() -> None:
    labels = np.repeat(np.arange(4), 50)
    images = np.arange(200)
    classes = bias_runs.reduced_classes(4, 2)
    half, tenth = (bias_runs.reduced((images, labels), classes, percent) for percent in (50, 10))
    assert set(tenth[0]) < set(half[0])
    assert np.array_equal(labels[half[0]], half[1])
    counts = [np.bincount(each[1]).tolist() for each in (half, tenth)]
    expected = [[part if label in classes else 50 for label in range(4)] for part in (25, 5)]
    assert counts == expected
    assert np.array_equal(bias_runs.reduced((images, labels), classes, 100)[0], images)


def test_each_method_has_its_losses() -> None:
    blocks = ("a", "b", "c")
    assert bias_runs.losses("pruning alone", blocks) == {"loss": "cross_entropy", "features": []}
    assert bias_runs.losses("KD", blocks) == {"loss": "mixed", "features": []}
    assert bias_runs.losses("AT", blocks)["features"] == [Feature("at", name, name) for name in blocks]
    both = bias_runs.losses("FSP+KD", blocks)
    assert both == {"loss": "mixed", "features": [Feature("fsp", pair, pair) for pair in (("a", "b"), ("b", "c"))]}
    assert bias_runs.losses("SP", blocks)["features"] == [Feature("sp", "c", "c")]
    settings = bias.parse(["--full", "--rounds", "3"])
    steps = bias._training(settings).steps("PKT+KD", blocks)
    assert [type(step).__name__ for step in steps] == ["PruneFilters", "FineTune"]
    assert (steps[0].rounds, steps[0].first_ratio, steps[0].epochs, steps[1].epochs) == (3, 0.1, 5, 120)


def test_blocks_end_where_the_size_changes() -> None:
    from experiments import networks

    assert bias_runs.find_blocks(network()) == ("conv1", "conv2")
    resnet = networks.resnet20()
    names = bias_runs.find_blocks(resnet)
    assert [resnet.get_layer(name).output.shape[1:] for name in names] == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert {type(resnet.get_layer(name)) for name in names} == {layers.ReLU}


def test_the_published_correlations_follow_from_the_published_table() -> None:
    figures: dict[str, Any] = {"pies": None, "cev": 1.0, "sde": 1.0, "accuracy": 0.5, "distances": [0.1, 0.2]}
    rows = [bias.row_of(method, figures) for method in bias_runs.METHODS]
    table = {row["layer"]: row for row in bias.correlations(20, rows)}
    assert table["logits"]["their_cev"] > 0.8
    assert table["logits"]["cev"] is None, "ours are constant"
    said = bias.findings(rows)
    assert said[0] == "The least CEV: ours pruning alone (1); theirs AT+KD (852)."
    assert said[2].endswith("ours that of no layer (not measured); theirs that of logits (+0.92).")


def test_what_differs_is_said() -> None:
    theirs = bias.theirs()
    rows = [
        {"method": method, "cev": cev, "their_cev": theirs[method]["cev"]}
        for method, cev in {"AT": 100.0, "AT+KD": 150.0, "SP": 100.0, "SP+KD": 50.0}.items()
    ]
    lines = bias.findings(rows)
    assert "KD beside AT changes CEV by +50% (theirs -56%): unlike the source." in lines
    assert "KD beside SP changes CEV by -50% (theirs -43%): as in the source." in lines


def test_pies_are_those_of_the_population_of_all_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network_of: dict[str, keras.Model] = {}
    for name in ("original", "student"):
        network_of[name] = network()
        kernel, offset = network_of[name].get_layer("logits").get_weights()
        flips = -1 if name == "student" else 1
        network_of[name].get_layer("logits").set_weights([kernel * flips, offset])
    monkeypatch.setattr(bias_runs.Run, "networks", lambda self, method: iter(network_of.values()))
    images = bias_runs.load("digits", 64, 32, 50)
    training = bias_runs.Training("", 1, 1, 0, 16, "none", 50)
    runs = [bias_runs.Run(training, images, tmp_path, seed) for seed in (0, 1)]
    assert bias_runs.exemplars(runs[:1], "KD") is None
    count = bias_runs.exemplars(runs, "KD")
    assert count is not None
    assert 30 < count <= 50


def test_data_without_labels_or_arrays_are_refused() -> None:
    assert data.load(pbd.RunConfig.of(dataset="digits").data, seed=0).labelled
    assert bias.main(["--dataset", "digits", "--classes", "10"]) == 2
