"""The command `pbd`: its subcommands, its help, and errors in one line."""

import subprocess
import sys

import pytest

from pbd import __version__, cli
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", cli.SUBCOMMANDS)
def test_each_subcommand_has_help_and_loads_nothing_heavy(name: str) -> None:
    heavy = {"numpy", "keras", "tensorflow", "mpi4py", "dask"} - ({"numpy"} if name in ("status", "report") else set())
    code = (
        "import sys; from pbd import cli\n"
        f"try: cli.command([{name!r}, '--help'])\n"
        f"finally: print('heavy:', {heavy} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: pbd {name} ")
    assert "heavy: set()" in done.stderr


def test_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.command(["--help"])
    assert leaving.value.code == 0
    output = capsys.readouterr().out
    assert all(subcommand.help in output for subcommand in cli.SUBCOMMANDS.values())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.command(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"pbd {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "pbd: the following arguments are required: SUBCOMMAND"),
        (["stat", "runs/a"], 2, "pbd: unknown subcommand. Received: 'stat'. Did you mean 'status'?"),
        (["distill", "--epoch", "3"], 2, "pbd distill: unrecognized arguments: --epoch 3. Did you mean '--epochs'?"),
        (["status"], 2, "pbd status: the following arguments are required: RUN_DIR"),
        (["status", "nowhere"], 66, "pbd status: there is no run in nowhere."),
        (["report", "nowhere"], 66, "pbd report: there is no run in nowhere."),
        (["latency", "nowhere.keras"], 66, "pbd latency: a model file must exist. Received: 'nowhere.keras'."),
        (["latency", "a.keras", "--threads", "0"], 2, "pbd latency: argument --threads: must be a whole number"),
    ],
)
def test_errors_are_one_line_that_begins_with_the_command(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.command(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(line)
