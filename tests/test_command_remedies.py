"""Refusals of command lines: each remedy is followed, and works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from pbd import cli, command_line, run
from pbd.deploy import latency_command
from pbd.report import files
from pbd.run_dir.journal import Journal
from tests.helpers.remedies import in_message, refusal
from tests.helpers.report_factory import make_report

pytestmark = pytest.mark.fast

IDENTITY = {"epochs": 3}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `pbd` with arguments, and return its exit code and the line that it prints if it refuses them."""

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.command([str(argument) for argument in arguments])
        printed = capsys.readouterr().err
        assert printed.count("\n") <= 1
        return code, printed.strip()

    return call


Command = Callable[..., tuple[int, str]]


@pytest.mark.parametrize("refused", [[], ["status"], ["report"], ["latency"], ["distill", "--epochs", "many"]])
def test_help_is_shown_where_the_refusal_says(refused: list[str], command: Command) -> None:
    code, line = command(*refused)
    assert code == 2
    with pytest.raises(SystemExit) as leaving:
        cli.command([*refused[:1], in_message(r"See (--help)\.$", line)])
    assert leaving.value.code == 0


@pytest.mark.parametrize("refused", ["statu", "reprt"])
def test_a_subcommand_is_named_as_it_is_called(refused: str, command: Command, tmp_path: Path) -> None:
    files.write(make_report(), Journal.create(tmp_path / "run", IDENTITY))
    code, line = command(refused, tmp_path / "run")
    assert code == 2
    named = in_message(r"Did you mean '(\w+)'\?", line)
    assert named in cli.SUBCOMMANDS
    assert "unknown subcommand" not in command(named, tmp_path / "run")[1]


@pytest.mark.parametrize("refused", ["0", "-1", "many"])
def test_numbers_are_whole_and_above_0(refused: str, tmp_path: Path) -> None:
    (tmp_path / "model.keras").touch()

    def threads(number: str) -> int:
        return latency_command.parse([str(tmp_path / "model.keras"), f"--threads={number}"], "pbd latency").threads

    assert (
        threads(str(int(in_message(r"must be a whole number above (\d)", refusal(lambda: threads(refused)))) + 1)) == 1
    )


def test_the_path_of_a_model_is_checked(tmp_path: Path) -> None:
    (tmp_path / "model.keras").touch()
    refusal(lambda: latency_command.parse([str(tmp_path / "modle.keras")], "pbd latency"), "Check the path.")
    latency_command.parse([str(tmp_path / "model.keras")], "pbd latency")


def test_the_folder_of_an_output_is_created(tmp_path: Path, command: Command) -> None:
    journal = Journal.create(tmp_path / "run", IDENTITY)
    files.write(make_report(), journal)
    page = tmp_path / "new" / "page.html"
    refusal(lambda: command_line.check_folder("--csv", page), "Create the folder.")
    code, line = command("report", journal.path, "--output", page)
    assert code == 66
    assert "Create the folder." in line
    page.parent.mkdir()
    command_line.check_folder("--csv", page)
    refusal(lambda: command_line.check_folder("--csv", page.parent), "Name a file in it.")
    assert command("report", journal.path, "--output", page)[0] == 0
    assert page.exists()


@pytest.mark.parametrize("content", [None, b"{", b'{"version": 1}'])
def test_a_run_without_a_whole_report_is_continued(content: bytes | None, tmp_path: Path, command: Command) -> None:
    journal = Journal.create(tmp_path / "a run", IDENTITY)
    if content is not None:
        journal.write_bytes("report.json", content)
    code, line = command("report", journal.path)
    assert code == (66 if content is None else 76)
    flags = shlex.split(in_message(r"give its command again, with (--resume .*)\.$", line))
    execution = run.parse(flags).execution
    resumed = Journal.resume(execution.run_dir or "", IDENTITY)
    files.write(make_report(), resumed)  # as the run does at its end
    assert command("report", journal.path)[0] == 0


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_another_seed_is_given(seed: str) -> None:
    message = refusal(lambda: run.parse(["--seed", seed]))
    low, high = re.search(r"must lie in \[(\d+), (\d+)\]", message).groups()  # type: ignore[union-attr]
    for other in (low, high):
        assert run.parse([in_message(r"Give another (--seed)", message), other]).seed == int(other)
