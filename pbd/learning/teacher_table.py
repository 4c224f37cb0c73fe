"""The teacher's logits of all training images, computed once where every epoch has the same images."""

from dataclasses import replace

import numpy as np

from pbd.collective import Collective, all_reduce_sums
from pbd.data import Dataset, IndexedSplit
from pbd.data.augmentation import OPERATIONS
from pbd.learning.distillation import DistillationModel
from pbd.learning.metrics import pad_batches
from pbd.system import watchdog

MOST_VALUES = 2**24
"""The largest table, 64 MB; every worker holds it whole."""


def use(model: DistillationModel, dataset: Dataset, collective: Collective, epochs: int) -> Dataset:
    """Give the model a table of its teacher's logits if that saves passes of the teacher; return what it learns from.

    A teacher that sees the same pixels in every epoch would compute the same logits again.

    Args:
        model: Of networks that map images to logits.
        dataset: This worker's part of the data.
        collective: The workers that have the other parts; each computes a part of the table.
        epochs: For which the model is trained, those before an interruption included: it learns from the same numbers.

    Returns:
        The data, whose labels are positions in the table if there is one.
    """
    split, classes = dataset.train, model.student.outputs[0].shape[-1]
    if epochs < 2 or not model.can_use_table or OPERATIONS[dataset.augment] or dataset.mixing:
        return dataset
    if not isinstance(split, IndexedSplit) or len(split) * classes > MOST_VALUES:
        return dataset
    numbered = replace(dataset, train=replace(split, labels=np.arange(len(split), dtype=np.int32)))
    logits = np.zeros((len(split), classes), np.float32)
    for images, positions, count in pad_batches(numbered.batches("train")):
        watchdog.touch()
        logits[np.asarray(positions)] = np.asarray(model.teacher.predict_on_batch(images), np.float32)[:count]
    (logits,) = all_reduce_sums(collective, [logits])
    model.use_table(split.labels, logits)
    return numbered
