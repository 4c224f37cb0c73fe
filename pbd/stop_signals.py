"""Signals by which users, launchers and batch systems stop a process."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C, a launcher or batch system, Slurm before the time limit, a closed terminal (unless under nohup)."""
Handler = signal.Handlers | Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def handled_by(handler: Handler, *others: signal.Signals) -> Iterator[None]:
    """Set the handler of the signals to stop, and of `others`, for the block; those that are ignored stay so.

    In a thread other than the main one, which alone may set handlers, nothing is set.
    """
    if not in_main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (*ALL, *others)}
    for number, before in handlers.items():
        if before is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before or signal.SIG_DFL)


def raised() -> contextlib.AbstractContextManager[None]:
    """Let every signal to stop raise `KeyboardInterrupt` in the block, as Ctrl-C does."""
    return handled_by(signal.default_int_handler)


def in_main_thread() -> bool:
    """Return whether this thread may set signal handlers; the exceptions of handlers are raised in it alone."""
    return threading.current_thread() is threading.main_thread()
