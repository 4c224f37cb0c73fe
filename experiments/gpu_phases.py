"""Where the seconds of a whole run go, first with an empty cache of JAX's compilations and then with the full one.

Each run is a process of its own that runs `pbd.distill` and prints its report's figures as JSON; this module is also
that process's program. Blocks are trained in that process, not in a child of it, so that every compilation is counted
(`--isolate`: as a run does by default; what the child compiles is then not counted).
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments import processes
from pbd import command_line
from pbd.command_line import Parser, check_folder
from pbd.config import RunConfig
from pbd.config.values import Section
from pbd.errors import PbdError, UsageError
from pbd.system import devices

CACHES = ("cold", "warm")
NAME = "experiments.gpu_phases"
PROGRAM = ("-m", NAME)
"""Arguments of Python with which a run is started."""
_LINE = re.compile(r"^\[ *([0-9.]+) s\] (.*)$")
_BEGINNINGS = (
    (r"teacher .*: training on ", "training the teacher"),
    (r"teacher ", "preparing"),
    (r"\d+ layers, ", "checking the teacher's file"),
    (r"predicting the training time", "predicting times"),
    (r"training \d+ blocks", "first weights, until the first progress of blocks"),
    (r"worker \d+: scoring ", "scoring, writing blocks"),
    (r"(measuring \d+ residual blocks|worker \d+: \S+ in place of )", "measuring residual blocks"),
    (r"(assembling \d+ blocks|worker \d+: refitting )", "assembling, refitting"),
    (r"worker \d+: fine-tuning", "fine-tuning after its first progress"),
    (r"worker \d+: ", "blocks after their first progress"),
    (r"assembled ", "until the first progress of fine-tuning"),
    (r"fine-tuned for ", "writing and checking the student"),
    (r"measuring teacher and student", "measuring latencies"),
    (r"evaluating teacher and student", "evaluating on the test split"),
)
"""Beginnings of the lines that pbd prints, and the phases that begin there; on a GPU, steps that were compiled together
report their progress once, after the last of them."""


@dataclass(frozen=True)
class Job(Section):
    """What is run."""

    teacher: str
    dataset: str
    batch_size: int
    augment: str
    settings: Any
    """Arguments of `pbd.distill` by name, a dict."""

    def check(self) -> None:
        if not isinstance(self.settings, dict):
            raise UsageError(f'settings must be arguments by name. Received: {self.settings!r}. Give {{"epochs": 3}}.')
        RunConfig.of(**self.settings)


def phases(log: str, total_s: float) -> dict[str, float]:
    """Return the seconds of each phase, in the order in which they begin, given what a run printed.

    A line that begins no phase belongs to the phase before it.
    """
    seconds, current, since = {}, "loading teacher and data", 0.0
    for line in log.splitlines():
        match = _LINE.match(line)
        name = match and next((name for beginning, name in _BEGINNINGS if re.match(beginning, match[2])), None)
        if not match or name is None or name == current:
            continue
        seconds[current] = seconds.get(current, 0.0) + float(match[1]) - since
        current, since = name, float(match[1])
    return seconds | {current: seconds.get(current, 0.0) + max(0.0, total_s - since)}


def run(job: Job, cache: str, folder: Path, timeout_s: float) -> dict[str, Any]:
    """Run the job in a process of its own; return its figures, which are also written to the folder, with its log.

    Args:
        job: what to run.
        cache: one of `CACHES`; both use one folder, which is empty before the first.
        folder: for the compilation cache, the run directory and the log.
        timeout_s: after so long, the process is ended.

    Raises:
        PbdError: it failed; the message is its last line and names the log.
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compilations"),
        # pbd sets it as well, but here JAX, which reads it once, is imported before pbd.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(devices.SHORTEST_COMPILATION_S),
    }
    log, figures = folder / f"{cache}.log", folder / f"{cache}.json"
    arguments = [processes.as_json(job), str(folder / f"run-{cache}"), str(figures)]
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, *PROGRAM, *arguments]
        try:
            code = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, env=environment, timeout=timeout_s
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise PbdError(
                f"the {cache} run must end in {timeout_s:g} s. Received: a longer one; see {log}."
            ) from error
    process_s, text = time.monotonic() - started, log.read_text(encoding="utf-8")
    if code or not figures.is_file():
        last = (text.strip().splitlines() or ["nothing was printed"])[-1]
        raise PbdError(f"the {cache} run failed with exit code {code}: {last} (log: {log})")
    measured = json.loads(figures.read_text(encoding="utf-8"))
    measured |= {"process_s": process_s, "phases": phases(text, measured["run_s"])}
    figures.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    return measured


