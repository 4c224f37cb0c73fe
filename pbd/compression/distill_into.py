"""The step that trains another network, a student of any architecture, on what the network before the step computes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pbd.compression import keras_losses, layer_losses
from pbd.compression.settings import of_step
from pbd.compression.step import StepResult
from pbd.config import NEED_LABELS, DistillationConfig, StudentConfig
from pbd.config.values import as_kind
from pbd.data import Dataset
from pbd.errors import BadInputError, MissingInputError, UsageError, unknown_name
from pbd.learning.chance import Predictions, predicted_classes
from pbd.learning.drawn_teacher import members
from pbd.networks import cost, files, graph, precision, small_nets

if TYPE_CHECKING:
    from pbd.compression.context import Context

RESCALING_IMAGES = 512
"""Training images of which the mean and the deviation scale the pixels of a built-in student."""
COMPARED_IMAGES = 256
"""Validation images on which the answers of student and teacher are compared before the training."""
LEARNED_FROM = 0.6
"""Cohen's kappa of their answers from which a student counts as trained; untrained ones reach 0.5 on two classes."""
_SUFFIXES = (".keras", ".h5")
_NAMES = {
    "epochs": "fine_tune_epochs",
    "learning_rate": "fine_tune_learning_rate",
    "loss": "fine_tune_loss",
    "temperature": "temperature",
    "alpha": "distillation_weight",
    "mixup": "mixup",
    "cutmix": "cutmix",
}
"""By the settings of the training, their names in `StudentConfig`."""


@dataclass(frozen=True, eq=False)
class DistillInto:
    """Distils the network before the step, the teacher, into a student, which replaces it.

    The student ends with the best epoch on the validation images, where the start counts as an epoch, or with the last
    one, as the `fine_tune_keep` of the recipe says. Of `keras.distillation`, a `LogitsDistillation` with the KL
    divergence or the squared error is accepted as `loss`, and a `FeatureDistillation` with an error or the cosine
    similarity among `features`; what they compute, pbd computes (see `keras_losses`).

    Losses between layers that compare the images of a batch (sp, pkt, crd) do so within parts of it, the same parts for
    every number of workers: the least divisor of the batch size that is at least 32.

    Example:
        >>> DistillInto("conv4_dense1", epochs=30, features=[Feature("at", "conv3_relu", "stage2_block3_relu")])
    """

    student: Any
    """A `keras.Model`, the path of a .keras or .h5 file, or the name of a built-in network: conv4_dense2, conv4_dense1,
    conv4_dense2_1x1, conv6_dense1, conv4_dense1_narrow, conv6_dense1_1x1, conv5_dense1, resnet20 or resnet18. All
    layers are trained, from the weights that the network has; those of a built-in network are random. A student whose
    answers agree with those of the teacher already (Cohen's kappa of 0.6) is trained as by `FineTune`: kernels of small
    weights have a lower learning rate, and an epoch in which the accuracy collapses is undone."""
    loss: Any = "mixed"
    """mixed (Hinton et al. 2015: alpha T^2 KL + (1 - alpha) cross entropy; without labels, kd_kl), kd_kl (the teacher's
    softened outputs), kd_mse (its logits), cross_entropy (labels alone, to compare with), or a LogitsDistillation."""
    temperature: float = StudentConfig.temperature
    """Divides the logits before the softmax in kd_kl and mixed."""
    alpha: float = StudentConfig.distillation_weight
    """Weight of the teacher's term in mixed, in [0, 1]; the labels get the rest."""
    epochs: int = 30
    """Passes over the training images."""
    learning_rate: float = 0.003
    """The learning rate of Adam, from which it decays to zero along a cosine."""
    warmup: float = DistillationConfig.warmup
    """Share of the steps, in [0, 1), in which the learning rate rises first, by the same amount with every step."""
    features: Any = ()
    """Losses between layers, which are added: each a `Feature`, its fields as a mapping, or a FeatureDistillation."""
    mixup: float = StudentConfig.mixup
    """Train on weighted sums of two images, with weights drawn from Beta(mixup, mixup); 0: no mixup."""
    cutmix: float = StudentConfig.cutmix
    """Paste a box of another image into each image, which keeps a share drawn from Beta(cutmix, cutmix); 0: no CutMix.
    With mixup as well, either is drawn for each image."""
    ensemble_teacher: str = DistillationConfig.ensemble_teacher
    """What a training step learns from if the network before the step is an ensemble: mean, its outputs (the mean of
    several teachers, as in You et al. 2017, "Learning from multiple teacher networks", KDD), or drawn, those of one
    member, drawn for each training step (Blakeney, dissertation, Texas State University, chapter 5). Other networks are
    refused with drawn, and so are `features`. The student is validated against the ensemble in both cases."""
    file_digest: str = field(default="", init=False)
    """SHA-256 of the student's file: if it changes, the step is done again."""

    def __post_init__(self) -> None:
        loss, temperature = keras_losses.read(self.loss, self.temperature)
        self._set("loss", loss)
        self._set("temperature", temperature)
        kinds = {"loss": str, "epochs": int, "temperature": float, "alpha": float, "learning_rate": float}
        kinds |= {"warmup": float, "mixup": float, "cutmix": float, "ensemble_teacher": str}
        for name, kind in kinds.items():
            self._set(name, as_kind(name, kind, getattr(self, name)))
        self._set("features", layer_losses.read(self.features))
        if not isinstance(self.student, keras.Model):
            self._set("student", as_kind("student", str, self.student))
            self._set("file_digest", _digest(self.student))
        if self.epochs < 1:
            raise UsageError(f"epochs must be at least 1. Received: {self.epochs}. Give 30.")
        _ = self.settings(labelled=True), self._distillation()

    def check_data(self, dataset: Dataset) -> None:
        _ = self.settings(dataset.labelled)
        if isinstance(self.student, keras.Model):
            files.check_known(self.student)
        if self.student not in small_nets.SMALL_NETS:
            _ = self._model(dataset)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def settings(self, labelled: bool) -> StudentConfig:
        """Return the settings of the training.

        Args:
            labelled: whether there are labels.

        Raises:
            UsageError: a setting is out of its range, or needs labels.
        """
        if self.loss == "cross_entropy" and not labelled:
            raise UsageError("cross_entropy needs labels. Received: data without labels. Give loss kd_kl.")
        settings = of_step(self, _NAMES)
        return settings if labelled or self.loss not in NEED_LABELS else replace(settings, fine_tune_loss="kd_kl")

    def _distillation(self, from_random_weights: bool = True) -> DistillationConfig:
        """Return what the student learns from besides logits and labels, and how training begins."""
        return DistillationConfig(
            self.features, self.warmup, from_random_weights, ensemble_teacher=self.ensemble_teacher
        )

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        dataset = context.dataset
        student, settings = self.network(model, dataset), self.settings(dataset.labelled)
        layer_losses.check(self.features, student, model, dataset)
        if self._distillation().draws_member:
            _ = members(model)  # refuses other networks
        training = context.for_new_network()
        begins_anew = self.student in small_nets.SMALL_NETS or not has_learned(student, model, dataset)
        state = training.fine_tune(student, settings, teacher=model, distillation=self._distillation(begins_anew))
        details = {"student": student.name, "params": cost.count_params(student), "history": list(state.history)}
        events = (*self._events(settings), *state.events)
        return StepResult(student, details, events, keeps_zeros=False)

    def network(self, teacher: keras.Model, dataset: Dataset) -> keras.Model:
        """Return the student, flat and in float32.

        Raises:
            BadInputError: it does not take these images, or has other classes than the teacher.
        """
        if self.student in small_nets.SMALL_NETS:
            classes = max(2, teacher.output_shape[-1])
            student = small_nets.build(self.student, dataset.image_shape, classes, rescaled(dataset))
        else:
            student = self._model(dataset)
        student = graph.flatten(precision.in_float32(graph.flatten(student, dataset.image_shape)))
        outputs = [max(2, network.output_shape[-1]) for network in (student, teacher)]
        if outputs[0] != outputs[1]:
            raise BadInputError(
                f"student and teacher must have the same classes. Received: {outputs[0]} and {outputs[1]}. "
                "Give another student."
            )
        return student

    def _model(self, dataset: Dataset) -> keras.Model:
        """Return the student that the user gave, as it is.

        Raises:
            BadInputError: its file is no model, or it does not take these images.
        """
        student = files.load(self.student) if isinstance(self.student, str) else self.student
        shape = graph.image_shape(student)
        if any(size not in (None, other) for size, other in zip(shape, dataset.image_shape, strict=True)):
            raise BadInputError(
                f"the student must take the images of the data, {dataset.image_shape}. Received: one for {shape}. "
                "Give another student, or resize the images."
            )
        return student

    def _events(self, settings: StudentConfig) -> Iterator[str]:
        if settings.fine_tune_loss != self.loss:
            yield f"there are no labels: the loss is {settings.fine_tune_loss} instead of {self.loss}"


