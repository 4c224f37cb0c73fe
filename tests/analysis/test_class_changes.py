"""Changes per class and per image: cases that are computed by hand."""

import math

import numpy as np
import pytest

from pbd.analysis import calibration, class_changes, image_changes
from pbd.data import IndexedSplit, StreamSplit
from pbd.data.images import ArrayImages, FileImages
from pbd.learning.class_counts import ClassCounts
from pbd.records.analysis_report import ConfusionChange, ExemplarImage

pytestmark = pytest.mark.fast

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
TEACHER = np.array([0, 0, 0, 1, 1, 1, 0, 0])
STUDENT = np.array([0, 0, 1, 1, 1, 1, 1, 0])
"""FPR, FNR of class 0: 2/4, 1/4 before and 1/4, 2/4 after; of class 1 the same numbers the other way round."""


def matrices(*predictions: np.ndarray, classes: int = 2) -> list[np.ndarray]:
    return [one_matrix(each, classes) for each in predictions]


def one_matrix(predicted: np.ndarray, classes: int) -> np.ndarray:
    counts = ClassCounts(classes)
    counts.add(LABELS, predicted, predicted)
    return counts.teacher


def counted(teacher: np.ndarray, student: np.ndarray) -> ClassCounts:
    """Return the counts of two batches."""
    counts = ClassCounts(2)
    for part in (slice(0, 3), slice(3, None)):
        counts.add(LABELS[part], teacher[part], student[part])
    return counts


def test_rates_and_their_relative_changes() -> None:
    zero, one = class_changes.rates(*matrices(TEACHER, STUDENT))
    assert (zero.images, zero.teacher_accuracy, zero.student_accuracy) == (4, 0.75, 0.5)
    assert (zero.teacher_fpr, zero.student_fpr, zero.teacher_fnr, zero.student_fnr) == (0.5, 0.25, 0.25, 0.5)
    assert (zero.delta_fpr, zero.delta_fnr) == (-50.0, 100.0)
    assert (one.delta_fpr, one.delta_fnr) == (100.0, -50.0)


def test_cev_and_sde_by_hand() -> None:
    """The mean of (-50, 100) and (100, -50) is (25, 25): each is at a squared distance of 75^2 + 75^2."""
    rows = class_changes.rates(*matrices(TEACHER, STUDENT))
    assert class_changes.cev(rows) == 11250.0
    assert class_changes.sde(rows) == pytest.approx(150 / math.sqrt(2))
    assert class_changes.left_out(rows) == ()


def test_identical_networks_change_nothing() -> None:
    rows = class_changes.rates(*matrices(TEACHER, TEACHER))
    assert (class_changes.cev(rows), class_changes.sde(rows)) == (0.0, 0.0)
    assert class_changes.confusion_changes(*matrices(TEACHER, TEACHER)) == ()
    assert image_changes.churn(TEACHER, TEACHER) == class_changes.changes(counted(TEACHER, TEACHER)).negative_flips == 0


def test_a_class_with_a_rate_of_0_is_named_and_left_out() -> None:
    """Class 2 has no image and is never predicted; a teacher without errors leaves no class at all."""
    rows = class_changes.rates(*matrices(TEACHER, STUDENT, classes=3))
    assert class_changes.left_out(rows) == (2,)
    assert rows[2].teacher_fnr is None
    assert rows[2].delta_fpr is None
    assert class_changes.cev(rows) == 11250.0
    perfect = class_changes.rates(*matrices(LABELS, STUDENT))
    assert class_changes.left_out(perfect) == (0, 1)
    assert class_changes.cev(perfect) is class_changes.sde(perfect) is None


def test_the_largest_changes_of_confusion_come_first() -> None:
    everything_is_1 = np.ones_like(LABELS)
    changes = class_changes.confusion_changes(*matrices(TEACHER, everything_is_1))
    assert changes == (ConfusionChange(0, 1, 1, 4), ConfusionChange(1, 0, 2, 0))
    assert [row.change for row in changes] == [3, -2]
    assert class_changes.confusion_changes(*matrices(TEACHER, everything_is_1), most=1) == changes[:1]


def test_flips_and_churn() -> None:
    """Image 2 was right and is wrong, image 6 was wrong and is right."""
    changes = class_changes.changes(counted(TEACHER, STUDENT))
    assert (changes.negative_flips, changes.positive_flips) == (1 / 8, 1 / 8)
    assert (changes.teacher_accuracy, changes.student_accuracy) == (5 / 8, 5 / 8)
    assert (changes.cev, changes.left_out, changes.teacher_ece) == (11250.0, (), None)
    assert image_changes.churn(TEACHER, STUDENT) == 2 / 8


def test_the_expected_calibration_error_by_hand() -> None:
    """Confidences 0.6 (right), 0.6 (wrong), 0.9 (right), 1 (right): |1 - 1.2| + |1 - 0.9| + |1 - 1|, over 4 images."""
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.0, 1.0]])
    error = calibration.expected_calibration_error(probabilities, np.array([0, 1, 1, 1]))
    assert error == pytest.approx((0.2 + 0.1 + 0.0) / 4)


def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_lower_one() -> None:
    """Confidences 0.5 (right) and 0.4 (wrong) lie in (0, 1/2]: |1 - 0.9| over 2 images; in both bins 0.45."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
    error = calibration.expected_calibration_error(probabilities, np.array([0, 1]), bins=2)
    assert error == pytest.approx(0.05)


def test_exemplars_are_images_whose_most_frequent_class_changes() -> None:
    """Image 0: 1 and 1. Image 1: 0 and 2. Image 2: 0 (of a tie of 0 and 2) and 2."""
    teachers = [np.array([1, 0, 0]), np.array([1, 0, 2])]
    students = [np.array([1, 2, 2]), np.array([0, 2, 2]), np.array([1, 0, 1])]
    stream = StreamSplit(iter, 3, dict.popitem)
    result = image_changes.population(teachers, students, np.array([1, 0, 2]), stream)
    assert (result.teachers, result.students) == (2, 3)
    assert result.exemplars == (ExemplarImage(1, 0, 0, 2), ExemplarImage(2, 2, 0, 2))
    assert image_changes.population(teachers, teachers, None, stream).exemplars == ()


def test_an_exemplar_is_named_by_its_row_and_its_file() -> None:
    """Splits are in random order, so that a position in them names no image of the user's."""
    rows, labels = np.array([2, 0]), np.array([1, 1])
    arrays = IndexedSplit(ArrayImages(np.zeros((3, 1, 1, 1), np.uint8)), rows, labels)
    files = IndexedSplit(FileImages(["a.png", "b.png", "c.png"]), rows, labels)
    of_arrays, of_files = (
        image_changes.population([np.array([1, 1])], [np.array([0, 1])], labels, split).exemplars
        for split in (arrays, files)
    )
    assert of_arrays == (ExemplarImage(2, 1, 1, 0),)
    assert of_files == (ExemplarImage(2, 1, 1, 0, "c.png"),)