def parse(argv: Sequence[str]) -> tuple[Job, str, Path]:
    """Return the job, its run directory and the file for its figures.

    Raises:
        UsageError: the first argument is no `Job` as JSON, or a value is wrong; the message is one line.
        MissingInputError: the folder of the file does not exist.
    """
    parser = Parser(NAME, __doc__ or "")
    parser.add_argument("job", metavar="JSON", help="a Job as JSON")
    parser.add_argument("run_dir", metavar="DIR", help="the run directory")
    parser.add_argument("out", metavar="FILE", type=Path, help="where the figures are written, as JSON")
    settings = parser.parse_args(argv)
    check_folder("FILE", settings.out)
    return processes.from_json(Job, settings.job), settings.run_dir, settings.out


def measure(job: Job, run_dir: str, out: Path) -> None:
    """Run a job in this process and write its figures to a file.

    Raises:
        PbdError: the run failed.
    """
    from experiments.compilations import Recorder

    recorder = Recorder()
    import pbd

    data = pbd.Data.load(job.dataset, batch_size=job.batch_size, augment=job.augment)
    started = time.monotonic()
    report = pbd.distill(teacher=job.teacher, data=data, run_dir=run_dir, **job.settings).report
    figures = {
        "run_s": time.monotonic() - started,
        "device": report.device,
        "timing": dataclasses.asdict(report.timing),
        "energy": report.energy,
        "teacher_test_accuracy": report.teacher.test_accuracy,
        "student_test_accuracy": report.student.test_accuracy,
        "blocks": sum(row.status == "accepted" for row in report.blocks),
        "jax": recorder.as_json(),
        "tensorflow_loaded": "tensorflow" in sys.modules,
    }
    out.write_text(json.dumps(figures), encoding="utf-8")


def rows(measured: Mapping[str, dict[str, Any]], most_callers: int) -> list[dict[str, Any]]:
    """Return the lines of the table: section, name, and a figure for each cache.

    Args:
        measured: what `run` returned, by cache.
        most_callers: functions that are listed, those that took longest in any of the runs.
    """
    sections = {cache: _sections(one) for cache, one in measured.items()}
    names = dict.fromkeys(key for one in sections.values() for key in one)
    callers = sorted(
        (key for key in names if key[0] == "compile_s"),
        key=lambda key: -max(one.get(key, 0.0) for one in sections.values()),
    )
    kept = set(callers[:most_callers])
    chosen = [key for key in names if key[0] not in ("compile_s", "compilations")]
    for key in callers:
        if key in kept:
            chosen += [key, ("compilations", key[1])]
    return [
        {"section": section, "name": name} | {cache: one.get((section, name)) for cache, one in sections.items()}
        for section, name in chosen
    ]


def _sections(one: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Return the figures of a run by section and name."""
    timing, jax, energy = one["timing"], one["jax"], one["energy"]
    figures = {("phase, s", name): seconds for name, seconds in one["phases"].items()}
    figures |= {("report, s", name): seconds for name, seconds in timing.items() if isinstance(seconds, float)}
    figures["report, s", "the whole process"] = one["process_s"]
    figures |= {("JAX", name): jax[name] for name in jax if name != "callers"}
    figures |= {
        ("result", "joules"): energy.get("total_j"),
        ("result", "teacher, test accuracy"): one["teacher_test_accuracy"],
        ("result", "student, test accuracy"): one["student_test_accuracy"],
        ("result", "blocks accepted"): one["blocks"],
    }
    for name, (count, seconds) in jax["callers"].items():
        figures |= {("compile_s", name): seconds, ("compilations", name): int(count)}
    return figures


def as_table(lines: Sequence[Mapping[str, Any]], caches: Sequence[str], device: str) -> Table:
    """Return the lines for a terminal."""
    table = Table(
        title=f"A run on {device}",
        caption="JAX: what is read from the cache counts as a compilation, with the seconds of reading it. "
        "Last, the functions of pbd whose compilations took longest, innermost first: number, and seconds.",
    )
    table.add_column("")
    for cache in caches:
        table.add_column(cache, justify="right")
    section, counts = "", {line["name"]: line for line in lines if line["section"] == "compilations"}
    for line in lines:
        if line["section"] == "compilations":
            continue
        if line["section"] != section:
            section = line["section"]
            table.add_section()
        values = [_text(line[cache]) for cache in caches]
        if section == "compile_s":
            count = counts[line["name"]]
            values = [f"{_text(count[cache])}, {value}" for cache, value in zip(caches, values, strict=True)]
        table.add_row(f"{line['name']}{' (s)' if section.endswith(', s') else ''}", *values)
    return table


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.4g}"
        if isinstance(value, float) and abs(value) < 1
        else (f"{value:.1f}" if isinstance(value, float) else str(value))
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, those of pbd-run."""
    return command_line.run(NAME, lambda arguments: measure(*parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
