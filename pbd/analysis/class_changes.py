"""Changes per class: error rates, their spread (CEV, SDE), and confusions.

For each class and each of its false positive and false negative rates, delta = 100 (student - teacher) / teacher. CEV
is the mean over classes of the squared distance of (delta FPR, delta FNR) from its mean over classes, and SDE the mean
of |delta FNR - delta FPR| / sqrt(2). A class with a rate of 0 in the teacher has no delta and is left out of both.
"""

from collections.abc import Sequence

import numpy as np

from pbd.learning.class_counts import ClassCounts
from pbd.records.analysis_report import ClassChanges, ClassRates, ConfusionChange

MOST_CONFUSIONS = 10


def changes(counts: ClassCounts, calibration_errors: tuple[float | None, float | None] = (None, None)) -> ClassChanges:
    """Return what changed per class and in flips.

    Args:
        counts: the answers of teacher and student to the same images, of which there is at least one.
        calibration_errors: expected calibration errors of teacher and student, if they were measured.
    """
    classes = rates(counts.teacher, counts.student)
    images = counts.teacher.sum()
    negative, positive = (counts.flips / images).tolist()
    old_ece, new_ece = calibration_errors
    return ClassChanges(
        teacher_accuracy=float(np.trace(counts.teacher) / images),
        student_accuracy=float(np.trace(counts.student) / images),
        classes=classes,
        cev=cev(classes),
        sde=sde(classes),
        left_out=left_out(classes),
        negative_flips=negative,
        positive_flips=positive,
        teacher_ece=old_ece,
        student_ece=new_ece,
        confusions=confusion_changes(counts.teacher, counts.student),
    )


def rates(teacher: np.ndarray, student: np.ndarray) -> tuple[ClassRates, ...]:
    """Return the error rates of each class.

    Args:
        teacher: confusion matrix of the teacher (see `ClassCounts`).
        student: confusion matrix of the student, for the same images.
    """
    images = teacher.sum(axis=1)
    right = np.stack([np.diagonal(teacher), np.diagonal(student)])
    wrong = np.stack([teacher.sum(axis=0), student.sum(axis=0)]) - right  # images of other classes
    return tuple(
        _class_rates(label, int(images[label]), int(images.sum()), right[:, label], wrong[:, label])
        for label in range(len(teacher))
    )


def _class_rates(label: int, images: int, total: int, right: np.ndarray, wrong: np.ndarray) -> ClassRates:
    """Return the rates of one class.

    Args:
        label: the class.
        images: the number of its images.
        total: the number of all images.
        right: of its images, those that teacher and student take for images of it.
        wrong: of all other images, those that teacher and student take for images of it.
    """
    old_fpr, new_fpr = (_share(int(number), total - images) for number in wrong)
    old_fnr, new_fnr = (_share(images - int(number), images) for number in right)
    return ClassRates(
        label=label,
        images=images,
        teacher_accuracy=_share(int(right[0]), images),
        student_accuracy=_share(int(right[1]), images),
        teacher_fpr=old_fpr,
        student_fpr=new_fpr,
        teacher_fnr=old_fnr,
        student_fnr=new_fnr,
        delta_fpr=delta(old_fpr, new_fpr),
        delta_fnr=delta(old_fnr, new_fnr),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def delta(old: float | None, new: float | None) -> float | None:
    """Return the relative change of a rate in percent; `None` if the old rate is 0 or one is undefined."""
    return None if not old or new is None else 100.0 * (new - old) / old


def cev(classes: Sequence[ClassRates]) -> float | None:
    """Return the combined error variance over the classes with both deltas; `None` if there is none."""
    points = _deltas(classes)
    return float(np.mean(np.sum((points - points.mean(0)) ** 2, axis=1))) if len(points) else None


def sde(classes: Sequence[ClassRates]) -> float | None:
    """Return the symmetric distance error over the classes with both deltas; `None` if there is none."""
    points = _deltas(classes)
    return float(np.mean(np.abs(points[:, 1] - points[:, 0])) / np.sqrt(2)) if len(points) else None


def left_out(classes: Sequence[ClassRates]) -> tuple[int, ...]:
    """Return the classes that lack a delta."""
    return tuple(row.label for row in classes if row.delta_fpr is None or row.delta_fnr is None)


def _deltas(classes: Sequence[ClassRates]) -> np.ndarray:
    """Return (delta FPR, delta FNR) of the classes that have both, (classes, 2)."""
    pairs = [
        (row.delta_fpr, row.delta_fnr) for row in classes if row.delta_fpr is not None and row.delta_fnr is not None
    ]
    return np.array(pairs, np.float64).reshape(-1, 2)


def confusion_changes(
    teacher: np.ndarray, student: np.ndarray, most: int = MOST_CONFUSIONS
) -> tuple[ConfusionChange, ...]:
    """Return the pairs of classes whose confusion changes most, largest changes first.

    Args:
        teacher: confusion matrix of the teacher.
        student: confusion matrix of the student.
        most: pairs that are returned at most.
    """
    change = np.abs(student - teacher)
    np.fill_diagonal(change, 0)
    rows, columns = np.nonzero(change)
    largest = np.argsort(-change[rows, columns], kind="stable")[:most]
    pairs = zip(rows[largest].tolist(), columns[largest].tolist(), strict=True)
    return tuple(ConfusionChange(i, j, int(teacher[i, j]), int(student[i, j])) for i, j in pairs)
