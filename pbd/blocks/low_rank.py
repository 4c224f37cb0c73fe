"""Factor a convolution through fewer channels: spatial SVD and Tucker-2, in NumPy alone.

A kernel is an array K[m, q, o]. The first convolution of the block has the kernel indices m, what follows it has the
positions q and the outputs o. The block computes the convolution with the kernel

    X[m, q, o] = sum_r V[m, r] B[r, q, o],    r = 1 ... R,

where V is the first convolution, to R channels, and B the rest.

* Spatial SVD (Jaderberg et al. 2014, arXiv:1405.3866): m is input channel and row, q is the column, and B is one
  convolution.
* Tucker-2 (Kim et al. 2016, arXiv:1511.06530): m is the input channel, q is row and column, and B has rank R2 as a
  matrix, (r, q) by o: a convolution to R2 channels and a pointwise convolution to the outputs.

`truncate` minimises the error of the kernel, |K - X|: a truncated SVD or HOSVD. `fit` minimises the error of the
layer's *output*, as Zhang et al. 2015 (arXiv:1505.06798) do for other factorisations. If p is an input patch, indexed
by m and q, that error is quadratic in the kernel:

    E |K^T p - X^T p|^2 = tr((K - X)^T M (K - X)),    M = E[p p^T].
"""

from dataclasses import dataclass

import numpy as np

from pbd.blocks.decoupling import RIDGE

SWEEPS = 8
"""Most sweeps of `fit`."""
FLAT = 0.01
"""The sweeps end when one lowers the error by less than this fraction of it."""
STEPS = 5
"""Conjugate gradient steps for the first convolution, per sweep."""


@dataclass(frozen=True)
class Factors:
    """First convolution V, (m, rank), and the rest B, (rank, q, outputs)."""

    first: np.ndarray
    rest: np.ndarray

    @property
    def kernel(self) -> np.ndarray:
        """The kernel of the convolution that the factors compute together, (m, q, outputs)."""
        return np.tensordot(self.first, self.rest, axes=1)


def truncate(kernel: np.ndarray, rank: int, output_rank: int | None = None) -> Factors:
    """Return the factors nearest to the kernel itself.

    Without `output_rank` this is the truncated SVD, the best approximation of its rank (Eckart and Young 1936). With
    it, it is the truncated higher-order SVD: the kernel is projected on the leading singular vectors of both of its
    unfoldings (De Lathauwer et al. 2000).

    Args:
        kernel: (m, q, outputs).
        rank: channels after the first convolution.
        output_rank: rank of the rest as a matrix, (rank q) by outputs; by default unlimited.
    """
    first = _left_vectors(_by_first(kernel), rank)
    rest = np.tensordot(first.T, kernel, axes=1)
    if output_rank is not None:
        last = _left_vectors(_by_output(kernel).T, output_rank)
        rest = rest @ last @ last.T
    return _balanced(first, rest)


def fit(
    kernel: np.ndarray, moment: np.ndarray, rank: int, output_rank: int | None = None, sweeps: int = SWEEPS
) -> Factors:
    """Return factors that minimise the error of the output on inputs with this second moment; a local minimum.

    Two minimisations alternate: the rest for a fixed first convolution, in closed form, and the first convolution for
    a fixed rest, by conjugate gradients. Neither can raise the error. They start from the better of two first
    convolutions, that of `truncate` and that of the weighted kernel (`_weighted_vectors`), so the result is never
    worse than `truncate`.

    Args:
        kernel: (m, q, outputs).
        moment: mean of p p^T over input patches p, (m q, m q), with q the faster index.
        rank: channels after the first convolution; at most the number of rows m, and q times the outputs.
        output_rank: rank of the rest as a matrix, (rank q) by outputs; by default unlimited.
        sweeps: most repetitions of both minimisations.
    """
    problem = _Problem.of(kernel, moment, output_rank)
    starts = [_left_vectors(_by_first(kernel), rank), _weighted_vectors(problem, rank)]
    solutions = [(first, *problem.best_rest(first)) for first in starts]
    first, rest, error = min(solutions, key=lambda solution: solution[2])
    for _ in range(sweeps):
        # The span of V alone matters, since the rest is fitted to V: orthonormal columns are the best conditioned.
        new_first = np.linalg.qr(problem.better_first(first, rest))[0]
        new_rest, new_error = problem.best_rest(new_first)
        if new_error >= error:  # by rounding, at the minimum
            break
        before, first, rest, error = error, new_first, new_rest, new_error
        if error > (1.0 - FLAT) * before:
            break
    return _balanced(first, rest)


