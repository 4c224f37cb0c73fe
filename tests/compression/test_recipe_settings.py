"""Recipes as they are written, in files and in Python: settings, what is refused, and what identifies a step."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import pbd
from pbd.compression import catalogue, compress_command
from pbd.compression.step import check_settings, name_of, settings_of
from pbd.errors import MissingInputError, UsageError
from tests.compression.test_recipes import DATA, LABELS, PIXELS, Scaled, compress, teacher

layers = keras.layers


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("targets = 5", "targets must be names"),
        ("targets = false", "targets must be names"),
        ('max_drop = "0.01"', "max_drop must be of type float"),
        ('recipe = "patient"', "recipe is a setting of a step"),
    ],
)
def test_settings_of_a_recipe_file_are_checked(lines: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "chain.toml"
    file.write_text(f'{lines}\n[[step]]\nuse = "fine_tune"\n')
    with pytest.raises(UsageError, match=message):
        compress_command.parse([str(file)], "pbd compress")


def test_one_target_of_a_file_beside_several_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "chain.toml"
    file.write_text('target = "onnx"\ntargets = ["openvino"]\n[[step]]\nuse = "fine_tune"\n')
    with pytest.raises(UsageError, match="target and targets exclude each other"):
        compress_command.parse([str(file)], "pbd compress")


def test_a_single_step_is_no_list_of_steps() -> None:
    with pytest.raises(UsageError, match="steps must be a list"):
        pbd.compress(teacher(), DATA, pbd.FineTune())


def test_arguments_of_other_types_are_refused() -> None:
    with pytest.raises(UsageError, match=r"a network must be a keras.Model. Received: str"):
        pbd.compress("teacher.keras", DATA, [pbd.FineTune()])
    with pytest.raises(UsageError, match=r"data must be a pbd.Data. Received: tuple"):
        pbd.compress(teacher(), (PIXELS, LABELS), [pbd.FineTune()])


def test_a_target_that_is_given_overrides_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "chain.toml"
    file.write_text('targets = ["openvino", "litert"]\n[[step]]\nuse = "fine_tune"\n')
    assert compress_command.parse([str(file)], "pbd compress").targets == ("openvino", "litert")
    assert compress_command.parse([str(file), "--target", "onnx"], "pbd compress").targets == ("onnx",)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "a recipe needs steps"),
        (("fine_tune",), "a step is an object of a dataclass"),
        ((pbd.FineTune,), "a step is an object of a dataclass"),
        ((SimpleNamespace(apply=len),), "a step is an object of a dataclass"),
    ],
)
def test_what_is_no_step_is_refused(steps: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        compress(tmp_path, *steps)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"use": "fine_tun"}, "Did you mean 'fine_tune'"),
        ({"epochs": 3}, "step 1 without use"),
        ({"use": "fine_tune", "epoch": 3}, "Did you mean 'epochs'"),
        ({"use": "fine_tune", "epochs": "three"}, "epochs must be of type int"),
        ({"use": "fine_tune", "recipe": "patience"}, "patient"),
        ({"use": "quantize", "method": "later"}, "method"),
        ({"use": "quantize", "epochs": 5}, "epochs is a setting of method qat. Received: epochs 5 with method ptq"),
        ({"use": "quantize", "learning_rate": 1e-3}, "learning_rate is a setting of method qat"),
        ({"use": "ensemble", "members": [[{"use": "fine_tune"}]]}, "an ensemble needs two members"),
        (
            {"use": "ensemble", "members": [[{"use": "fine_tune"}], ["x"]]},
            "a step names what it does. Received: step 1, member 2, step 1 without use",
        ),
        ({"use": "ensemble", "members": [[{"use": "fine"}], []]}, "Did you mean 'fine_tune'"),
        ({"use": "ensemble", "members": 5}, "members are lists of steps. Received: 5"),
        ({"use": "ensemble", "members": [[{"use": "fine_tune"}]], "copies": 2.5}, "copies must be of type int"),
        ({"use": "quantize", "target": "onnx-int9"}, "Did you mean 'onnx-int8'"),
        ({"use": "quantize", "target": "onnx"}, "a target must have 8-bit integers"),
        ({"use": "replace_blocks", "block": "decoupled_r9"}, "unknown block"),
        ({"use": "prune_filters", "features": "mse"}, "a feature is a mapping .* Received: 'mse'"),
        ({"use": "prune_filters", "features": 5}, "a feature is a mapping .* Received: 5"),
        ({"use": "fine_tune", "features": {"loss": "at", "student": 5, "teacher": "a"}}, "Received: 5"),
        ({"use": "replace_blocks", "sweep": "macs:0.5,0.4"}, "a step makes one network"),
        ({"use": "replace_blocks", "budget": "macs:0.5", "max_drop": 0.1}, "exclude one another"),
    ],
)
def test_entries_of_a_recipe_file_are_checked(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        catalogue.made([entry])
    assert "\n" not in str(error.value)


TUNE = {"use": "fine_tune"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"use": "prune_filters", "ratio": 3}, "step 2, prune_filters: ratio must lie strictly between 0 and 1"),
        ({"use": "fine_tune", "epoch": 3}, "step 2, fine_tune: unknown setting. Received: 'epoch'"),
        ({"use": "fine_tun"}, "step 2, fine_tun: unknown step"),
        ({"use": "ensemble", "members": [[TUNE]]}, "step 2, ensemble: an ensemble needs two members"),
        ({"use": "ensemble", "members": [TUNE, TUNE]}, "step 2, ensemble: members are lists of steps"),
        (
            {"use": "ensemble", "members": [[TUNE], [TUNE, {"use": "distill_into"}]]},
            "step 2, member 2, step 2, distill_into: student must be given. Received: none. Add it.",
        ),
        (
            {"use": "ensemble", "members": [[TUNE], [{"epochs": 3}]]},
            "a step names what it does. Received: step 2, member 2, step 1 without use. Write",
        ),
        ({"epochs": 3}, "a step names what it does. Received: step 2 without use. Write"),
    ],
)
def test_a_message_names_the_step_of_a_recipe_file(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        catalogue.made([TUNE, entry])
    assert str(error.value).startswith(message)


def test_a_missing_file_of_a_step_is_refused_with_the_step() -> None:
    with pytest.raises(MissingInputError, match=r"^step 1, distill_into: the student must be a file"):
        catalogue.made([{"use": "distill_into", "student": "none.keras"}])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (pbd.FineTune, {"learning_rate": -1.0}, "learning_rate must be positive"),
        (pbd.FineTune, {"epochs": -1}, "epochs must be at least 0"),
        (pbd.FineTune, {"loss": "kd_mes"}, "unknown loss"),
        (pbd.FineTune, {"keep": "first"}, "unknown keep"),
        (pbd.FineTune, {"scope": "al"}, "unknown scope"),
        (pbd.PruneFilters, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (pbd.PruneWeights, {"loss": "kd_mes"}, "unknown loss"),
        (pbd.DistillInto, {"student": "resnet20", "alpha": 2.0}, "alpha must lie in"),
        (pbd.DistillInto, {"student": "resnet20", "learning_rate": 0.0}, "learning_rate must be positive"),
        (pbd.Craft, {"tune_learning_rate": 0.0}, "tune_learning_rate must be positive"),
        (pbd.Craft, {"tune_loss": "kd_mes"}, "unknown tune_loss"),
        (pbd.Progressive, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (pbd.ReplaceBlocks, {"fine_tune_learning_rate": 0.0}, "fine_tune_learning_rate must be positive"),
    ],
)
def test_a_setting_is_refused_under_its_name_in_the_step(kind: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        kind(**settings)
    assert str(error.value).startswith(message)


def test_every_step_is_public_and_has_its_name() -> None:
    for name, kind in catalogue.HOMES.items():
        assert getattr(pbd, kind) is catalogue.get(name)


def test_settings_are_plain_whatever_they_hold() -> None:
    settings = settings_of(Scaled(2.0, applied=len))
    assert json.loads(json.dumps(settings))["factor"] == 2.0
    assert settings_of(Scaled()) != settings_of(Scaled(3.0))
    values = [np.zeros(2000), np.eye(1, 2000, 1000)[0], {"b", "a"}, layers.Dense(2), keras.Sequential([layers.ReLU()])]
    plain = [settings_of(Scaled(applied=value))["applied"] for value in values]
    assert plain[0]["sha256"] != plain[1]["sha256"], "their texts are equal"
    assert plain[2] == ["a", "b"]
    assert plain[3] != plain[4]
    assert name_of(pbd.FineTune()) == "fine_tune"


def factor_of(number: int) -> int:
    return 2 * number


def test_functions_are_the_same_setting_in_every_process() -> None:
    def plain(value: Any) -> Any:
        return settings_of(Scaled(applied=value))["applied"]

    assert plain(factor_of) == f"{__name__}:factor_of"
    assert [plain(each) for each in (len, [].append)] == ["builtins:len", "builtins:list.append"]
    assert plain({}.__setitem__) == "builtins:dict.__setitem__"
    assert plain(layers.ReLU).endswith(":ReLU")
    same, as_same = (lambda x: [x + one for one in range(2)] for _ in range(2))
    assert plain(same) == plain(as_same)
    assert plain(lambda x: x + 1) != plain(lambda x: x + 2)
    assert plain(lambda x: x.real) != plain(lambda x: x.imag)
    assert plain(functools.partial(factor_of, 1)) != plain(functools.partial(factor_of, 2))
    assert plain(Scaled(2.0).apply) != plain(Scaled(3.0).apply)
    assert " at 0x" not in repr([plain(value) for value in (same, functools.partial(same), Scaled(2.0).apply)])
    with pytest.raises(
        UsageError, match=r"must be the same in every process. Received: <object .*> in applied of scaled"
    ):
        check_settings(Scaled(applied=object()))  # type: ignore[arg-type]


def test_a_patient_recipe_changes_what_is_not_set() -> None:
    settings = pbd.FineTune(recipe="patient", epochs=2).settings
    assert (settings.fine_tune_epochs, settings.fine_tune_loss, settings.mixup) == (2, "kd_kl", 1.0)
    given = {"epochs": 8, "loss": "kd_mse", "temperature": 4.0, "mixup": 0.0}  # the defaults without a recipe
    settings = pbd.FineTune(recipe="patient", **given).settings
    found = settings.fine_tune_epochs, settings.fine_tune_loss, settings.temperature, settings.mixup
    assert found == (8, "kd_mse", 4.0, 0.0)


@pytest.mark.parametrize(
    ("name", "in_file", "as_flag"), [("precision", "bfloat16", "float32"), ("fine_tune_keep", "last", "best")]
)
def test_what_holds_for_all_trainings_is_a_setting_of_the_recipe(
    name: str, in_file: str, as_flag: str, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f'{name} = "{in_file}"\n[[step]]\nuse = "craft"\n')
    assert compress_command.parse([str(file)], "pbd compress").config.flat()[name] == in_file
    flags = [str(file), f"--{name.replace('_', '-')}", as_flag]
    assert compress_command.parse(flags, "pbd compress").config.flat()[name] == as_flag
