"""Programs that experiments start, and experiments without flags: wrong input ends in one line and an exit code."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import backends, block_phase, gpu_phases, processes, sleep_tasks, student_digest
from experiments.block_phase import Setup
from experiments.gpu_phases import Job
from pbd.errors import BadInputError, MissingInputError, UsageError

pytestmark = pytest.mark.unit

SETUP = {"scheme": "task", "workers": 1, "threads": 1, "dataset": "digits", "train_limit": None, "batch_size": 16}
SETUP |= {"image_size": None}
SETUP |= {"augment": "none", "epochs": 1, "learning_rate": 0.003, "block": "decoupled_r2", "block_init": "fitted"}
JOB = {"teacher": "none.keras", "dataset": "digits", "batch_size": 4, "augment": "none", "settings": {"epochs": 1}}


def line_of(main: Any, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line on standard error of a command that ends with this code."""
    assert main(arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"teacher": "none.keras"}, MissingInputError.exit_code, "no such file"),
        ({"teacher": "text.keras"}, BadInputError.exit_code, "text.keras"),
        ({"run_dir": "none"}, MissingInputError.exit_code, "the run directory must exist"),
        ({"dataset": "digit"}, MissingInputError.exit_code, "Did you mean 'digits'?"),
        ({"block": "decoupled_r9"}, UsageError.exit_code, "unknown block"),
        ({"scheme": "tasks"}, UsageError.exit_code, "Did you mean 'task'?"),
        ({"batch_size": 0}, UsageError.exit_code, "batch_size must be at least 1"),
        ({"learning_rate": -1.0}, UsageError.exit_code, "learning_rate must be positive"),
        ({"workers": "two"}, UsageError.exit_code, "workers must be of type int"),
        ({"seeds": 1}, UsageError.exit_code, "Did you mean 'seed'?"),
    ],
)
def test_a_block_phase_with_wrong_input_ends_in_one_line(
    settings: dict[str, Any],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import keras

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(block_phase, "claim", lambda *_: None)  # the cores and threads of this process
    Path("text.keras").write_text("no model")
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(4, 3)(inputs)
    keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))).save("teacher.keras")
    argument = json.dumps(SETUP | {"run_dir": ".", "teacher": "teacher.keras", "seed": 0} | settings)
    line = line_of(block_phase.main, [argument], code, capsys)
    assert line.startswith("experiments.block_phase: ")
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: JSON"),
        (["{"], "the argument must be a Setup as JSON. Received: '{': "),
        (["[]"], "the argument must be a Setup as JSON. Received: '[]'. "),
        (["{}"], "without scheme, workers, "),
    ],
)
def test_an_argument_that_is_no_setup_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in line_of(block_phase.main, arguments, UsageError.exit_code, capsys)


def test_a_setup_is_the_same_behind_its_json(tmp_path: Path) -> None:
    setup = Setup(**SETUP, run_dir=str(tmp_path), teacher="t.keras", seed=3)  # type: ignore[arg-type]
    assert processes.from_json(Setup, processes.as_json(setup)) == setup


@pytest.mark.parametrize(
    ("job", "code", "words"),
    [
        ({}, MissingInputError.exit_code, "none.keras"),
        ({"augment": "flips"}, UsageError.exit_code, "Did you mean 'flip'?"),
        ({"settings": {"epoch": 1}}, UsageError.exit_code, "Did you mean 'epochs'?"),
        ({"settings": [1]}, UsageError.exit_code, "settings must be arguments by name"),
        ({"batch_size": "4"}, UsageError.exit_code, "batch_size must be of type int"),
    ],
)
def test_a_job_with_wrong_input_ends_in_one_line(
    job: dict[str, Any], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [json.dumps(JOB | job), str(tmp_path / "run"), str(tmp_path / "out.json")]
    assert words in line_of(gpu_phases.main, arguments, code, capsys)


def test_the_file_of_a_job_must_lie_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [json.dumps(JOB), str(tmp_path / "run"), str(tmp_path / "none" / "out.json")]
    assert "Create the folder" in line_of(gpu_phases.main, arguments, MissingInputError.exit_code, capsys)
    assert processes.from_json(Job, arguments[0]).settings == {"epochs": 1}


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ({"--workers": "0"}, UsageError.exit_code, "whole number above 0"),
        ({"--mean-s": "-1"}, UsageError.exit_code, "seconds above 0"),
        ({"--out": "none/out.json"}, MissingInputError.exit_code, "Create the folder"),
        ({"--executor": "serial"}, UsageError.exit_code, "invalid choice"),
    ],
)
def test_sleeping_tasks_with_wrong_flags_are_refused(
    flags: dict[str, str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"--executor": "mpi", "--workers": "1", "--mean-s": "0.01", "--out": "out.json"} | flags
    arguments = [part for flag in settings.items() for part in flag]
    assert words in line_of(sleep_tasks.main, arguments, code, capsys)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["jax"], UsageError.exit_code, "must be BACKEND=PYTHON"),
        (["numpy=python"], UsageError.exit_code, "must be BACKEND=PYTHON"),
        (["jax=no/such/python"], MissingInputError.exit_code, "no such program"),
        (["jax=python", "--epochs", "0"], UsageError.exit_code, "whole number above 0"),
        (["jax=false"], 70, "the run on jax must succeed. Received: exit code 1"),
    ],
)
def test_backends_that_cannot_be_compared_are_refused(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in line_of(backends.main, arguments, code, capsys)


def test_a_digest_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: 1" in line_of(student_digest.main, ["1"], UsageError.exit_code, capsys)
