"""Correct the convolutions of a student by least squares, from the first to the last."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from pbd.collective import SINGLE, Collective
from pbd.networks.progressive import ProgressiveRun
from pbd.records import Progress, ProgressCallback, no_progress
from pbd.student.refit.regression import Moments, choose_ridge
from pbd.student.refit.samples import Maps, Samples, take
from pbd.student.refit.sites import Site, find_sites

SMALLEST_GAIN = 1e-3
"""A channel that its normalisation multiplies by less than this cannot make up for what its shortcut lacks."""
RECTIFIED_STEPS = 2
"""Further regressions of an output that is rectified; more improve little."""
RECTIFIED_FROM = 0.01
"""Share of the output's mean square that the first regression leaves, from where on there are further ones."""


def refit(
    student: keras.Model,
    teacher: keras.Model,
    ends: Mapping[str, str],
    batches: Sequence[Any],
    collective: Collective = SINGLE,
    rectified: bool = True,
    emit: ProgressCallback = no_progress,
) -> None:
    """Correct the convolutions of a student in place, each on what the student computes before it.

    The target of a convolution is the teacher's feature map at its place. If a shortcut is added to it, the target of
    the sum is that of the teacher. If the output is rectified, only the output of the rectifier counts (Zhang et al.
    2015, arXiv:1505.06798): where the teacher's is 0, any negative value is as good. A batch normalisation behind the
    convolution gets the statistics of the new outputs, and a scale and shift with which it computes what the teacher's
    normalisation would make of them.

    Args:
        student: flat and functional, before unread channels are removed.
        teacher: flat and functional.
        ends: by name of each replaced layer, the name of the student's layer whose output is that of its block.
        batches: this worker's training images, preprocessed.
        collective: the workers that have the other images.
        rectified: whether it counts that outputs are rectified; it takes three times as long.
        emit: called with the number of convolutions refitted.
    """
    run, sites = _Refitting(teacher, student, batches, collective, rectified), find_sites(teacher, student, ends)
    for number, site in enumerate(sites):
        emit(Progress(0, f"refitting {site.convolution.name}", number, len(sites)))
        run.correct(site)


@dataclass(frozen=True)
class _Behind:
    """What a convolution's output becomes: gain * output + shift + what a shortcut adds, and perhaps a rectifier."""

    gain: np.ndarray
    """(channels,) or one for all."""
    shift: np.ndarray
    """Likewise."""
    has_shift: bool
    """Whether any offset can be added to the output: by a bias, or a normalisation."""
    is_rectified: bool

    @classmethod
    def of(cls, site: Site) -> "_Behind":
        """Return what is behind a convolution in the teacher."""
        if site.normalisations is None:
            return cls(np.ones(()), np.zeros(()), site.convolution.use_bias, site.is_rectified)
        reference = site.normalisations[0]
        gain = _gain(reference)
        shift = _numpy(reference.beta) - gain * _numpy(reference.moving_mean)
        return cls(gain, shift, True, site.is_rectified)

    def __call__(self, outputs: np.ndarray) -> np.ndarray:
        """Return what outputs become, before anything is added."""
        return outputs * self.gain.astype(np.float32) + self.shift.astype(np.float32)

    def residual(self, samples: Samples, kernel: np.ndarray, output: np.ndarray, rectified: bool) -> np.ndarray:
        """Return the target minus the output of a kernel, divided by the gain, (places, channels).

        Args:
            samples: inputs and targets.
            kernel: (values, channels).
            output: its mean output, which is added to that of the patches, (channels,).
            rectified: whether only the rectified output counts.
        """
        value = self(samples.patches @ kernel.astype(np.float32) + output.astype(np.float32))
        if samples.added is not None:
            value = value + samples.added
        target = samples.target
        if rectified:
            # The nearest value with the teacher's rectified output: a majorant of the error that touches it.
            target = np.where(target > 0, target, np.minimum(value, 0))
        gain = np.where(np.abs(self.gain) < SMALLEST_GAIN, np.inf, self.gain)
        return (target - value) / gain.astype(np.float32)


