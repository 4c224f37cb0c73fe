"""Runs with several students from one set of blocks: one for each budget, or the fastest that keeps the accuracy."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pbd.config import RunConfig, budgets
from pbd.errors import InfeasibleBudgetError, UsageError
from pbd.pipeline import distill, students
from pbd.records import RunReport
from pbd.system import launcher

if TYPE_CHECKING:
    import keras

    from pbd.data import Data

BISECTIONS = 4
"""Budgets that are tried to find the fastest student."""


def run(
    config: RunConfig,
    model: "keras.Model | None" = None,
    data: "Data | None" = None,
    *,
    dedicated_process: bool = False,
) -> RunReport:
    """Run the method once, for each budget of a sweep, or for the budgets of a bisection; see `distill.run`.

    Returns:
        The report of the run directory: that of the only student, of the last one of a sweep, or of the fastest.
    """

    def run_one(one: RunConfig) -> RunReport:
        return distill.run(one, model, data, dedicated_process=dedicated_process)

    if config.student.sweep is not None:
        return _each(_Students(config, run_one), budgets.sweep(config.student.sweep))
    if config.student.max_drop is not None:
        return _fastest(_Students(config, run_one), config.student.max_drop)
    return run_one(config)


@dataclass
class _Students:
    """Builds the students of one run directory; the blocks are those of the first one."""

    config: RunConfig
    run_one: Callable[[RunConfig], RunReport]

    def build(self, budget: str, shown: Collection[str], anew: bool = False) -> RunReport:
        """Return the report of the student of a budget; one that is there is built again only on request.

        Raises:
            InfeasibleBudgetError: no student keeps within the budget.
        """
        one = self.config.replace(budget=(budget,), sweep=None, max_drop=None)
        if not anew and students.is_complete(one):
            return students.read(Path(str(one.execution.run_dir)))[budget]
        finished = self.run_one(one)
        self.config = self.config.replace(run_dir=finished.run_dir, resume=True)
        if launcher.rank() in (None, 0):
            students.keep(finished)
            students.write_front(Path(finished.run_dir), {budget, *shown})
        return finished


def _each(of_run: _Students, texts: tuple[str, ...]) -> RunReport:
    """Return the report of the last budget, which is always chosen anew, so that settings and data are compared."""
    for number, budget in enumerate(texts, start=1):
        finished = of_run.build(budget, texts, anew=number == len(texts))
    return finished


def _fastest(of_run: _Students, max_drop: float) -> RunReport:
    """Return the report of the fastest student that loses at most `max_drop` of validation accuracy.

    Raises:
        UsageError: none of the students that were tried does.
    """
    too_small, enough, best, tried = 0.0, 1.0, "", dict[str, float]()
    resumed = of_run.config.execution.resume
    for _ in range(BISECTIONS):
        amount = (too_small + enough) / 2
        budget = f"latency:{amount:g}"
        try:
            tried[budget] = _drop(of_run.build(budget, tried))
        except InfeasibleBudgetError:
            too_small = amount
            continue
        if tried[budget] <= max_drop:
            enough, best = amount, budget
        else:
            too_small = amount
    if not best:
        drops = ", ".join(f"{budget}: {drop:.4f}" for budget, drop in tried.items()) or "no budget is possible"
        raise UsageError(
            f"the student must lose at most max_drop {max_drop:g} of accuracy. Received: students that lose more "
            f"({drops}). Give more designs with --block, more --fine-tune-epochs, or a larger --max-drop."
        )
    run_dir = Path(str(of_run.config.execution.run_dir))
    if launcher.rank() in (None, 0) and best != [*tried][-1]:
        students.put_back(run_dir, best)
    if resumed:  # the run directory is complete: nothing is built, but settings, teacher and data are compared
        return of_run.build(best, tried, anew=True)
    return students.read(run_dir)[best]


def _drop(finished: RunReport) -> float:
    """Return the loss of validation accuracy, or without labels the share of images with another prediction."""
    teacher, student = finished.teacher, finished.student
    if teacher.val_accuracy is None or student.val_accuracy is None:
        return 1.0 - (student.val_agreement or 0.0)
    return teacher.val_accuracy - student.val_accuracy
