"""The context that the phases of a run share, and a clock of their time."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pbd import progress
from pbd.config import RunConfig
from pbd.energy import accounting
from pbd.executors.base import Executor
from pbd.scheduling import cost_table

if TYPE_CHECKING:
    from pbd.pipeline.prepare import Inputs


@dataclass
class Clock:
    """Wall-clock seconds of each phase, in the order in which they end."""

    began: float = field(default_factory=time.monotonic)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        """End a phase, and begin the next one."""
        self.laps[phase] = time.monotonic() - self.began - sum(self.laps.values())

    def total_s(self) -> float:
        """Return the seconds since the clock was made."""
        return time.monotonic() - self.began


@dataclass(frozen=True)
class RunContext:
    """The objects that the phases of a run share."""

    config: RunConfig
    given_costs: cost_table.CostTable | None
    """The costs that the settings name, if any."""
    inputs: "Inputs"
    """The teacher, the data, the tasks and the run directory."""
    executor: Executor
    """The workers."""
    clock: Clock
    account: accounting.EnergyAccount
    """The account of the energy that the run uses."""
    display: progress.ProgressDisplay
    is_step: bool
    """See `distill.run_on`."""
