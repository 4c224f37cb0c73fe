"""Of several candidates for a layer, the accepted one that computes least; a residual block, or blocks inside it."""

from dataclasses import replace

import pytest

from pbd.records import RESIDUAL, BlockKey, BlockResult, BlockTask
from pbd.report.rows import block_rows
from pbd.student.selection import accept
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast


def candidate(layer: str, design: str, macs: int) -> BlockTask:
    return make_task(0, layer_name=layer, design=design, block_macs=macs)


def results(accuracies: dict[BlockKey, float]) -> dict[BlockKey, BlockResult]:
    return {key: BlockResult(key.layer, "trained", key.design, val_accuracy=one) for key, one in accuracies.items()}


CHEAP, DEAR = candidate("a", "cheap", 100), candidate("a", "dear", 300)


@pytest.mark.parametrize(
    ("cheap", "dear", "design"),
    [(0.9, 0.95, "cheap"), (0.7, 0.95, "dear"), (0.9, 0.7, "cheap"), (0.7, 0.7, None)],
)
@pytest.mark.parametrize("tasks", [(CHEAP, DEAR), (DEAR, CHEAP)])
def test_the_candidate_that_computes_least_is_accepted(
    tasks: tuple[BlockTask, ...], cheap: float, dear: float, design: str | None
) -> None:
    accepted = accept(tasks, results({CHEAP.key: cheap, DEAR.key: dear}), 0.8)
    assert {layer: result.design for layer, result in accepted.items()} == ({"a": design} if design else {})


def test_of_candidates_that_compute_the_same_the_most_accurate_is_accepted() -> None:
    tasks = [candidate("a", name, 100) for name in ("good", "better", "fair")]
    scores = dict(zip((task.key for task in tasks), (0.9, 0.92, 0.85), strict=True))
    assert accept(tasks, results(scores), 0.8)["a"].design == "better"


def test_a_task_without_a_result_is_no_candidate() -> None:
    assert accept([CHEAP, DEAR], results({DEAR.key: 0.9}), 0.8)["a"].design == "dear"


def nested(merged_macs: int, inner_macs: int) -> list[BlockTask]:
    """Return the tasks of a residual block of 1800 multiply-accumulates, of its two layers, and of a layer after it."""
    inner = [candidate(name, "two_layer", inner_macs) for name in "ab"]
    inside = [replace(task, layer=replace(task.layer, inside=("sum",))) for task in inner]
    merged = candidate("sum", "merge", merged_macs)
    whole = replace(merged, layer=replace(merged.layer, kind=RESIDUAL, macs=1800))
    return [*inside, whole, candidate("after", "two_layer", 200)]


@pytest.mark.parametrize(
    ("merged_macs", "inner_macs", "expected"),
    [
        (500, 300, {"sum", "after"}),
        (500, 200, {"a", "b", "after"}),
        (0, 200, {"sum", "after"}),
    ],
)
def test_a_residual_block_or_the_blocks_inside_it(merged_macs: int, inner_macs: int, expected: set[str]) -> None:
    tasks = nested(merged_macs, inner_macs)
    assert accept(tasks, results({task.key: 0.9 for task in tasks}), 0.8).keys() == expected


def test_a_rejected_residual_block_excludes_nothing() -> None:
    tasks = nested(0, 300)
    scores = {task.key: 0.7 if task.layer.kind == RESIDUAL else 0.9 for task in tasks}
    assert accept(tasks, results(scores), 0.8).keys() == {"a", "b", "after"}


def test_the_report_has_a_row_per_layer_with_all_candidates() -> None:
    tasks = [CHEAP, DEAR, candidate("b", "cheap", 100), candidate("b", "dear", 300)]
    found = results({CHEAP.key: 0.9, DEAR.key: 0.95, tasks[2].key: 0.5})
    found[tasks[3].key] = BlockResult("b", "failed", "dear", error="out of memory")
    rows = block_rows(tasks, found, accept(tasks, found, 0.8), 0.8, restored={})
    assert [(row.layer, row.status, row.block, row.macs_after) for row in rows] == [
        ("a", "accepted", "cheap", 100),
        ("b", "rejected", "cheap", 900),
    ]
    assert [[(each.block, each.status, each.reason) for each in row.candidates] for row in rows] == [
        [
            ("cheap", "accepted", "accuracy 0.9000 >= 0.8000"),
            ("dear", "rejected", "accuracy 0.9500 >= 0.8000, but cheap computes less"),
        ],
        [("cheap", "rejected", "accuracy 0.5000 < 0.8000"), ("dear", "failed", "out of memory")],
    ]
    assert [each.macs for each in rows[0].candidates] == [100, 300]


def test_the_report_names_the_residual_block_that_replaces_a_layer() -> None:
    tasks = nested(0, 300)
    found = results({task.key: 0.9 for task in tasks})
    rows = {row.layer: row for row in block_rows(tasks, found, accept(tasks, found, 0.8), 0.8, restored={})}
    assert rows["a"].status == "rejected"
    assert rows["a"].reason == "inside sum, which is replaced by merge"
    assert (rows["sum"].status, rows["after"].status) == ("accepted", "accepted")


def test_the_report_says_why_a_residual_block_that_is_accurate_enough_is_rejected() -> None:
    tasks = nested(900, 100)
    scored = results({task.key: 0.9 for task in tasks})
    rows = {row.layer: row for row in block_rows(tasks, scored, accept(tasks, scored, 0.8), 0.8, restored={})}
    assert (rows["sum"].status, rows["a"].status) == ("rejected", "accepted")
    assert rows["sum"].reason == "accuracy 0.9000 >= 0.8000, but the blocks of the layers inside compute less"


def test_the_report_does_not_say_that_a_restored_residual_block_replaces_a_layer() -> None:
    tasks = nested(0, 300)
    scored = results({task.key: 0.9 for task in tasks})
    restored = {"sum": "cost most"}
    rows = {row.layer: row for row in block_rows(tasks, scored, accept(tasks, scored, 0.8), 0.8, restored)}
    assert (rows["sum"].status, rows["a"].status) == ("restored", "rejected")
    assert rows["a"].reason == "inside sum, for which merge was chosen and then restored"
