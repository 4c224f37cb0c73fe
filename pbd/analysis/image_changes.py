"""Changes for single images: churn, and the exemplars of a population of networks."""

from collections.abc import Sequence

import numpy as np

from pbd.data import IndexedSplit, Split
from pbd.data.images import FileImages
from pbd.records.analysis_report import ExemplarImage, PopulationAnalysis


def churn(teacher: np.ndarray, student: np.ndarray) -> float:
    """Return the share of images for which two networks predict different classes; (images,) each."""
    return float(np.mean(teacher != student))


def most_frequent(predictions: Sequence[np.ndarray]) -> np.ndarray:
    """Return the most frequent class of each image, the smallest of several, (images,).

    Args:
        predictions: the classes that each network predicts, (images,) each.
    """
    stacked = np.stack(predictions)
    counts = [(stacked == label).sum(0) for label in range(int(stacked.max()) + 1)]
    return np.argmax(counts, axis=0)


def population(
    teachers: Sequence[np.ndarray], students: Sequence[np.ndarray], labels: np.ndarray | None, split: Split
) -> PopulationAnalysis:
    """Return the images to which compression changes the most frequent answer (Hooker et al. 2019, arXiv:1911.05248).

    Args:
        teachers: the classes that each original network predicts, (images,) each.
        students: the classes that each compressed network predicts, (images,) each.
        labels: (images,), if there are any.
        split: the images, in the order of the predictions.
    """
    before, after = most_frequent(teachers), most_frequent(students)
    rows = split.rows if isinstance(split, IndexedSplit) else np.arange(len(before))
    paths = split.images.paths if isinstance(split, IndexedSplit) and isinstance(split.images, FileImages) else None
    exemplars = tuple(
        ExemplarImage(
            image=int(rows[i]),
            label=None if labels is None else int(labels[i]),
            teachers=int(before[i]),
            students=int(after[i]),
            file=None if paths is None else paths[rows[i]],
        )
        for i in np.flatnonzero(before != after)
    )
    return PopulationAnalysis(len(teachers), len(students), exemplars)
