"""Quantisation-aware training: a network learns its teacher's logits while it computes as in 8-bit integers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from pbd.compression.settings import Training
from pbd.config import StudentConfig
from pbd.data import Dataset
from pbd.deploy import agreement, exporting, images, portable
from pbd.deploy.int8 import fake_quantization, integer_form, rounding, separable_form
from pbd.deploy.int8.fake_quantization import FakeQuantization
from pbd.deploy.runtimes.base import KERNEL_LIMIT
from pbd.deploy.targets import Target
from pbd.errors import BadInputError, one_line
from pbd.learning.metrics import Metrics
from pbd.records import ProgressCallback, no_progress
from pbd.student import builder, fine_tuning
from pbd.student.checkpoints import FineTuneState
from pbd.student.validation import validate
from pbd.system import silence

LOSS = "kd_mse"
"""See `StudentConfig.fine_tune_loss`."""
_SAME_CLASS = 0.9
"""Fraction of images for which a file must predict the class that the trained network predicts."""


FineTune = Callable[..., FineTuneState]
"""Trains a network as `Context.fine_tune(model, settings, initial, teacher, quantization=...)` does."""


@dataclasses.dataclass(frozen=True)
class LocalFineTuning:
    """Trains in this process, as `FineTune`."""

    dataset: Dataset
    emit: ProgressCallback = no_progress
    """Called with the progress of every step."""

    def __call__(
        self,
        model: keras.Model,
        settings: StudentConfig,
        initial: Metrics,
        teacher: keras.Model,
        quantization: FakeQuantization,
    ) -> FineTuneState:
        """Return the final state, whose best weights are those of the network with fake quantisation."""
        student, dataset = quantization.applied(model), dataclasses.replace(self.dataset, labelled=False)
        return fine_tuning.fine_tune(student, teacher, dataset, settings, initial, self.emit)


def train(
    network: keras.Model,
    dataset: Dataset,
    calibration: np.ndarray,
    settings: Training,
    fine_tune: FineTune,
    limit: int = KERNEL_LIMIT,
    rounds_outputs: bool = True,
    keeps_zeros: bool = False,
) -> keras.Model:
    """Return a network with fake quantisation that has learned the logits of the network in float32.

    Training starts from what quantisation after training computes: the ranges of the activations are those of the
    float32 network and stay fixed; the biases are corrected for the rounded kernels. All kernels and biases are
    trained, those of frozen layers too. The best epoch, which may be the start, is chosen by the agreement with the
    classes of the network in float32 (see `fine_tuning.fine_tune`): between networks this much alike, differences in
    accuracy are mostly noise.

    Args:
        network: flat, in float32; it is the teacher.
        dataset: the whole data.
        calibration: images for the ranges, (n, height, width, channels) float32.
        settings: the settings of the training.
        fine_tune: trains the network, in this process or on all workers.
        limit: the largest integer of the kernels.
        rounds_outputs: whether the outputs are rounded too.
        keeps_zeros: whether weights that are zero stay zero.
    """
    form = separable_form.with_separate_convolutions(portable.portable(network, int8=True))
    corrected = rounding.with_corrected_biases(form, calibration, limit)
    builder.set_trainable(corrected, {}, "all")
    quantization = FakeQuantization.calibrated(corrected, calibration, limit, rounds_outputs)
    student = quantization.applied(corrected)
    initial = validate(student, network, dataclasses.replace(dataset, labelled=False))
    config = StudentConfig(
        fine_tune_epochs=settings.epochs,
        fine_tune_learning_rate=settings.learning_rate,
        fine_tune_loss=LOSS,
        fine_tune_keep="best",
        keep_zeros=keeps_zeros,
    )
    state = fine_tune(corrected, config, initial, network, quantization=quantization)
    student.set_weights(state.best_weights)
    return student


def write(network: keras.Model, path: Path, target: Target) -> None:
    """Write a network with fake quantisation in the format of a target.

    Raises:
        BadInputError: the exporter fails.
    """
    kernels = fake_quantization.rounded_kernels(network)
    try:
        with silence.silenced():
            target.quantizer.export_fake_quantized(integer_form.exportable(network), path, kernels)
    except Exception as error:
        raise BadInputError(
            f"the trained model cannot be written for {target.name}: {one_line(error)}. Choose another target, "
            "or method ptq."
        ) from error


def check(path: Path, network: keras.Model, dataset: Dataset, target: Target) -> None:
    """Check that a file predicts what the network that was trained predicts.

    Raises:
        BadInputError: it does not.
    """
    pixels = images.first(dataset, "validation", exporting.CHECKED)
    same = agreement.compare(target, path, network, pixels).same_class
    if same < _SAME_CLASS:
        raise BadInputError(
            f"the {target.name} file must predict the classes of the trained model for {_SAME_CLASS:.0%} of the "
            f"images. Received: {same:.1%}. Nothing was written. Choose another target, or method ptq."
        )
