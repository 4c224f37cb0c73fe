"""Runs with several students from one set of blocks: one for each budget."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pbd.config import RunConfig, budgets
from pbd.pipeline import distill, students
from pbd.records import RunReport
from pbd.system import launcher

if TYPE_CHECKING:
    import keras

    from pbd.data import Data


def run(
    config: RunConfig,
    model: "keras.Model | None" = None,
    data: "Data | None" = None,
    *,
    dedicated_process: bool = False,
) -> RunReport:
    """Run the method once, or for each budget of a sweep; see `distill.run`.

    Returns:
        The report of the run directory: that of the only student, or of the last one of a sweep.
    """

    def run_one(one: RunConfig) -> RunReport:
        return distill.run(one, model, data, dedicated_process=dedicated_process)

    config = config.resolved()
    if config.student.sweep is not None:
        return _each(_Students(config, run_one), budgets.sweep(config.student.sweep))
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
        one = self.config.replace(budget=(budget,), sweep=None)
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
