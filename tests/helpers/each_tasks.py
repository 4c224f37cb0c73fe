"""Functions that `Executor.run_each` calls in tests: they wait, fail and kill their worker on demand; no TensorFlow."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pbd.collective import Collective
from pbd.errors import MissingInputError
from pbd.records import Progress, ProgressCallback

LONGEST_WAIT_S = 200.0


@dataclass(frozen=True)
class Begins:
    """Leaves a file each time that it is called, and returns its number and the size of the collective."""

    folder: Path
    number: int
    waits_for: int = 0
    """How many functions must have begun before it ends."""
    kills: int = 0
    """How often the process is killed that calls it."""
    fails: bool = False

    def __call__(self, collective: Collective, progress: ProgressCallback) -> tuple[int, int]:
        begun = len(list(self.folder.glob(f"{self.number}.*")))
        (self.folder / f"{self.number}.{begun}").touch()
        if begun < self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails:
            raise MissingInputError("there is no such thing.")
        progress(Progress(0, f"function {self.number}", 0, 0))
        latest = time.monotonic() + LONGEST_WAIT_S
        while len(list(self.folder.iterdir())) < self.waits_for and time.monotonic() < latest:
            time.sleep(0.05)
        return self.number, collective.size
