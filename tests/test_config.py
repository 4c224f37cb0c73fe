import math
from pathlib import Path

import pytest

from pbd.config import RunConfig, StudentConfig
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
        ({"executor": "mpl"}, "Did you mean 'mpi'?"),
        ({"block": "two_layers"}, "Did you mean 'two_layer'?"),
        ({"epoch": 3}, "Did you mean 'epochs'?"),
        ({"epochs": "3"}, "must be of type int"),
        ({"epochs": 2.5}, "Received: 2.5"),
        ({"layers": [1]}, "names or patterns"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"resume": True}, "--run-dir"),
        ({"validation_fraction": 0.0}, "strictly between 0 and 1"),
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


def test_where_it_runs_is_not_part_of_the_students_identity() -> None:
    one = RunConfig.of(workers=1, scheduler="wfd", group=False)
    two = RunConfig.of(workers=4, run_dir="elsewhere", verbose=True)
    assert one.student_settings() == two.student_settings()
    assert one.student_settings() != RunConfig.of(epochs=1).student_settings()
