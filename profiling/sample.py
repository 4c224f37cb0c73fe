"""Run a command and record load, power and energy of the host once a second: the paper's system profiler.

    python -m profiling.sample --csv trace.csv -- mpirun -n 4 pbd-run --teacher VGG16 --dataset cifar10

A row holds the seconds since the start (`t_s`), the load of all processors (`cpu_percent`) and of each (`cpu0_percent`)
since the previous row (from /proc/stat), load and memory of each GPU (`gpu-0_percent`, `gpu-0_memory_bytes`), and for
each energy meter the mean watts since the previous row and the joules since the start: `rapl_package-0_w`,
`rapl_package-0_j`, `nvml_gpu-0_w`, `amd_msr_core-0_j`, … A cell is empty if the value is unknown. Signals are forwarded
to the command, and its exit code is returned.
"""

import argparse
import codecs
import contextlib
import csv
import itertools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pbd import command_line, energy
from pbd.command_line import Parser, check_folder
from pbd.energy import nvml
from pbd.energy.sensors import Sensor
from pbd.errors import MissingInputError
from profiling.commands import Command

STAT = Path("/proc/stat")
MAX_INTERVAL_S = 60.0
"""Between two rows; a 32-bit energy counter may overflow twice in a longer interval."""


class Processors:
    """The load of the processors, from the ticks that Linux counts."""

    def __init__(self, stat: Path) -> None:
        self._stat = stat
        self._last: dict[str, tuple[int, int]] = {}

    def cells(self) -> dict[str, float | None]:
        """Return the load in percent since the previous call, of all processors and of each; None at the first call."""
        now = dict(itertools.starmap(self._ticks, self._lines()))
        shares = {name: _percent(ticks, self._last.get(name)) for name, ticks in now.items()}
        self._last = now
        return {f"{name}_percent": share for name, share in shares.items()}

    def _lines(self) -> list[tuple[str, list[int]]]:
        with self._stat.open(encoding="ascii") as lines:
            fields = [line.split() for line in itertools.takewhile(lambda line: line.startswith("cpu"), lines)]
        return [(name, [int(count) for count in counts]) for name, *counts in fields]

    @staticmethod
    def _ticks(name: str, counts: list[int]) -> tuple[str, tuple[int, int]]:
        """Return the busy ticks and all ticks; user ticks include those of guests."""
        user, nice, system, idle, waiting, interrupts, soft, stolen = counts[:8]
        busy = user + nice + system + interrupts + soft
        return name, (busy, busy + idle + waiting + stolen)


def _percent(now: tuple[int, int], last: tuple[int, int] | None) -> float | None:
    if last is None or now[1] <= last[1]:
        return None
    return round(100 * (now[0] - last[0]) / (now[1] - last[1]), 1)