def split_outputs(rest: np.ndarray, output_rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a core, (rank, q, output rank), and a pointwise kernel, (output rank, outputs), whose product is `rest`.

    Args:
        rest: (rank, q, outputs), of rank `output_rank` as a matrix, (rank q) by outputs.
        output_rank: see `fit`.
    """
    left, values, right = np.linalg.svd(_by_output(rest), full_matrices=False)
    root = np.sqrt(values[:output_rank])
    core, last = left[:, :output_rank] * root, root[:, None] * right[:output_rank]
    signs = _signs(last.T)
    return (core * signs).reshape(*rest.shape[:2], -1), last * signs[:, None]


@dataclass(frozen=True)
class _Problem:
    """The kernel to approximate, in the metric of the inputs' second moment."""

    kernel: np.ndarray
    """K, (m, q, outputs)."""
    moment: np.ndarray
    """M with a ridge, (m, q, m q)."""
    cross_moment: np.ndarray
    """M K, (m, q, outputs)."""
    energy: float
    """tr(K^T M K): the error of the zero kernel."""
    output_rank: int | None
    first_moment: np.ndarray
    """The sum of M over equal q, (m, m)."""
    rest_moment: np.ndarray
    """The sum of M over equal m, (q, q)."""

    @classmethod
    def of(cls, kernel: np.ndarray, moment: np.ndarray, output_rank: int | None) -> "_Problem":
        rows, columns, _ = kernel.shape
        # Positive even if all inputs are zero, so that the moments have Cholesky factors.
        ridge = RIDGE * np.trace(moment) / len(moment) + np.finfo(np.float32).tiny
        ridged = moment + ridge * np.eye(len(moment))
        by_indices = ridged.reshape(rows, columns, rows, columns)
        cross_moment = (ridged @ _by_output(kernel)).reshape(kernel.shape)
        return cls(
            kernel,
            ridged.reshape(rows, columns, -1),
            cross_moment,
            float(np.sum(kernel * cross_moment)),
            output_rank,
            np.einsum("mqnq->mn", by_indices),
            np.einsum("mqmp->qp", by_indices),
        )

    def best_rest(self, first: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the rest that minimises the error for a fixed first convolution, and that error.

        The first convolution gives the features F^T p, with F = V x I. Their regression on the outputs solves
        F^T M F B = F^T M K. Of a limited rank, the best regression projects that one on the leading eigenvectors of
        the covariance of its outputs, B^T F^T M F B (reduced-rank regression, Izenman 1975).
        """
        rank, columns = first.shape[1], self.kernel.shape[1]
        half = np.tensordot(first.T, self.moment, axes=1).reshape(rank * columns, len(first), columns)
        gram = np.einsum("amq,mr->arq", half, first, optimize=True).reshape(rank * columns, rank * columns)
        # Inputs that are always zero make the Gram matrix singular in the last digits.
        gram += (1e-12 * np.trace(gram) / len(gram)) * np.eye(len(gram))
        right = _by_output(np.tensordot(first.T, self.cross_moment, axes=1))
        rest = np.linalg.solve(gram, right)
        explained = right.T @ rest
        if self.output_rank is not None:
            last = np.linalg.eigh((explained + explained.T) / 2)[1][:, -self.output_rank :]
            rest = rest @ last @ last.T
            explained = last.T @ explained @ last
        return rest.reshape(rank, columns, -1), self.energy - float(np.trace(explained))

    def better_first(self, first: np.ndarray, rest: np.ndarray) -> np.ndarray:
        """Return a first convolution of a smaller error for a fixed rest, by preconditioned conjugate gradients.

        The normal equations, sum_pn M[mp, nq] V[n, r] N[rq, sp] = (M K B^T)[m, s] with N = B B^T, have m x rank
        unknowns, too many for a direct solution. If M is the Kronecker product of a moment over m and one over q, the
        preconditioner is the exact inverse. Every step lowers the error.
        """
        rank, columns = rest.shape[:2]
        flat = rest.reshape(rank * columns, -1)
        gram = (flat @ flat.T).reshape(rank, columns, rank, columns)
        pairs = np.ascontiguousarray(gram.transpose(3, 0, 1, 2)).reshape(columns, rank, columns * rank)

        def product(direction: np.ndarray) -> np.ndarray:
            terms = (self.moment[:, p] @ (direction @ pairs[p]).reshape(-1, rank) for p in range(columns))
            return np.sum(list(terms), axis=0)

        weights = np.einsum("qp,rqsp->rs", self.rest_moment, gram)
        weights += (1e-9 * np.trace(weights) / rank + np.finfo(np.float64).tiny) * np.eye(rank)

        def preconditioned(residual: np.ndarray) -> np.ndarray:
            return np.linalg.solve(weights, np.linalg.solve(self.first_moment, residual).T).T

        residual = _by_first(self.cross_moment) @ _by_first(rest).T - product(first)
        direction = preconditioned(residual)
        size = float(np.sum(residual * direction))
        negligible = 1e-12 * size
        for _ in range(STEPS):
            image = product(direction)
            curvature = float(np.sum(direction * image))
            if size <= negligible or curvature <= 0.0:
                break
            first = first + (size / curvature) * direction
            residual = residual - (size / curvature) * image
            scaled = preconditioned(residual)
            size, before = float(np.sum(residual * scaled)), size
            direction = scaled + (size / before) * direction
        return first


def _weighted_vectors(problem: _Problem, rank: int) -> np.ndarray:
    """Return the first convolution that is best if M is the Kronecker product S x T of moments over m and over q.

    With S = L L^T and T = C C^T, the error is then |L^T (K - X) C|^2, so V is L^-T times the leading left singular
    vectors of L^T K C. For a limited rank of the outputs, K is first projected on the leading eigenvectors of the
    covariance of the outputs, K^T M K.
    """
    kernel = problem.kernel
    if problem.output_rank is not None:
        covariance = _by_output(kernel).T @ _by_output(problem.cross_moment)
        last = np.linalg.eigh((covariance + covariance.T) / 2)[1][:, -problem.output_rank :]
        kernel = kernel @ last
    first_root, rest_root = np.linalg.cholesky(problem.first_moment), np.linalg.cholesky(problem.rest_moment)
    weighted = np.einsum("nm,nqo,qp->mpo", first_root, kernel, rest_root, optimize=True)
    return np.linalg.qr(np.linalg.solve(first_root.T, _left_vectors(_by_first(weighted), rank)))[0]


def _balanced(first: np.ndarray, rest: np.ndarray) -> Factors:
    """Write the same kernel with equal norms of each column of V and its rows of B, by the SVD of their product."""
    basis, mixing = np.linalg.qr(first)
    left, values, right = np.linalg.svd(mixing @ _by_first(rest), full_matrices=False)
    root = np.sqrt(values)
    first = basis @ left * root
    signs = _signs(first)
    return Factors(first * signs, (right * (root * signs)[:, None]).reshape(-1, *rest.shape[1:]))


def _signs(columns: np.ndarray) -> np.ndarray:
    """Return the signs that make the largest value of each column positive: those of an SVD depend on rounding."""
    largest = np.take_along_axis(columns, np.argmax(np.abs(columns), axis=0)[None], axis=0)[0]
    return np.copysign(1.0, largest)


def _left_vectors(matrix: np.ndarray, count: int) -> np.ndarray:
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :count]


def _by_first(kernel: np.ndarray) -> np.ndarray:
    """Return the unfolding (m, q outputs)."""
    return kernel.reshape(len(kernel), -1)


def _by_output(kernel: np.ndarray) -> np.ndarray:
    """Return the unfolding (m q, outputs)."""
    return kernel.reshape(-1, kernel.shape[-1])
