"""The main program of a training process: load the backend, then execute the worker's requests."""

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

import cloudpickle
import numpy as np

from pbd.collective import SINGLE, Collective
from pbd.executors.base import Throttle
from pbd.executors.isolation import messages
from pbd.executors.isolation.messages import (
    Abort,
    AllReduce,
    Announcement,
    Heartbeat,
    Request,
    Response,
    Setup,
    SharedBuffer,
)
from pbd.run_dir import error_files
from pbd.system import backend, watchdog

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OOM_SCORE = 500
_HEARTBEAT_S = 1.0


def main() -> NoReturn:
    """Execute requests until the worker ends."""
    descriptor, buffer, parent = map(int, sys.argv[1:])
    backend.dedicate_process()
    _end_with(parent)
    _ignore_signals()
    faulthandler.enable()
    link = _Link(Connection(descriptor), SharedBuffer(buffer))
    logging.getLogger("pbd").addHandler(_ForwardingHandler(link))
    error_files.observe(lambda target: link.send(Announcement(target)))
    threading.Thread(target=_send_heartbeats, args=(link,), daemon=True).start()
    setup_error = _set_up_process(link.receive())
    while True:
        request: Request = link.receive()
        link.send(Response(error=setup_error) if setup_error else _execute(request, link))


def _send_heartbeats(link: "_Link") -> None:
    """Send a heartbeat at most once a second while the work calls `watchdog.touch`."""
    last_count = watchdog.count()
    while True:
        time.sleep(_HEARTBEAT_S)
        if watchdog.count() != last_count:
            last_count = watchdog.count()
            link.send(Heartbeat())


def _set_up_process(setup: Setup) -> Exception | None:
    """Load the backend and the worker's Keras state; return the exception if that fails."""
    try:
        backend.load()
        setup.keras.apply()
    except Exception as error:
        return messages.picklable(error)
    return None


def _execute(request: Request, link: "_Link") -> Response:
    """Call the requested function; only the first member of a collective returns its result."""
    try:
        result = pickle.loads(request.work)(_collective(request, link), Throttle(link.send))
        return _checked(Response(result if request.index == 0 else None))
    except Exception as error:
        error.add_note(f"In the training process:\n{traceback.format_exc()}")
        return Response(error=messages.picklable(error))


def _checked(response: Response) -> Response:
    """Return the response, or the error that its result cannot be pickled or unpickled."""
    try:
        pickle.loads(cloudpickle.dumps(response))
    except Exception as error:
        return Response(error=RuntimeError(f"{type(error).__name__}: {error}"))
    return response


def _collective(request: Request, link: "_Link") -> Collective:
    return _ChildCollective(request.index, request.size, link) if request.size > 1 else SINGLE


class _Link:
    """The connection to the worker; if it is lost, this process ends."""

    def __init__(self, connection: Connection, buffer: SharedBuffer) -> None:
        self._connection, self.buffer = connection, buffer
        self._lock = threading.Lock()

    def receive(self) -> Any:
        try:
            return messages.receive(self._connection)
        except (EOFError, OSError):
            os._exit(0)

    def send(self, message: Any) -> None:
        try:
            with self._lock:
                messages.send(self._connection, message)
        except OSError:
            os._exit(0)


class _ChildCollective:
    """A worker's collective in its training process: the worker exchanges the values with the other members."""

    def __init__(self, index: int, size: int, link: _Link) -> None:
        self.index, self.size, self._link = index, size, link

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        self._link.buffer.write(values)
        self._exchange(AllReduce(values.shape, values.dtype.str))
        return self._link.buffer.read(values.shape, values.dtype.str)

    def abort(self) -> None:
        self._exchange(Abort())

    def _exchange(self, message: AllReduce | Abort) -> None:
        self._link.send(message)
        reply = self._link.receive()
        if isinstance(reply, Exception):
            raise reply


class _ForwardingHandler(logging.Handler):
    """Forwards log records to the worker."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        with contextlib.suppress(Exception):
            self._link.send(record)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its worker ends, and prefer it over the worker if memory runs out."""
    if sys.platform != "linux":
        return  # there the next message fails, which ends the process
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the worker ended before the call
        os._exit(0)
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(max(_OOM_SCORE, int(score.read_text()))))


def _ignore_signals() -> None:
    """Ignore signals that stop a run: the worker kills this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
