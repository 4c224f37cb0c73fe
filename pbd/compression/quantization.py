"""`pbd.quantize`: a network in 8-bit integers, after training (`ptq`) or trained for them (`qat`)."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras

from pbd.compression import qat
from pbd.compression.settings import METHODS, Training, check_method
from pbd.data import Data, Dataset
from pbd.deploy import exporting, images, targets
from pbd.deploy.int8 import integer_form, quantizing
from pbd.deploy.int8.quantizing import Files, Quantized
from pbd.deploy.targets import Target
from pbd.errors import UsageError, unknown_name
from pbd.networks import files, graph, precision
from pbd.records import ProgressCallback, no_progress
from pbd.system import random_state


def quantize(
    model: keras.Model,
    data: Data,
    path: str | Path,
    target: str | None = None,
    *,
    method: str = "ptq",
    max_drop: float = quantizing.MAX_DROP,
    calibration_images: int = quantizing.CALIBRATION_IMAGES,
    epochs: int = Training.epochs,
    learning_rate: float = Training.learning_rate,
    seed: int = 0,
) -> Quantized:
    """Write a network with 8-bit weights and activations for a runtime.

    Weights have a scale for each output channel, activations one range, which is taken from training images.

    * `ptq` (after training): if the validation accuracy in the runtime is too low, the most sensitive layers stay in
      float32: as few as are needed. It takes seconds.
    * `qat` (quantisation-aware training): a copy of the network, which rounds as the runtime does, learns the logits of
      the network; every layer has 8-bit integers. It takes minutes. No labels are needed. If the file of `ptq` with
      every layer in 8-bit integers has a higher validation accuracy, it is kept (see `Quantized.method`).

    Args:
        model: functional or sequential, one input of images of a fixed shape, one output of class scores.
        data: training images for the ranges and for training, validation images for decisions, and test images for
            the figure that is reported.
        path: the path of the new file.
        target: `onnx-int8`, `openvino-int8`, `litert-int8` or, with `ptq`, `tensorrt-int8`; by default that of the
            suffix of the path (`onnx-int8` for `.onnx`).
        method: `ptq` or `qat`.
        max_drop: for `ptq`, the validation accuracy that may be lost, in [0, 1]; 0.005 is half a percentage point.
        calibration_images: the ranges are taken from this many training images.
        epochs: for `qat`, passes over the training images.
        learning_rate: for `qat`, the learning rate of Adam, which rises first and decays to zero along a cosine.
        seed: the seed of the run that trained the model, if its splits are parts of the training images.

    Returns:
        The path, the size in bytes, the method of the file that was kept, the layers that stay in float32, and the
        validation and test accuracy in the runtime and in float32.

    Raises:
        UsageError: the target is unknown or has no 8-bit integers, or a setting is out of its range.
        EnvironmentMismatchError: the target is not installed; the message names the command that installs it.
        MissingInputError: the folder of the path does not exist.
        BadInputError: the model cannot be quantised, or loses more even with its layers in float32.

    Example:
        >>> pbd.quantize(result.model, data, "student.onnx", method="qat", epochs=2).test_accuracy
        0.869
    """
    path = Path(path)
    name = target or f"{targets.of_file(str(path))}-int8"
    training = Training(epochs, learning_rate)
    return quantize_each(model, data, {name: path}, method, max_drop, calibration_images, training, seed)[0]


@random_state.preserved()
def quantize_each(
    model: keras.Model,
    data: Data,
    paths: Mapping[str, Path],
    method: str,
    max_drop: float,
    calibration_images: int,
    training: Training,
    seed: int,
    emit: ProgressCallback = no_progress,
) -> tuple[Quantized, ...]:
    """Write a network with 8-bit weights and activations for several runtimes.

    Arguments that are not listed are those of `quantize`.

    Args:
        paths: the paths of the new files, by target.
        training: number of epochs and learning rate of `qat`.
        emit: called with the progress of every step of training.
    """
    if method not in METHODS:
        raise UsageError(unknown_name("method", method, METHODS))
    check_method(method, training)
    chosen = [(quantizing.get_target(name), path) for name, path in paths.items()]
    quantizing.check_settings(max_drop, calibration_images)
    for target, path in chosen:
        if method == "qat":
            quantizing.check_trained(target.name)
        exporting.check_suffix(path, target)
    files.check_known(model)
    network = precision.in_float32(graph.flatten(model))
    dataset = images.load(data, network, seed)
    dataset = dataclasses.replace(dataset, batch_size=min(dataset.batch_size, len(dataset.train)))
    fine_tune = qat.LocalFineTuning(dataset, emit)
    return tuple(
        written(network, dataset, path, target, method, max_drop, calibration_images, training, fine_tune).file
        for target, path in chosen
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """A file in 8-bit integers, and the network that it computes in float32."""

    file: Quantized
    network: keras.Model
    """As before with `ptq`; with `qat`, it has the rounded kernels that were trained."""


def written(
    network: keras.Model,
    dataset: Dataset,
    path: Path,
    target: Target,
    method: str,
    max_drop: float,
    calibration_images: int,
    training: Training,
    fine_tune: qat.FineTune,
    keeps_zeros: bool = False,
) -> Written:
    """Write a network, flat and in float32, with 8-bit weights and activations; see `quantize` and `qat.train`.

    Raises:
        BadInputError: the network cannot be quantised, or loses more even with its layers in float32.
    """
    with tempfile.TemporaryDirectory() as folder, exporting.replaced(path) as draft:
        files = Files(network, dataset, target, Path(folder) / f"float32{target.runtime.suffix}", draft)
        if method == "ptq":
            return Written(files.result(path, *files.write(max_drop, calibration_images)), network)
        trained = _write_trained(files, calibration_images, training, fine_tune, keeps_zeros)
        file = files.result(path, (), {})
        return Written(file, network) if trained is None else Written(dataclasses.replace(file, method="qat"), trained)


def _write_trained(
    files: Files, calibration_images: int, settings: Training, fine_tune: qat.FineTune, keeps_zeros: bool
) -> keras.Model | None:
    """Train a network for 8-bit integers, and write it, or what quantisation after training gives if that is better.

    Returns:
        The network that was trained, without the rounding of its activations; `None` if the file is the other one.
    """
    network, dataset, target = files.network, files.dataset, files.target
    files.write(1.0, calibration_images)
    after_training, _ = files.accuracies("validation")
    calibration = images.first(dataset, "train", calibration_images)
    quantizer = target.quantizer
    limits = quantizer.trained_kernel_limit, quantizer.rounds_outputs
    trained = qat.train(network, dataset, calibration, settings, fine_tune, *limits, keeps_zeros)
    qat.write(trained, files.quantized, target)
    qat.check(files.quantized, trained, dataset, target)
    if files.accuracies("validation")[0] >= after_training:
        return integer_form.exportable(trained, rounds_activations=False)
    files.write(1.0, calibration_images)
    return None
