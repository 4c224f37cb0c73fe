"""The timeline of a run: a bar for each group and candidate of this session, in the lane of its worker."""

import pytest

from pbd.report import timeline
from tests.helpers.report_factory import full_report, several_designs

pytestmark = pytest.mark.fast


def test_the_timeline_has_a_bar_for_each_group_of_this_session() -> None:
    made = timeline.of(full_report())
    assert [(group.worker, group.layers, group.failed) for group in made.groups] == [
        (1, ("b3",), False),
        (0, ("b1", "b2"), False),
        (1, ("b4",), True),
    ]
    assert [len(lane.bars) for lane in made.lanes] == [1, 2]
    assert made.earlier == ("b5",)
    assert made.length_s == 12.75
    (bar,) = made.lanes[0].bars
    assert (bar.start + bar.length, bar.expected) == (pytest.approx(100.0), pytest.approx(100 * 10 / 12.75))
    assert all(bar.start + bar.length <= 100.001 for lane in made.lanes for bar in lane.bars)
    together = timeline.of(full_report(scheduler="shared"))
    assert [len(lane.bars) for lane in together.lanes] == [3, 3]


def test_the_timeline_has_every_candidate_that_this_session_trained() -> None:
    made = timeline.of(several_designs())
    assert [(group.worker, group.layers, group.started_s, group.failed) for group in made.groups] == [
        (0, ("b1", "b2"), 0.0, False),
        (1, ("b1",), 0.0, False),
        (1, ("b2",), 4.0, True),
    ]
    assert made.earlier == ("b1",)
    assert [len(lane.bars) for lane in made.lanes] == [1, 2]
