"""Factors through fewer channels: exact at full rank, and fitted to the inputs better than the SVD and HOSVD are."""

import itertools

import numpy as np
import pytest

from pbd.blocks import low_rank
from pbd.blocks.decoupling import RIDGE
from pbd.blocks.low_rank import Factors

Ranks = tuple[int, int | None]
SVD, TUCKER = (12, 3, 6), (4, 9, 6)
"""A kernel of 4 input channels, 3 x 3 positions and 6 outputs, indexed for spatial SVD and for Tucker-2."""
CASES: list[tuple[tuple[int, int, int], Ranks]] = [
    (SVD, (3, None)),
    (SVD, (6, None)),
    (TUCKER, (2, 3)),
    (TUCKER, (3, 2)),
    ((5, 7, 3), (1, 1)),
    ((7, 1, 5), (2, None)),
]


def random_kernel(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def moment_for(shape: tuple[int, int, int], seed: int = 0, correlated: bool = True, count: int = 400) -> np.ndarray:
    """Return the second moment of inputs; correlated ones have a spectrum that falls by 1/n, as images have."""
    generator = np.random.default_rng(seed + 1000)
    values = shape[0] * shape[1]
    patches = generator.normal(size=(count, values))
    if correlated:
        patches = patches / np.arange(1, values + 1) @ np.linalg.qr(generator.normal(size=(values, values)))[0]
    return patches.T @ patches / count


def ridged(moment: np.ndarray) -> np.ndarray:
    """Return the moment with the ridge that `fit` adds to it."""
    return moment + RIDGE * np.trace(moment) / len(moment) * np.eye(len(moment))


def kronecker(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return a moment that with its ridge is a Kronecker product."""
    generator = np.random.default_rng(seed)
    roots = [generator.normal(size=(size, 2 * size)) / np.arange(1, 2 * size + 1) for size in shape[:2]]
    product = np.kron(*(root @ root.T + 0.1 * np.eye(len(root)) for root in roots))
    share = RIDGE / (1 + RIDGE)
    return product - share * np.trace(product) / len(product) * np.eye(len(product))


def error_of(kernel: np.ndarray, approximation: np.ndarray, moment: np.ndarray) -> float:
    residual = (kernel - approximation).reshape(len(moment), -1)
    return float(np.trace(residual.T @ moment @ residual))


def reference(kernel: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Return the truncated SVD or HOSVD of the kernel, by projections on its singular vectors."""
    first = np.linalg.svd(kernel.reshape(len(kernel), -1))[0][:, : ranks[0]]
    projected = np.einsum("mn,nqo->mqo", first @ first.T, kernel)
    if ranks[1] is None:
        return projected
    last = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[2][: ranks[1]]
    return projected @ last.T @ last


@pytest.mark.parametrize(("shape", "ranks"), [(SVD, (12, None)), (TUCKER, (4, 6)), ((4, 3, 20), (4, 12))])
def test_full_rank_gives_the_kernel_back(shape: tuple[int, int, int], ranks: Ranks) -> None:
    kernel = random_kernel(shape)
    for factors in (low_rank.truncate(kernel, *ranks), low_rank.fit(kernel, moment_for(shape), *ranks)):
        np.testing.assert_allclose(factors.kernel, kernel, atol=1e-6)


@pytest.mark.parametrize(("shape", "ranks"), CASES, ids=str)
def test_truncation_is_the_svd_or_hosvd_of_the_kernel(shape: tuple[int, int, int], ranks: Ranks) -> None:
    kernel = random_kernel(shape)
    np.testing.assert_allclose(low_rank.truncate(kernel, *ranks).kernel, reference(kernel, ranks), atol=1e-12)


@pytest.mark.parametrize(("shape", "ranks"), CASES, ids=str)
def test_the_factors_have_their_ranks(shape: tuple[int, int, int], ranks: Ranks) -> None:
    kernel, moment = random_kernel(shape), moment_for(shape)
    for factors in (low_rank.truncate(kernel, *ranks), low_rank.fit(kernel, moment, *ranks)):
        assert factors.first.shape == (shape[0], ranks[0])
        assert factors.rest.shape == (ranks[0], *shape[1:])
        if ranks[1] is not None:
            core, last = low_rank.split_outputs(factors.rest, ranks[1])
            assert (core.shape, last.shape) == ((ranks[0], shape[1], ranks[1]), (ranks[1], shape[2]))
            np.testing.assert_allclose(core @ last, factors.rest, atol=1e-9)


@pytest.mark.parametrize(("shape", "ranks"), CASES, ids=str)
def test_the_fit_is_never_worse_than_the_svd_and_far_better_on_correlated_inputs(
    shape: tuple[int, int, int], ranks: Ranks
) -> None:
    for seed, correlated in itertools.product(range(5), (True, False)):
        kernel, moment = random_kernel(shape, seed), ridged(moment_for(shape, seed, correlated))
        fitted = error_of(kernel, low_rank.fit(kernel, moment_for(shape, seed, correlated), *ranks).kernel, moment)
        truncated = error_of(kernel, reference(kernel, ranks), moment)
        assert fitted <= truncated * (1 + 1e-9)
        assert not correlated or fitted < 0.7 * truncated


@pytest.mark.parametrize(("shape", "ranks"), CASES, ids=str)
def test_no_sweep_raises_the_error(shape: tuple[int, int, int], ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "FLAT", 0.0)
    kernel, moment = random_kernel(shape), moment_for(shape)
    errors = [
        error_of(kernel, low_rank.fit(kernel, moment, *ranks, sweeps).kernel, ridged(moment)) for sweeps in range(6)
    ]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize(("shape", "ranks"), CASES, ids=str)
def test_after_many_sweeps_no_small_step_lowers_the_error(
    shape: tuple[int, int, int], ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "FLAT", 0.0)
    kernel, moment = random_kernel(shape), moment_for(shape)
    fitted = low_rank.fit(kernel, moment, *ranks, sweeps=2000)
    lowest = error_of(kernel, fitted.kernel, ridged(moment))
    parts = (
        [fitted.first, fitted.rest]
        if ranks[1] is None
        else [fitted.first, *low_rank.split_outputs(fitted.rest, ranks[1])]
    )
    generator = np.random.default_rng(0)
    for part, size in itertools.product(range(len(parts)), (1e-2, 1e-3)):
        for _ in range(20):
            moved = list(parts)
            moved[part] = moved[part] + size * np.abs(moved[part]).mean() * generator.normal(size=moved[part].shape)
            rest = moved[1] if len(moved) == 2 else moved[1] @ moved[2]
            assert error_of(kernel, Factors(moved[0], rest).kernel, ridged(moment)) > lowest * (1 - 1e-7)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_fit_is_the_best_there_is_if_the_moment_is_a_kronecker_product(rank: int) -> None:
    """The closed form: the singular values, past the rank, of the kernel in the metric of the moment."""
    kernel, moment = random_kernel(SVD), kronecker(SVD)
    full = ridged(moment).reshape(12, 3, 12, 3)
    first, rest = full[:, 0, :, 0] / full[0, 0, 0, 0], full[0, :, 0, :]
    np.testing.assert_allclose(np.kron(first, rest), ridged(moment), atol=1e-9)
    weighted = np.einsum("nm,nqo,qp->mpo", np.linalg.cholesky(first), kernel, np.linalg.cholesky(rest))
    lowest = np.sum(np.linalg.svd(weighted.reshape(12, -1), compute_uv=False)[rank:] ** 2)
    fitted = low_rank.fit(kernel, moment, rank, sweeps=0)
    assert error_of(kernel, fitted.kernel, ridged(moment)) == pytest.approx(lowest, rel=1e-6)


def test_the_error_falls_with_the_rank() -> None:
    kernel, moment = random_kernel(SVD), moment_for(SVD)
    errors = [error_of(kernel, low_rank.fit(kernel, moment, rank).kernel, ridged(moment)) for rank in range(1, 13)]
    assert all(after < 0.9 * before for before, after in itertools.pairwise(errors))


def test_signs_do_not_depend_on_the_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries, or numbers of threads, give singular vectors and eigenvectors the other sign."""
    kernel, moment = random_kernel(TUCKER), moment_for(TUCKER)
    decompose, eigen = np.linalg.svd, np.linalg.eigh

    def factors() -> list[np.ndarray]:
        fitted = low_rank.fit(kernel, moment, 2, 3)
        return [fitted.first, fitted.rest, *low_rank.split_outputs(fitted.rest, 3)]

    def svd(matrix: np.ndarray, full_matrices: bool) -> tuple[np.ndarray, ...]:
        left, values, right = decompose(matrix, full_matrices=full_matrices)
        return -left, values, -right

    before = factors()
    monkeypatch.setattr(np.linalg, "svd", svd)
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: (eigen(matrix)[0], -eigen(matrix)[1]))
    for one, other in zip(before, factors(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["only zeros", "a channel of zeros", "few patches", "tiny", "huge", "a zero kernel"])
@pytest.mark.parametrize(("shape", "ranks"), CASES[:4], ids=str)
def test_inputs_or_kernels_that_say_nothing_give_finite_factors(
    shape: tuple[int, int, int], ranks: Ranks, case: str
) -> None:
    kernel, moment = random_kernel(shape), moment_for(shape, count=5 if case == "few patches" else 400)
    if case == "a channel of zeros":
        moment[:9] = moment[:, :9] = 0.0
    elif case == "a zero kernel":
        kernel[:] = 0.0
    moment = moment * {"only zeros": 0.0, "tiny": 1e-24, "huge": 1e12}.get(case, 1.0)
    for factors in (low_rank.fit(kernel, moment, *ranks), low_rank.truncate(kernel, *ranks)):
        assert np.isfinite(factors.first.astype(np.float32)).all()
        assert np.isfinite(factors.rest.astype(np.float32)).all()
        assert np.abs(factors.kernel).max() <= 10 * np.abs(kernel).max(), "the ridge keeps unseen directions small"
