"""The workers of a run, from the moment they are opened until they are closed: one process leads, the others serve."""

import contextlib
import sys
from collections.abc import Callable
from typing import TypeVar

from pbd import progress
from pbd.config import ExecutionConfig
from pbd.executors import open_executor
from pbd.executors.base import Executor
from pbd.system import launcher, process, watchdog

T = TypeVar("T")


def run(
    config: ExecutionConfig,
    work: Callable[[Executor, progress.ProgressDisplay], T],
    check: Callable[[], object] = lambda: None,
    *,
    dedicated_process: bool = False,
) -> T:
    """Do work that uses all workers, and return its result, in every process of an MPI job.

    Args:
        config: the settings of the execution.
        work: called in one process only, with the workers and a display of the progress; its result is picklable.
        check: called in that process before it loads a backend; raises an error if the work cannot succeed.
        dedicated_process: this process exists for the work, so it is ended if it hangs. So is a rank of an MPI job, for
            which other ranks wait; but not a script or a notebook, which its user may have stopped in a debugger.

    Raises:
        PbdError: the workers cannot be opened, or the work fails.
    """
    executor = open_executor(config)
    watched = dedicated_process or launcher.rank() is not None
    with watchdog.watching(config.stall_limit, executor.abort) if watched else contextlib.nullcontext():
        try:
            if not executor.coordinates:
                return executor.serve()
            check()
            with process.prepared(executor.share), progress.open_progress() as display:
                finished = work(executor, display)
            executor.finish(finished)
        except BaseException as error:
            executor.stop(error)
            raise
        finally:
            _free_memory()
    return finished


def _free_memory() -> None:
    """Free what this process has loaded for training in it (`isolate=False`)."""
    context = sys.modules.get("pbd.blockwise.context")  # without it, nothing was loaded
    if context is not None:
        context.forget()
