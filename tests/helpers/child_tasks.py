"""Work for training processes in tests, which must be able to import it: some of it fails; no TensorFlow."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbd.collective import Collective
from pbd.errors import MissingInputError
from pbd.records import Progress, ProgressCallback
from pbd.run_dir import error_files
from pbd.run_dir.error_files import ErrorTarget
from pbd.run_dir.journal import Journal


def pid(collective: Collective, progress: ProgressCallback) -> int:
    return os.getpid()


def reports(collective: Collective, progress: ProgressCallback) -> str:
    progress(Progress(0, "reporting", 1, 2))
    logging.getLogger("pbd.test").warning("%s is odd", "this")
    print("not for the user")
    return "reported"


def raises(collective: Collective, progress: ProgressCallback) -> None:
    raise MissingInputError("there is no such thing.")


def returns_a_lock(collective: Collective, progress: ProgressCallback) -> Any:
    return threading.Lock()  # which cannot be pickled


def environment(collective: Collective, progress: ProgressCallback) -> tuple[dict[str, str], list[str]]:
    return dict(os.environ), sys.path


def leaves_a_file(collective: Collective, progress: ProgressCallback) -> Path:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        return Path(file.name)


def is_killed(collective: Collective, progress: ProgressCallback) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(collective: Collective, progress: ProgressCallback) -> None:
    ctypes.string_at(0)


@dataclass(frozen=True)
class Aborts:
    """Aborts its process, as a failed check in a native library does, while it trains two layers."""

    journal: Journal

    def __call__(self, collective: Collective, progress: ProgressCallback) -> None:
        with error_files.recorded(self.journal, "loading"):
            pass
        with error_files.announced(ErrorTarget(self.journal, "conv1@two_layer+1", layers=("conv1", "conv2"))):
            print("Check failed: size > 0", file=sys.stderr, flush=True)
            os.abort()


def exits_silently(collective: Collective, progress: ProgressCallback) -> None:
    os._exit(0)


def exits_with_output(collective: Collective, progress: ProgressCallback) -> None:
    print("no space left on device", file=sys.stderr, flush=True)
    os._exit(3)


def sleeps_for_ever(collective: Collective, progress: ProgressCallback) -> None:
    time.sleep(1e6)


def is_stopped(collective: Collective, progress: ProgressCallback) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def spins_for_ever(collective: Collective, progress: ProgressCallback) -> None:
    while True:
        pass


@dataclass(frozen=True)
class Busy:
    """Computes without reporting, and then calls another function, if there is one."""

    seconds: float
    then: Callable[[Collective, ProgressCallback], None] | None = None

    def __call__(self, collective: Collective, progress: ProgressCallback) -> str:
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            pass
        if self.then is not None:
            self.then(collective, progress)
        return "done"


def sleeps_and_reports(collective: Collective, progress: ProgressCallback) -> str:
    for step in range(10):
        time.sleep(0.3)
        progress(Progress(0, "sleeping", step, 10))
    return "done"


@dataclass(frozen=True)
class IsRegistered:
    """Returns whether an object is registered with Keras under this name."""

    name: str

    def __call__(self, collective: Collective, progress: ProgressCallback) -> bool:
        import keras

        return keras.saving.get_registered_object(self.name) is not None


def loaded_modules(collective: Collective, progress: ProgressCallback) -> list[str]:
    return list(sys.modules)


@dataclass(frozen=True)
class Begins:
    """Writes its process number to a file, and sleeps."""

    file: Path

    def __call__(self, collective: Collective, progress: ProgressCallback) -> None:
        self.file.write_text(str(os.getpid()))
        progress(Progress(0, "begun", 0, 1))
        time.sleep(60)
