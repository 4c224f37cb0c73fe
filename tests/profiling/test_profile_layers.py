"""The command that measures a table of costs: what it is told, what it writes."""

from pathlib import Path

import pytest

from pbd.scheduling.cost_table import read_table
from profiling import profile_layers


def test_a_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    inputs = x = keras.Input((None, None, 3))
    for name in ("stem", "first", "second"):
        x = keras.layers.Conv2D(8, 3, padding="same", name=name)(x)
    outputs = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, outputs).save(tmp_path / "net.keras")
    out = tmp_path / "costs.json"
    arguments = ["--teacher", str(tmp_path / "net.keras"), "--image-size", "16", "--batch-size", "4"]
    assert profile_layers.main([*arguments, "--block-init", "kernel", "--out", str(out)]) == 0
    table = read_table(out)
    assert [tuple(key) for key in table.tasks] == [("first", "decoupled_r2"), ("second", "decoupled_r2")]
    wanted = table.conditions
    assert (wanted.block_init, wanted.batch_size) == ("kernel", 4)
    printed = capsys.readouterr().out
    assert "first" in printed
    assert "calibrated on" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--teacher", "VGG61"], 2, "VGG61"),
        (["--teacher", "absent.keras"], 66, "absent.keras"),
        (["--batch-size", "0"], 2, "above 0"),
        (["--block", "four_layer"], 2, "four_layer"),
        (["--out", "no/such/folder/costs.json"], 66, "--out"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile_layers.main(arguments) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
