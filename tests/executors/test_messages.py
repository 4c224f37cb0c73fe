"""Exceptions between processes: each can be pickled, and keeps its message and its exit code."""

import pickle
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from distributed.core import error_message

from pbd.errors import BadInputError, PbdError
from pbd.executors.dask import worker
from pbd.executors.dask.results import TaskError, result_of
from pbd.executors.isolation import child_main, messages
from pbd.system import backend

pytestmark = pytest.mark.fast


class LockedError(ValueError):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("a library refused")
        self.lock = threading.Lock()


class LockedInputError(BadInputError):
    """Cannot be pickled either, and has an exit code."""

    def __init__(self) -> None:
        super().__init__("a rule. Received: 7.")
        self.lock = threading.Lock()


def _caused_by_a_library() -> BadInputError:
    try:
        raise BadInputError("the file cannot be read.") from LockedError()
    except BadInputError as error:
        return error


def _round_trip(error: Exception) -> Exception:
    return pickle.loads(cloudpickle.dumps(messages.picklable(error)))


def test_an_exception_loses_a_cause_that_cannot_be_pickled_and_no_other() -> None:
    received = _round_trip(_caused_by_a_library())
    assert type(received) is BadInputError
    assert str(received) == "the file cannot be read."
    error = PbdError("one")
    error.__cause__ = KeyError("two")
    assert messages.picklable(error) is error
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (LockedInputError(), PbdError, "a rule. Received: 7."),
        (LockedError(), RuntimeError, "LockedError: a library refused"),
    ],
)
def test_an_exception_that_cannot_be_pickled_keeps_message_notes_and_exit_code(
    error: Exception, kind: type[Exception], said: str
) -> None:
    error.add_note("a note")
    received = _round_trip(error)
    assert (type(received), str(received), received.__notes__) == (kind, said, ["a note"])
    assert getattr(received, "exit_code", None) == getattr(error, "exit_code", None)


@pytest.mark.parametrize("cause", [None, KeyError("two")])
def test_a_dask_task_raises_what_dask_can_pickle(monkeypatch: pytest.MonkeyPatch, cause: Exception | None) -> None:
    def refuse(_: Any) -> None:
        raise BadInputError("x" * 20_000) from cause or LockedError()

    monkeypatch.setattr(worker, "set_up_worker", refuse)
    with pytest.raises(TaskError) as caught:
        worker.set_up(None)  # type: ignore[arg-type]
    future: Future[None] = Future()
    future.set_exception(pickle.loads(error_message(caught.value)["exception"].data))
    with pytest.raises(BadInputError, match=r"^x{20000}$") as received:
        result_of(future)
    assert repr(received.value.__cause__) == repr(cause)
    assert received.value.__context__ is None


def test_a_failed_start_of_a_training_process_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise LockedError()

    monkeypatch.setattr(backend, "load", fail)
    error = child_main._set_up_process(SimpleNamespace(keras=None))  # type: ignore[arg-type]
    assert "a library refused" in str(pickle.loads(cloudpickle.dumps(error)))
