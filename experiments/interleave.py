"""Commands that take turns of a few seconds on one machine, each with all its processes; the others are stopped.

On a shared host a machine's speed changes within minutes, by half and more. Of commands that ran one after the other,
each had another machine; of commands that take turns, each has the same, until the others are done. Time in which one
is stopped does not count. All are in memory at once.
"""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from pbd.errors import EnvironmentMismatchError, PbdError

_GRACE_S = 30.0


@dataclass
class Job:
    """A command, and when it had the machine (seconds since the epoch)."""

    process: subprocess.Popen[bytes]
    output: Path
    turns: list[tuple[float, float]] = field(default_factory=list)
    known: set[psutil.Process] = field(default_factory=set)
    """All processes it was ever seen to have."""

    def seconds_until(self, moment: float) -> float:
        """Return how long the command had run at a moment, of its own turns alone."""
        return sum(max(0.0, min(ended, moment) - began) for began, ended in self.turns)

    def take_turn(self, seconds: float) -> None:
        """Let it run for so long, or to its end."""
        began = time.time()
        self.send(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.send(signal.SIGSTOP)
        self.turns.append((began, time.time()))

    def send(self, number: int) -> None:
        """Send a signal to all its processes, those that are being started included."""
        reached: set[psutil.Process] = set()
        while new := self._processes() - reached:
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            reached |= new

    def _processes(self) -> set[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            self.known |= {own, *own.children(recursive=True)}
        return {process for process in self.known if process.is_running()}

    def end(self) -> None:
        """End it, in good order if it can, and whatever it has left."""
        if self.process.poll() is None:
            self.process.terminate()
            self.send(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_S)
        self.send(signal.SIGKILL)

    def goes_on(self) -> bool:
        """Return whether it has not ended.

        Raises:
            PbdError: it has failed; the message is its last line.
        """
        if self.process.poll():
            said = self.output.read_text(errors="replace").strip().splitlines()
            raise PbdError(f"{self.output.stem} failed: {said[-1] if said else 'it said nothing'}")
        return self.process.returncode is None


def run(commands: Mapping[Path, Sequence[str]], turns_s: Sequence[float]) -> list[Job]:
    """Run commands in turns until all have ended.

    Args:
        commands: by the file that takes what they print.
        turns_s: how long a turn of each is. Where one needs twice as long as another, turns of twice the length have
            both at the same place, and done, at the same time.

    Raises:
        PbdError: one failed; the message is its last line.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_leaving_in_order())
        jobs = [stack.enter_context(_started(command, output)) for output, command in commands.items()]
        while left := [(job, turn_s) for job, turn_s in zip(jobs, turns_s, strict=True) if job.goes_on()]:
            for job, turn_s in left:
                job.take_turn(turn_s)
    return jobs


@contextlib.contextmanager
def _leaving_in_order() -> Iterator[None]:
    """Have signals (SIGHUP not under nohup) end this process in order: what is stopped would stay so for ever."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _started(command: Sequence[str], output: Path) -> Iterator[Job]:
    """Start a command, and stop it at once.

    Raises:
        EnvironmentMismatchError: there is no such command.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        except FileNotFoundError as error:
            raise EnvironmentMismatchError(f"no such command. Received: {command[0]!r}.") from error
    process.send_signal(signal.SIGSTOP)
    job = Job(process, output)
    try:
        yield job
    finally:
        job.end()
