"""Score the blocks of a group on the validation split, each alone in the teacher, in one pass for all."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from pbd.blockwise.distiller import group_label
from pbd.collective import SINGLE, Collective, all_reduce_sums
from pbd.data import Dataset
from pbd.learning.losses import squared_error
from pbd.learning.metrics import MetricAccumulator, Metrics, pad_batches
from pbd.networks import folding, graph, heads, variants
from pbd.records import BlockKey, Progress, ProgressCallback, no_progress
from pbd.system import devices

MOST_IMAGES = 5000
"""Validation images on which blocks are scored, at most: enough to compare blocks."""
IN_A_CACHE, ON_AN_ACCELERATOR = 8 * 2**20, 256 * 2**20
"""Size limit in bytes of the largest tensor while blocks are scored: fits into a CPU's caches; occupies a GPU."""
TENSOR_COPIES = 3
"""Tensors of the largest size held at once: a layer's input and output, and the next layer's output."""
TEACHER_COPIES = 2
"""Copies of the teacher's weights held at once, besides the teacher: while it is folded, and in the folded network."""


def most_bytes() -> int:
    """Return the size limit in bytes of the largest tensor on this device; larger batches are split."""
    return ON_AN_ACCELERATOR if devices.has_accelerator() else IN_A_CACHE


def images_at_once(bytes_per_image: int, most: int) -> int:
    """Return how many images to score at once: a power of two, so that usual batch sizes are split without remainder.

    Args:
        bytes_per_image: size of the largest tensor, per image.
        most: size limit of the largest tensor.
    """
    return 2 ** max(0, math.floor(math.log2(most / bytes_per_image)))


def peak_bytes(bytes_per_image: int, batch_size: int, most: int) -> int:
    """Return the predicted peak memory of scoring in bytes, without weights.

    Args:
        bytes_per_image: size of the largest tensor, per image.
        batch_size: images in a batch.
        most: size limit of the largest tensor.
    """
    return TENSOR_COPIES * bytes_per_image * min(batch_size, images_at_once(bytes_per_image, most))


def split_batches(batches: Iterable[tuple[Any, Any]], most: int) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of images and labels in parts of at most `most` images."""
    for images, labels in batches:
        for start in range(0, len(images), most):
            yield images[start : start + most], labels[start : start + most]


class GroupScorer(keras.Model):
    """Computes the class scores of the teacher and of its single-block variants, and the blocks' errors.

    Args:
        teacher: flat and functional.
        built: blocks by layer and design.
    """

    def __init__(self, teacher: keras.Model, built: dict[BlockKey, keras.Model]) -> None:
        super().__init__(name="group_scorer", dtype="float32")
        # Folding saves time: scoring runs a layer once for each block before it.
        folded, self.folded_blocks = folding.fold_around(teacher, built)
        self.folded = heads.remove(folded) if heads.head_of(folded) is heads.Head.SIGMOID else folded
        self.layer_names = [key.layer for key in built]
        self.prefix = graph.truncate(teacher, self.layer_names)  # unfolded: the blocks were trained on these targets
        self.blocks = list(built.values())

    def call(self, images: Any) -> dict[str, Any]:
        """Return arrays by name, for n blocks.

        Returns:
            `scores`: logits or probabilities of the teacher and, after it, of each variant, `(batch, 1 + n, classes)`;
            `error`: mean squared error of each block, `(batch, n)`;
            `mean`, `square`: means of each layer's output and of its square, `(batch, n)`.
        """
        ops = keras.ops
        scores = variants.run(self.folded, self.folded_blocks, images)
        activations = self.prefix(images, training=False)
        inputs, targets = zip(*(activations[name] for name in self.layer_names), strict=True)
        outputs = [block(x, training=False) for block, x in zip(self.blocks, inputs, strict=True)]
        return {
            "scores": ops.stack(scores, axis=1),
            "error": ops.stack([squared_error(y, t) for y, t in zip(outputs, targets, strict=True)], axis=1),
            "mean": ops.stack([ops.mean(target, axis=(1, 2, 3)) for target in targets], axis=1),
            "square": ops.stack([ops.mean(ops.square(target), axis=(1, 2, 3)) for target in targets], axis=1),
        }


@dataclass(frozen=True)
class Score:
    """The score of one block on validation images."""

    nmse: float
    """Mean squared error, divided by the variance of the layer's output."""
    metrics: Metrics
    """The metrics of the teacher with only this block in place of its layer."""


def score(
    teacher: keras.Model,
    built: dict[BlockKey, keras.Model],
    dataset: Dataset,
    collective: Collective = SINGLE,
    emit: ProgressCallback = no_progress,
) -> dict[BlockKey, Score]:
    """Score every block on validation images (see `MOST_IMAGES`); the teacher runs once for all blocks.

    Args:
        teacher: the network whose layers the blocks replace.
        built: the blocks by layer and design.
        dataset: this worker's part of the data.
        collective: the workers that have the other parts.
        emit: called at the start and after every batch, with the number of images scored.

    Returns:
        The score of each block.
    """
    scorer = GroupScorer(teacher, built)
    scorer.compile(jit_compile=devices.compiles_with_xla())
    scorer.build((None, *dataset.image_shape))  # else JAX runs it operation by operation first
    accumulator = MetricAccumulator(len(built), dataset.labelled)
    sums = {key: np.zeros(len(built)) for key in ("error", "mean", "square")}
    image_count, label = np.zeros(1), f"scoring {group_label(dict.fromkeys(key.layer for key in built))}"
    total = -(-min(len(dataset.validation), MOST_IMAGES) // dataset.worker.count)
    at_once = images_at_once(variants.bytes_per_image(teacher, built), most_bytes())
    emit(Progress(0, label, 0, total))  # tracing comes first
    batches = split_batches(dataset.batches("validation", MOST_IMAGES), at_once)
    for images, labels, count in pad_batches(batches):
        outputs = {key: np.asarray(each, np.float64)[:count] for key, each in scorer.predict_on_batch(images).items()}
        scores = outputs["scores"]
        accumulator.add(scores[:, 0], [scores[:, i + 1] for i in range(len(built))], np.asarray(labels))
        for key in sums:
            sums[key] += outputs[key].sum(axis=0)
        image_count += count
        emit(Progress(0, label, min(int(image_count[0]), total), total))
    accumulator.all_reduce_sum(collective)
    *sums_of_all, count_of_all = all_reduce_sums(collective, [*sums.values(), image_count])
    error, mean, square = (total / count_of_all for total in sums_of_all)
    nmse = error / np.maximum(square - mean**2, np.finfo(np.float64).tiny)  # variance = E[x^2] - E[x]^2
    results = zip(built, nmse, accumulator.result(), strict=True)
    return {key: Score(float(error), metrics) for key, error, metrics in results}
