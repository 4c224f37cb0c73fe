"""Factors of a kernel: exact at full rank, and fitted to inputs better than the singular vectors of the kernel are."""

import itertools

import numpy as np
import pytest

from pbd.blocks import decoupling
from pbd.blocks.decoupling import Factors

Shape = tuple[int, int, int]
SHAPES: list[Shape] = [(4, 9, 6), (3, 7, 12), (5, 4, 3), (1, 9, 8)]


def random_kernel(shape: Shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def inputs_for(shape: Shape, seed: int = 0, correlated: bool = True, count: int = 400) -> np.ndarray:
    """Return patches, (count, channels * positions); correlated ones have a spectrum that falls by 1/n."""
    generator = np.random.default_rng(seed + 1000)
    values = shape[0] * shape[1]
    patches = generator.normal(size=(count, values))
    if correlated:
        basis = np.linalg.qr(generator.normal(size=(values, values)))[0]
        patches = patches / np.arange(1, values + 1) @ basis
    return patches


def moment_of(patches: np.ndarray) -> np.ndarray:
    return patches.T @ patches / len(patches)


def error_of(factors: Factors, kernel: np.ndarray, patches: np.ndarray) -> float:
    """Mean squared error of the output for these patches, summed over the outputs."""
    channels, positions, outputs = kernel.shape
    missed = np.zeros((len(patches), outputs))
    for channel in range(channels):
        seen = patches[:, channel * positions : (channel + 1) * positions]
        filtered = seen @ factors.depthwise[channel]
        missed += seen @ kernel[channel] - filtered @ factors.pointwise[channel]
    return float(np.mean(np.sum(missed**2, axis=1)))


def with_ridge(patches: np.ndarray) -> np.ndarray:
    """Return patches whose second moment is that of the given ones and the ridge that `fit` adds to it."""
    count, values = patches.shape
    ridge = decoupling.RIDGE * np.trace(moment_of(patches)) / values
    rows = np.concatenate([patches, np.sqrt(ridge * count) * np.eye(values)])
    return rows * np.sqrt(len(rows) / count)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_full_rank_gives_the_kernel_back(shape: Shape) -> None:
    kernel = random_kernel(shape)
    for rank in (min(shape[1:]), 99):
        for factors in (
            decoupling.decouple(kernel, rank),
            decoupling.fit(kernel, moment_of(inputs_for(shape)), min(rank, *shape[1:])),
        ):
            assert factors.depthwise.shape == (shape[0], shape[1], min(shape[1:]))
            assert factors.pointwise.shape == (shape[0], min(shape[1:]), shape[2])
            np.testing.assert_allclose(factors.kernel, kernel, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_decoupling_is_the_nearest_kernel_of_its_rank(rank: int) -> None:
    kernel = random_kernel((4, 9, 6))
    tail = np.linalg.svd(kernel, compute_uv=False)[:, rank:]
    missed = decoupling.decouple(kernel, rank).kernel - kernel
    np.testing.assert_allclose(np.sum(missed**2, axis=(1, 2)), np.sum(tail**2, axis=1))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fit_never_does_worse_than_the_singular_vectors(shape: Shape, rank: int) -> None:
    for seed, correlated in itertools.product(range(4), (True, False)):
        kernel, patches = random_kernel(shape, seed), inputs_for(shape, seed, correlated)
        fitted = error_of(decoupling.fit(kernel, moment_of(patches), rank), kernel, patches)
        assert fitted <= error_of(decoupling.decouple(kernel, rank), kernel, patches)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_correlated_inputs_are_fitted_far_better(shape: Shape) -> None:
    """On inputs that the moment was not taken from, too."""
    kernel, patches = random_kernel(shape), inputs_for(shape, count=4000)
    fitted = decoupling.fit(kernel, moment_of(patches[:2000]), 2)
    unseen = patches[2000:]
    assert error_of(fitted, kernel, unseen) < 0.5 * error_of(decoupling.decouple(kernel, 2), kernel, unseen)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_sweep_raises_the_error_and_the_first_lowers_it(shape: Shape, rank: int) -> None:
    kernel, patches = random_kernel(shape), inputs_for(shape)
    moment, ridged = moment_of(patches), with_ridge(patches)
    errors = [error_of(decoupling.decouple(kernel, rank), kernel, ridged)]
    errors += [error_of(decoupling.fit(kernel, moment, rank, sweeps), kernel, ridged) for sweeps in range(7)]
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[1] < 0.99 * errors[0], "the pointwise rows alone"
    assert errors[2] < 0.99 * errors[1], "the depthwise filters too"


def test_channels_that_see_the_same_do_not_make_up_for_each_other_twice() -> None:
    """Each channel's step reckons with those before it: else the sum of all steps overshoots."""
    shape = (4, 9, 6)
    kernel, patches = random_kernel(shape), inputs_for(shape)
    patches += 3.0 * np.tile(patches[:, :9], 4)
    ridged = with_ridge(patches)
    before = decoupling.decouple(kernel, 2)
    after = decoupling._refit_channels(before, kernel, moment_of(ridged))[0]
    assert error_of(after, kernel, ridged) < error_of(before, kernel, ridged)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_signs_do_not_hang_on_the_decomposition(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries, or numbers of threads, give singular vectors the other sign."""
    kernel, moment = random_kernel(shape), moment_of(inputs_for(shape))
    results = decoupling.decouple(kernel, 2), decoupling.fit(kernel, moment, 2)
    decompose, eigen = np.linalg.svd, np.linalg.eigh

    def svd(matrix: np.ndarray, full_matrices: bool) -> tuple[np.ndarray, ...]:
        left, values, right = decompose(matrix, full_matrices=full_matrices)
        return -left, values, -right

    monkeypatch.setattr(np.linalg, "svd", svd)
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: (eigen(matrix)[0], -eigen(matrix)[1]))
    for one, other in zip(results, (decoupling.decouple(kernel, 2), decoupling.fit(kernel, moment, 2)), strict=True):
        np.testing.assert_allclose(one.depthwise, other.depthwise, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(one.pointwise, other.pointwise, rtol=1e-9, atol=1e-12)


def test_the_error_falls_with_the_rank() -> None:
    kernel, patches = random_kernel((4, 9, 6)), inputs_for((4, 9, 6))
    moment = moment_of(patches)
    for factors in (decoupling.decouple, lambda kernel, rank: decoupling.fit(kernel, moment, rank)):
        errors = [error_of(factors(kernel, rank), kernel, patches) for rank in range(1, 7)]
        assert all(after < 0.9 * before for before, after in itertools.pairwise(errors))
        assert errors[-1] < 1e-9 * errors[0]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_channel_is_fitted_as_well_as_can_be(rank: int) -> None:
    """The closed form: the singular values, past the rank, of the kernel in the metric of the moment."""
    kernel, patches = random_kernel((1, 9, 8)), with_ridge(inputs_for((1, 9, 8)))
    values, vectors = np.linalg.eigh(moment_of(patches))
    lowest = np.sum(np.linalg.svd(np.sqrt(values)[:, None] * vectors.T @ kernel[0], compute_uv=False)[rank:] ** 2)
    fitted = decoupling.fit(kernel, moment_of(inputs_for((1, 9, 8))), rank, sweeps=1)
    assert error_of(fitted, kernel, patches) == pytest.approx(lowest, rel=1e-6)


def test_uncorrelated_channels_are_each_fitted_as_well_as_can_be() -> None:
    shape, rank = (3, 6, 5), 2
    kernel = random_kernel(shape)
    moment = np.zeros((18, 18))
    for channel in range(3):
        rows = slice(6 * channel, 6 * channel + 6)
        moment[rows, rows] = (1 + channel) * moment_of(inputs_for((1, 6, 5), seed=channel))
    patches = np.linalg.cholesky(moment + decoupling.RIDGE * np.trace(moment) / 18 * np.eye(18)).T * np.sqrt(18)
    lowest = 0.0
    for channel in range(3):
        root = patches[:, 6 * channel : 6 * channel + 6] / np.sqrt(18)
        lowest += np.sum(np.linalg.svd(root @ kernel[channel], compute_uv=False)[rank:] ** 2)
    fitted = decoupling.fit(kernel, moment, rank, sweeps=1)
    assert error_of(fitted, kernel, patches) == pytest.approx(lowest, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_two_channels_are_fitted_as_well_as_any_search_finds(seed: int) -> None:
    """Two positions and rank one: a filter is a direction, so all pairs of directions can be tried."""
    shape = (2, 2, 3)
    kernel, patches = random_kernel(shape, seed), inputs_for(shape, seed)
    ridged = with_ridge(patches)
    outputs = ridged @ kernel.reshape(4, 3)
    angles = np.linspace(0, np.pi, 90, endpoint=False)
    lowest = np.inf
    for one, two in itertools.product(angles, angles):
        filters = np.zeros((4, 2))
        filters[:2, 0], filters[2:, 1] = (np.cos(one), np.sin(one)), (np.cos(two), np.sin(two))
        gram, right = filters.T @ ridged.T @ ridged @ filters, filters.T @ ridged.T @ outputs
        error = (np.sum(outputs**2) - np.sum(right * np.linalg.solve(gram, right))) / len(ridged)
        lowest = min(lowest, error)
    fitted = error_of(decoupling.fit(kernel, moment_of(patches), 1, sweeps=60), kernel, ridged)
    assert fitted <= 1.02 * lowest


def degenerate(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel and the moment of inputs, one of which says little or nothing."""
    shape = (4, 9, 6)
    kernel, patches = random_kernel(shape), inputs_for(shape)
    if case == "only zeros":
        patches = np.zeros_like(patches)
    elif case == "a channel of zeros":
        patches[:, 9:18] = 0.0
    elif case == "fewer patches than values":
        patches = patches[:5]
    elif case == "equal channels":
        patches[:, 9:18] = patches[:, :9]
    elif case == "tiny":
        patches = patches * 1e-12
    elif case == "a zero channel of the kernel":
        kernel[1] = 0.0
    elif case == "a zero kernel":
        kernel[:] = 0.0
    return kernel, moment_of(patches)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "case",
    [
        "only zeros",
        "a channel of zeros",
        "fewer patches than values",
        "equal channels",
        "tiny",
        "a zero channel of the kernel",
        "a zero kernel",
    ],
)
def test_inputs_or_kernels_that_say_nothing_give_finite_factors(case: str, precision: str) -> None:
    kernel, moment = degenerate(case)
    scale = np.abs(kernel).max()
    for rank in (1, 3, 6):
        factors = decoupling.fit(kernel, moment.astype(precision).astype(np.float64), rank)
        assert np.isfinite(factors.depthwise.astype(np.float32)).all()
        assert np.isfinite(factors.pointwise.astype(np.float32)).all()
        assert np.abs(factors.kernel).max() <= 10 * scale, "the ridge keeps unseen directions small"
    assert np.abs(decoupling.decouple(kernel, 2).kernel).max() <= 10 * scale


def test_the_ridge_keeps_few_images_from_being_learned_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (4, 9, 6)
    kernel, patches = random_kernel(shape), inputs_for(shape, correlated=False, count=2000)
    seen, unseen = patches[:20], patches[20:]
    ridged = decoupling.fit(kernel, moment_of(seen), 2)
    monkeypatch.setattr(decoupling, "RIDGE", 1e-9)
    unridged = decoupling.fit(kernel, moment_of(seen), 2)
    assert error_of(unridged, kernel, seen) < error_of(ridged, kernel, seen)
    assert error_of(ridged, kernel, unseen) < 0.9 * error_of(unridged, kernel, unseen)
