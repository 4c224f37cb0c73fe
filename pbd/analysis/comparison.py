"""`pbd.analyse`: what compression did to a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from pbd.analysis import activations, calibration, checks, class_changes, image_changes, similarity
from pbd.analysis.checks import AVERAGE, FOURIER
from pbd.analysis.similarity import Network
from pbd.data import Data, Dataset
from pbd.deploy import images
from pbd.learning import class_counts
from pbd.learning.class_counts import ClassCounts
from pbd.learning.metrics import class_scores, log_probabilities
from pbd.records.analysis_report import AnalysisReport, ClassChanges, PopulationAnalysis, StudentAnalysis
from pbd.system import random_state

SIMILARITY_IMAGES = {AVERAGE: 2000, FOURIER: 500}
"""Images that activations are compared on by default."""
ENOUGH_IMAGES = 5
"""Images for each channel that SVCCA needs at least, as google/svcca recommends."""
_WITHOUT_LABELS = (
    "accuracy and error rates per class, CEV, SDE, flips, calibration error and confusions: "
    "the data have no labels, or they are not used"
)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network answers to the images of a split."""

    probabilities: np.ndarray
    """(images, classes) float64."""

    @property
    def classes(self) -> np.ndarray:
        """(images,)."""
        return self.probabilities.argmax(-1)


@dataclass(frozen=True, eq=False)
class _Images:
    """The images of an analysis."""

    split: str
    predicted: Dataset
    """Predictions are compared on these."""
    compared: Dataset
    """Activations are compared on these."""
    averaged: bool

    def count(self, dataset: Dataset) -> int:
        return len(getattr(dataset, self.split))


@random_state.preserved()
def analyse(
    teacher: keras.Model,
    student: keras.Model | Mapping[str, keras.Model],
    data: Data,
    *,
    teachers: Sequence[keras.Model] = (),
    population: bool = False,
    layers: str | Sequence[str] = (),
    split: str = "test",
    limit: int | None = None,
    similarity_images: int | None = None,
    positions: str = AVERAGE,
    seed: int = 0,
) -> AnalysisReport:
    """Measure what compression did to a network: to its representations, its classes, and single images.

    Batch normalisations are folded in both networks first. A layer's counterpart in the student is the layer of the
    same name, or the block that replaced it.

    Args:
        teacher: the original network.
        student: the compressed network, or several by name; with the same input and the same classes.
        data: the images. Without labels, only what needs none is computed.
        teachers: further originals, for the population.
        population: also compare the answers of all students with those of all originals.
        layers: a glob over names of the teacher's layers, or several; by default convolutions, ends of residual blocks,
            and logits.
        split: train, validation or test.
        limit: use at most this many images of the split, the first ones, which are of all classes.
        similarity_images: compare activations on at most this many of them; by default 2000, with `fourier` 500.
        positions: `average`: feature maps are averaged over their positions. `fourier`: SVCCA compares the channels'
            Fourier coefficients, frequency by frequency, and CKA takes each position as a neuron.
        seed: the seed of the run that trained the student, if its splits are parts of the training images.

    Returns:
        One record for each student, in their order: similarities of layers and, with labels, changes per class; and the
        population, if it was requested. Shares of images lie in [0, 1].

    Raises:
        UsageError: a name is unknown, a number is too small, or a population has fewer than two students.
        BadInputError: the networks do not fit each other or the data, or an output of one is not finite.

    Example:
        >>> report = pbd.analyse(teacher, result.model, data)
        >>> report.students[0].changes.negative_flips
        0.0213
    """
    students = dict(student) if isinstance(student, Mapping) else {"student": student}
    checks.check_settings(students, split, positions, limit, similarity_images, population)
    checks.check_networks(teacher, {**students, **{f"teacher {i}": model for i, model in enumerate(teachers, 2)}})
    dataset = images.load(data, teacher, seed)
    predicted = activations.sample(dataset, split, limit)
    compared = activations.sample(predicted, split, similarity_images or SIMILARITY_IMAGES[positions])
    chosen = _Images(split, predicted, compared, positions == AVERAGE)
    patterns = (layers,) if isinstance(layers, str) else layers
    original = _network(teacher, dataset, patterns)
    activations.check_patterns(original.model, patterns)
    reference, labels = _predictions("teacher", original, chosen)
    checks.check_labels(labels, reference.probabilities.shape[-1])
    rows, answers = [], []
    for name, model in students.items():
        network = _network(model, dataset, patterns)
        predictions, _ = _predictions(name, network, chosen)
        answers.append(predictions.classes)
        rows.append(_student(name, original, network, chosen, (reference, predictions), labels))
    return AnalysisReport(
        teacher=teacher.name,
        data=dataset.name,
        split=split,
        images=chosen.count(predicted),
        similarity_images=chosen.count(compared),
        positions=positions,
        students=tuple(rows),
        population=_population(reference, teachers, answers, chosen, labels) if population else None,
        absent=() if labels is not None else (_WITHOUT_LABELS,),
        notes=_notes(rows, chosen.count(compared)),
    )


