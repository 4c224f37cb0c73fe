"""Which blocks are kept and why; who was busy and who waited."""

import dataclasses
from collections.abc import Iterable

import pytest

from pbd.records import BlockKey, BlockResult
from pbd.report.rows import block_rows, worker_rows
from pbd.student.selection import accept
from tests.helpers.fakes import make_task

pytestmark = pytest.mark.fast


def trained(layer: str, accuracy: float | None, **settings: object) -> BlockResult:
    return BlockResult(layer, "trained", "two_layer", val_accuracy=accuracy, **settings)


def failed(layer: str, error: str | None = "out of memory") -> BlockResult:
    return BlockResult(layer, "failed", "two_layer", error=error)


def accepted(results: Iterable[BlockResult], lowest: float) -> dict[str, BlockResult]:
    """Return the accepted ones of the results of tasks that compute the same."""
    results = list(results)
    tasks = [make_task(at, layer_name=result.layer) for at, result in enumerate(results)]
    return accept(tasks, by_key(*results), lowest)


def test_a_block_at_the_threshold_is_accepted_and_one_just_below_is_not() -> None:
    threshold = 0.77 - 0.2
    assert threshold > 0.57, "in binary, a drop of exactly 0.2 misses it"
    results = [trained("at", 0.57), trained("below", 0.57 - 1e-6), trained("above", 0.6)]
    assert list(accepted(results, threshold)) == ["at", "above"]


def by_key(*results: BlockResult) -> dict[BlockKey, BlockResult]:
    return {result.key: result for result in results}


def test_what_failed_or_has_no_accuracy_is_never_accepted() -> None:
    no_number = trained("nan", float("nan"))
    assert accepted([failed("broken"), trained("unscored", None), no_number], 0.0) == {}
    assert accepted([], 0.0) == {}


def test_every_task_has_a_row_in_order_with_its_reason() -> None:
    tasks = [
        make_task(0, skip_reason="called 2 times"),
        make_task(1),
        make_task(2),
        make_task(3),
        make_task(4),
        make_task(5),
    ]
    results = by_key(trained("conv1", 0.75), trained("conv2", 0.5), failed("conv3"), failed("conv5", None))
    rows = block_rows(tasks, results, accepted(results.values(), 0.6), 0.6, restored={})
    assert [(row.layer, row.status, row.reason) for row in rows] == [
        ("conv0", "skipped", "called 2 times"),
        ("conv1", "accepted", "accuracy 0.7500 >= 0.6000"),
        ("conv2", "rejected", "accuracy 0.5000 < 0.6000"),
        ("conv3", "failed", "out of memory"),
        ("conv4", "failed", "no worker returned it"),
        ("conv5", "failed", "no reason given"),
    ]


def test_only_an_accepted_block_changes_size_and_cost() -> None:
    tasks = [make_task(0), make_task(1), make_task(2, skip_reason="called twice"), make_task(3)]
    results = by_key(trained("conv0", 0.9), trained("conv1", 0.1), failed("conv3"))
    rows = block_rows(tasks, results, accepted(results.values(), 0.5), 0.5, restored={})
    assert [(row.params_before, row.params_after) for row in rows] == [(2_320, 400)] + [(2_320, 2_320)] * 3
    assert [(row.macs_before, row.macs_after) for row in rows] == [(900, 200)] + [(900, 900)] * 3


def test_a_row_carries_what_was_measured() -> None:
    result = trained("conv0", 0.9, worker=3, started_s=1.5, seconds=2.5, nmse=0.25, loss_history=(2.0, 1.0))
    result = dataclasses.replace(result, nmse_history=(0.9, 0.5, 0.25), val_agreement=0.92, val_kl=0.125)
    (row,) = block_rows([make_task(0)], by_key(result), accepted([result], 0.5), 0.5, restored={})
    assert (row.worker, row.started_s, row.seconds, row.nmse, row.val_accuracy) == (3, 1.5, 2.5, 0.25, 0.9)
    assert (row.block, row.loss_history, row.nmse_history) == ("two_layer", (2.0, 1.0), (0.9, 0.5, 0.25))
    assert (row.val_agreement, row.val_kl) == (0.92, 0.125)


def test_without_labels_the_agreement_decides_and_is_named() -> None:
    results = by_key(trained("conv0", None, val_agreement=0.8), trained("conv1", None, val_agreement=0.79))
    assert list(accepted(results.values(), 0.8)) == ["conv0"]
    rows = block_rows([make_task(0), make_task(1)], results, accepted(results.values(), 0.8), 0.8, restored={})
    assert [(row.status, row.reason) for row in rows] == [
        ("accepted", "agreement 0.8000 >= 0.8000"),
        ("rejected", "agreement 0.7900 < 0.8000"),
    ]
    assert [row.val_accuracy for row in rows] == [None, None]


def test_with_labels_the_agreement_decides_nothing() -> None:
    wrong_as_the_teacher = trained("a", 0.5, val_agreement=1.0)
    right_against_it = trained("b", 0.9, val_agreement=0.1)
    assert list(accepted([wrong_as_the_teacher, right_against_it], 0.8)) == ["b"]


