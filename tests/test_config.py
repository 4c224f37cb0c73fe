import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbd.config import BLOCK_INITS, LIBRARY, RECIPES, BlockConfig, DataConfig, RunConfig, StudentConfig, TrainingConfig
from pbd.errors import UsageError

pytestmark = pytest.mark.fast


def test_settings_are_found_by_their_own_name() -> None:
    config = RunConfig.of(teacher="a.keras", epochs=3, layers=["conv*"], seed=7)
    assert (config.teacher.teacher, config.training.epochs, config.blocks.layers, config.seed) == (
        "a.keras",
        3,
        ("conv*",),
        7,
    )
    assert RunConfig.of(**config.flat()) == config


def test_settings_take_paths_and_single_patterns() -> None:
    config = RunConfig.of(teacher=Path("a.keras"), layers="conv*", learning_rate=1)
    assert (config.teacher.teacher, config.blocks.layers) == ("a.keras", ("conv*",))
    assert isinstance(config.training.learning_rate, float)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", np.int64(1), 1),
        ("seed", np.uint8(7), 7),
        ("learning_rate", np.float64(0.003), 0.003),
        ("learning_rate", np.float32(0.5), 0.5),
        ("learning_rate", np.int32(1), 1.0),
        ("group", np.bool_(False), False),
        ("block", np.str_("two_layer"), ("two_layer",)),
        ("block_init", np.str_("noise"), "noise"),
        ("layers", np.array(["conv1", "conv2"]), ("conv1", "conv2")),
        ("memory_limit", np.array(2.0), 2.0),
    ],
)
def test_numpy_values_become_plain_ones(name: str, value: object, expected: object) -> None:
    stored = RunConfig.of(**{name: value}).flat()[name]
    assert (stored, type(stored)) == (expected, type(expected))


def test_sections_convert_and_check_what_they_are_made_of() -> None:
    assert type(DataConfig(batch_size=np.int64(8)).batch_size) is int
    for wrong in ({"epochs": "3"}, {"epochs": np.float64(2.5)}, {"learning_rate": np.array([1.0, 2.0])}):
        with pytest.raises(UsageError, match="must be of type"):
            TrainingConfig(**wrong)


@pytest.mark.parametrize("name", ["teacher", "teacher_weights", "dataset", "run_dir", "costs", "dask_address"])
def test_every_path_may_begin_with_the_home_folder(name: str) -> None:
    other = {"executor": "dask"} if name == "dask_address" else {}
    for path in ("~/folder/file", Path("~/folder/file")):
        assert RunConfig.of(**{name: path}, **other).flat()[name] == str(Path.home() / "folder" / "file")
    assert RunConfig.of(teacher="~no-such-user/file").teacher.teacher == "~no-such-user/file", "there is no such user"


