"""How each block of a group does on the validation split, alone in the teacher's place: one pass for all."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.data import Dataset
from pbd.learning.losses import squared_error
from pbd.learning.metrics import MetricAccumulator, Metrics, pad_batches
from pbd.networks import folding, graph, variants
from pbd.system import devices

IN_A_CACHE, ON_AN_ACCELERATOR = 8 * 2**20, 256 * 2**20


def most_bytes() -> int:
    """Return the bytes of the largest tensor while blocks are scored; batches that would need more are cut in parts.

    A CPU computes fastest what fits into its caches, an accelerator much at once.
    """
    return ON_AN_ACCELERATOR if devices.has_accelerator() else IN_A_CACHE


def images_at_once(bytes_per_image: int, most: int) -> int:
    """Return how many images are scored at once: a power of two, which cuts the usual batches without a rest."""
    return 2 ** max(0, math.floor(math.log2(most / bytes_per_image)))


def in_parts(batches: Iterable[tuple[Any, Any]], most: int) -> Iterator[tuple[Any, Any]]:
    """Yield the batches in parts of at most so many images."""
    for images, labels in batches:
        for start in range(0, len(images), most):
            yield images[start : start + most], labels[start : start + most]


class GroupScorer(keras.Model):
    """For each image and block: the scores with only it swapped in, its error, its target's moments."""

    def __init__(self, teacher: keras.Model, built: dict[str, keras.Model]) -> None:
        super().__init__(name="group_scorer")
        self.folded, self.whole = folding.fold_around(teacher, built)  # most of the work is what comes behind a block
        self.prefix = graph.truncate(teacher, built)
        self.parts = list(built.values())
        self.layer_names = list(built)

    def call(self, images: Any) -> dict[str, Any]:
        ops = keras.ops
        scores = variants.run(self.folded, self.whole, images)
        activations = self.prefix(images, training=False)
        inputs, targets = zip(*(activations[name] for name in self.layer_names), strict=True)
        outputs = [part(x, training=False) for part, x in zip(self.parts, inputs, strict=True)]
        return {
            "scores": ops.stack(scores, axis=1),
            "error": ops.stack([squared_error(y, t) for y, t in zip(outputs, targets, strict=True)], axis=1),
            "mean": ops.stack([ops.mean(target, axis=(1, 2, 3)) for target in targets], axis=1),
            "square": ops.stack([ops.mean(ops.square(target), axis=(1, 2, 3)) for target in targets], axis=1),
        }


@dataclass(frozen=True)
class Score:
    """How one block does on the validation split."""

    nmse: float
    metrics: Metrics


def score(
    teacher: keras.Model, built: dict[str, keras.Model], dataset: Dataset, collective: Collective = SINGLE
) -> dict[str, Score]:
    """Score every block on the validation split in one pass: the teacher's prefix is computed once for all.

    Args:
        teacher: the network whose layers the blocks replace.
        built: the blocks by layer.
        dataset: this worker's part of it.
        collective: those who have the other parts.

    Returns:
        For each layer: its block's squared error over the variance of the layer's output, and the metrics of the
        teacher with only this block swapped in.
    """
    scorer = GroupScorer(teacher, built)
    scorer.compile(jit_compile=devices.compiles_with_xla())
    accumulator = MetricAccumulator(len(built), dataset.labelled)
    sums = {key: np.zeros(len(built)) for key in ("error", "mean", "square")}
    images_seen = np.zeros(1)
    at_once = images_at_once(variants.bytes_per_image(teacher, list(built)), most_bytes())
    for images, labels, count in pad_batches(in_parts(dataset.batches("validation"), at_once)):
        found = {key: np.asarray(each, np.float64)[:count] for key, each in scorer.predict_on_batch(images).items()}
        scores = found["scores"]
        accumulator.add(scores[:, 0], [scores[:, i + 1] for i in range(len(built))], np.asarray(labels))
        for key in sums:
            sums[key] += found[key].sum(axis=0)
        images_seen += count
    accumulator.all_reduce_sum(collective)
    *added, everywhere = all_reduce_sums(collective, [*sums.values(), images_seen])
    error, mean, square = (total / everywhere for total in added)
    nmse = error / np.maximum(square - mean**2, np.finfo(np.float64).tiny)
    return {
        name: Score(float(nmse[i]), metrics)
        for i, (name, metrics) in enumerate(zip(built, accumulator.result(), strict=True))
    }
