"""The table of steps alone and in a row: equal epochs, ratios to the teacher in 8-bit integers, and what is resumed."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pbd
from experiments import steps
from pbd.compression.step import name_of
from pbd.records import Deployment, Latency, ModelFacts
from pbd.records.recipe_report import StepReport

pytestmark = pytest.mark.unit

TARGETS = ("openvino", "onnx")


def deployed(target: str, accuracy: float, seconds: float) -> Deployment:
    latency = tuple(Latency(batch, seconds, seconds, seconds, 3 / seconds, 1 / seconds, 5, 9) for batch in (1, 32))
    return Deployment("network", target, 1000, accuracy, 1.0, 1000, latency)


def network(name: str, accuracy: float, seconds: float, share: float) -> StepReport:
    facts = ModelFacts(int(1000 * share), int(500 * share), accuracy, accuracy)
    rows = [deployed(f"{target}-int8", accuracy - 0.01, seconds) for target in TARGETS]
    rows += [deployed(target, accuracy, 3 * seconds) for target in TARGETS]
    return StepReport(name, facts, 1000, deployments=tuple(rows))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the arguments of every recipe that was run; each step halves the time and costs two points."""
    recipes: list[dict[str, Any]] = []

    def compress(steps: list[Any], **settings: Any) -> Any:
        recipes.append({"steps": steps, **settings})
        rows = [network("teacher", 0.9, 1.0, 1.0)]
        rows += [network(f"{n} {name_of(step)}", 0.9 - 0.02 * n, 0.5**n, 0.5**n) for n, step in enumerate(steps, 1)]
        return SimpleNamespace(report=SimpleNamespace(steps=tuple(rows)))

    monkeypatch.setattr(pbd, "compress", compress)
    return recipes


def table(tmp_path: Path, *options: str) -> list[list[str]]:
    path = tmp_path / "table.csv"
    assert steps.main([*options, "--runs", str(tmp_path / "runs"), "--csv", str(path)]) == 0
    return list(csv.reader(path.read_text().splitlines()))


def test_every_row_is_trained_equally_long(tmp_path: Path, ran: list[dict[str, Any]]) -> None:
    _, *rows = table(tmp_path, "--epochs", "7", "--qat-epochs", "3")
    epochs = {row[0]: row[1] for row in rows}
    assert epochs.pop("teacher") == epochs.pop("L1 filters 50%, refitted") == "0"
    assert epochs.pop("budget > QAT") == "10"
    assert set(epochs.values()) == {"7"}
    settings = [getattr(step, "fine_tune_epochs", getattr(step, "epochs", 0)) for one in ran for step in one["steps"]]
    assert sorted(settings) == [0, 0, 3, 7, 7, 7, 7, 7]


def test_networks_are_compared_in_8_bit_integers_in_each_target(
    tmp_path: Path, ran: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    heading, *rows = table(tmp_path, "--quick")
    found = {(row[0], row[4]): dict(zip(heading, row, strict=True)) for row in rows}
    assert len(found) == 2 * 8
    for target in TARGETS:
        last = found["budget > QAT", target]
        assert float(last["accuracy"]) == pytest.approx(0.86)
        assert float(last["int8_accuracy"]) == pytest.approx(0.85)
        assert float(last["lost_points"]) == pytest.approx(4.0)
        assert float(last["speedup_1"]) == float(last["speedup_32"]) == 4.0
        assert float(last["params_share"]) == float(last["macs_share"]) == 0.25
        assert float(found["teacher", target]["speedup_1"]) == 1.0
    assert "Fastest in onnx: budget > QAT (1 image)" in capsys.readouterr().out


def test_a_recipe_that_was_started_is_resumed(tmp_path: Path, ran: list[dict[str, Any]]) -> None:
    (tmp_path / "runs" / "qat").mkdir(parents=True)
    (tmp_path / "runs" / "qat" / "run.json").touch()
    table(tmp_path, "--quick")
    assert {Path(one["run_dir"]).name: one["resume"] for one in ran} == {
        "budget": False,
        "tuned": False,
        "filters": False,
        "filters_kd": False,
        "qat": True,
    }


def test_several_processes_can_do_some_recipes_each(
    tmp_path: Path, ran: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--quick", "--runs", str(tmp_path)]
    assert steps.main([*settings, "--only", "qat", "tuned"]) == 0
    assert [Path(one["run_dir"]).name for one in ran] == ["tuned", "qat"]
    assert capsys.readouterr().out == ""
    assert tuple(recipe.folder for recipe in steps.recipes(steps.parse(settings))) == steps.RECIPES