def test_no_two_settings_share_a_name() -> None:
    config = RunConfig()
    parts = [part for part in vars(config).values() if not isinstance(part, int)]
    assert len(config.flat()) == sum(len(vars(part)) for part in parts) + 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_accuracy_drop": 1.5}, "Received: 1.5"),
        ({"accuracy_threshold": math.nan}, "Received: nan"),
        ({"accuracy_threshold": 0.5, "max_accuracy_drop": 0.1}, "not both"),
        ({"scheduler": "wdf"}, "Did you mean 'wfd'?"),
        ({"parallel": "dta"}, "Did you mean 'data'?"),
        ({"parallel": "data", "scheduler": "wfd"}, "scheduler wfd. Give --parallel task"),
        ({"parallel": "data", "group": False}, "no_group. Give --parallel task"),
        ({"executor": "mpl"}, "Did you mean 'mpi'?"),
        ({"epoch": 3}, "Did you mean 'epochs'?"),
        ({"epochs": "3"}, "must be of type int"),
        ({"epochs": 2.5}, "Received: 2.5"),
        ({"layers": [1]}, "names or patterns"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"resume": True}, "--run-dir"),
        ({"validation_fraction": 0.0}, "strictly between 0 and 1"),
        ({"block_init": "fited"}, "Did you mean 'fitted'?"),
        ({"block_init": "zeros"}, "noise"),
        ({"fine_tune_loss": "kd_mes"}, "Did you mean 'kd_mse'?"),
        ({"scheduler": "work_stealing"}, "--executor dask"),
        ({"scheduler": "work_stealing", "executor": "mpi"}, "use pull"),
        ({"dask_address": "tcp://127.0.0.1:8786"}, "--executor dask"),
        ({"patience": -1}, "patience must be at least 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.inf}, "Received: inf"),
        ({"distillation_weight": 1.01}, "distillation_weight must lie in [0, 1]"),
        ({"distillation_weight": -0.1}, "Received: -0.1"),
        ({"target_accuracy_drop": 2}, "target_accuracy_drop must lie in [0, 1]"),
        ({"target_accuracy_drop": math.nan}, "Received: nan"),
        ({"fine_tune_learning_rate": -0.001}, "fine_tune_learning_rate must be positive"),
        ({"labels": 0}, "labels must be of type bool"),
        ({"seed": "3"}, "seed must be of type int"),
        ({"seed": -1}, "seed must lie in [0, 4294967295]. Received: -1"),
        ({"seed": 2**32}, "Received: 4294967296"),
        ({"labels": False, "fine_tune_loss": "cross_entropy"}, "cross_entropy needs labels"),
        ({"labels": False, "fine_tune_loss": "mixed"}, "Give kd_mse or kd_kl"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict, words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        RunConfig.of(**settings)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_threshold_is_absolute_or_relative_to_the_teacher() -> None:
    assert StudentConfig(accuracy_threshold=0.7).lowest_accuracy(0.9) == 0.7
    assert StudentConfig(max_accuracy_drop=0.05).lowest_accuracy(0.9) == pytest.approx(0.85)


@pytest.mark.parametrize("loss", ["kd_mse", "kd_kl"])
def test_the_teachers_answers_need_no_labels(loss: str) -> None:
    config = RunConfig.of(labels=False, fine_tune_loss=loss, target_accuracy_drop=0, distillation_weight=1)
    assert not config.data.labels
    assert config.student.target_accuracy_drop == 0.0
    with pytest.raises(UsageError, match="needs labels"):
        config.replace(fine_tune_loss="mixed")
    config.replace(fine_tune_loss="mixed", fine_tune_epochs=0)
    assert config.replace(labels=True, fine_tune_loss="mixed").student.fine_tune_loss == "mixed"


def test_every_block_initialisation_is_accepted() -> None:
    for init in BLOCK_INITS:
        assert RunConfig.of(block_init=init).blocks.block_init == init
    assert BlockConfig().block_init in BLOCK_INITS


@pytest.mark.parametrize(
    "settings",
    [{"block_init": "noise"}, {"patience": 1}, {"epochs": 1}, {"labels": False}, {"augment": "flip"}, {"seed": 1}],
)
def test_what_changes_the_blocks_is_part_of_their_identity(settings: dict) -> None:
    assert RunConfig.of(**settings).block_settings() != RunConfig().block_settings()


def test_a_recipe_stands_for_other_defaults() -> None:
    assert RunConfig.of(recipe="standard") == RunConfig()
    for recipe, values in RECIPES.items():
        assert RunConfig.of(recipe=recipe).flat().items() >= values.items()
    patient = RunConfig.of(recipe="patient", augment="none", temperature=4.0)
    assert (patient.data.augment, patient.student.temperature, patient.student.fine_tune_epochs) == ("none", 4.0, 80)
    assert patient == RunConfig.of(**patient.flat())


def test_where_it_runs_and_what_is_done_with_the_blocks_is_not_part_of_their_identity() -> None:
    one = RunConfig.of(workers=1, scheduler="wfd", group=False, fine_tune_loss="kd_kl", target_accuracy_drop=0.05)
    two = RunConfig.of(workers=4, run_dir="elsewhere", verbose=True, target="onnx", mixup=1.0, fine_tune_keep="last")
    assert one.block_settings() == two.block_settings()


@pytest.mark.parametrize(
    ("settings", "remedy", "followed"),
    [
        ({"epochs": -1}, "Give 0 or more.", {"epochs": 0}),
        ({"workers": 0}, "Give 1 or more.", {"workers": 1}),
        ({"learning_rate": 0.0}, "Give a number above 0.", {"learning_rate": 1e-4}),
        ({"memory_limit": math.nan}, "Give a number above 0.", {"memory_limit": 0.5}),
        ({"max_accuracy_drop": 5}, "0.05 is 5%", {"max_accuracy_drop": 0.05}),
        ({"validation_fraction": 1.0}, "Give 0.1, for example.", {"validation_fraction": 0.1}),
        ({"accuracy_threshold": 0.5, "max_accuracy_drop": 0.1}, "Give one of them", {"max_accuracy_drop": 0.1}),
        ({"layers": [1]}, "Give a list of texts.", {"layers": ["1"]}),
        ({"epochs": 2.0}, "must be of type int", {"epochs": 2}),
        ({"seed": "3"}, "must be of type int", {"seed": 3}),
        ({"scheduler": "wdf"}, "Did you mean 'wfd'?", {"scheduler": "wfd"}),
        ({"block_init": "zeros"}, "Choose from: fitted, kernel, noise.", {"block_init": "noise"}),
        ({"epoch": 3}, "Did you mean 'epochs'?", {"epochs": 3}),
        (
            {"parallel": "data", "scheduler": "wfd"},
            "Give --parallel task.",
            {"parallel": "task", "scheduler": "wfd"},
        ),
        ({"parallel": "data", "group": False}, "Give --parallel task.", {"parallel": "task", "group": False}),
        ({"scheduler": "work_stealing"}, "Give --executor dask", {"scheduler": "work_stealing", "executor": "dask"}),
        ({"scheduler": "work_stealing"}, "use pull", {"scheduler": "pull"}),
        ({"dask_address": "file"}, "Give --executor dask", {"dask_address": "file", "executor": "dask"}),
        ({"recipe": "patent"}, "Did you mean 'patient'?", {"recipe": "patient"}),
        ({"recipe": 3}, "must be of type str", {"recipe": "quick"}),
        ({"mixup": -1.0}, "Give 0 or more.", {"mixup": 0.0, "fine_tune_loss": "mixed"}),
        ({"cutmix": -1.0}, "Give 0 or more.", {"cutmix": 0.0}),
        ({"resume": True}, "Give --run-dir DIR with --resume.", {"resume": True, "run_dir": "DIR"}),
        (
            {"labels": False, "fine_tune_loss": "mixed"},
            "Give kd_mse or kd_kl.",
            {"labels": False, "fine_tune_loss": "kd_kl"},
        ),
    ],
)
def test_remedies_for_settings_work(settings: dict, remedy: str, followed: dict) -> None:
    with pytest.raises(UsageError) as refusal:
        RunConfig.of(**settings)
    assert remedy in str(refusal.value)
    RunConfig.of(**followed)


@pytest.mark.parametrize(
    ("settings", "block", "epochs", "max_drop"),
    [
        ({}, LIBRARY, 0, 0.01),
        ({"max_drop": 0.02}, LIBRARY, 0, 0.02),
        ({"budget": "macs:0.5"}, LIBRARY, 0, None),
        ({"sweep": "macs:0.5,0.4", "epochs": 2}, LIBRARY, 2, None),
        ({"budget": "macs:0.5", "refit": False}, LIBRARY, 3, None),
        ({"block": "tucker2_r50"}, ("tucker2_r50",), 3, None),
        ({"block": ["merge", "narrow_r50"], "budget": "macs:0.5"}, ("merge", "narrow_r50"), 0, None),
        ({"max_accuracy_drop": 0.1}, ("decoupled_r2",), 3, None),
        ({"target_accuracy_drop": 0.1, "refit": True}, ("decoupled_r2",), 0, None),
        ({"recipe": "paper"}, ("two_layer",), 3, None),
        ({"recipe": "paper", "budget": "macs:0.5"}, ("two_layer",), 3, None),
        ({"block_init": "noise"}, LIBRARY, 3, 0.01),
        ({"budget": "macs:0.5", "keep_zeros": True}, LIBRARY, 3, None),
        ({"budget": "macs:0.5", "keep_zeros": True, "refit": True}, LIBRARY, 0, None),
    ],
)
def test_defaults_depend_on_how_blocks_are_chosen(
    settings: dict[str, Any], block: tuple[str, ...], epochs: int, max_drop: float | None
) -> None:
    resolved = RunConfig.of(**settings).resolved()
    assert (resolved.blocks.block, resolved.training.epochs, resolved.student.max_drop) == (block, epochs, max_drop)
    assert resolved.resolved() == resolved
