"""The command line of `pbd quantize`."""

from pathlib import Path

import pytest

from pbd.compression import quantize_command
from pbd.compression.settings import Training
from pbd.errors import UsageError

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
