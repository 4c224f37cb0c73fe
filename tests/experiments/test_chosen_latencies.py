"""The experiment on the latency of chosen networks: each budget has a row, with what pbd predicted and measured."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import pytest

from experiments import chosen_latencies
from pbd.deploy.latency_model import PieceTime
from pbd.networks import cost
from pbd.student import latency_costs
from tests.deploy.small_networks import classifier


def macs_as_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks and pieces take as many seconds as they have multiply-accumulates."""

    def seconds(model: keras.Model) -> float:
        nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
        return float(sum(map(cost.count_macs, (model, *nested))))

    def measure(pieces: Mapping[Any, keras.Model], _: Any, batch_sizes: tuple[int, ...]) -> dict[int, Any]:
        return {batch_sizes[0]: {key: PieceTime(seconds(each), seconds(each), 0) for key, each in pieces.items()}}

    monkeypatch.setattr(latency_costs.piece_times, "measure", measure)
    monkeypatch.setattr(
        latency_costs, "seconds_of", lambda networks, *_: {name: seconds(each) for name, each in networks.items()}
    )


def test_each_budget_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    macs_as_seconds(monkeypatch)
    classifier().save(tmp_path / "teacher.keras")
    table = tmp_path / "table.csv"
    arguments = ["--teacher", str(tmp_path / "teacher.keras"), "--target", "keras", "--batch-sizes", "2"]
    arguments += ["--block", "narrow_r50", "--budget", "1", "0.6", "--csv", str(table)]
    assert chosen_latencies.main(arguments) == 0
    with table.open() as file:
        kept, narrowed = csv.DictReader(file)
    assert (kept["budget"], kept["blocks"]) == ("1.0", "")
    assert float(kept["error"]) == pytest.approx(0.0, abs=1e-9)
    assert narrowed["blocks"] == "1 narrow_r50"
    assert float(narrowed["measured"]) == pytest.approx(float(narrowed["predicted"]))
    assert float(narrowed["measured"]) <= 0.6
    assert "1 narrow_r50" in capsys.readouterr().out
