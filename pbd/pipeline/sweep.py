"""Runs with several students from one set of blocks: one for each budget."""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pbd.config import RunConfig, budgets
from pbd.executors.base import Executor
from pbd.pipeline import distill, early_checks, session, students
from pbd.progress import ProgressDisplay
from pbd.records import RunReport

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

    A sweep is one session: the process that leads it decides alone which students are missing, and if it cannot keep
    one, all processes end.

    Returns:
        The report of the run directory: that of the only student, or of the last one of a sweep.
    """
    config = config.resolved()
    if config.student.sweep is None:
        return distill.run(config, model, data, dedicated_process=dedicated_process)
    texts = budgets.sweep(config.student.sweep)

    def work(executor: Executor, display: ProgressDisplay) -> RunReport:
        run_one = functools.partial(distill.run_on, executor, display, model=model, data=data)
        return _each(_Students(config, run_one), texts)

    check = functools.partial(early_checks.check, config, model is not None)
    return session.run(config.execution, work, check, dedicated_process=dedicated_process)


@dataclass
class _Students:
    """Builds the students of one run directory; the blocks are those of the first one."""

    config: RunConfig
    run_one: Callable[..., RunReport]

    def build(self, budget: str, shown: Collection[str], anew: bool = False) -> RunReport:
        """Return the report of the student of a budget; one that is there is built again only on request.

        Raises:
            InfeasibleBudgetError: no student keeps within the budget.
        """
        config = self.config.replace(budget=(budget,), sweep=None)
        finished = None if anew else students.read_complete(config)
        if finished is not None:
            return finished
        finished = self.run_one(config, sweep=shown)
        self.config = self.config.replace(run_dir=finished.run_dir, resume=True)
        students.keep(finished)
        students.write_front(Path(finished.run_dir), {budget, *shown})
        return finished


def _each(of_run: _Students, texts: tuple[str, ...]) -> RunReport:
    """Return the report of the last budget, which is always chosen again, so that settings and data are compared."""
    for number, budget in enumerate(texts, start=1):
        finished = of_run.build(budget, texts, anew=number == len(texts))
    return finished