class _Refitting:
    """One pass over the convolutions of a student."""

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        batches: Sequence[Any],
        collective: Collective,
        rectified: bool,
    ) -> None:
        self._collective, self._rectified = collective, rectified
        self._of_teacher, self._of_student = ProgressiveRun(teacher, batches), ProgressiveRun(student, batches)
        images = np.array([float(sum(map(len, batches)))])
        self._images = int(collective.all_reduce_sum(images)[0])

    def correct(self, site: Site) -> None:
        """Correct one convolution, and the normalisation behind it."""
        layer, behind = site.convolution, _Behind.of(site)
        if not self._rectified:
            behind = replace(behind, is_rectified=False)
        values = math.prod(layer.kernel.shape[:-1])
        samples = take(self._maps(site), layer, self._images, values, layer.filters)
        mean = samples.centre(self._collective) if behind.has_shift else np.zeros(values)
        kernel, bias = _flat(_numpy(layer.kernel)), _numpy(layer.bias) if layer.use_bias else np.zeros(layer.filters)
        kernel, output, second = self._regressed(samples, behind, kernel, mean @ kernel + bias)
        layer.kernel.assign(_unflat(kernel, layer.kernel.shape))
        if layer.use_bias:
            bias = output - mean @ kernel
            layer.bias.assign(bias)
        if site.normalisations is not None:
            variance = np.sum(kernel * (second @ kernel), axis=0)
            _adapt(*site.normalisations, mean @ kernel + bias, variance, output)

    def _regressed(
        self, samples: Samples, behind: _Behind, kernel: np.ndarray, output: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a better kernel, its mean output, and the second moment of the patches.

        Args:
            samples: inputs and targets.
            behind: what is behind the convolution.
            kernel: the kernel before, (values, channels).
            output: its mean output, (channels,).
        """
        errors = behind.residual(samples, kernel, output, rectified=False)
        parts = samples.parts(errors)
        fitting, held_out = (Moments.of(*pairs, behind.has_shift, self._collective) for pairs in parts)
        ridge, moments = choose_ridge(fitting, held_out), fitting + held_out
        change, output = np.zeros(kernel.shape), output + moments.shift
        if ridge is not None:
            solve = moments.solver(ridge)
            change = solve(moments.covariance)
            further = behind.is_rectified and moments.share_left(kernel, change) > RECTIFIED_FROM
            for _ in range(RECTIFIED_STEPS if further else 0):
                errors = behind.residual(samples, kernel + change, output, rectified=True)
                moments = moments.with_errors(samples.patches, errors, self._collective)
                # The ridge is on the whole change, not on that of this step.
                change, output = solve(moments.covariance + moments.second @ change), output + moments.shift
        return kernel + change, output, moments.second

    def _maps(self, site: Site) -> Iterator[Maps]:
        """Yield the feature maps around a convolution on each batch, with the target behind the normalisation."""
        layer, target, behind = site.convolution, site.target, _Behind.of(site)
        is_convolution = isinstance(target, keras.layers.Conv2D)
        of_teacher, of_student = [target.input if is_convolution else target.output], [layer.input]
        if site.shortcuts is not None:
            of_teacher.append(site.shortcuts[0])
            of_student.append(site.shortcuts[1])
        teacher, student = self._of_teacher.values(of_teacher, target), self._of_student.values(of_student, layer)
        for (goal, *shortcut), (inputs, *other) in zip(teacher, student, strict=True):
            goal = behind(_linear(target, goal) if is_convolution else goal)
            yield Maps(inputs, other[0], goal + shortcut[0]) if shortcut else Maps(inputs, None, goal)


def _adapt(
    reference: keras.layers.BatchNormalization,
    layer: keras.layers.BatchNormalization,
    mean: np.ndarray,
    variance: np.ndarray,
    target_mean: np.ndarray,
) -> None:
    """Give a normalisation the statistics of its new input, and the scale of the teacher's.

    Args:
        reference: the normalisation of the teacher.
        layer: the normalisation of the student, changed in place.
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