def test_a_layer_restored_keeps_its_size_and_says_why() -> None:
    results = by_key(trained("conv0", 0.9, nmse=0.3), trained("conv1", 0.9))
    rows = block_rows(
        [make_task(0), make_task(1)], results, accepted(results.values(), 0.5), 0.5, restored={"conv0": "hurt most"}
    )
    assert [(row.status, row.reason) for row in rows] == [
        ("restored", "hurt most"),
        ("accepted", "accuracy 0.9000 >= 0.5000"),
    ]
    assert (rows[0].params_after, rows[0].macs_after) == (rows[0].params_before, rows[0].macs_before) == (2_320, 900)
    assert (rows[0].nmse, rows[0].val_accuracy) == (0.3, 0.9), "what was measured of its block is still told"
    assert (rows[1].params_after, rows[1].macs_after) == (400, 200)


def test_a_group_counts_once_and_idle_is_the_wait_for_the_slowest() -> None:
    results = [
        trained("a", 1.0, worker=0, started_s=0.0, seconds=4.0),
        trained("b", 1.0, worker=0, started_s=0.0, seconds=4.0),
        trained("c", 1.0, worker=0, started_s=4.0, seconds=2.0),
        trained("d", 1.0, worker=1, started_s=0.5, seconds=4.0),
        trained("found", 1.0, worker=1, started_s=0.5, seconds=99.0, from_journal=True),
        BlockResult("e", "failed", "two_layer", worker=1, started_s=4.5, seconds=1.0, error="no"),
    ]
    rows = worker_rows(results, num_workers=3)
    assert [(row.worker, row.busy_s, row.idle_s) for row in rows] == [(0, 6.0, 0.0), (1, 5.0, 1.0), (2, 0.0, 6.0)]


def test_what_all_trained_together_kept_all_of_them_busy() -> None:
    results = [trained(name, 1.0, worker=0, seconds=4.0, shared=True) for name in "ab"]
    assert [(row.busy_s, row.idle_s) for row in worker_rows(results, num_workers=2)] == [(4.0, 0.0), (4.0, 0.0)]


def test_a_worker_held_at_most_what_its_fullest_group_did() -> None:
    results = [
        trained("a", 1.0, worker=0, seconds=4.0, peak_bytes=70),
        trained("b", 1.0, worker=0, seconds=4.0, started_s=4.0, peak_bytes=90),
        trained("found", 1.0, worker=1, seconds=9.0, from_journal=True, peak_bytes=999),
    ]
    assert [row.peak_bytes for row in worker_rows(results, num_workers=2)] == [90, None]
    together = [trained("a", 1.0, worker=0, seconds=4.0, shared=True, peak_bytes=70)]
    assert [row.peak_bytes for row in worker_rows(together, num_workers=2)] == [70, 70]


def test_workers_without_results_were_neither_busy_nor_idle() -> None:
    assert [(row.busy_s, row.idle_s) for row in worker_rows([], num_workers=2)] == [(0.0, 0.0), (0.0, 0.0)]
    resumed = [trained("a", 1.0, worker=None, seconds=9.0)]
    assert [(row.busy_s, row.idle_s) for row in worker_rows(resumed, num_workers=1)] == [(0.0, 0.0)]


def test_a_layer_has_one_row_with_all_its_candidates() -> None:
    names = ("small", "middle", "large", "odd")
    tasks = [make_task(0, block_macs=100 * at, design=name) for at, name in enumerate(names, 1)]
    tasks[3] = dataclasses.replace(tasks[3], skip_reason="needs 8 channels")

    def of(design: str, accuracy: float, **settings: object) -> BlockResult:
        return dataclasses.replace(trained("conv0", accuracy, **settings), design=design)

    results = by_key(
        of("small", 0.4, energy_j=2.0, nmse=0.5),
        of("middle", 0.8, energy_j=3.0, nmse=0.2, worker=1, started_s=2.0, seconds=4.0, predicted_s=3.0),
        of("large", 0.9, energy_j=4.0, nmse=0.1, from_journal=True),
    )
    (row,) = block_rows(tasks, results, accept(tasks, results, 0.5), 0.5, restored={})
    assert (row.layer, row.status, row.block, row.nmse, row.macs_after) == ("conv0", "accepted", "middle", 0.2, 200)
    assert row.energy_j == 9.0
    unmetered = by_key(*results.values(), of("large", 0.9, nmse=0.1))
    (row_without,) = block_rows(tasks, unmetered, accept(tasks, unmetered, 0.5), 0.5, restored={})
    assert row_without.energy_j is None, "the energy of some candidates is not that of the layer"
    assert [(one.block, one.status, one.macs) for one in row.candidates] == [
        ("small", "rejected", 100),
        ("middle", "accepted", 200),
        ("large", "rejected", 300),
        ("odd", "skipped", 400),
    ]
    assert [one.nmse for one in row.candidates] == [0.5, 0.2, 0.1, None]
    assert [one.earlier for one in row.candidates] == [False, False, True, False]
    middle = row.candidates[1]
    assert (middle.worker, middle.started_s, middle.seconds, middle.predicted_s) == (1, 2.0, 4.0, 3.0)
