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

from pbd.collective import Team
from pbd.errors import MissingInputError
from pbd.executors.base import Emit
from pbd.records import Progress


def who(team: Team, emit: Emit) -> int:
    return os.getpid()


def tells(team: Team, emit: Emit) -> str:
    emit(Progress(0, "telling", 1, 2))
    logging.getLogger("pbd.test").warning("%s is odd", "this")
    print("not for the user")
    return "told"


def refuses(team: Team, emit: Emit) -> None:
    raise MissingInputError("there is no such thing.")


def gives_what_cannot_be_sent(team: Team, emit: Emit) -> Any:
    return lambda: None


def environment(team: Team, emit: Emit) -> tuple[dict[str, str], list[str]]:
    return dict(os.environ), sys.path


def leaves_a_file(team: Team, emit: Emit) -> Path:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        return Path(file.name)


def is_killed(team: Team, emit: Emit) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(team: Team, emit: Emit) -> None:
    ctypes.string_at(0)


def leaves_in_silence(team: Team, emit: Emit) -> None:
    os._exit(0)


def leaves_with_words(team: Team, emit: Emit) -> None:
    print("no space left on device", file=sys.stderr, flush=True)
    os._exit(3)


def waits_for_ever(team: Team, emit: Emit) -> None:
    time.sleep(1e6)


def is_stopped(team: Team, emit: Emit) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def turns_for_ever(team: Team, emit: Emit) -> None:
    while True:
        pass


@dataclass(frozen=True)
class Busy:
    """Computes without a word, and then does something else, if told to."""

    seconds: float
    then: Callable[[Team, Emit], None] | None = None

    def __call__(self, team: Team, emit: Emit) -> str:
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            pass
        if self.then is not None:
            self.then(team, emit)
        return "done"


def sleeps_and_tells(team: Team, emit: Emit) -> str:
    for step in range(10):
        time.sleep(0.3)
        emit(Progress(0, "sleeping", step, 10))
    return "done"


@dataclass(frozen=True)
class Knows:
    """Returns whether Keras knows an object by this name."""

    name: str

    def __call__(self, team: Team, emit: Emit) -> bool:
        import keras

        return keras.saving.get_registered_object(self.name) is not None


def has_loaded(team: Team, emit: Emit) -> list[str]:
    return list(sys.modules)


@dataclass(frozen=True)
class Begins:
    """Leaves its process number in a file and goes on for long."""

    file: Path

    def __call__(self, team: Team, emit: Emit) -> None:
        self.file.write_text(str(os.getpid()))
        emit(Progress(0, "begun", 0, 1))
        time.sleep(60)
