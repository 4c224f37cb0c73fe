"""The files of a report: `report.json` (version 3), and `summary.txt` and `report.html` made from it."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pbd.errors import CorruptStateError, MissingInputError
from pbd.records import (
    BlockReport,
    CandidateReport,
    ChoiceReport,
    Deployment,
    Latency,
    ModelFacts,
    RunReport,
    Timing,
    WorkerReport,
)
from pbd.records.analysis_report import ClassChanges
from pbd.report.text import render
from pbd.run_dir.journal import Journal

PAGE = "report.html"
_ASSEMBLED = ("val_accuracy", "val_agreement", "val_kl")
_FORMER_NAMES = {"judged_by": "reference", "story": "events"}
"""Fields that had another name until version 2, which also called the status `restored` given_back."""
_DROPPED = ("version", "latency")
"""Not read: a report has the present version, and its latency is that of the deployments."""


def to_json(report: RunReport) -> dict[str, Any]:
    """Return the content of `report.json`; NaN and infinity, which JSON does not have, become null."""
    return json_safe(
        {
            "version": report.version,
            "config": report.config,
            "versions": report.versions,
            "device": report.device,
            "teacher": asdict(report.teacher),
            "assembled": {name: getattr(report.assembled, name) for name in _ASSEMBLED},
            "student": asdict(report.student),
            "blocks": [asdict(row) for row in report.blocks],
            "workers": [asdict(row) for row in report.workers],
            "timing": asdict(report.timing),
            "energy": {"source": "none", "total_j": None} | report.energy,
            "executor": report.executor,
            "scheduler": report.scheduler,
            "groups": report.groups,
            "reference": report.reference,
            "fine_tune_history": report.fine_tune_history,
            "kept_epoch": report.kept_epoch,
            "events": report.events,
            "deployments": [asdict(row) for row in report.deployments],
            "choice": asdict(report.choice) if report.choice else None,
            "classes": asdict(report.classes) if report.classes else None,
            "run_dir": report.run_dir,
        }
    )


def write(report: RunReport, journal: Journal) -> None:
    """Write `report.json`, `summary.txt` and `report.html` into the run directory."""
    from pbd.report import page  # imports the template engine

    content = to_json(report)
    journal.write_bytes("summary.txt", render(report).encode())
    journal.write_json("report.json", content)
    journal.write_bytes(PAGE, page.of_run(from_json(content)).encode())  # as `pbd report` makes it again


def read(journal: Journal) -> RunReport:
    """Return the report of a complete run, as it was written.

    Raises:
        MissingInputError: the directory holds no run or cannot be read, or the run has no report yet.
        CorruptStateError: its `report.json` is damaged.
    """
    path = journal.file("report.json")
    try:
        return from_json(json.loads(path.read_bytes()))
    except PermissionError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        journal.keys()  # raises if the directory holds no run
        raise MissingInputError(
            f"the run in {journal.path} has no report yet. Continue it: {_again(journal)}."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(journal) from error


def damaged(journal: Journal) -> CorruptStateError:
    """Return the error for a run whose `report.json` is damaged."""
    return CorruptStateError(f"{journal.file('report.json')} is damaged. Repair the run: {_again(journal)}.")


def unreadable(path: Path, error: OSError) -> MissingInputError:
    """Return the error for a report that this user may not read."""
    return MissingInputError(
        f"a report must be readable. Received: {path}: {error.strerror}. Check its permissions, and those of the "
        "folders above it."
    )


def _again(journal: Journal) -> str:
    return f"give its command again, with --resume --run-dir {shlex.quote(str(journal.path))}"


def located(report: RunReport, journal: Journal) -> RunReport:
    """Return the report with the paths that files have now: the run directory may have been moved or copied."""
    folder = journal.path.absolute()

    def file_of(model: ModelFacts) -> ModelFacts:
        return replace(model, path=str(folder / Path(model.path).name) if model.path else None)

    return replace(report, run_dir=str(folder), teacher=file_of(report.teacher), student=file_of(report.student))


def from_json(content: Mapping[str, Any]) -> RunReport:
    """Return the report with this content; fields that older versions did not write keep their defaults.

    The latency of version 1 was measured in Keras and not in a target: it is dropped.
    """
    fields = {_FORMER_NAMES.get(name, name): value for name, value in content.items() if name not in _DROPPED}
    kept_epoch = fields["config"].get("fine_tune_keep", "")
    fields = {"kept_epoch": "" if kept_epoch == "auto" else kept_epoch} | fields
    return RunReport(
        **fields
        | {
            "teacher": ModelFacts(**fields["teacher"]),
            "assembled": ModelFacts(fields["student"]["params"], fields["student"]["macs"], **fields["assembled"]),
            "student": ModelFacts(**fields["student"]),
            "blocks": tuple(_block(row) for row in fields["blocks"]),
            "workers": tuple(WorkerReport(**row) for row in fields["workers"]),
            "timing": Timing(**fields["timing"]),
            "groups": tuple(tuple(group) for group in fields["groups"]),
            "fine_tune_history": tuple(fields["fine_tune_history"]),
            "events": tuple(fields["events"]),
            "choice": ChoiceReport(**fields["choice"]) if fields.get("choice") else None,
            "classes": ClassChanges.from_json(fields["classes"]) if fields.get("classes") else None,
            "deployments": tuple(deployment(row) for row in fields.get("deployments", ())),
        }
    )


def _block(row: dict[str, Any]) -> BlockReport:
    rows = [candidate | {"status": _status(candidate["status"])} for candidate in row.get("candidates", ())]
    candidates = tuple(CandidateReport(**candidate) for candidate in rows)
    changed = {name: tuple(row[name]) for name in ("loss_history", "nmse_history")}
    return BlockReport(**row | changed | {"candidates": candidates, "status": _status(row["status"])})


def _status(name: str) -> str:
    return "restored" if name == "given_back" else name


def deployment(row: dict[str, Any]) -> Deployment:
    """Return the record of a network in a target, from its JSON."""
    latency = tuple(Latency(**each) for each in row["latency"])
    return Deployment(**row | {"latency": latency} | {name: tuple(row[name]) for name in ("files", "kept_float")})


def json_safe(value: Any) -> Any:
    """Return `value` in plain JSON types: non-finite floats as None, arrays and tuples as lists, others as text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return str(value)