class DeviceEnergy:
    """Power and energy of one device."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._name = f"{sensor.device.source}_{sensor.device.name}"
        self._joules = 0.0
        self._last_s: float | None = None

    def cells(self, now_s: float) -> dict[str, float | None]:
        """Return mean watts since the previous call and joules since the first call; None if unknown."""
        watts = joules = None
        with contextlib.suppress(OSError, ValueError):
            added_j = self._sensor.advance(now_s)
            self._joules += added_j
            if self._last_s is not None and now_s > self._last_s:
                watts = round(added_j / (now_s - self._last_s), 3)
            self._last_s = now_s
            joules = round(self._joules, 3) if self._sensor.fault is None else None
        return {f"{self._name}_w": watts, f"{self._name}_j": joules}


class Host:
    """The source of the rows."""

    def __init__(self, detected: energy.DetectedSensors, gpus: Sequence[nvml.Gpu], stat: Path = STAT) -> None:
        self._began_s = time.monotonic()
        self._processors = Processors(stat)
        self._gpus = gpus
        self._devices = [DeviceEnergy(sensor) for sensor in detected.sensors]

    def row(self) -> dict[str, float | None]:
        now_s = time.monotonic()
        cells: dict[str, float | None] = {"t_s": round(now_s - self._began_s, 3)}
        for device in self._devices:
            cells |= device.cells(now_s)
        return cells | self._processors.cells() | self._loads()

    def _loads(self) -> dict[str, float | None]:
        cells: dict[str, float | None] = {}
        for gpu in self._gpus:
            for name, read in (("percent", gpu.busy_percent), ("memory_bytes", gpu.memory_bytes)):
                cells[f"gpu-{gpu.index}_{name}"] = None
                with contextlib.suppress(OSError):
                    cells[f"gpu-{gpu.index}_{name}"] = read()
        return cells


class Table:
    """A CSV file to which each row is written at once; a full disk ends the table, but not the command.

    Args:
        path: of the file.
        first: the first row; its names are the columns.

    Raises:
        MissingInputError: the file cannot be written.
    """

    def __init__(self, path: Path, first: dict[str, float | None]) -> None:
        self.rows = 1
        self.fault: str | None = None
        try:
            self._file = codecs.getwriter("utf-8")(path.open("wb", buffering=0))
            self._writer = csv.DictWriter(self._file, list(first), extrasaction="ignore")
            self._writer.writeheader()
            self._writer.writerow(first)
        except OSError as error:
            raise MissingInputError(
                f"the table must be writable. Received: {str(path)!r}: {error.strerror}."
            ) from error

    def add(self, row: dict[str, float | None]) -> None:
        if self.fault is None:
            try:
                self._writer.writerow(row)
                self.rows += 1
            except OSError as error:
                self.fault = f"the table ends after {self.rows} rows. Received: {error.strerror}."

    def close(self) -> None:
        self._file.close()


def sample(command: Sequence[str], csv_path: Path, interval_s: float) -> int:
    """Run the command, write the table, and return the command's exit code.

    Raises:
        MissingInputError: the command cannot be run, or the table cannot be written.
    """
    with Command(command) as running:  # takes the signals before any thread is there
        sensors = energy.detect(cores=True)
        for note in sensors.notes:
            _print_line(note)
        host = Host(sensors, _gpus())
        with contextlib.closing(Table(csv_path, host.row())) as table:
            began_s = time.monotonic()
            running.start()
            code = None
            while code is None:
                code = running.wait(until_next(time.monotonic() - began_s, interval_s))
                table.add(host.row())
    wall_s, own_s = time.monotonic() - began_s, time.process_time()
    _print_line(table.fault or f"{table.rows} rows in {csv_path}; took {own_s:.2f} s of a core in {wall_s:.0f} s")
    return code


def until_next(elapsed_s: float, interval_s: float) -> float:
    """Return the seconds until the next row; rows missed while the process was stopped are skipped."""
    return interval_s * (round(elapsed_s / interval_s) + 1) - elapsed_s


def _gpus() -> tuple[nvml.Gpu, ...]:
    try:
        return nvml.gpus()
    except OSError:  # the notes of the detected sensors give the reason
        return ()


def _print_line(line: str) -> None:
    print(f"sample: {line}", file=sys.stderr)


def interval(text: str) -> float:
    """Return the text as the seconds between two rows."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.05 <= seconds <= MAX_INTERVAL_S:
        raise argparse.ArgumentTypeError(f"must be seconds from 0.05 to {MAX_INTERVAL_S:.0f}. Received: {text!r}")
    return seconds


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn command-line arguments into settings.

    Raises:
        UsageError: a flag or a value is wrong, or no command follows; the message is one line.
        MissingInputError: the table's folder does not exist.
    """
    parser = Parser("sample", __doc__)
    parser.usage = "sample [-h] --csv FILE [--interval SECONDS] -- COMMAND [ARGUMENT ...]"
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="write the table here")
    parser.add_argument("--interval", type=interval, default=1.0, metavar="SECONDS", help="between rows (default 1)")
    at = list(argv).index("--") if "--" in argv else len(argv)
    settings = parser.parse_args(argv[:at])
    settings.command = list(argv[at + 1 :])
    if not settings.command:
        parser.error("a command must follow --. Received: none")
    check_folder("--csv", settings.csv)
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Sample while the command runs; return its exit code, or one of `pbd.errors` if it could not be run."""

    def command(arguments: Sequence[str]) -> int:
        settings = parse(arguments)
        return sample(settings.command, settings.csv, settings.interval)

    return command_line.run("sample", command, argv)


if __name__ == "__main__":
    sys.exit(main())
