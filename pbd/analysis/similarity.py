"""Similarity of the layers of two networks: SVCCA of each layer and its counterpart, and CKA of all pairs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import keras
import numpy as np

from pbd.analysis import activations, cka, svcca
from pbd.analysis.activations import Point
from pbd.data import Dataset
from pbd.records.analysis_report import LayerSimilarity, SimilarityMap

MOST_BYTES = 512 * 2**20
"""Memory of the activations, in float32, that are held at a time; a pair of larger layers is held alone."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network in the form of `activations.inference_copy`, and its outputs that are compared."""

    model: keras.Model
    points: Mapping[str, Point]

    def outputs(self, names: set[str], dataset: Dataset, split: str, averaged: bool) -> dict[str, np.ndarray]:
        """Return those of these outputs that the network has (see `activations.outputs`)."""
        tensors = {name: point.tensor for name, point in self.points.items() if name in names}
        return activations.outputs(self.model, tensors, dataset, split, averaged)[0] if tensors else {}


def compare(
    teacher: Network, student: Network, dataset: Dataset, split: str, averaged: bool
) -> tuple[tuple[LayerSimilarity, ...], SimilarityMap]:
    """Return the similarity of each layer of the teacher and its counterpart, and the CKA of all pairs of layers.

    Args:
        teacher: the original.
        student: the compressed network.
        dataset: the images.
        split: train, validation or test.
        averaged: average feature maps over their positions; if not, SVCCA compares Fourier coefficients, and CKA takes
            each position of a channel as a neuron.
    """
    correlations: dict[str, float | None] = {}
    kernels: tuple[dict[str, cka.Kernel], dict[str, cka.Kernel]] = {}, {}
    for pair in _activations(teacher, student, dataset, split, averaged):
        for values, of_network in zip(pair, kernels, strict=True):
            of_network |= {name: cka.kernel(_neurons(maps)) for name, maps in values.items()}
        correlations |= {name: _svcca(maps, pair[1][name]) for name, maps in pair[0].items() if name in pair[1]}
    layers = tuple(
        LayerSimilarity(
            layer=name,
            student_layer=student.points[name].operation,
            svcca=correlations[name],
            svcca_distance=_distance(correlations[name]),
            cka=cka.alignment(kernels[0][name], kernels[1][name]),
            neurons=(teacher.points[name].tensor.shape[-1], student.points[name].tensor.shape[-1]),
        )
        for name in teacher.points
        if name in student.points
    )
    return layers, _map(teacher, student, kernels)


def _activations(
    teacher: Network, student: Network, dataset: Dataset, split: str, averaged: bool
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield the activations of some layers of both networks at a time, all in the end, in bounded memory."""
    images = len(getattr(dataset, split))
    sizes: dict[str, int] = {}
    for network in (teacher, student):
        for name, point in network.points.items():
            size = point.channels_bytes if averaged else point.bytes_per_image
            sizes[name] = sizes.get(name, 0) + images * size
    for part in activations.in_parts(sizes, MOST_BYTES):
        names = set(part)
        yield teacher.outputs(names, dataset, split, averaged), student.outputs(names, dataset, split, averaged)


def _neurons(values: np.ndarray) -> np.ndarray:
    """Return activations, (images, ...), as (neurons, images)."""
    return values.reshape(len(values), -1).T


def _svcca(first: np.ndarray, second: np.ndarray) -> float | None:
    if first.ndim == second.ndim == 4:
        return svcca.fourier_similarity(first, second)
    return svcca.similarity(_neurons(first), _neurons(second))


def _distance(similarity: float | None) -> float | None:
    return None if similarity is None else 1.0 - similarity


def _map(
    teacher: Network, student: Network, kernels: tuple[Mapping[str, cka.Kernel], Mapping[str, cka.Kernel]]
) -> SimilarityMap:
    rows, columns = kernels
    return SimilarityMap(
        tuple(teacher.points),
        tuple(student.points),
        tuple(tuple(cka.alignment(rows[row], columns[column]) for column in student.points) for row in teacher.points),
    )
