"""Work for a child process, which must be able to import it: some of it ends badly; no TensorFlow."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbd.collective import Collective
from pbd.errors import MissingInputError
from pbd.records import Progress, ProgressCallback


def who(collective: Collective, emit: ProgressCallback) -> int:
    return os.getpid()


def tells(collective: Collective, emit: ProgressCallback) -> str:
    emit(Progress(0, "telling", 1, 2))
    logging.getLogger("pbd.test").warning("%s is odd", "this")
    print("not for the user")
    return "told"


def refuses(collective: Collective, emit: ProgressCallback) -> None:
    raise MissingInputError("there is no such thing.")


def gives_what_cannot_be_sent(collective: Collective, emit: ProgressCallback) -> Any:
    return lambda: None


def environment(collective: Collective, emit: ProgressCallback) -> tuple[dict[str, str], list[str]]:
    return dict(os.environ), sys.path


def leaves_a_file(collective: Collective, emit: ProgressCallback) -> Path:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        return Path(file.name)


def is_killed(collective: Collective, emit: ProgressCallback) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(collective: Collective, emit: ProgressCallback) -> None:
    ctypes.string_at(0)


def leaves_in_silence(collective: Collective, emit: ProgressCallback) -> None:
    os._exit(0)


def leaves_with_words(collective: Collective, emit: ProgressCallback) -> None:
    print("no space left on device", file=sys.stderr, flush=True)
    os._exit(3)


def waits_for_ever(collective: Collective, emit: ProgressCallback) -> None:
    time.sleep(1e6)


def is_stopped(collective: Collective, emit: ProgressCallback) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def turns_for_ever(collective: Collective, emit: ProgressCallback) -> None:
    while True:
        pass


@dataclass(frozen=True)
class Busy:
    """Computes without a word, and then does something else, if told to."""

    seconds: float
    then: Callable[[Collective, ProgressCallback], None] | None = None

    def __call__(self, collective: Collective, emit: ProgressCallback) -> str:
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            pass
        if self.then is not None:
            self.then(collective, emit)
        return "done"


def sleeps_and_tells(collective: Collective, emit: ProgressCallback) -> str:
    for step in range(10):
        time.sleep(0.3)
        emit(Progress(0, "sleeping", step, 10))
    return "done"


@dataclass(frozen=True)
class Knows:
    """Returns whether Keras knows an object by this name."""

    name: str

    def __call__(self, collective: Collective, emit: ProgressCallback) -> bool:
        import keras

        return keras.saving.get_registered_object(self.name) is not None


def has_loaded(collective: Collective, emit: ProgressCallback) -> list[str]:
    return list(sys.modules)


@dataclass(frozen=True)
class Begins:
    """Leaves its process number in a file and goes on for long."""

    file: Path

    def __call__(self, collective: Collective, emit: ProgressCallback) -> None:
        self.file.write_text(str(os.getpid()))
        emit(Progress(0, "begun", 0, 1))
        time.sleep(60)
