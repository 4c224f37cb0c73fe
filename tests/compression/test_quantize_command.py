"""The command line of `pbd quantize`."""

from pathlib import Path

import pytest

from pbd.compression import quantize_command
from pbd.compression.settings import Training
from pbd.deploy import export_command
from pbd.errors import CannotCreateError, UsageError
from pbd.run_dir import manifest
from pbd.run_dir.journal import Journal

pytestmark = pytest.mark.fast


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.keras"
    path.touch()
    return str(path)


def test_the_settings_of_training_are_those_of_the_interface(model: str) -> None:
    settings = quantize_command.parse([model, "--target", "onnx-int8"], "pbd quantize")
    assert (settings.method, settings.epochs, settings.learning_rate) == (
        "ptq",
        Training.epochs,
        Training.learning_rate,
    )


def test_training_is_chosen_by_its_name(model: str) -> None:
    arguments = [model, "--target", "onnx-int8", "--method", "qat", "--epochs", "3", "--learning-rate", "0.01"]
    settings = quantize_command.parse(arguments, "pbd quantize")
    assert (settings.method, settings.epochs, settings.learning_rate) == ("qat", 3, 0.01)


@pytest.mark.parametrize("flags", [("--epochs", "0"), ("--learning-rate", "-1"), ("--method", "other")])
def test_a_value_out_of_range_is_refused(model: str, flags: tuple[str, str]) -> None:
    with pytest.raises(UsageError):
        quantize_command.parse([model, "--target", "onnx-int8", *flags], "pbd quantize")


@pytest.mark.parametrize("flags", [("--epochs", "5"), ("--learning-rate", "0.01")])
def test_settings_of_training_need_the_method_that_trains(model: str, flags: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="is a setting of method qat"):
        quantize_command.parse([model, "--target", "onnx-int8", *flags], "pbd quantize")
    assert quantize_command.parse([model, "--target", "onnx-int8", "--epochs", "1"], "pbd quantize").method == "ptq"


@pytest.mark.parametrize("name", ["student.keras", "student.onnx", "student_saved_model"])
def test_a_file_of_a_run_is_not_replaced(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path)
    files = ["student.keras", "student.onnx", "student_saved_model/saved_model.pb"]
    for file in files:
        journal.write_bytes(file, b"a network")
    manifest.record(journal, files)
    target = "saved_model" if "saved_model" in name else "onnx-int8"
    flags = [str(tmp_path / "student.keras"), "--target", target, "--output"]
    for command in (export_command, quantize_command):
        with pytest.raises(CannotCreateError, match=f"{name}', which belongs to one"):
            command.parse([*flags, str(tmp_path / name)], "pbd")
        assert command.parse([*flags, str(tmp_path / f"my_{name}")], "pbd").target == [target]
