"""The command line as a user meets it: help, wrong input, the exit codes, the launcher."""

import io
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pbd import run
from pbd.errors import PbdError, UsageError
from pbd.progress import LastingConsole
from pbd.run_dir import error_files
from pbd.run_dir.journal import Journal
from pbd.system import backend
from tests.helpers.cluster import PATIENCE_S


def pbd_run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pbd.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=cwd)


@pytest.mark.fast
def test_help_names_every_setting_and_loads_nothing_heavy() -> None:
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pbd.run", "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    loaded = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    assert "pbd.config" in loaded
    assert not loaded & {"numpy", "keras", "tensorflow", "mpi4py", "dask"}
    assert answer.returncode == 0
    for flag in ("--no-labels", "--fine-tune-loss", "--target-accuracy-drop", "--patience", "--block-init"):
        assert flag in answer.stdout
    for flag in ("--teacher", "--dataset", "--no-group", "--layers", "--fine-tune-scope", "--resume", "--config"):
        assert flag in answer.stdout


@pytest.mark.fast
def test_flags_win_over_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('epochs = 3\nbatch-size = 16\nlayers = ["conv1*", "^conv1_2"]\n')
    config = run.parse(["--config", str(file), "--epochs", "5"])
    assert (config.training.epochs, config.data.batch_size) == (5, 16)
    assert config.blocks.layers == ("conv1*", "^conv1_2")


