"""The progress of all workers, from `Progress` events: bars on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

from pbd.records import Progress
from pbd.streams import discard


class LastingConsole(Console):
    """A console whose output is discarded once it cannot be written, so that the work goes on.

    The reader has gone, as in `... | head -1`, the terminal is closed, or the disk is full.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard(self.file)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()


class ProgressDisplay:
    """The interface of a display, and one that shows nothing: a context manager that receives events. Thread-safe."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the display from the screen."""

    def update(self, event: Progress) -> None:
        """Show the progress of a worker."""

    def phase(self, text: str) -> None:
        """Announce the next phase in one line, with the seconds since the display was created."""


class LineProgress(ProgressDisplay):
    """Prints one line for a worker whenever its label or epoch changes, else at most every `interval_s` seconds."""

    def __init__(self, console: Console, interval_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._interval_s = interval_s
        self._clock = clock
        self._began_s = clock()
        self._shown: dict[int, tuple[float, tuple[str, int]]] = {}
        self._lock = threading.Lock()

    def update(self, event: Progress) -> None:
        now_s, position = self._clock(), (event.label, event.epoch)
        with self._lock:
            shown_s, shown = self._shown.get(event.worker, (0.0, None))
            if shown == position and now_s - shown_s < self._interval_s:
                return
            self._shown[event.worker] = now_s, position
        parts = [f"worker {event.worker}: {_one_line(event.label)}", _epoch(event), _steps(event)]
        if event.loss is not None:
            parts.append(f"loss {event.loss:.4g}")
        _print_line(self._console, now_s - self._began_s, ", ".join(part for part in parts if part))

    def phase(self, text: str) -> None:
        with self._lock:
            self._shown.clear()
        _print_line(self._console, self._clock() - self._began_s, text)


class LiveProgress(ProgressDisplay):
    """Shows a bar for each worker that has reported since the last phase began, and removes the bars at the end.

    If there are more workers than lines on the terminal, the last ones are not shown.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._bars = Bars(
            TextColumn("worker {task.fields[worker]}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="crop")),
            TextColumn("{task.fields[epoch]}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}", markup=False, table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=4,
            transient=True,
            expand=True,
        )
        self._tasks: dict[int, TaskID] = {}
        self._labels: dict[int, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, event: Progress) -> None:
        total = event.total if event.total > 0 else None  # a bar without a total pulses
        fields: dict[str, Any] = {
            "description": _one_line(event.label),
            "epoch": _epoch(event),
            "loss": "" if event.loss is None else f"loss {event.loss:.3g}",
        }
        with self._lock:
            task = self._tasks.get(event.worker)
            if task is None:
                task = self._tasks[event.worker] = self._bars.add_task(total=total, worker=event.worker, **fields)
            elif self._labels[event.worker] != event.label:
                self._bars.reset(task, total=total)  # the speed of another group does not predict this one's end
            self._labels[event.worker] = event.label
            self._bars.update(task, total=total, completed=event.done, **fields)

    def phase(self, text: str) -> None:
        with self._lock:
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()
        _print_line(self._bars.console, self._clock() - self._began_s, text)


def open_progress(console: Console | None = None, interval_s: float = 5.0) -> ProgressDisplay:
    """Return bars if `console` (by default standard output) is a terminal, else plain lines.

    Example:
        >>> with open_progress() as progress:
        ...     progress.phase("teacher: training")
        [  0.0 s] teacher: training
    """
    console = console or LastingConsole()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(console)
    return LineProgress(console, interval_s)


def _print_line(console: Console, elapsed_s: float, text: str) -> None:
    console.print(f"[{elapsed_s:5.1f} s] {text}", markup=False, highlight=False, emoji=False, soft_wrap=True)


def _epoch(event: Progress) -> str:
    return f"epoch {event.epoch}" if event.epoch > 0 else ""


def _steps(event: Progress) -> str:
    """Return the steps that are done; nothing for the beginning of an activity whose steps are not known."""
    if event.total > 0:
        return f"step {event.done}/{event.total} ({event.done / event.total:.0%})"
    return f"step {event.done}" if event.done else ""


def _one_line(label: str) -> str:
    return " ".join(label.split())
