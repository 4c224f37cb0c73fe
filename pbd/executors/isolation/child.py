"""A child process that works for a worker: if it crashes, is killed or hangs, only what it was doing is lost."""

import contextlib
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

from pbd.collective import SINGLE, CollectiveAbortedError, CollectiveLostError, WorkerCollective
from pbd.executors.base import Emit
from pbd.executors.isolation.base import LostProcessError, Work
from pbd.executors.isolation.messages import Abort, AllReduce, Heartbeat, Request, Response, Setup, SharedBuffer
from pbd.records import Progress
from pbd.system import devices, launcher, watchdog
from pbd.system.keras_state import KerasSetup
from pbd.system.watchdog import Timeout

T = TypeVar("T")
_log = logging.getLogger(__name__)
_POLL_S = 0.5
_ENDS_S = 10.0
_LAST_WORDS = 200
IDLE = 0.01
"""A process that takes a smaller share of a core does nothing."""
MOST_BUSY = 10
"""A process that computes may be silent for this many times the stall limit: tracing and compiling say nothing."""


class Child:
    """A runner in a process of its own, which is started at once, and again whenever it was lost.

    Args:
        share: of the host, which the child takes.
        stall_limit_s: for how long it may neither say anything nor compute; ten times as long if it computes.
        keras: what it is told of Keras; by default what this process knows.
    """

    def __init__(self, share: devices.Share, stall_limit_s: float, keras: KerasSetup | None = None) -> None:
        self._share, self._stall_limit_s = share, stall_limit_s
        self._keras = KerasSetup.here() if keras is None else keras
        self._process: subprocess.Popen[bytes] | None = None
        self._busy = threading.Lock()
        self._start()

    def run(self, work: Work[T], emit: Emit, collective: WorkerCollective = SINGLE) -> T:
        with self._busy:
            return self._run(work, emit, collective)

    def _run(self, work: Work[T], emit: Emit, collective: WorkerCollective) -> T:
        if self._process is None:
            self._start()
        try:
            self._send(Request(pickle.dumps(work), collective.index, collective.size))
            answer = self._attend(emit, collective)
        except LostProcessError:
            self.close()
            collective.disconnect()
            raise
        except BaseException:
            self.close()  # it is in the middle of something
            raise
        if answer.error is not None:
            raise answer.error
        return answer.result

    def release(self) -> None:
        if self._busy.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._busy.release()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._link.close()
            self._buffer.close()
            self._said.close()
            self._scratch.cleanup()

    def _start(self) -> None:
        self._link, theirs = Pipe()
        _limit_waiting(self._link.fileno(), self._stall_limit_s)
        self._buffer, self._said = SharedBuffer.make(), tempfile.TemporaryFile()  # noqa: SIM115
        self._scratch = tempfile.TemporaryDirectory(prefix="pbd_child_", ignore_cleanup_errors=True)
        descriptors = theirs.fileno(), self._buffer.descriptor
        said = None if self._share.verbose else self._said
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "pbd.executors.isolation.child_main",
                *map(str, descriptors),
                str(os.getpid()),
            ],
            env=launcher.environment_of_a_child() | {"TMPDIR": self._scratch.name},  # TensorFlow leaves files there
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        theirs.close()
        with contextlib.suppress(LostProcessError):  # of which the first order will hear
            self._send(Setup(self._share, self._keras))

    def _send(self, message: Any) -> None:
        try:
            self._link.send(message)
        except OSError as error:
            raise LostProcessError(self._how_it_ended()) from error

    def _attend(self, emit: Emit, collective: WorkerCollective) -> Response:
        """Serve the child until it answers."""
        watch = _Watch(self._process.pid, self._stall_limit_s)
        while True:
            watchdog.touch()
            if not self._link.poll(_POLL_S):
                if self._process.poll() is not None:
                    raise LostProcessError(self._how_it_ended())
                watch.check()
                continue
            try:
                message = self._link.recv()
            except BlockingIOError as error:
                raise LostProcessError("the process that trains hung in the middle of a word") from error
            except (EOFError, OSError) as error:
                raise LostProcessError(self._how_it_ended()) from error
            watch.touch()
            if isinstance(message, Response):
                return message
            if isinstance(message, Heartbeat):
                continue
            if isinstance(message, Progress):
                emit(message)
            elif isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
            else:
                self._send(self._for_the_team(message, collective))
                watch.touch()

    def _for_the_team(self, message: AllReduce | Abort, collective: WorkerCollective) -> AllReduce | Abort | Exception:
        try:
            if isinstance(message, Abort):
                collective.abort()
            else:
                self._buffer.put(collective.all_reduce_sum(self._buffer.take(message.shape, message.dtype)))
        except (CollectiveAbortedError, CollectiveLostError) as error:
            return error
        return message

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            return "the process that trains closed its connection"
        if code >= 0:
            return f"the process that trains ended with code {code}{self._last_words()}"
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the process that trains was ended by {name}{hint}{self._last_words()}"

    def _last_words(self) -> str:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        lines = said.partition("Fatal Python error")[0].strip().splitlines()  # where it was, follows
        return f": {lines[-1].strip()[:_LAST_WORDS]}" if lines else ""


class _Watch:
    """Notices when a process hangs: within twice the limit of when it last computed."""

    def __init__(self, pid: int, limit_s: float) -> None:
        self._pid = pid
        self._silence, self._idleness = Timeout(MOST_BUSY * limit_s, _POLL_S), Timeout(limit_s, _POLL_S)
        self.touch()

    def touch(self) -> None:
        self._silence.renew()
        self._begin_a_span()

    def check(self) -> None:
        """To be called at every poll.

        Raises:
            LostProcessError: the process was silent for too long.
        """
        silent, span_is_over = self._silence.lost(), self._idleness.lost()
        if not (silent or span_is_over):
            return
        span_s, computed_s = self._idleness.silent_s, _cpu_s(self._pid) - self._computed_s
        if silent or computed_s < IDLE * span_s:
            raise LostProcessError(
                f"the process that trains hung: it said nothing for {self._silence.silent_s:.0f} s, "
                f"and computed {computed_s:.0f} s in the last {span_s:.0f}"
            )
        self._begin_a_span()

    def _begin_a_span(self) -> None:
        self._idleness.renew()
        self._computed_s = _cpu_s(self._pid)


def _cpu_s(pid: int) -> float:
    """Return how long the threads of a process have computed; 0 where the system does not say."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def _limit_waiting(descriptor: int, seconds: float) -> None:
    """Have reads and writes fail that wait for so long in the middle of a message."""
    limit = struct.pack("ll", max(1, int(seconds)), 0)
    with socket.socket(fileno=os.dup(descriptor)) as ours:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, limit)
