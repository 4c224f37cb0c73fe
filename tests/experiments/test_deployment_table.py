"""The table of deployed networks has two rows for each network and runtime."""

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments import deployment
from pbd.deploy import targets
from tests.deploy.small_networks import classifier, data


@pytest.mark.skipif(targets.TARGETS["onnx-int8"].obstacle() is not None, reason="ONNX Runtime is absent")
def test_trained_networks_are_scored_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    model.save(tmp_path / "small.keras")
    (x, y), (x_test, y_test) = data(model).train, data(model).test
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    arguments = ["--networks", str(tmp_path / "small.keras"), "--dataset", str(tmp_path / "images.npz")]
    arguments += ["--runtimes", "onnx", "--max-drop", "1", "--csv", str(tmp_path / "table.csv")]
    assert deployment.main(arguments) == 0
    with (tmp_path / "table.csv").open() as file:
        float32, int8 = csv.DictReader(file)
    assert (float32["network"], float32["target"], int8["target"]) == ("small", "onnx", "onnx-int8")
    assert float(float32["difference"]) < 1e-4 < float(int8["difference"])
    assert float(float32["test_accuracy"]) == 1.0
    assert float(float32["batch1_times_as_fast"]) == 1.0
    assert "onnx-int8" in capsys.readouterr().out


def test_trained_networks_need_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deployment.main(["--networks", "a.keras"]) == 2
    assert "Received: none. Give --dataset." in capsys.readouterr().err
