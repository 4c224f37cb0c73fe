"""The settings of a run: as a table, as the command that repeats it, and the differences between runs."""

import shlex
from collections.abc import Sequence
from typing import Any

from pbd.config import RunConfig
from pbd.records import RunReport

PER_RUN = ("run_dir", "resume", "verbose")
"""Settings that a repeated run does not take over."""


def of(report: RunReport) -> list[tuple[str, str, bool]]:
    """Return for each setting its name, its value, and whether it differs from the default."""
    defaults = RunConfig().flat()
    return [(name, _text(value), _plain(value) != _plain(defaults.get(name))) for name, value in report.config.items()]


def command(report: RunReport) -> str:
    """Return the command that repeats the run in a new run directory, with one flag on each line."""
    defaults = RunConfig().flat()
    launcher = ["mpirun", "-n", str(len(report.workers))] if report.executor == "mpi" else []
    lines = [shlex.join([*launcher, "pbd-run"])]
    for name, value in report.config.items():
        if name in PER_RUN or value is None or _plain(value) == _plain(defaults.get(name)):
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


def _text(value: Any) -> str:
    """Return the value of a setting as text."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def differences(reports: Sequence[RunReport]) -> list[tuple[str, list[str]]]:
    """Return the settings, versions and devices in which runs differ, each with the value in every run."""
    properties = [
        {name: _text(value) for name, value in report.config.items() if name not in PER_RUN}
        | {f"version of {name}": value for name, value in report.versions.items()}
        | {"device": report.device}
        for report in reports
    ]
    names = dict.fromkeys(name for run in properties for name in run)
    rows = [(name, [run.get(name, "-") for run in properties]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
