"""`pbd export`: where files are written, and what is printed."""

import json
from pathlib import Path

import numpy as np
import pytest

from pbd import cli
from pbd.deploy import targets
from pbd.networks import graph
from tests.deploy.small_networks import classifier, data
from tests.helpers.swapping import swap_all


@pytest.mark.skipif(targets.TARGETS["onnx"].obstacle() is not None, reason="ONNX Runtime is absent")
def test_the_command_exports_to_several_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = swap_all(graph.flatten(classifier()), "decoupled_r2")
    model.save(tmp_path / "student.keras")
    (x, y), (x_test, y_test) = data(model).train, data(model).test
    np.savez(tmp_path / "images.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    command = ["export", str(tmp_path / "student.keras"), "--target", "onnx"]
    named = tmp_path / "named.onnx"
    assert cli.command([*command, "--dataset", str(tmp_path / "images.npz"), "--output", str(named)]) == 0
    printed = capsys.readouterr().out
    assert "100.00%" in printed
    assert str(named) in printed.replace("\n", "").replace(" ", "")
    assert named.is_file()
    command.append("keras")
    assert cli.command([*command, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)
    assert [Path(file["path"]).name for file in files] == ["student.onnx", "student_keras.keras"]
    assert all(Path(file["path"]).is_file() for file in files)
    assert {file["checked_on"] for file in files} == {"random images"}
    assert cli.command([*command, "--output", str(tmp_path / "b.onnx")]) == 2
    assert "Received: 2 targets. Leave it out." in capsys.readouterr().err
    (tmp_path / "served").mkdir()
    served = [*command[:2], "--target", "saved_model", "--output", str(tmp_path / "served")]
    assert cli.command(served) == 0, "a folder may be there: an earlier one is replaced"
    assert (tmp_path / "served" / "saved_model.pb").is_file()