def _network(model: keras.Model, dataset: Dataset, layers: Sequence[str]) -> Network:
    network = activations.inference_copy(model, dataset.image_shape)
    return Network(network, activations.points(network, layers))


def _predictions(name: str, network: Network, chosen: _Images) -> tuple[Predictions, np.ndarray | None]:
    """Return the predictions of a network, and the labels if there are any.

    Raises:
        BadInputError: an output is not finite.
    """
    tensors = {activations.LOGITS: network.points[activations.LOGITS].tensor}
    outputs, labels = activations.outputs(network.model, tensors, chosen.predicted, chosen.split, averaged=True)
    logits = np.asarray(outputs[activations.LOGITS], np.float64)
    checks.check_outputs(name, logits)
    return Predictions(np.exp(log_probabilities(class_scores(logits)))), labels if chosen.predicted.labelled else None


def _student(
    name: str,
    teacher: Network,
    student: Network,
    chosen: _Images,
    predictions: tuple[Predictions, Predictions],
    labels: np.ndarray | None,
) -> StudentAnalysis:
    layers, pairs = similarity.compare(teacher, student, chosen.compared, chosen.split, chosen.averaged)
    before, after = predictions
    return StudentAnalysis(
        name=name,
        churn=image_changes.churn(before.classes, after.classes),
        layers=layers,
        unmatched=tuple(layer for layer in teacher.points if layer not in student.points),
        similarity=pairs,
        changes=None if labels is None else _changes(before, after, labels),
    )


def _changes(teacher: Predictions, student: Predictions, labels: np.ndarray) -> ClassChanges | None:
    """Return what changes class by class; `None` if there are more than `MOST_CLASSES` classes."""
    classes = teacher.probabilities.shape[-1]
    if classes > class_counts.MOST_CLASSES:
        return None
    counts = ClassCounts(classes)
    counts.add(labels, teacher.classes, student.classes)
    old_ece, new_ece = (
        calibration.expected_calibration_error(each.probabilities, labels) for each in (teacher, student)
    )
    return class_changes.changes(counts, (old_ece, new_ece))


def _population(
    reference: Predictions,
    teachers: Sequence[keras.Model],
    answers: Sequence[np.ndarray],
    chosen: _Images,
    labels: np.ndarray | None,
) -> PopulationAnalysis:
    originals = []
    for number, model in enumerate(teachers, 2):
        predictions, _ = _predictions(f"teacher {number}", _network(model, chosen.predicted, ()), chosen)
        originals.append(predictions.classes)
    split = getattr(chosen.predicted, chosen.split)
    return image_changes.population([reference.classes, *originals], answers, labels, split)


def _notes(rows: Sequence[StudentAnalysis], count: int) -> tuple[str, ...]:
    """Return what to know before reading the similarities."""
    layers = [layer for row in rows for layer in row.layers]
    wide = dict.fromkeys(layer.layer for layer in layers if ENOUGH_IMAGES * max(layer.neurons) > count)
    constant = dict.fromkeys(layer.layer for layer in layers if layer.svcca is None or layer.cka is None)
    notes = []
    if wide:
        notes.append(
            f"SVCCA is too high where there are few images for the channels ({count} images, "
            f"fewer than {ENOUGH_IMAGES} for each channel): {', '.join(wide)}."
        )
    if constant:
        notes.append(
            f"No similarity, since the activations of a network are constant or not finite: {', '.join(constant)}."
        )
    return tuple(notes)
