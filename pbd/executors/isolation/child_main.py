"""The main program of a child process: take a device, then do what the worker that started it orders."""

import contextlib
import ctypes
import faulthandler
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pbd.collective import SINGLE, Collective
from pbd.executors.base import Throttle
from pbd.executors.isolation.messages import Abort, AllReduce, Heartbeat, Request, Response, Setup, SharedBuffer
from pbd.system import backend, watchdog

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_EAGER_TO_DIE = 500
_BEAT_S = 1.0


def main() -> NoReturn:
    """Work until the worker goes."""
    descriptor, buffer, parent = map(int, sys.argv[1:])
    backend.spare_imports()
    _die_with(parent)
    _leave_signals_to_the_worker()
    faulthandler.enable()
    link = _Link(Connection(descriptor), SharedBuffer(buffer))
    logging.getLogger("pbd").addHandler(_PassOn(link))
    threading.Thread(target=_beat, args=(link,), daemon=True).start()
    greeting: Setup = link.hear()
    trouble = _set_up_process(greeting)
    while True:
        order: Request = link.hear()
        link.say(Response(error=trouble) if trouble else _carry_out(order, link))


def _beat(link: "_Link") -> None:
    """Pass on, now and then, that the work comes by `watchdog.touch`."""
    before = watchdog.count()
    while True:
        time.sleep(_BEAT_S)
        if watchdog.count() != before:
            before = watchdog.count()
            link.say(Heartbeat())


def _set_up_process(greeting: Setup) -> Exception | None:
    """Take the device and load what the worker has registered; return what went wrong."""
    try:
        greeting.share.claim()
        backend.load()
        greeting.keras.apply()
    except Exception as error:
        return error
    return None


def _carry_out(order: Request, link: "_Link") -> Response:
    """Do the work; of a collective only the first has to say what came of it."""
    try:
        result = pickle.loads(order.work)(_team(order, link), Throttle(link.say))
        return _sendable(Response(result if order.index == 0 else None))
    except Exception as error:
        error.add_note(f"In the process that trains:\n{traceback.format_exc()}")
        return _sendable(Response(error=error))


def _sendable(answer: Response) -> Response:
    """Return the answer, in words if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(answer))
    except Exception as error:
        wrong = answer.error or error
        return Response(error=RuntimeError(f"{type(wrong).__name__}: {wrong}"))
    return answer


def _team(order: Request, link: "_Link") -> Collective:
    return _ChildCollective(order.index, order.size, link) if order.size > 1 else SINGLE


class _Link:
    """The connection to the worker; when that is gone, there is nothing left to do."""

    def __init__(self, connection: Connection, buffer: SharedBuffer) -> None:
        self._connection, self.buffer = connection, buffer
        self._lock = threading.Lock()

    def hear(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            os._exit(0)

    def say(self, message: Any) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(0)


class _ChildCollective:
    """A collective as its member's child sees it: the worker brings its values to the others."""

    def __init__(self, index: int, size: int, link: _Link) -> None:
        self.index, self.size, self._link = index, size, link

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        self._link.buffer.put(values)
        self._ask(AllReduce(values.shape, values.dtype.str))
        return self._link.buffer.take(values.shape, values.dtype.str)

    def abort(self) -> None:
        self._ask(Abort())

    def _ask(self, message: AllReduce | Abort) -> None:
        self._link.say(message)
        answer = self._link.hear()
        if isinstance(answer, Exception):
            raise answer


class _PassOn(logging.Handler):
    """Has the worker say what is logged here."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        with contextlib.suppress(Exception):
            self._link.say(record)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when the worker ends, however it does; the system's next victim is this one."""
    if sys.platform != "linux":
        return  # it ends when it next has something to say
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(max(_EAGER_TO_DIE, int(score.read_text()))))


def _leave_signals_to_the_worker() -> None:
    """Stopping is the worker's to decide: it kills this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
