"""Commands that take turns of a few seconds on one machine, each with all its processes; the others are stopped.

On a shared host a machine's speed changes within minutes, by half and more. Of commands that ran one after the other,
each had another machine; of commands that took turns, each had the same. Time in which one was stopped does not count.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pbd.errors import PbdError

_GRACE_S = 30.0


@dataclass
class Job:
    """A command, and when it had the machine (seconds since the epoch)."""

    process: "subprocess.Popen[bytes]"
    output: Path
    turns: list[tuple[float, float]] = field(default_factory=list)

    def seconds_until(self, moment: float) -> float:
        """Return how long the command had run at a moment, of its own turns alone."""
        return sum(max(0.0, min(ended, moment) - began) for began, ended in self.turns)

    def take_turn(self, seconds: float) -> None:
        """Let it run for so long, or to its end."""
        began = time.time()
        self.signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.signal(signal.SIGSTOP)
        self.turns.append((began, time.time()))

    def signal(self, number: int) -> None:
        """Send a signal to all its processes, those that are being started included."""
        reached: set[psutil.Process] = set()
        while new := set(self._processes()) - reached:
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            reached |= new

    def _processes(self) -> list[psutil.Process]:
        if self.process.poll() is not None:
            return []
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        """End it, in good order if it can."""
        if self.process.poll() is None:
            self.process.terminate()
            self.signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_S)
            self.signal(signal.SIGKILL)


def run(commands: Mapping[Path, Sequence[str]], turn_s: float) -> list[Job]:
    """Run commands in turns until all have ended.

    Args:
        commands: by the file that takes what they print.
        turn_s: how long a turn is.

    Raises:
        PbdError: one failed; the message is its last line.
    """
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(_started(command, output)) for output, command in commands.items()]
        while left := [job for job in jobs if job.process.poll() is None]:
            for job in left:
                job.take_turn(turn_s)
                if job.process.poll():
                    said = job.output.read_text(errors="replace").strip().splitlines()
                    raise PbdError(f"{job.output.stem} failed: {said[-1] if said else 'it said nothing'}")
    return jobs


@contextlib.contextmanager
def _started(command: Sequence[str], output: Path) -> Iterator[Job]:
    """Start a command, and stop it at once."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=os.environ
        )
    job = Job(process, output)
    job.signal(signal.SIGSTOP)
    try:
        yield job
    finally:
        job.end()
