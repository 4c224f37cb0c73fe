"""Correct the convolutions of a student by least squares, from the first to the last."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from pbd.blocks.patches import all_patches
from pbd.collective import SINGLE, Collective
from pbd.networks.progressive import ProgressiveRun
from pbd.student.refit.regression import PairSums, correction
from pbd.student.refit.sites import Site, find_sites

MOST_PATCHES = 2**17
"""More patches determine a kernel no better."""
MOST_OPERATIONS = 4e10
"""Multiplications and additions for the second moment of a layer; fewer patches are used for larger kernels."""
PATCHES_PER_VALUE = 16
"""Fewest patches for each value of a patch, whatever they cost, so that their second moment is well conditioned."""
HELD_OUT = 4
"""Every fourth image is held out to choose the ridge."""
SMALLEST_GAIN = 1e-3
"""A channel that its normalisation multiplies by less than this cannot make up for what its shortcut lacks."""


def refit(
    student: keras.Model,
    teacher: keras.Model,
    ends: Mapping[str, str],
    batches: Sequence[Any],
    collective: Collective = SINGLE,
) -> None:
    """Correct the convolutions of a student in place, each on what the student computes before it.

    The target of a convolution is the teacher's feature map at its place and, if a shortcut is added to it, what that
    shortcut lacks. A batch normalisation behind it gets the statistics of the new outputs, and a scale and shift with
    which it computes what the teacher's normalisation would make of them.

    Args:
        student: flat and functional, before unread channels are removed.
        teacher: flat and functional.
        ends: by name of each replaced layer, the name of the student's layer whose output is that of its block.
        batches: this worker's training images, preprocessed.
        collective: the workers that have the other images.
    """
    run = _Refitting(teacher, student, batches, collective)
    for site in find_sites(teacher, student, ends):
        run.correct(site)


class _Refitting:
    """One pass over the convolutions of a student."""

    def __init__(
        self, teacher: keras.Model, student: keras.Model, batches: Sequence[Any], collective: Collective
    ) -> None:
        self._collective = collective
        self._of_teacher, self._of_student = ProgressiveRun(teacher, batches), ProgressiveRun(student, batches)
        images = np.array([float(sum(map(len, batches)))])
        self._images = int(collective.all_reduce_sum(images)[0])

    def correct(self, site: Site) -> None:
        """Correct one convolution, and the normalisation behind it."""
        layer, centred = site.convolution, site.convolution.use_bias or site.normalisations is not None
        fitting, held_out = (sums.reduced(self._collective) for sums in self._gather(site))
        change, moments = correction(fitting, held_out, centred), (fitting + held_out).moments(centred)
        kernel = _flat(_numpy(layer.kernel)) + change
        layer.kernel.assign(_unflat(kernel, layer.kernel.shape))
        missing = moments.error - moments.patch @ change
        if layer.use_bias:
            layer.bias.assign(_numpy(layer.bias) + missing)
        if site.normalisations is not None:
            mean, variance = moments.patch @ kernel, np.sum(kernel * (moments.second @ kernel), axis=0)
            if layer.use_bias:
                mean, missing = mean + _numpy(layer.bias), 0.0
            _adapt(*site.normalisations, mean, variance, mean + missing)

    def _gather(self, site: Site) -> tuple[PairSums, PairSums]:
        """Return the sums over the images to fit, and over those held out."""
        layer = site.convolution
        values = math.prod(layer.kernel.shape[:-1])
        patches = max(PATCHES_PER_VALUE * values, min(MOST_PATCHES, MOST_OPERATIONS / (2 * values**2)))
        per_image = max(1, int(patches) // self._images)
        fitting, held_out = PairSums(values, layer.filters), PairSums(values, layer.filters)
        for inputs, errors in self._pairs(site):
            windows = all_patches(inputs, layer)
            step = max(1, math.isqrt(math.prod(windows.shape[1:3]) // per_image))
            # The images have grids with different offsets, so that all parts of a map count, borders included.
            for offset in range(min(step, len(inputs))):
                images = np.arange(offset, len(inputs), step)
                grid = slice(offset, None, step), slice(offset, None, step)
                is_held_out = np.arange(len(images)) % HELD_OUT == 0
                for sums, chosen in ((fitting, images[~is_held_out]), (held_out, images[is_held_out])):
                    place = chosen, *grid
                    sums.add(windows[place].reshape(-1, values), errors[place].reshape(-1, layer.filters))
        return fitting, held_out

    def _pairs(self, site: Site) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the inputs of a convolution on each batch, and what its output lacks."""
        layer, target = site.convolution, site.target
        is_convolution = isinstance(target, keras.layers.Conv2D)
        of_teacher, of_student = [target.input if is_convolution else target.output], [layer.input]
        gain: Any = 1.0
        if site.shortcuts is not None:
            of_teacher.append(site.shortcuts[0])
            of_student.append(site.shortcuts[1])
        if site.normalisations is not None:
            gain = _gain(site.normalisations[0])
        gain = np.where(np.abs(gain) < SMALLEST_GAIN, np.inf, gain)
        teacher, student = self._of_teacher.values(of_teacher, target), self._of_student.values(of_student, layer)
        for (goal, *shortcut), (inputs, *other) in zip(teacher, student, strict=True):
            errors = (_linear(target, goal) if is_convolution else goal) - _linear(layer, inputs)
            if site.shortcuts is not None:
                errors = errors + (shortcut[0] - other[0]) / gain
            yield inputs, errors


def _adapt(
    reference: keras.layers.BatchNormalization,
    layer: keras.layers.BatchNormalization,
    mean: np.ndarray,
    variance: np.ndarray,
    target_mean: np.ndarray,
) -> None:
    """Give a normalisation the statistics of its new input, and the scale of the teacher's.

    Args:
        reference: of the teacher.
        layer: of the student, changed in place.
        mean: of its input, (channels,).
        variance: likewise.
        target_mean: mean of the target of its input; the output gets the mean that the teacher's makes of it.
    """
    gain = _gain(reference)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    layer.gamma.assign(gain * np.sqrt(variance + layer.epsilon))
    layer.beta.assign(gain * (target_mean - _numpy(reference.moving_mean)) + _numpy(reference.beta))


def _linear(layer: keras.layers.Conv2D, inputs: np.ndarray) -> np.ndarray:
    """Return the output of a convolution before its activation."""
    outputs = _numpy(layer.convolution_op(keras.ops.convert_to_tensor(inputs), layer.kernel))
    return outputs + _numpy(layer.bias) if layer.use_bias else outputs


def _gain(normalisation: keras.layers.BatchNormalization) -> np.ndarray:
    """Return the factor by which a normalisation multiplies each channel in inference mode."""
    return _numpy(normalisation.gamma) / np.sqrt(_numpy(normalisation.moving_variance) + normalisation.epsilon)


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def _flat(kernel: np.ndarray) -> np.ndarray:
    """Return a kernel as (values of a patch, outputs); a patch is ordered channel by channel."""
    return kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])


def _unflat(matrix: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    height, width, inputs, outputs = shape
    return matrix.reshape(inputs, height, width, outputs).transpose(1, 2, 0, 3)
