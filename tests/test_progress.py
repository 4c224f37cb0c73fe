"""Progress: plain lines are few enough for a log, bars survive many workers and odd events, and no reader is needed."""

import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest
from rich.console import Console

from pbd import run
from pbd.config import RunConfig
from pbd.errors import FINISHED_WITH_FAILED_BLOCKS
from pbd.pipeline import sweep
from pbd.progress import LastingConsole, LineProgress, LiveProgress, ProgressDisplay, open_progress
from pbd.records import Progress, RunReport
from pbd.report import front
from tests.helpers.report_factory import full_report

pytestmark = pytest.mark.fast


class Clock:
    """Seconds that pass when the test says so."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_console(terminal: bool, height: int = 25) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, height=height, _environ={"TERM": "xterm"})


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_lines_are_throttled_per_worker_but_show_each_change() -> None:
    console, clock = make_console(False), Clock()
    with LineProgress(console, interval_s=5.0, clock=clock) as progress:
        for step in range(100):
            clock.now_s += 0.1
            for worker in (0, 1):
                progress.update(Progress(worker, "conv1", step, 100, epoch=1))
        assert len(lines_of(console)) == 4
        progress.update(Progress(0, "conv1", 0, 100, epoch=2, loss=0.0123456))
        progress.update(Progress(0, "conv2", 0, 100, epoch=2))
        progress.update(Progress(0, "conv2", 1, 100, epoch=2))
    assert len(lines_of(console)) == 6
    assert lines_of(console)[4] == "[ 10.0 s] worker 0: conv1, epoch 2, step 0/100 (0%), loss 0.01235"


def test_an_activity_that_begins_has_no_steps_yet() -> None:
    console = make_console(False)
    LineProgress(console, clock=Clock()).update(Progress(1, "member 2 of 3, step 1 fine_tune", 0, 0))
    assert lines_of(console) == ["[  0.0 s] worker 1: member 2 of 3, step 1 fine_tune"]


def test_first_event_is_shown_even_when_the_clock_begins_at_zero() -> None:
    console, clock = make_console(False), Clock()
    clock.now_s = 0.0
    LineProgress(console, clock=clock).update(Progress(0, "", 0, 0))
    assert len(lines_of(console)) == 1


def test_phase_is_one_line_with_seconds_however_long_and_whatever_it_holds() -> None:
    console, clock = make_console(False), Clock()
    progress = LineProgress(console, clock=clock)
    clock.now_s += 3.21
    progress.phase("teacher: [bold]x[/bold] :smile: " + "y" * 200)
    assert lines_of(console) == ["[  3.2 s] teacher: [bold]x[/bold] :smile: " + "y" * 200]


ODD = [
    Progress(0, "", 0, 0),
    Progress(0, "a [red]\nlabel", 5, 0, loss=float("nan")),
    Progress(0, "over", 12, 10, epoch=-1),
    Progress(0, "over", 3, 20, epoch=10**6),
    Progress(-1, "x" * 500, -3, -1, loss=float("inf")),
]


@pytest.mark.parametrize("terminal", [True, False])
def test_odd_events_and_many_workers(terminal: bool) -> None:
    console = make_console(terminal)
    with open_progress(console) as progress:
        for event in ODD:
            progress.update(event)
        for worker in range(64):
            progress.update(Progress(worker, "conv", worker, 64, 1, 0.5))
        progress.phase("next")
        progress.update(Progress(3, "again", 1, 2))
    assert any("next" in line for line in lines_of(console))


def test_lines_hold_no_escape_sequences_and_one_event_each() -> None:
    console = make_console(False)
    with open_progress(console) as progress:
        for event in ODD:
            progress.update(event)
    assert len(lines_of(console)) == len(ODD)
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_bars_show_worker_label_epoch_steps_and_loss() -> None:
    console = make_console(True)
    with LiveProgress(console) as progress:
        progress.update(Progress(7, "block1_conv1", 12, 48, 2, 0.0123))
        progress._bars.refresh()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("worker 7", "block1_conv1", "epoch 2", "12/48", "loss 0.0123"):
        assert part in shown


def test_bars_give_way_to_an_exception() -> None:
    with pytest.raises(RuntimeError), LiveProgress(make_console(True)):
        raise RuntimeError


def test_the_console_decides() -> None:
    assert isinstance(open_progress(make_console(True)), LiveProgress)
    assert isinstance(open_progress(make_console(False)), LineProgress)
    assert isinstance(open_progress(Console(force_terminal=True, _environ={"TERM": "dumb"})), LineProgress)


@pytest.fixture(params=["pipe", "terminal", "disk"])
def dead_stream(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """A stream that cannot be written: `... | head -1` after the first line, a closed terminal, a full disk."""
    if request.param == "disk":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe() if request.param == "pipe" else os.openpty()
        os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        yield stream


@pytest.mark.parametrize("terminal", [True, False])
def test_the_work_goes_on_where_nothing_can_be_written(dead_stream: TextIO, terminal: bool) -> None:
    console = LastingConsole(file=dead_stream, force_terminal=terminal, _environ={"TERM": "xterm"})
    with open_progress(console) as progress:
        progress.phase("first")
        progress.update(Progress(0, "conv", 1, 2))
        progress.phase("second")
    print("of something else", file=dead_stream, flush=True)


@pytest.mark.parametrize("first", ["progress", "summary"])
def test_a_run_without_output_ends_with_its_own_exit_code(
    dead_stream: TextIO, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    def pretend(*_: object, **__: object) -> RunReport:
        if first == "progress":
            open_progress().phase("teacher: training")
        return full_report()

    monkeypatch.setattr(sys, "stdout", dead_stream)
    monkeypatch.setattr(sweep, "run", pretend)
    monkeypatch.setattr(front, "render", lambda students: "the table of the front")
    assert run._run(RunConfig.of(sweep="latency:0.8,0.5")) == FINISHED_WITH_FAILED_BLOCKS


def test_the_default_display_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay() as progress:
        progress.phase("x")
        progress.update(Progress(0, "a", 1, 2))
    assert capsys.readouterr().out == ""
