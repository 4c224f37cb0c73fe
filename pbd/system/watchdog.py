"""Ends a process that hangs: one that for a while has neither computed nor come by here. Off unless it is started.

What trains has a worker to watch over it (`executors.child`); this watches over those. Time in which the process itself
was stopped (Ctrl-Z, a laptop that slept), or in which nobody takes what it says (Ctrl-S), does not count.
"""

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pbd.errors import PbdError, StoppedError

TICK_S = 1.0
IDLE = 0.2
"""A process that takes a smaller share of a core does nothing: what helps in the background takes some hundredths."""

_OUTPUTS = (1, 2)

End = Callable[[PbdError], None]
_seen = 0  # grows with every call of `alive`
_checks: list[Callable[[], PbdError | None]] = []
_end: list[End] = []


def touch() -> None:
    """Say that this process waits for something on purpose; to be called again and again while it does."""
    global _seen
    _seen += 1


def count() -> int:
    """Return how often `alive` was called."""
    return _seen


def also_check(check: Callable[[], PbdError | None], end: End) -> None:
    """Have something else checked about once a second: an error that it returns ends the process.

    Args:
        check: runs in a thread of its own.
        end: ends this process, and whatever else has to end with it; it does not return.
    """
    _checks.append(check)
    _end.append(end)


@contextmanager
def watching(limit_s: float) -> Iterator[None]:
    """Watch this process until the end of the block; it may do nothing for so many seconds."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(limit_s, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Timeout:
    """Counts seconds of silence, but no more for one call than two ticks: the rest this process was stopped itself."""

    def __init__(self, limit_s: float, tick_s: float = TICK_S) -> None:
        self._limit_s, self._tick_s = limit_s, tick_s
        self.renew()

    def renew(self) -> None:
        """Begin anew."""
        self.silent_s, self._last_s = 0.0, time.monotonic()

    def lost(self) -> bool:
        """Return whether the limit is reached; to be called at every tick."""
        now_s = time.monotonic()
        self.silent_s += min(now_s - self._last_s, 2 * self._tick_s)
        self._last_s = now_s
        return self.silent_s >= self._limit_s


def _watch(limit_s: float, over: threading.Event) -> None:
    patience, seen, computed_s = Timeout(limit_s), _seen, time.process_time()
    while not over.wait(TICK_S):
        error = next(filter(None, (check() for check in tuple(_checks))), None)
        if seen != _seen or time.process_time() - computed_s > IDLE * TICK_S or _output_is_blocked():
            patience.renew()
        elif patience.lost():
            error = error or StoppedError(
                f"this process hung: for {patience.silent_s:.0f} s it did nothing. Go on with --resume --run-dir DIR."
            )
        seen, computed_s = _seen, time.process_time()
        if error is not None:
            for end in (*_end, _leave):
                end(error)


def _output_is_blocked() -> bool:
    """Return whether nobody takes what this process says: a terminal stopped with Ctrl-S, a pipe that is full."""
    outputs = select.poll()
    for descriptor in _OUTPUTS:
        outputs.register(descriptor, select.POLLOUT)
    return len(outputs.poll(0)) < len(_OUTPUTS)  # one that is closed or broken is told of, too


def _leave(error: PbdError) -> None:
    print(f"pbd-run: {error}", file=sys.__stderr__, flush=True)
    os._exit(error.exit_code)
