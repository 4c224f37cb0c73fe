"""Hang detection: a thread that ends the process if the process makes no progress.

Training processes are watched by their workers (`executors.isolation`); this watches the workers and the coordinator.
Time in which the process itself was stopped (Ctrl-Z, a suspended laptop) or its output was blocked (Ctrl-S) is not
counted.
"""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from pbd.errors import PbdError, StoppedError
from pbd.system import silence

TICK_S = 1.0
IDLE_CPU = 0.2
"""A process that uses less than this share of one core makes no progress; background threads use a few hundredths."""
READY = 0.5
"""A process with a thread that runs or waits for a core for more than this share of the time makes progress."""
_OUTPUTS = (1, 2)
_touches = 0
_waits = 0


def touch() -> None:
    """Report progress: code that waits on purpose calls this while it waits."""
    global _touches
    _touches += 1


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Wait for a download or a slow disk as long as it takes: within the block this process does not count as hung.

    For single calls that take long. Also a decorator.
    """
    global _waits
    _waits += 1
    try:
        yield
    finally:
        _waits -= 1


def count() -> int:
    """Return the number of calls of `touch` in this process; within `waiting`, each call of `count` is one of them."""
    if _waits:
        touch()
    return _touches


def exit_process(error: BaseException) -> NoReturn:
    """Print an error and end this process at once, from any thread, with the error's exit code."""
    silence.print_error(f"pbd-run: {error}")
    os._exit(error.exit_code if isinstance(error, PbdError) else PbdError.exit_code)


class Watchdog:
    """A thread that calls a check every `TICK_S` seconds until `close`, and aborts when the check returns an error.

    Args:
        check: returns an error if the process or the job must end.
        abort: called with the error; ends the process, and all processes that belong to it.
    """

    def __init__(self, check: Callable[[], PbdError | None], abort: Callable[[PbdError], object]) -> None:
        self._check, self._abort = check, abort
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; the check is not called again."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(TICK_S):
            error = self._check()
            if error is not None:
                self._abort(error)


@contextlib.contextmanager
def watching(limit_s: float, abort: Callable[[PbdError], object] = exit_process) -> Iterator[None]:
    """End this process if it hangs within the block.

    Args:
        limit_s: the longest time for which the process may neither compute nor call `touch`.
        abort: called with the error from the watchdog's thread (see `Watchdog`).
    """
    watchdog = Watchdog(_HangCheck(limit_s), abort)
    try:
        yield
    finally:
        watchdog.close()


class Timeout:
    """A limit on seconds of silence. A tick counts for at most twice its length: beyond that this process was stopped.

    Args:
        limit_s: the longest silence.
        tick_s: the time between two calls of `expired`.
    """

    def __init__(self, limit_s: float, tick_s: float = TICK_S) -> None:
        self._limit_s, self._tick_s = limit_s, tick_s
        self.renew()

    def renew(self) -> None:
        """Start again from zero."""
        self.silent_s, self._last_s = 0.0, time.monotonic()

    def expired(self) -> bool:
        """Return whether the limit is reached; to be called at every tick."""
        now_s = time.monotonic()
        self.silent_s += min(now_s - self._last_s, 2 * self._tick_s)
        self._last_s = now_s
        return self.silent_s >= self._limit_s


class _HangCheck:
    """Returns an error once this process has been idle for too long; to be called at every tick."""

    def __init__(self, limit_s: float) -> None:
        self._timeout = Timeout(limit_s)
        self._touches, self._cpu_s, self._ready_s = _touches, time.process_time(), _ready_s()

    def __call__(self) -> PbdError | None:
        touches, cpu_s, ready_s = count(), time.process_time(), _ready_s()
        busy = touches != self._touches or cpu_s - self._cpu_s > IDLE_CPU * TICK_S
        # On an overloaded host, a process that computes all the time may get less than IDLE_CPU of a core.
        busy = busy or any(s - self._ready_s.get(thread, s) > READY * TICK_S for thread, s in ready_s.items())
        self._touches, self._cpu_s, self._ready_s = touches, cpu_s, ready_s
        if busy or _output_is_blocked():
            self._timeout.renew()
        elif self._timeout.expired():
            return StoppedError(
                f"this process hung: it was idle for {self._timeout.silent_s:.0f} s. Go on with --resume --run-dir DIR."
            )
        return None


def _ready_s() -> dict[str, float]:
    """Return for how many seconds each thread of this process ran or waited for a core; empty on other systems.

    Source: https://docs.kernel.org/scheduler/sched-stats.html, section /proc/<pid>/schedstat.
    """
    seconds = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError):  # the thread has ended
            ran_ns, waited_ns, _ = map(int, file.read_text().split())
            seconds[file.parent.name] = (ran_ns + waited_ns) / 1e9
    return seconds


def _output_is_blocked() -> bool:
    """Return whether stdout or stderr cannot be written: a terminal stopped with Ctrl-S, a full pipe."""
    outputs = select.poll()
    for descriptor in _OUTPUTS:
        outputs.register(descriptor, select.POLLOUT)
    return len(outputs.poll(0)) < len(_OUTPUTS)  # a closed or broken descriptor is reported, too
