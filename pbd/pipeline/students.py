"""The students of several budgets in one run directory: a folder for each, and a table and a picture of all."""

import logging
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from pbd import report
from pbd.config import RunConfig, budgets
from pbd.errors import CorruptStateError
from pbd.records import RunReport
from pbd.run_dir import manifest
from pbd.run_dir.atomic import sync_folder, write_atomically
from pbd.run_dir.journal import Journal

_TEXTS = ("report.json", "report.html", "summary.txt")
_MODELS = ("student.keras", "student_folded.keras")
_log = logging.getLogger(__name__)


def read(run_dir: Path) -> dict[str, RunReport]:
    """Return the reports of the students of a sweep, by budget from the largest on; empty if the run was no sweep.

    A student that is not finished, or whose report is damaged, is left out.
    """
    reports = {}
    for budget in manifest.sweep_budgets(Journal(run_dir)) or ():
        folder = manifest.student_folder(run_dir, budget)
        finished = _read(folder) if (folder / "report.json").exists() else None
        if finished is not None:
            reports[budget] = finished
    return dict(sorted(reports.items(), key=lambda each: -budgets.parse(each[0]).amount))


def read_complete(config: RunConfig) -> RunReport | None:
    """Return the report of the student of these settings, their budget included, if a resumed run has it undamaged."""
    if not config.execution.resume or config.execution.run_dir is None:
        return None
    folder = manifest.student_folder(Path(config.execution.run_dir), config.student.budget[0])
    finished = _read(folder) if manifest.is_intact(Journal(folder)) else None
    return finished if finished is not None and has_settings(finished, config) else None


def has_settings(finished: RunReport, config: RunConfig) -> bool:
    """Return whether a report is that of the student of these settings in their target; its blocks are known to be."""
    settings = asdict(config.student) | {"target": config.execution.target}
    return all(report.json_safe(value) == finished.config.get(name) for name, value in settings.items())


def keep(finished: RunReport) -> None:
    """Copy the student of the run directory and its report into a folder of their own, complete or not at all.

    Raises:
        CannotWriteError: the disk is full, read-only or defective.
        OSError: a file cannot be read or written for another reason.
    """
    run_dir = Path(finished.run_dir)
    folder = manifest.student_folder(run_dir, finished.config["budget"][0])
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    names = (*_TEXTS, *_MODELS, *_deployed(finished))
    for name in names:
        write_atomically(partial / name, (run_dir / name).read_bytes())
    manifest.record(Journal(partial), names)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    sync_folder(folder.parent)


def write_front(run_dir: Path, shown: Collection[str]) -> None:
    """Write the table, the picture and the page of those of these budgets that have a student."""
    from pbd.report import front, page  # imports the template engine

    reports = {budget: report for budget, report in read(run_dir).items() if budget in shown}
    write_atomically(run_dir / "front.txt", front.render(reports).encode())
    write_atomically(run_dir / "front.html", page.of_runs(reports).encode())
    if front.points(reports):
        write_atomically(run_dir / "front.svg", page.front_picture(reports).encode())


def _read(folder: Path) -> RunReport | None:
    """Return the report of a student; `None` if it is damaged."""
    journal = Journal(folder)
    try:
        return report.located(report.read(journal), journal)
    except CorruptStateError:
        _log.warning("%s is damaged: --resume with its sweep builds the student again.", journal.file("report.json"))
        return None


def _deployed(finished: RunReport) -> list[str]:
    return [file for row in finished.deployments if row.model == "student" for file in row.files]
