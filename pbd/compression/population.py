"""A population of students: the run that wrote one of them, repeated with other seeds."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbd.compression.step import uses_target
from pbd.config import ExecutionConfig, RunConfig
from pbd.errors import MissingInputError, UsageError
from pbd.report import files, recipe_files
from pbd.run_dir.journal import Journal

FOLDER = "population"
"""The folder of the run directory that holds a run directory for each other seed."""
STUDENT, TEACHER = "student.keras", "teacher.keras"
ARRAYS = "arrays"
"""The name of data from Python in the settings of a run."""
_KEPT = ("target", "isolate", "threads_per_worker", "memory_limit", "stall_limit", "allow_weak_teacher")
"""Settings of the execution that every repetition has from the run; where it runs is decided again."""
SEEDS = 2**32


@dataclass(frozen=True)
class Population:
    """The files of the networks of all runs."""

    students: tuple[str, ...]
    """Those of all runs; the student of the repeated run is the first one."""
    originals: tuple[str, ...]
    """Those of the repetitions, if each has trained an original; else empty."""


def repeat(student: str, count: int, dataset: str | None, execution: Mapping[str, Any]) -> Population:
    """Repeat the run that wrote a student with the seeds that follow its own; repetitions that are complete stay.

    All settings are those of the run. If it trained a built-in teacher, each repetition trains its own.

    Args:
        student: the `student.keras` of a run of `pbd distill` or `pbd compress`.
        count: networks of the population, this student among them.
        dataset: the path or name of the data, if the run had them from Python.
        execution: executor, workers and other settings of `ExecutionConfig`.

    Raises:
        UsageError: the file is not the student of a run, or its run cannot be repeated.
        PbdError: a repetition fails.
    """
    journal = Journal(Path(student).absolute().parent)
    settings, run = _read(journal, Path(student).name)
    if settings["dataset"] == ARRAYS and dataset is None:
        raise UsageError(
            "a run is repeated on its images. Received: one whose images came from a Python program. Give --dataset."
        )
    # A teacher that was already trained is the same in all repetitions, which find it in the run directory.
    trains_teacher = "teacher" in journal.identity() and settings["teacher_weights"] in (None, "imagenet")
    chosen = {
        **_repeated(settings, execution),
        "dataset": dataset if settings["dataset"] == ARRAYS else settings["dataset"],
        "teacher": settings["teacher"] if trains_teacher else str(journal.file(TEACHER)),
        "teacher_weights": settings["teacher_weights"] if trains_teacher else None,
    }
    folders = []
    for number in range(1, count):
        seed = (settings["seed"] + number) % SEEDS
        folder = journal.file(FOLDER) / f"seed-{seed}"
        resume = (folder / "run.json").is_file()
        run(RunConfig.of(**chosen, seed=seed, run_dir=str(folder), resume=resume))
        folders.append(folder)
    originals = tuple(str(folder / TEACHER) for folder in folders) if trains_teacher else ()
    return Population((student, *(str(folder / STUDENT) for folder in folders)), originals)


def _repeated(settings: Mapping[str, Any], execution: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that all repetitions share, without teacher, data set, seed and run directory.

    All have the splits of the run, so that none is compared on images that another one was trained on.
    """
    of_execution = {field.name for field in dataclasses.fields(ExecutionConfig)} - set(_KEPT)
    left_out = of_execution | {"teacher", "dataset", "seed"}
    kept = {name: value for name, value in settings.items() if name not in left_out}
    if kept.get("split_seed") is None:
        kept["split_seed"] = settings["seed"]
    return kept | {name: value for name, value in execution.items() if value is not None}


def _read(journal: Journal, name: str) -> tuple[dict[str, Any], Callable[[RunConfig], object]]:
    """Return the settings of the run in a folder, and the function that does it with others.

    Raises:
        UsageError: there is none, or the file is not its student.
    """
    kinds = ((journal.file("report.json"), _distillation), (journal.file(recipe_files.REPORT), _recipe))
    for file, read in kinds:
        if file.is_file() and name == STUDENT:
            return read(journal)
    raise UsageError(
        f"a population of N is made by repeating the run that wrote the student. Received: {journal.file(name)}, which "
        f"is not the {STUDENT} of a run. Give that, or the files of several students with --population alone."
    )


def _distillation(journal: Journal) -> tuple[dict[str, Any], Callable[[RunConfig], object]]:
    from pbd.pipeline import distill

    return files.read(journal).config, distill.run


def _recipe(journal: Journal) -> tuple[dict[str, Any], Callable[[RunConfig], object]]:
    from pbd.compression import catalogue, run_recipe
    from pbd.compression.recipe import Recipe

    report = recipe_files.read(journal)
    entries = [{"use": step.name.partition(" ")[2], **step.settings} for step in report.steps[1:]]
    try:
        steps = catalogue.made(entries)
    except (UsageError, MissingInputError) as error:
        raise UsageError(
            f"a recipe is repeated from {recipe_files.REPORT}, without steps or networks of a Python program. "
            f"Received: a step that cannot be made again ({error}). "
            "Give the files of several students with --population alone."
        ) from error
    target = report.config["target"] if any(map(uses_target, steps)) else "keras"  # which needs no export
    repeated = Recipe(steps, report.max_drop, (target,))
    return report.config, lambda config: run_recipe.run(lambda: repeated, config)