def has_learned(student: keras.Model, teacher: keras.Model, dataset: Dataset) -> bool:
    """Return whether the student seems to be trained: whether its answers agree with those of the teacher."""
    batches = [np.asarray(images) for images, _ in dataset.batches("validation", limit=COMPARED_IMAGES)]
    predicted, expected = (
        np.concatenate([predicted_classes(model, b) for b in batches]) for model in (student, teacher)
    )
    predictions = Predictions(predicted, expected)
    return predictions.kappa >= LEARNED_FROM and predictions.is_better_than_chance


def rescaled(dataset: Dataset) -> small_nets.Rescaled:
    """Return the scaling by which pixels have mean 0 and deviation 1."""
    batches = [np.asarray(images, np.float64) for images, _ in dataset.batches("train", limit=RESCALING_IMAGES)]
    pixels = np.concatenate(batches)
    deviation = float(pixels.std()) or 1.0
    return small_nets.Rescaled(1.0 / deviation, -float(pixels.mean()) / deviation)


def _digest(student: str) -> str:
    """Return the SHA-256 of the file of a student, or "" for the name of a built-in one.

    Raises:
        UsageError: it is neither.
        MissingInputError: the file does not exist.
    """
    if student in small_nets.SMALL_NETS:
        return ""
    if not student.endswith(_SUFFIXES):
        raise UsageError(unknown_name("student", student, small_nets.SMALL_NETS))
    if not Path(student).is_file():
        raise MissingInputError(f"the student must be a file. Received: {student}. Check the path.")
    return hashlib.sha256(Path(student).read_bytes()).hexdigest()
