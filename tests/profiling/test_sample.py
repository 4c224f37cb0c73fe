"""The profiler beside a command: its rows, the command's exit code and signals, and what it does not disturb."""

import csv
import fcntl
import functools
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from pbd import energy
from pbd.energy.replay import Recording
from pbd.energy.sensors import Device
from profiling import greenup, sample
from tests.helpers.cluster import PATIENCE_S

pytestmark = pytest.mark.fast

REPOSITORY = Path(__file__).resolve().parents[2]
TICKS = """cpu  {0} 0 100 1000 100 0 0 0 50 0
cpu0 {1} 0 50 500 50 0 0 0 50 0
cpu1 50 0 50 {2} 50 0 0 0 0 0
intr 99 1 2
"""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_processors_are_as_busy_as_their_ticks_say(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(TICKS.format(100, 50, 500))
    processors = sample.Processors(stat)
    assert processors.cells() == dict.fromkeys(("cpu_percent", "cpu0_percent", "cpu1_percent"))
    stat.write_text(TICKS.format(175, 125, 525).replace("1000", "1025"))
    assert processors.cells() == {"cpu_percent": 75.0, "cpu0_percent": 100.0, "cpu1_percent": 0.0}
    assert processors.cells() == dict.fromkeys(("cpu_percent", "cpu0_percent", "cpu1_percent"))


def test_power_and_energy_are_written_until_the_meter_is_lost() -> None:
    recording = Recording(Device("package", "0", "rapl", "one", "one"), [2**32 - 10, 90, 390, None, None], 0.5, 2**32)
    spending = sample.DeviceEnergy(recording.sensor())
    cells = [spending.cells(now_s) for now_s in (0.0, 1.0, 3.0, 4.0)]
    assert [cell["rapl_package-0_w"] for cell in cells] == [None, 50.0, 75.0, None]
    assert [cell["rapl_package-0_j"] for cell in cells] == [0.0, 50.0, 200.0, None]


def test_rows_are_written_while_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = Recording(Device("package", "0", "rapl", "one", "one"), [100.0] * 999)
    found = energy.DetectedSensors("one", (shown.sensor(),), ("no GPU here",))
    monkeypatch.setattr(energy, "detect", lambda cores: found)
    path = tmp_path / "a trace.csv"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    script = 'until [ "$(wc -l <"$0")" -gt 6 ]; do sleep 0.01; done; exit 7'
    until_six_rows = ["timeout", str(PATIENCE_S), "sh", "-c", script, str(path)]
    began = time.monotonic()
    assert sample.main(["--csv", str(path), "--interval", "0.05", "--", *until_six_rows]) == 7
    wall_s = time.monotonic() - began
    table = rows(path)
    assert 6 <= len(table) <= wall_s / 0.05 + 3
    assert set(table[0]) >= {"t_s", "cpu_percent", "cpu0_percent", "rapl_package-0_w", "rapl_package-0_j"}
    assert all(0 <= float(row["cpu_percent"]) <= 100 for row in table[2:-1] if row["cpu_percent"])
    assert all(float(row["rapl_package-0_w"]) == pytest.approx(100.0, abs=0.01) for row in table[1:])
    spent = greenup.read_trace(path)
    assert 0.1 <= spent.seconds <= wall_s
    assert spent.joules == pytest.approx(100 * spent.seconds, rel=0.01)
    said = capfd.readouterr().err
    assert "sample: no GPU here\n" in said
    assert f"{len(table)} rows" in said
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize(("elapsed_s", "wanted_s"), [(0.0, 1.0), (3.01, 0.99), (2.9999999, 1.0), (3600.2, 0.8)])
def test_rows_keep_to_the_clock(elapsed_s: float, wanted_s: float) -> None:
    assert sample.until_next(elapsed_s, 1.0) == pytest.approx(wanted_s, abs=1e-6)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 79", 79), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_the_commands_exit_code_is_returned(tmp_path: Path, script: str, code: int) -> None:
    assert sample.main(["--csv", str(tmp_path / "t.csv"), "--", "sh", "-c", script]) == code


def test_the_command_finds_the_signals_as_they_were(tmp_path: Path) -> None:
    look = ["sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status"]
    sampling = [sys.executable, "-m", "profiling.sample", "--csv", str(tmp_path / "t.csv"), "--"]

    def masks(command: list[str]) -> list[int]:
        said = subprocess.run(command, capture_output=True, check=True, cwd=REPOSITORY).stdout.split()
        return [int(mask, 16) % 2**31 for mask in said[1::2]]  # glibc keeps signals 32 and 33 for itself

    assert masks([*sampling, *look]) == masks(look)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_go_on_to_the_command(tmp_path: Path, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 75' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.01; done"
    command = [sys.executable, "-m", "profiling.sample", "--csv", str(tmp_path / "t.csv"), "--interval", "60"]
    command += ["--", "sh", "-c", script]
    heard = functools.partial(
        signal.signal, number, signal.SIG_DFL
    )  # a shell ignores some for what runs in its background
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, preexec_fn=heard) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        assert running.stdout.read() == b"caught\n"
        assert running.wait(PATIENCE_S) == 75
    assert len(rows(tmp_path / "t.csv")) == 2


def test_what_a_terminal_sends_is_not_sent_twice(tmp_path: Path) -> None:
    script = "n=0; trap 'n=$((n+1))' INT; echo ready; while [ $n = 0 ]; do sleep 0.01; done; sleep 0.2; echo $n; exit 3"
    command = [sys.executable, "-m", "profiling.sample", "--csv", str(tmp_path / "t.csv"), "--", "sh", "-c", script]
    ours, theirs = os.openpty()
    opened = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "cwd": REPOSITORY}

    def take_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(command, start_new_session=True, preexec_fn=take_terminal, **opened) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        os.write(ours, b"\x03")
        assert running.stdout.read() == b"1\n"
        assert running.wait(PATIENCE_S) == 3
    os.close(ours)
    os.close(theirs)


def test_a_disk_that_is_full_ends_the_table_not_the_command(tmp_path: Path) -> None:
    table = sample.Table(tmp_path / "t.csv", {"t_s": 0.0})
    table.add({"t_s": 1.0})
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, table._file.fileno())
    os.close(full)
    table.add({"t_s": 2.0})
    table.add({"t_s": 3.0})
    table.close()
    assert table.rows == 2
    assert "ends after 2 rows" in str(table.fault)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--csv", "t.csv"], 2, "must follow --"),
        (["--csv", "t.csv", "--"], 2, "must follow --"),
        (["--", "true"], 2, "--csv"),
        (["--csv", "t.csv", "--interval", "0", "--", "true"], 2, "0.05"),
        (["--csv", "t.csv", "--interval", "nan", "--", "true"], 2, "0.05"),
        (["--csv", "t.csv", "true", "--", "true"], 2, "true"),
        (["--csv", "no/such/folder/t.csv", "--", "true"], 66, "--csv"),
        (["--csv", "/dev/full", "--", "true"], 66, "/dev/full"),
        (["--csv", "t.csv", "--", "no-such-program"], 66, "no-such-program"),
        (["--csv", "t.csv", "--", "./"], 66, "./"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(energy, "detect", lambda cores: energy.DetectedSensors("one"))
    assert sample.main(arguments) == code
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_it_loads_nothing_heavy() -> None:
    check = "import sys, profiling.sample; assert not {'numpy', 'rich', 'keras', 'pynvml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=PATIENCE_S, cwd=REPOSITORY)
