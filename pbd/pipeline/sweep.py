"""A student for each of several budgets, from one set of blocks: the front of quality against latency."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pbd import report
from pbd.config import RunConfig, budgets
from pbd.pipeline import distill
from pbd.records import RunReport
from pbd.run_dir.journal import Journal, write_atomically
from pbd.system import launcher

if TYPE_CHECKING:
    import keras

    from pbd.data import Data

FOLDER = "front"
"""The folder of the run directory that holds a folder for each budget."""
_TEXTS = ("report.json", "report.html", "summary.txt")
_MODELS = ("student.keras", "student_folded.keras")


def run(
    config: RunConfig,
    model: "keras.Model | None" = None,
    data: "Data | None" = None,
    *,
    dedicated_process: bool = False,
) -> RunReport:
    """Run the method once, or for each budget of a sweep; see `distill.run`.

    Returns:
        The report of the last budget, which is also that of the run directory.
    """
    if config.student.sweep is None:
        return distill.run(config, model, data, dedicated_process=dedicated_process)
    texts = budgets.sweep(config.student.sweep)
    for number, text in enumerate(texts, start=1):
        if number < len(texts) and _is_complete(config, text):
            continue
        one = config.replace(budget=(text,), sweep=None)
        finished = distill.run(one, model, data, dedicated_process=dedicated_process)
        config = config.replace(run_dir=finished.run_dir, resume=True)
        if launcher.rank() in (None, 0):
            _keep(finished, text)
            _write_front(Path(finished.run_dir), texts)
    return finished


def folder_of(run_dir: Path, budget: str) -> Path:
    """Return the folder of the student for a budget."""
    return run_dir / FOLDER / budget.replace(":", "_")


def read(run_dir: Path) -> dict[str, RunReport]:
    """Return the reports of a sweep's students, by budget; none if the run was no sweep."""
    reports = {}
    for path in sorted((run_dir / FOLDER).glob("*/report.json")):
        journal = Journal(path.parent)
        finished = report.located(report.read(journal), journal)
        reports[finished.config["budget"][0]] = finished
    return dict(sorted(reports.items(), key=lambda each: -budgets.parse(each[0]).amount))


def _is_complete(config: RunConfig, budget: str) -> bool:
    """Return whether a resumed run has the student of a budget, with the same settings and in the same target."""
    if not config.execution.resume or config.execution.run_dir is None:
        return False
    folder = folder_of(Path(config.execution.run_dir), budget)
    if not (folder / "report.json").is_file():
        return False
    expected = config.replace(budget=(budget,), sweep=None)
    settings = expected.student_settings() | {"target": expected.execution.target}
    earlier = report.read(Journal(folder)).config
    return all(report.json_safe(value) == earlier.get(name) for name, value in settings.items())


def _keep(finished: RunReport, budget: str) -> None:
    """Copy the student of a budget and its report into a folder of their own, which is complete or absent."""
    run_dir = Path(finished.run_dir)
    folder = folder_of(run_dir, budget)
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    deployed = [file for row in finished.deployments if row.model == "student" for file in row.files]
    for name in (*_TEXTS, *_MODELS, *deployed):
        shutil.copy2(run_dir / name, partial / name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_front(run_dir: Path, texts: tuple[str, ...]) -> None:
    """Write the table, the picture and the page of the students that there are."""
    from pbd.report import front, page

    reports = {text: one for text, one in read(run_dir).items() if text in texts}
    write_atomically(run_dir / "front.txt", front.render(reports).encode())
    if front.points(reports):
        write_atomically(run_dir / "front.svg", page.front_picture(reports).encode())
    write_atomically(run_dir / "front.html", page.of_runs(reports).encode())
