"""What programs of experiments share that run in processes of their own: arguments as JSON, and an executor."""

import dataclasses
import json
from collections.abc import Callable
from typing import TypeVar

from pbd.config import ExecutionConfig
from pbd.errors import PbdError, StoppedError, UsageError, unknown_name
from pbd.executors import open_executor
from pbd.executors.base import Executor

T = TypeVar("T")


def as_json(settings: object) -> str:
    """Return a dataclass as an argument that `from_json` reads."""
    return json.dumps(dataclasses.asdict(settings))  # type: ignore[call-overload]


def from_json(kind: type[T], text: str) -> T:
    """Return the dataclass in an argument.

    Args:
        kind: a dataclass that checks its values.
        text: what `as_json` returned.

    Raises:
        UsageError: the text is no JSON, has a name that is no field or lacks one, or a value is wrong.
    """
    rule = f"the argument must be a {kind.__name__} as JSON"
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{rule}. Received: {text!r}: {error}. Correct it.") from error
    if not isinstance(values, dict):
        raise UsageError(f'{rule}. Received: {text!r}. Give {{"NAME": VALUE, ...}}.')
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise UsageError(unknown_name("setting", name, names))
    missing = [name for name in names if name not in values]
    if missing:
        raise UsageError(f"{rule}. Received: one without {', '.join(missing)}. Add all settings.")
    return kind(**values)


def run_workers(config: ExecutionConfig, work: Callable[[Executor], None]) -> None:
    """Call `work` with an open executor in this process, and end its workers.

    Args:
        config: names the executor.
        work: called in every process; it must let those serve that do not coordinate.

    Raises:
        PbdError: the executor could not be opened, or the work failed.
    """
    finished = StoppedError("the work is done")
    try:
        executor = open_executor(config)
        try:
            work(executor)
        except BaseException as error:
            executor.stop(error)
            raise
        executor.stop(finished)  # there is no report to finish with
    except PbdError as error:
        if str(error) != str(finished):
            raise
