"""The divergences after refitting, on which the choice under a budget rests."""

import math
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from pbd import blocks
from pbd.blockwise.tasks import enumerate_tasks
from pbd.learning import metrics
from pbd.records import BlockKey, BlockResult, Progress
from pbd.run_dir.journal import Journal
from pbd.student import refitted_damages
from pbd.student.assemble import swap_blocks
from pbd.student.validation import validate
from tests.student.test_refit import images, residual_network

pytestmark = [pytest.mark.unit, pytest.mark.jax]


class Images:
    labelled = False

    def batches(self, split: str, limit: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(batch, np.zeros(len(batch), int)) for batch in images(96)]


def of(*designs: str) -> tuple[keras.Model, tuple, dict[BlockKey, BlockResult]]:
    """Return a teacher, its tasks, and results with divergences of 0.4, 0.2, 0.1 and so on."""
    teacher = residual_network()
    tasks = enumerate_tasks(teacher, *map(blocks.get, designs), include_unprofitable=True)
    used = [task for task in tasks if task.skip_reason is None]
    results = {t.key: BlockResult(t.layer.name, "trained", t.design, val_kl=0.4 / 2**n) for n, t in enumerate(used)}
    return teacher, tasks, results


def test_a_residual_block_is_measured_and_lends_its_ratio_to_the_layers_inside() -> None:
    _, tasks, results = of("narrow_r50", "drop", "merge")
    measured = {task.key: 0.0 for task in refitted_damages.to_measure(tasks, results)}
    assert set(measured) == {BlockKey("add", "drop"), BlockKey("add", "merge")}
    measured = {
        BlockKey("add", "drop"): 0.001,
        BlockKey("add", "merge"): 0.5 * results[BlockKey("add", "merge")].val_kl,
    }
    new = refitted_damages.corrected(tasks, results, measured)
    for key, result in results.items():
        expected = measured.get(key, result.val_kl * (0.5 if key.layer in ("inner", "outer") else 1.0))
        assert new[key].val_kl == pytest.approx(expected), key


def test_nothing_is_measured_without_candidates_for_residual_blocks() -> None:
    _, tasks, results = of("narrow_r50")
    assert refitted_damages.to_measure(tasks, results) == []


def test_refitting_makes_up_for_most_of_a_dropped_block() -> None:
    teacher, tasks, results = of("drop")
    (result,) = results.values()
    (after,) = refitted_damages.divergences(teacher, tasks, [result], Images())
    student, _ = swap_blocks(teacher, tasks, {"add": result})
    assert after < 0.5 * validate(student, teacher, Images()).kl


def test_the_teacher_is_evaluated_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, tasks, results = of("drop", "merge")
    predict, evaluated, events = metrics.predict, list[keras.Model](), list[Progress]()
    monkeypatch.setattr(metrics, "predict", lambda model, x: evaluated.append(model) or predict(model, x))
    after = refitted_damages.divergences(teacher, tasks, list(results.values()), Images(), emit=events.append)
    assert len(after) == 2
    batches = len(Images().batches("validation"))
    assert [model is teacher for model in evaluated].count(True) == batches
    assert len(evaluated) == 3 * batches
    assert [(event.label, event.done, event.total) for event in events] == [
        ("drop in place of add", 0, 2),
        ("merge in place of add", 1, 2),
    ]


def test_divergences_are_kept_in_the_run_directory(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert refitted_damages.read(journal) == {}
    measured = {BlockKey("add", "drop"): 0.25, BlockKey("add", "merge"): float("inf")}
    refitted_damages.write(journal, measured)
    assert refitted_damages.read(journal) == measured
    whole = journal.file("refitted.json").read_bytes()
    for damaged in (whole.replace(b"0.25", b"0.75"), whole[:-20], b"[1, 2", b"[" * 200_000):
        journal.write_bytes("refitted.json", damaged)
        assert refitted_damages.read(journal) == {}


@pytest.mark.parametrize("after", [math.nan, math.inf])
def test_a_residual_block_that_diverges_says_nothing_about_the_layers_inside(after: float) -> None:
    _, tasks, results = of("narrow_r50", "merge")
    merged, inner = BlockKey("add", "merge"), BlockKey("inner", "narrow_r50")
    for before in (0.5, after):
        some = results | {merged: replace(results[merged], val_kl=before)}
        assert refitted_damages.corrected(tasks, some, {merged: after})[inner].val_kl == results[inner].val_kl


def test_a_block_that_was_measured_and_lost_says_nothing() -> None:
    _, tasks, results = of("narrow_r50", "merge")
    kept = {key: result for key, result in results.items() if key.layer != "add"}
    assert refitted_damages.corrected(tasks, kept, {BlockKey("add", "merge"): 0.1}) == kept
