"""Records of an analysis: what compression did to the representations, the classes and the images of a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerSimilarity:
    """How similar the activations of one layer are in teacher and student, on the same images."""

    layer: str
    """The layer of the teacher; `logits` for its outputs."""
    student_layer: str
    """The operation of the student whose output is compared: the layer of this name, or the last one of its block."""
    svcca: float | None
    """Mean canonical correlation; `None` if all neurons of one of them are constant."""
    svcca_distance: float | None
    """One minus that."""
    cka: float | None
    """Linear CKA; `None` as above."""
    neurons: tuple[int, int]
    """Channels, or outputs, of teacher and student."""


@dataclass(frozen=True)
class SimilarityMap:
    """Linear CKA between all layers of teacher and student."""

    teacher_layers: tuple[str, ...]
    student_layers: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """One row for each layer of the teacher."""


@dataclass(frozen=True)
class ClassRates:
    """One class: its error rates before and after compression. A rate is `None` if there is no image to measure it."""

    label: int
    images: int
    """Number of images of this class."""
    teacher_accuracy: float | None
    """Share of the images of this class that are classified as such."""
    student_accuracy: float | None
    teacher_fpr: float | None
    """False positive rate: share of the images of other classes that are classified as this one."""
    student_fpr: float | None
    teacher_fnr: float | None
    """False negative rate: share of the images of this class that are classified as another one."""
    student_fnr: float | None
    delta_fpr: float | None
    """100 (student - teacher) / teacher, in percent; `None` if the teacher's rate is 0 or undefined."""
    delta_fnr: float | None


@dataclass(frozen=True)
class ConfusionChange:
    """How often images of one class are classified as another one, before and after compression."""

    label: int
    predicted: int
    teacher: int
    """Images."""
    student: int

    @property
    def change(self) -> int:
        """Images that are confused more often than before; negative if they are confused less often."""
        return self.student - self.teacher


@dataclass(frozen=True)
class ClassChanges:
    """What needs labels: changes of accuracy and error rates, per class and altogether."""

    teacher_accuracy: float
    student_accuracy: float
    classes: tuple[ClassRates, ...]
    cev: float | None
    """Combined error variance: mean squared distance of (delta FPR, delta FNR) from its mean over classes; `None` if
    no class has both."""
    sde: float | None
    """Symmetric distance error: mean over classes of |delta FNR - delta FPR| / sqrt(2); `None` as above."""
    left_out: tuple[int, ...]
    """Classes that CEV and SDE leave out, because a rate of the teacher is 0 or undefined."""
    negative_flips: float
    """Share of all images that the teacher classifies correctly and the student does not."""
    positive_flips: float
    """The reverse."""
    teacher_ece: float | None
    """Expected calibration error, 15 bins; `None` if it was not measured."""
    student_ece: float | None
    confusions: tuple[ConfusionChange, ...]
    """The largest changes, in images, largest first."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ClassChanges":
        """Return the record with this content, as `dataclasses.asdict` returns it."""
        rows = {
            "classes": tuple(ClassRates(**row) for row in content["classes"]),
            "confusions": tuple(ConfusionChange(**row) for row in content["confusions"]),
            "left_out": tuple(content["left_out"]),
        }
        return cls(**{**content, **rows})


@dataclass(frozen=True)
class StudentAnalysis:
    """One student compared with the teacher."""

    name: str
    churn: float
    """Share of the images for which student and teacher predict different classes."""
    layers: tuple[LayerSimilarity, ...]
    unmatched: tuple[str, ...]
    """Layers of the teacher without a counterpart in the student."""
    similarity: SimilarityMap
    changes: ClassChanges | None
    """`None` without labels."""


@dataclass(frozen=True)
class ExemplarImage:
    """A compression-identified exemplar (PIE): compression changes the most frequent answer to this image."""

    image: int
    """Row in the array that holds the image, or in the sorted list of its files; of a stream, position among the images
    used."""
    label: int | None
    """`None` without labels."""
    teachers: int
    """The most frequent class over the teachers; of several, the smallest number."""
    students: int
    file: str | None = None
    """Path of the image file; `None` of images in memory and of streams."""


@dataclass(frozen=True)
class PopulationAnalysis:
    """Images whose most frequent class over the students differs from that over the teachers (Hooker et al. 2019)."""

    teachers: int
    """Number of networks."""
    students: int
    exemplars: tuple[ExemplarImage, ...]


@dataclass(frozen=True)
class AnalysisReport:
    """What compression did to a network, on one split of the data."""

    teacher: str
    data: str
    split: str
    images: int
    """Images that the predictions are compared on."""
    similarity_images: int
    """Images that the activations are compared on, the first ones of the split."""
    positions: str
    """`average`: feature maps are averaged over their positions; `fourier`: see `pbd.analyse`."""
    students: tuple[StudentAnalysis, ...]
    population: PopulationAnalysis | None
    """`None` if the students are no population."""
    absent: tuple[str, ...]
    """What could not be computed, and why."""
    notes: tuple[str, ...]
    """What to know before reading the figures."""
    version: int = 1
