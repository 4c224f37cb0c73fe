"""Export of a network to a file of another runtime: written, run there, compared with Keras, and only then kept."""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from pbd.data import Data
from pbd.deploy import agreement, images, portable, targets
from pbd.deploy.agreement import Agreement
from pbd.deploy.int8.quantizable import quantizable
from pbd.deploy.runtimes.base import Runner
from pbd.deploy.runtimes.tensorrt import SCRIPT_SUFFIX
from pbd.deploy.targets import Target
from pbd.errors import BadInputError, CannotCreateError, MissingInputError, PbdError, UsageError, one_line
from pbd.networks import files, graph, heads, precision
from pbd.system import devices, random_state, silence

CHECKED = 1000
"""Images on which a file is compared with Keras."""
_BESIDE = {".xml": ".bin", ".onnx": SCRIPT_SUFFIX}
"""Suffixes of OpenVINO's weights and of the script for TensorRT, by that of the file that they belong to."""
_PATTERN = "[]*?"
_RANDOM = 64
"""The same, if there are only random images."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how well it agrees with Keras."""

    target: str
    path: Path
    size_bytes: int
    agreement: Agreement
    checked_on: str
    """`test images`, `images` or `random images`."""
    test_accuracy: float | None = None
    """Accuracy in the runtime, in [0, 1]; `None` without test images and labels."""
    keras_test_accuracy: float | None = None
    """The test accuracy of the network in Keras."""


def export(
    model: keras.Model,
    path: str | Path,
    target: str | None = None,
    *,
    check: Data | np.ndarray | None = None,
    seed: int = 0,
) -> Exported:
    """Write a network for another runtime, run the file there, and compare it with Keras.

    The network is written in float32, with batch normalisations folded, for any batch size. If the logits differ by
    more than 0.0001 of the largest one, nothing is written.

    Args:
        model: functional or sequential, one input of images of a fixed shape, one output of class scores.
        path: the path of the new file; for `saved_model`, of the new folder.
        target: `onnx`, `openvino`, `litert`, `tensorrt`, `keras` or `saved_model`; by default that of the suffix of the
            path (`onnx` for `.onnx`).
        check: data, whose test images the file is compared and scored on; or images as the model takes them,
            (n, height, width, channels). By default it is compared on images of random bytes.
        seed: the seed of the run that trained the model, if its test images are a part of the training images.

    Returns:
        The path, the size, the agreement with Keras and, with data, the test accuracy in the runtime.

    Raises:
        UsageError: the target is unknown, or one of 8-bit integers; or the model or `check` is something else.
        EnvironmentMismatchError: the target is not installed; the message names the command that installs it.
        MissingInputError: the folder of the path does not exist.
        CannotCreateError: the file cannot be written there.
        BadInputError: the model cannot be exported, or the file computes something else.

    Example:
        >>> pbd.export(result.model, "student.onnx", check=data).test_accuracy
        0.869
    """
    path = Path(path)
    return export_each(model, {target or targets.of_file(str(path)): path}, check=check, seed=seed)[0]


@random_state.preserved()
def export_each(
    model: keras.Model, paths: Mapping[str, Path], *, check: Data | np.ndarray | None = None, seed: int = 0
) -> tuple[Exported, ...]:
    """Write a network for several other runtimes; its accuracy in Keras is computed once.

    Arguments that are not listed are those of `export`.

    Args:
        paths: the paths of the new files, by target.
    """
    chosen = [(targets.get(name), path) for name, path in paths.items()]
    for target, path in chosen:
        if target.int8:
            raise UsageError(f"export writes float32. Received: target {target.name}. Use quantize for 8-bit integers.")
        check_suffix(path, target)
    files.check_known(model)
    reference = _Reference.of(model, check, seed)
    with contextlib.ExitStack() as drafts:  # nothing is replaced before all files are written and agree
        return tuple(
            _exported(reference, target, path, drafts.enter_context(replaced(path))) for target, path in chosen
        )


@dataclass(frozen=True, eq=False)
class _Reference:
    """What the files of a network are compared with."""

    network: keras.Model
    """Flat and in float32."""
    pixels: np.ndarray
    """Images to compare on."""
    dataset: images.Dataset | None
    """The images to score on."""
    checked_on: str
    """See `Exported`."""

    @classmethod
    def of(cls, model: keras.Model, check: Data | np.ndarray | None, seed: int) -> "_Reference":
        network = precision.in_float32(graph.flatten(model))
        dataset = images.load(check, network, seed) if isinstance(check, Data) else None
        checked_on = "random images" if check is None else "test images" if dataset else "images"
        return cls(network, _images(check, dataset, network), dataset, checked_on)

    @functools.cached_property
    def test_accuracy(self) -> float | None:
        """The test accuracy of the network in Keras."""
        return self.accuracy_of(self.network.predict_on_batch)

    def accuracy_of(self, run: Runner) -> float | None:
        """Return the test accuracy of a forward pass of the network; `None` without test images and labels."""
        return images.accuracy(run, self.dataset, "test", heads.head_of(self.network)) if self.dataset else None


