"""Detection of a training process that hangs."""

import psutil

from pbd.executors.isolation.base import LostProcessError
from pbd.system.watchdog import Timeout

IDLE_CPU = 0.01
"""A process that uses less than this share of one core is idle."""
BUSY_FACTOR = 10
"""A busy process may be silent for this many times the stall limit: tracing and compiling report nothing."""


class HangDetector:
    """Detects within twice the limit that a process neither reports nor computes.

    CPU time is compared over spans of one limit each, so that computing before a span does not hide a hang in it.

    Args:
        pid: the id of the process.
        limit_s: the longest silence of an idle process.
        poll_s: the time between two calls of `check`.
    """

    def __init__(self, pid: int, limit_s: float, poll_s: float) -> None:
        self._pid = pid
        self._silence = Timeout(BUSY_FACTOR * limit_s, poll_s)
        self._span = Timeout(limit_s, poll_s)
        self.touch()

    def touch(self) -> None:
        """Restart both limits, because the process sent a message."""
        self._silence.renew()
        self._start_span()

    def check(self) -> None:
        """Check the process; to be called at every poll.

        Raises:
            LostProcessError: the process hangs.
        """
        silent_too_long, span_ended = self._silence.expired(), self._span.expired()
        if not (silent_too_long or span_ended):
            return
        span_s, cpu_s = self._span.silent_s, _cpu_s(self._pid) - self._cpu_s
        if silent_too_long or cpu_s < IDLE_CPU * span_s:
            raise LostProcessError(
                f"the training process hung: it sent no message for {self._silence.silent_s:.0f} s, "
                f"and computed for {cpu_s:.0f} s in the last {span_s:.0f} s"
            )
        self._start_span()

    def _start_span(self) -> None:
        self._span.renew()
        self._cpu_s = _cpu_s(self._pid)


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process's threads; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system
