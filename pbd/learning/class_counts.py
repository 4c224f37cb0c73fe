"""Counts of the answers of two networks, class by class, accumulated batch by batch."""

from dataclasses import dataclass, field

import numpy as np

from pbd.collective import Collective, all_reduce_sums

MOST_CLASSES = 4000
"""The counts of more classes are not taken: each matrix would need more than 128 megabytes in every worker."""


@dataclass(eq=False)
class ClassCounts:
    """What a teacher and its student answer to the same images.

    Args:
        classes: number of classes.
    """

    classes: int
    teacher: np.ndarray = field(init=False)
    """Confusion matrix, (classes, classes) float64: images of each class (row) that are classified as each (column)."""
    student: np.ndarray = field(init=False)
    flips: np.ndarray = field(init=False)
    """Images that only the teacher classifies correctly, and images that only the student does."""

    def __post_init__(self) -> None:
        self.teacher, self.student = np.zeros((2, self.classes, self.classes))
        self.flips = np.zeros(2)

    def add(self, labels: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> None:
        """Add a batch of labels and predicted classes, (images,) each."""
        np.add.at(self.teacher, (labels, teacher), 1)
        np.add.at(self.student, (labels, student), 1)
        before, after = teacher == labels, student == labels
        self.flips += np.sum(before & ~after), np.sum(after & ~before)

    def all_reduce_sum(self, collective: Collective) -> None:
        """Add the batches of all other workers of the collective."""
        self.teacher, self.student, self.flips = all_reduce_sums(collective, [self.teacher, self.student, self.flips])