def _exported(reference: _Reference, target: Target, path: Path, draft: Path) -> Exported:
    write(reference.network, draft, target)
    agreed = checked(draft, reference.network, reference.pixels, target)
    tested = reference.accuracy_of(target.load(draft, devices.available_cores())), reference.test_accuracy
    return Exported(target.name, path, size_of(draft), agreed, reference.checked_on, *tested)


def check_suffix(path: Path, target: Target) -> None:
    """Check that a new file has the suffix by which its runtime knows the format.

    Raises:
        UsageError: it has another one, or is a folder whose path TensorFlow takes for a pattern.
    """
    suffix = target.runtime.suffix
    if suffix and path.suffix != suffix:
        raise UsageError(f"the file of {target.name} must end in {suffix}. Received: {str(path)!r}. Rename it.")
    if not suffix and any(mark in str(path.absolute()) for mark in _PATTERN):
        raise UsageError(
            f"TensorFlow cannot read a SavedModel whose path has one of {' '.join(_PATTERN)}. Received: {str(path)!r}. "
            "Give another."
        )


def write(network: keras.Model, path: Path, target: Target) -> None:
    """Write a flat network in float32, in the format of a target; for one of 8-bit integers, as it is quantised.

    Raises:
        BadInputError: the exporter fails.
    """
    try:
        with silence.silenced():
            target.runtime.export(_form(network, target), path)
    except PbdError:
        raise
    except Exception as error:
        raise BadInputError(
            f"the model cannot be written for {target.name}: {one_line(error)}. Export to another target."
        ) from error


def _form(network: keras.Model, target: Target) -> keras.Model:
    if not target.int8:
        return portable.portable(network)
    return target.quantizer.for_int8(quantizable(network))


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Return a path in a new folder; what the block writes there replaces what lies at `path`, if the block succeeds.

    Files that a format keeps beside its main file have the same stem. They are moved with it, or removed if the new
    file has none.

    Raises:
        MissingInputError: the folder of the path does not exist.
        CannotCreateError: the files cannot be written there.
    """
    if not path.absolute().parent.is_dir():
        raise MissingInputError(f"the folder of the new file must exist. Received: {str(path)!r}. Create the folder.")
    with _refused(path):
        if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
            raise CannotCreateError(f"only a SavedModel is replaced. Received: the folder {str(path)!r}. Give another.")
        temporary = tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".export-")
    with temporary as folder:
        yield Path(folder) / path.name
        with _refused(path):
            if path.is_file():
                for stale in files_of(path)[1:]:
                    stale.unlink()
            for written in Path(folder).iterdir():
                destination = path.parent / written.name
                if written.is_dir() and destination.is_dir():
                    shutil.rmtree(destination)
                os.replace(written, destination)


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn an error of the file system in the block into one that names the path."""
    try:
        yield
    except CannotCreateError:
        raise
    except OSError as error:
        raise CannotCreateError(f"cannot write {str(path)!r}: {one_line(error)}. Give another path.") from error


def files_of(path: Path) -> list[Path]:
    """Return the files of an exported network, its main file first, then what its format keeps beside it."""
    if path.is_dir():
        return [file for file in sorted(path.rglob("*")) if file.is_file()]
    suffix = _BESIDE.get(path.suffix)
    others = [path.with_suffix(suffix)] if suffix else []
    return [path, *filter(Path.is_file, others)]


def size_of(path: Path) -> int:
    """Return the bytes of the files of an exported network."""
    return sum(file.stat().st_size for file in files_of(path))


def _images(check: Data | np.ndarray | None, dataset: images.Dataset | None, network: keras.Model) -> np.ndarray:
    """Return the images on which the file is compared with the network."""
    if dataset is not None:
        return images.first(dataset, "test", CHECKED)
    if check is None:
        return images.random(network, _RANDOM)
    try:
        pixels = np.asarray(check, np.float32)[:CHECKED]
    except (TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"check must be a pbd.Data, or images. Received: {type(check).__name__}. Give an array of images, or "
            "pbd.Data(train=..., test=(images, labels))."
        ) from error
    shape = tuple(network.inputs[0].shape[1:])
    fits = pixels.ndim == 4 and all(
        size in (None, actual) for size, actual in zip(shape, pixels.shape[1:], strict=True)
    )
    if not fits or not len(pixels):
        raise BadInputError(
            f"the images must have the shape (n, *{shape}). Received: {pixels.shape}. Give what the model takes."
        )
    return pixels


def checked(path: Path, network: keras.Model, pixels: np.ndarray, target: Target) -> Agreement:
    """Return the agreement of a file with its network.

    Raises:
        BadInputError: it is too low.
    """
    agreed = agreement.compare(target, path, network, pixels)
    if not agreed.difference <= agreement.TOLERANCE:
        raise BadInputError(
            f"the {target.name} file must compute what the model computes, to {agreement.TOLERANCE:g} of the largest "
            f"logit. Received: {agreed.difference:.2g}. Nothing was written. Export to another target."
        )
    return agreed
