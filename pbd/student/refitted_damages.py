"""The divergences of candidates after refitting, on which the choice under a budget rests.

The divergence of the teacher with one block is measured before anything is refitted. How much of it refitting makes up
for differs: nearly all if a residual block near the images is dropped, nothing for a block near the outputs. Where
residual blocks are replaced as a whole, the candidates for them are therefore measured once more, each with the
convolutions behind it refitted. For blocks of convolutions the ratio of both divergences depends on little but the
place: it is taken to be that of the residual block around them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import keras
import numpy as np

from pbd.collective import SINGLE, Collective
from pbd.data import Dataset
from pbd.records import RESIDUAL, BlockKey, BlockResult, BlockTask, Progress, ProgressCallback, no_progress
from pbd.run_dir.archive import sealed, unsealed
from pbd.run_dir.journal import Journal
from pbd.student.assemble import swap_blocks
from pbd.student.refit import refit
from pbd.student.validation import Validator
from pbd.system import watchdog

IMAGES = 256
"""Training images to which the convolutions behind one block are refitted."""
VALIDATION_IMAGES = 2000
"""Validation images on which the divergence after refitting is measured, at most."""
_FILE = "refitted.json"
"""The file in the run directory."""


def to_measure(tasks: Sequence[BlockTask], results: Mapping[BlockKey, BlockResult]) -> list[BlockTask]:
    """Return the tasks of the blocks to measure: those of residual blocks."""
    residual = (task for task in tasks if task.layer.kind == RESIDUAL and task.key in results)
    return [task for task in residual if results[task.key].val_kl is not None]


def corrected(
    tasks: Sequence[BlockTask], results: Mapping[BlockKey, BlockResult], measured: Mapping[BlockKey, float]
) -> dict[BlockKey, BlockResult]:
    """Return the results with divergences after refitting.

    Args:
        tasks: the tasks of the run.
        results: the results of the tasks.
        measured: divergences after refitting; the others are multiplied by the largest ratio of a measured block of
            the residual block around them, which is that of a merged block rather than of a dropped one. A block that
            diverges has no ratio.
    """
    measured = {key: after for key, after in measured.items() if key in results}  # others were lost since
    ratios: dict[str, float] = {}
    for key, after in measured.items():
        before = results[key].val_kl or 0.0
        if not (math.isfinite(before) and math.isfinite(after)):
            continue
        ratio = after / max(before, float(np.finfo(np.float32).tiny))
        ratios[key.layer] = max(ratios.get(key.layer, 0.0), min(ratio, 1.0))
    around = {task.layer.name: task.layer.inside for task in tasks}

    def divergence(result: BlockResult) -> float | None:
        if result.val_kl is None or result.key in measured:
            return measured.get(result.key)
        return result.val_kl * min((ratios[name] for name in around[result.layer] if name in ratios), default=1.0)

    return {key: replace(result, val_kl=divergence(result)) for key, result in results.items()}


def write(journal: Journal, measured: Mapping[BlockKey, float]) -> None:
    """Keep measured divergences in the run directory."""
    rows = [[key.layer, key.design, value if math.isfinite(value) else None] for key, value in measured.items()]
    journal.write_json(_FILE, sealed(rows))


def read(journal: Journal) -> dict[BlockKey, float]:
    """Return the divergences that the run directory holds; empty if its file is missing or damaged."""
    try:
        rows = unsealed(journal.file(_FILE).read_bytes())
        return {BlockKey(layer, design): math.inf if value is None else float(value) for layer, design, value in rows}
    except (OSError, ValueError, TypeError):
        return {}


def divergences(
    teacher: keras.Model,
    tasks: Sequence[BlockTask],
    results: Sequence[BlockResult],
    dataset: Dataset,
    collective: Collective = SINGLE,
    emit: ProgressCallback = no_progress,
) -> list[float]:
    """Return the divergence of the teacher with each block alone, the convolutions behind it refitted.

    Args:
        teacher: flat and functional.
        tasks: the tasks of the run.
        results: results with the weights of the blocks.
        dataset: this worker's part of the data.
        collective: the workers that have the other parts.
        emit: called with the number of blocks measured.
    """
    batches = [images for images, _ in dataset.batches("train", limit=IMAGES)]
    validator, after = Validator(teacher, dataset, collective, VALIDATION_IMAGES), list[float]()
    for number, result in enumerate(results):
        watchdog.touch()
        emit(Progress(0, f"{result.design} in place of {result.layer}", number, len(results)))
        student, ends = swap_blocks(teacher, tasks, {result.layer: result})
        refit(student, teacher, ends, batches, collective, rectified=False)
        after.append(validator.metrics(student).kl)
    return after
