"""Checks of paths before a backend is loaded."""

from pathlib import Path

from pbd.config import RunConfig
from pbd.pipeline import teacher_files
from pbd.run_dir import lock
from pbd.run_dir.journal import Journal


def check(config: RunConfig, has_model: bool) -> None:
    """Refuse a run directory that cannot be used, and a teacher's file that cannot be read.

    Args:
        config: the settings of the run.
        has_model: the teacher was given from Python.

    Raises:
        PbdError: see `lock.check`, `Journal.check` and `teacher_files.check`.
    """
    if config.execution.run_dir is not None:
        lock.check(Path(config.execution.run_dir))
        Journal.check(config.execution.run_dir, config.execution.resume)
    if not has_model and teacher_files.is_file(config.teacher.teacher):
        teacher_files.check(config.teacher)
