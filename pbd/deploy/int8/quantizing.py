"""Quantisation after training: 8-bit integers, and float32 for the layers that need it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from pbd.config.values import as_kind
from pbd.data import Dataset
from pbd.deploy import agreement, exporting, images, targets
from pbd.deploy.agreement import Agreement
from pbd.deploy.int8 import quantizable, rounding, sensitivity
from pbd.deploy.runtimes.base import Runner
from pbd.deploy.targets import Target
from pbd.errors import BadInputError, UsageError, one_line, unknown_name
from pbd.networks import heads
from pbd.system import devices, silence

CALIBRATION_IMAGES = 256
"""Training images that give the ranges. More widen them, so that values are rounded more coarsely; fewer clip more."""
MAX_DROP = 0.005
_SENSITIVITY_IMAGES = 64
_CHECKED = 64
"""Images on which the file in float32 is compared with Keras."""


class TooMuchLostError(BadInputError):
    """A quantised network loses more accuracy than it may, even with its layers in float32."""


@dataclass(frozen=True)
class Quantized:
    """A quantised file, and what it is worth in its runtime."""

    target: str
    path: Path
    size_bytes: int
    agreement: Agreement
    """The agreement with Keras, on validation images."""
    val_accuracy: float
    """Accuracy in [0, 1]; without labels, the fraction of images with the class that the float32 network predicts."""
    float_val_accuracy: float
    """The validation accuracy of the network in float32, in the same runtime."""
    test_accuracy: float
    float_test_accuracy: float
    kept_float: tuple[str, ...]
    """Layers that stay in float32, the most sensitive first."""
    signal_to_noise_db: dict[str, float]
    """The signal-to-noise ratio of the logits, by layer, if only this layer is quantised; empty if every layer is
    quantised."""
    method: str = "ptq"
    """`qat` if the network was trained for 8-bit integers and this gained validation accuracy, or lost none."""


def get_target(name: str) -> Target:
    """Return the target of this name, which must have 8-bit integers.

    Raises:
        UsageError: it is unknown, or has no 8-bit integers.
        EnvironmentMismatchError: it is not installed.
    """
    check_int8(name)
    return targets.get(name)


def check_int8(name: str) -> None:
    """Check that a target of this name has 8-bit integers, installed or not.

    Raises:
        UsageError: it is unknown, or has none.
    """
    names = [each for each, target in targets.TARGETS.items() if target.int8]
    if name not in targets.TARGETS:
        raise UsageError(unknown_name("target", name, names))
    if name not in names:
        raise UsageError(f"a target must have 8-bit integers. Received: {name!r}. Choose from: {', '.join(names)}.")


def check_trained(name: str) -> None:
    """Check that networks that were trained for 8-bit integers can be written for a target.

    Raises:
        UsageError: they cannot.
    """
    target = targets.TARGETS.get(name)
    if target is not None and target.int8 and not target.quantizer.takes_trained:
        names = [each for each, other in targets.TARGETS.items() if other.int8 and other.quantizer.takes_trained]
        raise UsageError(
            f"a target must take networks that were trained for 8-bit integers. Received: {name!r} with method qat. "
            f"Use method ptq, or choose from: {', '.join(names)}."
        )


def check_settings(max_drop: float, calibration_images: int) -> None:
    """Check the settings of `quantize`.

    Raises:
        UsageError: one has another type, or is out of its range.
    """
    if not 0 <= as_kind("max_drop", float, max_drop) <= 1:
        raise UsageError(f"max_drop must lie in [0, 1]. Received: {max_drop}. Give 0.005 for half a percentage point.")
    if as_kind("calibration_images", int, calibration_images) < 1:
        raise UsageError(f"calibration_images must be at least 1. Received: {calibration_images}. Give 256.")


@dataclass
class Files:
    """A network in its runtime: in float32, and in 8-bit integers."""

    network: keras.Model
    """Flat, in float32."""
    dataset: Dataset
    target: Target
    float32: Path
    quantized: Path

    def __post_init__(self) -> None:
        self.head = heads.head_of(self.network)
        self._form = quantizable.quantizable(self.network)

    def write(
        self, max_drop: float = MAX_DROP, calibration_images: int = CALIBRATION_IMAGES
    ) -> tuple[tuple[str, ...], dict[str, float]]:
        """Write the quantised file, with as few layers in float32 as the validation accuracy needs.

        The first call also writes the file in float32. The number of float32 layers, the most sensitive first, is
        doubled until the accuracy holds, and then halved in between.

        Returns:
            The layers in float32, the most sensitive first, and the signal-to-noise ratio that each layer causes, in
            dB; neither if all layers have 8-bit integers.

        Raises:
            BadInputError: the network cannot be exported or quantised, or its file in float32 computes something else.
            TooMuchLostError: it loses more even with its layers in float32.
        """
        if not self.float32.exists():
            self._write_float32()
        calibration = images.first(self.dataset, "train", calibration_images)
        if self._drop(calibration, []) <= max_drop:
            return (), {}
        ratios = sensitivity.signal_to_noise(self._form, calibration[:_SENSITIVITY_IMAGES])
        layers = [self._form.get_layer(name) for name in sorted(ratios, key=lambda name: ratios[name])]
        too_few, enough = 0, 1
        while (lost := self._drop(calibration, layers[:enough])) > max_drop:
            if enough >= len(layers):
                raise TooMuchLostError(
                    f"the quantised model may lose {max_drop:g} of validation accuracy. Received: {lost:.4f}, with all "
                    "layers in float32. Give a higher max_drop."
                )
            too_few, enough = enough, min(2 * enough, len(layers))
        written = enough
        while enough - too_few > 1:
            written = (too_few + enough) // 2
            holds = self._drop(calibration, layers[:written]) <= max_drop
            too_few, enough = (too_few, written) if holds else (written, enough)
        if written != enough:
            self._quantize(calibration, layers[:enough])
        return tuple(layer.name for layer in layers[:enough]), ratios

    def _write_float32(self) -> None:
        """Write the file in float32, and check that it computes what the network computes."""
        exporting.write(self.network, self.float32, self.target)
        pixels = images.first(self.dataset, "validation", _CHECKED)
        exporting.checked(self.float32, self.network, pixels, targets.TARGETS[self.target.runtime.name])

    def load(self, path: Path) -> Runner:
        """Return the forward pass of one of the files."""
        return self.target.load(path, devices.available_cores())

    def result(self, path: Path, kept_float: tuple[str, ...], signal_to_noise_db: dict[str, float]) -> Quantized:
        """Return the record of the quantised file, which will lie at `path`.

        Args:
            path: the final path of the file.
            kept_float: as `write` returns it, as `signal_to_noise_db`.
            signal_to_noise_db: see `kept_float`.

        Raises:
            BadInputError: see `agreement`.
        """
        agreed = self.agreement()
        accuracies = *self.accuracies("validation"), *self.accuracies("test")
        size = exporting.size_of(self.quantized)
        return Quantized(self.target.name, path, size, agreed, *accuracies, kept_float, signal_to_noise_db)

    def agreement(self, count: int = exporting.CHECKED) -> Agreement:
        """Return the agreement of the quantised file with Keras on this many validation images.

        Raises:
            BadInputError: what it computes is not finite, or is something else for single images than for batches.
        """
        pixels = images.first(self.dataset, "validation", count)
        agreed = agreement.compare(self.target, self.quantized, self.network, pixels)
        if not np.isfinite(agreed.difference):
            raise BadInputError(
                f"the {self.target.name} file must compute the same for single images and for batches. Received: other "
                "or infinite outputs. Nothing was written. Choose another target."
            )
        return agreed

    def accuracies(self, split: str) -> tuple[float, float]:
        """Return the accuracy of the quantised file and of the float32 file on a split.

        Without labels, the classes that the float32 file predicts are used as the labels.
        """
        correct, count = np.zeros(2), 0
        runners = self.load(self.quantized), self.load(self.float32)
        for batch, labels in self.dataset.batches(split):
            pixels = np.asarray(batch, np.float32)
            classes = np.stack([heads.classes(run(pixels), self.head) for run in runners])
            right = np.asarray(labels) if self.dataset.labelled else classes[1]
            correct += np.sum(classes == right, axis=1)
            count += len(pixels)
        quantized, float32 = correct / count
        return float(quantized), float(float32)

    def _drop(self, calibration: np.ndarray, kept_float: Sequence[keras.Layer]) -> float:
        """Quantise, and return how much validation accuracy that costs."""
        self._quantize(calibration, kept_float)
        quantized, float32 = self.accuracies("validation")
        return float32 - quantized

    def _quantize(self, calibration: np.ndarray, kept_float: Sequence[keras.Layer]) -> None:
        """Write the quantised file again, from a network with rounded kernels and corrected biases.

        Raises:
            BadInputError: the quantiser fails.
        """
        quantizer = self.target.quantizer
        names = [layer.name for layer in kept_float]
        network = rounding.with_rounded_kernels(self._form, calibration, quantizer.kernel_limit, names)
        kernels = {
            f"{layer.name}/{number}": kernel
            for layer in kept_float
            for number, kernel in enumerate(sensitivity.kernels(layer))
        }
        try:
            with silence.silenced(), tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / self.float32.name
                # Kernels that stay in float32 are found by their values, which the other form may scale.
                quantizer.export(network if kernels else quantizer.for_int8(network), source)
                quantizer.quantize(source, self.quantized, calibration, kernels)
        except Exception as error:
            raise BadInputError(
                f"the model cannot be quantised for {self.target.name}: {one_line(error)}. Choose another target."
            ) from error
