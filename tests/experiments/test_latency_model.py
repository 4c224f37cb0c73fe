"""The experiment on predicted latency: networks are assembled from their pieces, and each has a row."""

import csv
from pathlib import Path

import keras
import numpy as np
import pytest

from experiments import assembled_networks, latency_model, networks
from experiments.assembled_networks import KEEP, Assembler, pieces_of
from pbd.deploy import pass_time, piece_cache, targets
from tests.deploy.small_networks import classifier

needs_onnx = pytest.mark.skipif(targets.TARGETS["onnx"].obstacle() is not None, reason="ONNX Runtime is absent")


def test_random_networks_consist_of_their_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembled_networks, "DROPPED", 0.5)
    assembler = Assembler(networks.resnet20(), ["spatial_svd_r50", "decoupled_r2"])
    generator = np.random.default_rng(1)
    assembled = [assembler.random(generator) for _ in range(3)]
    for network in assembled:
        by_layer = {choice.layer: choice for choice in network.chosen}
        convolutions = {layer.name for layer in network.model.layers if isinstance(layer, keras.layers.Conv2D)}
        assert convolutions >= {choice.layer for choice in network.chosen if choice.design == KEEP}
        assert all(
            by_layer[first].outputs == by_layer[first.replace("conv1", "conv2")].inputs
            for first in by_layer
            if first.endswith("conv1")
        )
        assert network.model.output.shape == (None, networks.CLASSES)
    designs = {choice.design for network in assembled for choice in network.chosen}
    assert designs == {KEEP, "spatial_svd_r50", "decoupled_r2"}
    assert min(len(network.chosen) for network in assembled) < len(assembler.teacher().chosen), "a branch is left out"
    pieces = pieces_of(assembler, assembled)
    for choice, piece in pieces.items():
        assert piece.inputs[0].shape[-1] == choice.inputs
        assert piece.output.shape[-1] == choice.outputs


@needs_onnx
def test_each_network_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(piece_cache.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setattr(pass_time, "LIMIT_S", 0.01)
    classifier().save(tmp_path / "teacher.keras")
    table = tmp_path / "table.csv"
    arguments = ["--target", "onnx", "--batch-sizes", "2", "--networks", "2", "--fitted", "1", "--csv", str(table)]
    assert latency_model.main(["--teacher", str(tmp_path / "teacher.keras"), *arguments]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["network"], row["fitted"]) for row in rows] == [
        ("teacher", "True"),
        ("random 1", "True"),
        ("random 2", "False"),
    ]
    assert float(rows[0]["by_teacher"]) == pytest.approx(1.0)
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert "error, teacher" in capsys.readouterr().out
