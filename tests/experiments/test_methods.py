"""The methods beside one another: what each is made of, equal sizes, and what the table says beside the sources."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from experiments import methods, steps
from pbd.networks.cost import count_macs
from pbd.records import ModelFacts
from pbd.records.recipe_report import StepReport

layers = keras.layers


def teacher(narrower: int = 1) -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3))
    normalisation = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])
    x = normalisation(inputs)
    for width in (16, 32):
        x = layers.Conv2D(width // narrower, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def facts(accuracy: float, macs: int) -> ModelFacts:
    return ModelFacts(100, macs, accuracy, accuracy, None, None, None, None, 0.0, 0.0)


def test_what_is_given_beside_quick_wins() -> None:
    for program in (methods, steps):
        parsed = [program.parse(flags) for flags in ([], ["--quick"], ["--quick", "--train-limit", "200"])]
        assert [settings.train_limit for settings in parsed] == [None, program.QUICK_IMAGES, 200]


def test_every_method_is_run_with_its_share_of_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[Any, dict[str, Any]]] = []
    network = teacher()

    def compress(steps: list[Any], **settings: Any) -> Any:
        ran.append((steps[0], settings))
        accuracy = 0.7 if getattr(steps[0], "order", "") == "bottom_up" else 0.8
        rows = [StepReport("teacher", facts(0.9, 1000), 100)]
        rows.append(StepReport("1 step", facts(accuracy, 250), 100, seconds=12.0, energy_j=34.0))
        report = SimpleNamespace(steps=tuple(rows))
        return SimpleNamespace(report=report, model=teacher(2), network=lambda name: network)

    monkeypatch.setattr(pbd, "compress", compress)
    table = tmp_path / "table.csv"
    options = ["--quick", "--epochs", "3", "--tune-epochs", "2", "--runs", str(tmp_path), "--csv", str(table)]
    assert methods.main([*options, "--workers", "1", "2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "top down is better than bottom up here (+10.00 points; Table 4.2: +4.92)" in text
    for source in methods.SOURCES.values():
        assert source.split(":")[0] in text
    assert len(table.read_text().splitlines()) == 17
    assert [settings["executor"] for _, settings in ran] == ["serial"] * 8 + ["dask"] * 8
    assert len({settings["run_dir"] for _, settings in ran}) == 16

    _, paper, ours, down, up, progressive, pruned, whole = (step for step, _ in ran[:8])
    assert (paper.block, paper.fine_tune_loss, paper.epochs, paper.fine_tune_epochs) == (
        ("two_layer",),
        "cross_entropy",
        3,
        2,  # one layer is replaced
    )
    assert (ours.block, ours.block_init, ours.fine_tune_loss) == (("decoupled_r2",), "fitted", "kd_mse")
    assert [(step.order, step.epochs, step.tune_epochs) for step in (down, up)] == [
        ("top_down", 3, 2),
        ("bottom_up", 3, 2),
    ]
    assert [step.epochs for step in (progressive, pruned, whole)] == [5, 5, 5]
    assert whole.student.count_params() == teacher(2).count_params()


def test_filters_are_removed_until_the_sizes_are_equal() -> None:
    network, student = teacher(), teacher(2)
    step = methods.pruning(network, student, 7)
    assert (step.importance, step.refit, step.epochs) == ("l1", False, 7)
    macs = methods.pruned_macs(network, step.ratio)
    assert macs == pytest.approx(count_macs(student), rel=0.06)
    assert macs <= count_macs(student)


def test_new_weights_are_random_and_the_same_each_time() -> None:
    student = teacher()
    first, second = methods.with_new_weights(student), methods.with_new_weights(student)
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    kernels = [network.layers[2].get_weights()[0] for network in (student, first)]
    assert not np.array_equal(*kernels)
