"""What a run was told: its settings, the command that does it again, and in what runs differ."""

import shlex
from collections.abc import Sequence
from typing import Any

from pbd.config import RunConfig
from pbd.records import RunReport

PLACES = ("run_dir", "resume", "verbose")
"""Settings that a run made again has its own of."""


def of(report: RunReport) -> list[tuple[str, str, bool]]:
    """Return name, value and whether it is not the default of each setting."""
    defaults = RunConfig().flat()
    return [(name, _spelt(value), _plain(value) != _plain(defaults.get(name))) for name, value in report.config.items()]


def command(report: RunReport) -> str:
    """Return the command that does the run again in a directory of its own, a flag on each line."""
    defaults = RunConfig().flat()
    started = ["mpirun", "-n", str(len(report.workers)), "pbd-run"] if report.executor == "mpi" else ["pbd-run"]
    lines = [shlex.join(started)]
    for name, value in report.config.items():
        if name in PLACES or value is None or _plain(value) == _plain(defaults.get(name)):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            lines.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list | tuple) else [value]
            lines.append(shlex.join([f"--{flag}", *map(str, values)]))
    return " \\\n  ".join(lines)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _spelt(value: Any) -> str:
    """Return a setting's value in words."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def differences(reports: Sequence[RunReport]) -> list[tuple[str, list[str]]]:
    """Return the settings, versions and devices in which runs differ, and each run's own."""
    said = [
        {name: _spelt(value) for name, value in report.config.items() if name not in PLACES}
        | {f"version of {name}": value for name, value in report.versions.items()}
        | {"device": report.device}
        for report in reports
    ]
    names = dict.fromkeys(name for one in said for name in one)
    rows = [(name, [one.get(name, "-") for one in said]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
