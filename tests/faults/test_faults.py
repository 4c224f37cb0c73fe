"""A few faults in real runs; `make soak` injects many. Each run ends in time, loses nothing and does nothing twice."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbd.errors import FINISHED_WITH_FAILED_BLOCKS, StoppedError
from pbd.scheduling.retry import MOST_ATTEMPTS
from tests.faults import jobs, saving
from tests.faults.injection import Fault
from tests.faults.jobs import Range
from tests.helpers import bare_runs

pytestmark = pytest.mark.system
SHORT = ["--costs", "macs", "--train-limit", "128", "--layers", "a1", "b1"]
"""Two blocks, and two steps in each epoch."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    """Provide a place for runs that only compute blocks and students: no fault strikes elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(bare_runs.ENVIRONMENT, "1")
        yield Range.at(tmp_path_factory.mktemp("faults") / "range")


@pytest.mark.parametrize(
    ("way", "fault"),
    [
        ("mpi, shared", Fault("training", "hang", nth=3, role="child")),
        ("dask", Fault("scoring", "crash", role="child")),
        ("mpi", Fault("fine-tuning", "kill", nth=2, role="child")),
    ],
)
def test_a_lost_child_costs_an_attempt_and_not_the_run(way: str, fault: Fault, place: Range) -> None:
    untuned = [] if fault.point == "fine-tuning" else ["--fine-tune-epochs", "0"]
    outcome = place.run(f"{fault.kind}-{fault.point}", way, [fault], [*SHORT, *untuned])
    assert (outcome.code, len(outcome.struck)) == (0, 1), outcome.described
    assert outcome.complete, outcome.described
    assert not outcome.rerun, outcome.described
    assert not outcome.orphans, outcome.described
    assert outcome.notice_s < 4 * jobs.STALL_LIMIT_S


def test_what_always_fails_costs_only_itself_and_a_stopped_run_goes_on(place: Range) -> None:
    fault = Fault("first weights", "kill", times=99, role="child", layer="b1")
    stopping = Fault("fine-tuning", "stop the launcher", nth=2, role="child")
    stopped = place.run("b1", "serial", [fault, stopping], SHORT)
    assert stopped.code == StoppedError.exit_code, stopped.described
    assert not stopped.orphans
    done = place.run("b1", "serial", [fault, Fault("fine-tuning", "kill", nth=99, role="child")], SHORT)
    assert done.code == FINISHED_WITH_FAILED_BLOCKS, done.described
    assert jobs.blocks_lost(done) == sorted({*jobs.LAYERS} - {"a1"}), "b1 failed, and two were not to be trained"
    assert done.complete
    assert not done.rerun
    assert done.plan.reached(1) < 2 + 3, "of its three epochs at least the first was not tuned again"
    assert len([what for what in done.struck if what.startswith("kill")]) in (MOST_ATTEMPTS, 2 * MOST_ATTEMPTS)


def test_no_file_is_torn(tmp_path: Path) -> None:
    torn, written = saving.torn_by_kills(tmp_path / "torn", 5, random.Random(0))
    assert torn == 0
    assert written > 5


def test_a_full_disk_leaves_no_torn_file(tmp_path: Path) -> None:
    full = saving.on_a_full_disk(tmp_path / "full")
    if full is None:
        pytest.skip("no small disk can be made here (mount -t tmpfs)")
    assert full.kept, full.describe
