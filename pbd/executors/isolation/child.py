"""A training process as seen by its worker: if it crashes, is killed or hangs, only its current work is lost."""

import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from multiprocessing import Pipe
from typing import Any, TypeVar

import cloudpickle

from pbd.collective import SINGLE, CollectiveAbortedError, CollectiveLostError, WorkerCollective
from pbd.executors.isolation import messages
from pbd.executors.isolation.base import LostProcessError, Work
from pbd.executors.isolation.hang_detector import HangDetector
from pbd.executors.isolation.messages import (
    Abort,
    AllReduce,
    Announcement,
    Request,
    Response,
    Setup,
    SharedBuffer,
)
from pbd.executors.isolation.scratch import ScratchFolder
from pbd.records import Progress, ProgressCallback
from pbd.run_dir import error_files
from pbd.run_dir.error_files import ErrorTarget
from pbd.system import backend, devices, launcher, watchdog
from pbd.system.keras_state import KerasSetup

T = TypeVar("T")
_POLL_S = 0.5
_EXIT_S = 10.0
_LONGEST_OUTPUT = 200
_LONGEST_TIMEOUT_S = 1e9  # thirty years: a C long holds it on every platform
_MAIN = "pbd.executors.isolation.child_main"


class Child:
    """A task runner in a child process, which is started at once, and again after it was lost.

    Args:
        share: the share of the host that the process gets.
        stall_limit_s: the longest time for which the process may neither report nor compute; ten times as long if it
            computes.
        keras: the state of Keras there; by default that of this process.

    Raises:
        EnvironmentMismatchError: there are GPUs, but fewer than workers.
    """

    def __init__(self, share: devices.Share, stall_limit_s: float, keras: KerasSetup | None = None) -> None:
        self._share, self._stall_limit_s = share, stall_limit_s
        self._keras = KerasSetup.here() if keras is None else keras
        self._process: subprocess.Popen[bytes] | None = None
        self._error_target: ErrorTarget | None = None
        self._running = threading.Lock()
        self._start()

    def run(self, work: Work[T], progress: ProgressCallback, collective: WorkerCollective = SINGLE) -> T:
        with self._running:
            return self._run(work, progress, collective)

    def _run(self, work: Work[T], progress: ProgressCallback, collective: WorkerCollective) -> T:
        if self._process is None:
            self._start()
        try:
            self._send(Request(cloudpickle.dumps(work), collective.index, collective.size))
            response = self._wait_for_response(progress, collective)
        except LostProcessError as error:
            self._end()
            collective.disconnect(str(error))
            raise
        except BaseException:
            self._end()  # the process still runs the work; its late response must not answer the next request
            raise
        if response.error is not None:
            raise response.error
        return response.result

    def release(self) -> bool:
        is_idle = self._running.acquire(blocking=False)
        if is_idle:
            try:
                self._end()
            finally:
                self._running.release()
        return is_idle

    def close(self) -> None:
        process = self._process
        if process is not None:
            process.kill()  # then `run` in another thread, which holds the lock, raises LostProcessError
        with self._running:
            self._end()

    def _end(self) -> None:
        """Kill the process and free what belongs to it; only while `_running` is held."""
        process, self._process, self._error_target = self._process, None, None
        if process is not None:
            process.kill()
            process.wait()
            self._connection.close()
            self._buffer.close()
            self._output.close()
            self._scratch.cleanup()

    def _start(self) -> None:
        settings = self._share.settings()
        self._connection, other_end = Pipe()
        _set_timeouts(self._connection.fileno(), self._stall_limit_s)
        self._buffer, self._output = SharedBuffer.create(), tempfile.TemporaryFile()  # noqa: SIM115
        # TensorFlow leaves temporary files behind when its process is killed.
        self._scratch = ScratchFolder()
        descriptors = other_end.fileno(), self._buffer.descriptor
        output = None if self._share.verbose else self._output
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MAIN, *map(str, descriptors), str(os.getpid())],
            env=launcher.child_environment()
            | settings
            | {backend.VARIABLE: self._keras.backend, "TMPDIR": self._scratch.name},
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        other_end.close()
        with contextlib.suppress(LostProcessError):  # the first request reports it
            self._send(Setup(self._keras))

    def _send(self, message: Any) -> None:
        try:
            messages.send(self._connection, message)
        except OSError as error:
            raise LostProcessError(self._describe_end()) from error

    def _wait_for_response(self, progress: ProgressCallback, collective: WorkerCollective) -> Response:
        """Handle the messages of the process until it responds.

        Raises:
            LostProcessError: it ended or hangs.
        """
        assert self._process is not None, "a request is sent to a process that was started"
        detector = HangDetector(self._process.pid, self._stall_limit_s, _POLL_S)
        while True:
            watchdog.touch()
            if not self._connection.poll(_POLL_S):
                if self._process.poll() is not None:
                    raise LostProcessError(self._describe_end())
                detector.check()
                continue
            message = self._receive()
            detector.touch()
            if isinstance(message, Response):
                return message
            if isinstance(message, Progress):
                progress(message)
            elif isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
            elif isinstance(message, Announcement):
                self._error_target = message.target
            elif isinstance(message, AllReduce | Abort):
                self._send(self._exchange(message, collective))
                detector.touch()  # waiting for other members is no silence of this process

    def _receive(self) -> Any:
        try:
            return messages.receive(self._connection)
        except BlockingIOError as error:
            raise LostProcessError("the training process hung while it sent a message") from error
        except (EOFError, OSError) as error:
            raise LostProcessError(self._describe_end()) from error

    def _exchange(self, message: AllReduce | Abort, collective: WorkerCollective) -> AllReduce | Abort | Exception:
        """Take part in the collective for the process; return the reply."""
        try:
            if isinstance(message, Abort):
                collective.abort()
            else:
                self._buffer.write(collective.all_reduce_sum(self._buffer.read(message.shape, message.dtype)))
        except (CollectiveAbortedError, CollectiveLostError) as error:
            return error
        return message

    def _describe_end(self) -> str:
        """Return how the process ended; unless it was killed, write an error file, and name it."""
        assert self._process is not None, "only a process that was started can end"
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return "the training process closed its connection"
        names = {number.value: number.name for number in signal.Signals}
        end = f"ended with code {code}" if code >= 0 else f"was ended by {names.get(-code, f'signal {-code}')}"
        if code == -signal.SIGKILL:
            return f"the training process {end} (out of memory?){self._last_line()}"
        reason = f"the training process {end}{self._last_line()}"
        target, process = self._error_target, self._process.pid
        file = target and error_files.write_crash(target, reason, process, self._read_output())
        return f"{reason} (see {file} in the run directory)" if file else reason

    def _last_line(self) -> str:
        """Return the last line that the process wrote before the traceback of faulthandler."""
        lines = self._read_output().partition("Fatal Python error")[0].strip().splitlines()
        return f": {lines[-1].strip()[:_LONGEST_OUTPUT]}" if lines else ""

    def _read_output(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()


def _set_timeouts(descriptor: int, seconds: float) -> None:
    """Let a read or a write fail if the other end stops in the middle of a message."""
    timeout = struct.pack("ll", max(1, int(min(seconds, _LONGEST_TIMEOUT_S))), 0)
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, timeout)
