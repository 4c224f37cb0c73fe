"""Commands of one process: signals, unexpected errors, and standard output without a reader."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pbd import command_line
from pbd.errors import StoppedError
from pbd.records import BlockKey
from pbd.run_dir.journal import Journal
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_stops_a_command_in_one_line(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    undone = []

    def command(arguments: Sequence[str]) -> None:
        try:
            signal.raise_signal(number)
        finally:
            undone.append(number)

    before = signal.signal(number, signal.default_int_handler)  # under nohup, SIGHUP is ignored
    try:
        assert command_line.run("pbd quantize", command, []) == StoppedError.exit_code
        assert undone == [number], "temporary files are removed"
        assert capsys.readouterr().err == "pbd quantize: stopped by a signal. Give the command again.\n"
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_an_unexpected_error_is_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run("pbd export", lambda arguments: 1 // 0, []) == 70
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "ZeroDivisionError" in printed


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_exit_code_does_not_depend_on_the_reader_of_the_output(flags: list[str], tmp_path: Path) -> None:
    journal = Journal.create(
        tmp_path / "run", {"seed": 0}, [BlockKey(f"layer{i}", "decoupled_r2") for i in range(5000)]
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pbd.cli", "status", str(journal.path), *flags]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    os.close(writer)
    assert (done.returncode, done.stderr) == (StoppedError.exit_code, "")


def test_output_for_which_there_is_no_space_is_an_error(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run", {"seed": 0}, [])
    command = [sys.executable, "-m", "pbd.cli", "status", str(journal.path)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert done.returncode == 74
    assert done.stderr == (
        "pbd status: standard output must be writable. Received: No space left on device. Repair it.\n"
    )