@pytest.mark.fast
def test_flags_and_the_settings_file_win_over_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('recipe = "patient"\nfine-tune-epochs = 20\n')
    config = run.parse(["--config", str(file), "--augment", "none"])
    assert (config.data.augment, config.student.fine_tune_epochs, config.student.mixup) == ("none", 20, 1.0)
    assert run.parse(["--config", str(file), "--recipe", "standard"]).student.mixup == 0.0


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scheduler", "wdf"], "Did you mean 'wfd'?"),
        (["--epoch-count", "3"], "--epoch-count"),
        (["--epochs", "many"], "many"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--run-dir", ""], "run_dir must not be empty"),
        (["--teacher", ""], "teacher must not be empty"),
        (["--dataset="], "dataset must not be empty"),
        (["--no-labels", "--fine-tune-loss", "cross_entropy"], "cross_entropy needs labels"),
        (["--block-init", "fited"], "Did you mean 'fitted'?"),
        (["--recipe", "patent"], "Did you mean 'patient'?"),
        (["--target-accuracy-drop", "5"], "0.05 is 5%"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        run.parse(arguments)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "remedy", "followed"),
    [
        (["--epoch", "3"], "Did you mean '--epochs'?", ["--epochs", "3"]),
        (["--no-grup"], "Did you mean '--no-group'?", ["--no-group"]),
        (["--resume"], "Give --run-dir DIR with --resume.", ["--run-dir", "DIR", "--resume"]),
        (
            ["--scheduler", "work_stealing"],
            "Give --executor dask",
            ["--scheduler", "work_stealing", "--executor", "dask"],
        ),
        (["--no-labels", "--fine-tune-loss", "mixed"], "Give kd_mse", ["--no-labels", "--fine-tune-loss", "kd_mse"]),
        (["--parallel", "data", "--no-group"], "Give --parallel task", ["--parallel", "task", "--no-group"]),
        (["--config", "absent.toml"], "Check --config.", ["--config", "~/good.toml"]),
        (["--config", ""], "Check --config.", ["--config", "~/good.toml"]),
        (["--config", "bad.toml"], "such as epochs = 3", ["--config", "~/good.toml"]),
    ],
)
def test_remedies_for_flags_work(
    arguments: list[str], remedy: str, followed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bad.toml").write_text("epochs 3")
    (tmp_path / "good.toml").write_text("epochs = 3")
    with pytest.raises(PbdError) as refusal:
        run.parse(arguments)
    assert remedy in str(refusal.value)
    run.parse(followed)


@pytest.mark.fast
def test_settings_file_errors(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("epoch = 3\n")
    answer = pbd_run("--config", str(file))
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "Did you mean 'epochs'?" in answer.stderr
    file.write_text("epochs 3")
    assert pbd_run("--config", str(file)).returncode == 2
    assert pbd_run("--config", str(tmp_path / "absent.toml")).returncode == 66


@pytest.mark.fast
@pytest.mark.parametrize("setting", ["batch_size", "learning_rate"])
def test_a_number_too_large_for_a_float_is_refused(setting: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"{setting} = 1{'0' * 400}\n")
    with pytest.raises(UsageError, match=setting):
        run.parse(["--config", str(file)])


@pytest.mark.fast
def test_a_settings_file_damaged_at_random_is_read_or_refused(tmp_path: Path) -> None:
    file, draws, outcomes = tmp_path / "settings.toml", random.Random(0), {"read": 0, "refused": 0}
    whole = b'epochs = 3\nbatch-size = 16\nlayers = ["conv1*", "^conv1_2"]\nlearning-rate = 0.01\nlabels = true\n'
    for _ in range(120):
        content = bytearray(whole)
        for _ in range(draws.randint(1, 3)):
            content[draws.randrange(len(content))] = draws.choice(b'0123456789-=.#"[]{}\n\x00\xff\tabcdefnix')
        file.write_bytes(bytes(content))
        try:
            run.parse(["--config", str(file)])
            outcome = "read"
        except PbdError as error:
            outcome, said = "refused", str(error)
        assert outcome == "read" or "\n" not in said
        outcomes[outcome] += 1
    assert min(outcomes.values()) > 5


def one_line_refusal(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Run with wrong input; check that it is said in one line and that nothing is written."""
    directory = tmp_path / "run"
    answer = pbd_run(*arguments, "--run-dir", str(directory))
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert "Traceback" not in answer.stderr
    assert not directory.exists()
    return answer.returncode, answer.stderr


@pytest.mark.system
def test_missing_model(tmp_path: Path) -> None:
    code, line = one_line_refusal(tmp_path, "--teacher", str(tmp_path / "absent.keras"))
    assert code == 66
    assert "absent.keras" in line


@pytest.mark.system
def test_a_taken_run_directory_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    answer = pbd_run("--run-dir", str(tmp_path))
    assert answer.returncode == 73
    assert "--resume" in answer.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.json"]


@pytest.mark.fast
def test_paths_are_refused_before_a_backend_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "load", lambda: pytest.fail("it is loaded"))
    (tmp_path / "run.json").write_text("{}")
    for arguments, code in ((["--teacher", "absent.keras"], 66), (["--run-dir", str(tmp_path)], 73)):
        assert run.main([*arguments, "--no-isolate"]) == code


@pytest.mark.fast
@pytest.mark.parametrize(("before", "goes_on"), [("SIG_DFL", False), ("SIG_IGN", True)])
def test_a_closed_terminal_stops_a_run_but_not_under_nohup(before: str, goes_on: bool) -> None:
    code = (
        f"import os, signal; from pbd import stop_signals; signal.signal(signal.SIGHUP, signal.{before})\n"
        "with stop_signals.raised(): os.kill(os.getpid(), signal.SIGHUP); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert ("went on" in done.stdout) == goes_on
    assert ("KeyboardInterrupt" in done.stderr) != goes_on


@pytest.mark.fast
@pytest.mark.parametrize(
    "arguments", [["run", "--epoch-count"], ["run", "--epoch-count", "--verbose"], ["cli", "status"]]
)
def test_the_exit_code_does_not_depend_on_standard_error(arguments: list[str]) -> None:
    module, *flags = arguments
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", f"pbd.{module}", *flags], stderr=full, timeout=PATIENCE_S)
    assert done.returncode == UsageError.exit_code


WITHOUT_OUTPUT = """
import os, sys
from pbd import run
from pbd.progress import LastingConsole
from pbd.system.silence import silenced

def work(config):
    with silenced(1), open(os.devnull) as file:
        LastingConsole().print("done")
        return 3 if file.fileno() > 2 else 4

run._run = work
sys.exit(run.main([]))
"""


@pytest.mark.fast
def test_with_closed_standard_output_no_file_takes_its_descriptor() -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, WITHOUT_OUTPUT]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=PATIENCE_S)
    assert done.returncode == 3, done.stderr


@pytest.mark.fast
def test_characters_that_standard_output_cannot_encode_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(config: object) -> int:
        LastingConsole().print("run directory r_данные")
        return 0

    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "latin-1"))
    monkeypatch.setattr(run, "_run", work)
    assert run.main([]) == 0
    assert output.getvalue() == b"run directory r_??????\n"


@pytest.mark.fast
def test_an_unexpected_error_is_one_line_that_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object) -> int:
        with error_files.recorded(Journal(tmp_path), "run"):
            raise RuntimeError("Graph execution error:\n\nno room")

    monkeypatch.setattr(run, "_run", fail)
    assert run.main([]) == 70
    (file,) = (tmp_path / "errors").iterdir()
    line = f"pbd-run: RuntimeError: Graph execution error: no room. The whole error is in {file}."
    assert capsys.readouterr().err.splitlines() == [line]
    (tmp_path / "settings.toml").write_text("verbose = true\n")
    for flags in (["--verbose"], ["--config", str(tmp_path / "settings.toml")]):
        assert run.main(flags) == 70
        assert "Traceback" in capsys.readouterr().err
    assert run.main([*flags, "--no-verbose"]) == 70
    assert "Traceback" not in capsys.readouterr().err
