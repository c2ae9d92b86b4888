"""Distances between samples, and between samples and an energy, each with a test.

The maximum mean discrepancy compares two sets by a kernel k(x, y) = exp(−‖x − y‖²/2h²):

    MMD² = E k(x, x′) + E k(y, y′) − 2 E k(x, y).

The kernel Stein discrepancy compares a set with an energy by its score s = −∇E, so it needs neither log Z nor draws of
the model: E u(x, x′) with the kernel

    u(x, y) = s(x)ᵀs(y) k + s(x)ᵀ∇_y k + s(y)ᵀ∇_x k + tr ∇_x∇_y k,

whose mean is zero if x ~ exp(−E). Both are zero if the distributions are equal. The estimates are U-statistics, which
are unbiased and may be negative. The variance of a U-statistic is 4ζ₁/n + 2ζ₂/n² (Hoeffding 1948), where ζ₁ is the
variance of the mean of u over the second argument, which is zero if the distributions are equal, and ζ₂ that of u. The
sample's means over rows have the variance ζ₁ + ζ₂/n, and the test's resampling has 2ζ₂/n², so the variance is four
times the first over n, minus the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.evaluation import densities
from tfp_ebm.random import stateless_seed
from tfp_ebm.types import ArrayLike, EnergyLike, Seed

# Largest number of entries of the kernel matrix held at a time.
_BLOCK_NUMBERS = 4_000_000
# Number of rows used for the median distance.
_MEDIAN_ROWS = 2000


class Discrepancy(NamedTuple):
    """A squared discrepancy and its test.

    Attributes:
      value: the unbiased estimate; it may be negative if the distributions are close.
      standard_error: the standard error of `value`.
      p_value: the probability of a value at least as large if the distributions are equal.
      bandwidth: the bandwidth of the kernel.
    """

    value: float
    standard_error: float
    p_value: float
    bandwidth: float


def mmd(
    x: ArrayLike, y: ArrayLike, bandwidth: float | None = None, num_permutations: int = 200, seed: Seed = 0
) -> Discrepancy:
    """Computes the squared maximum mean discrepancy of two samples, and a permutation test of equal distributions.

    The level of the test is exact if all rows are independent; the states of one chain are not.

    Args:
      x, y: `[rows, *event]`, at least two rows each.
      bandwidth: h; default: the median distance between rows of both.
      num_permutations: number of permutations in the test; p is at least 1/(num_permutations + 1).
      seed: seed of the permutations, int or int32[2].

    Raises:
      TypeError, ValueError: if a set is empty, not finite, of another event shape, or all rows of both are equal.

    References:
      A. Gretton et al., A kernel two-sample test, JMLR 13, 2012.

    >>> rng = np.random.default_rng(0)
    >>> near = mmd(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)))
    >>> far = mmd(rng.normal(size=(200, 2)), 1.0 + rng.normal(size=(200, 2)))
    >>> near.p_value > 0.05, far.p_value < 0.01, abs(near.value) < 4 * near.standard_error < far.value
    (True, True, True)
    """
    x, y = check_data("x", x, min_rows=2), check_data("y", y, min_rows=2)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"`x` and `y` must have the same event shape, got {x.shape[1:]} and {y.shape[1:]}.")
    num_permutations = check_count("num_permutations", num_permutations)
    n, m = len(x), len(y)
    rows = np.concatenate([x.reshape(n, -1), y.reshape(m, -1)]).astype(np.float64)
    rng = _generator(seed)
    width = _bandwidth(rows, bandwidth, rng)
    # column 0 marks the rows of x, the others are permutations of it
    is_x = np.zeros([n + m, num_permutations + 1])
    is_x[:n, 0] = 1.0
    for column in range(1, num_permutations + 1):
        is_x[rng.permutation(n + m)[:n], column] = 1.0
    products, sums = np.empty_like(is_x), np.empty(n + m)
    for block, squares in _squared_distances(rows):
        kernel = np.exp(-squares / (2 * width**2))
        kernel[np.arange(block.stop - block.start), np.arange(block.start, block.stop)] = 0.0
        products[block], sums[block] = kernel @ is_x, kernel.sum(1)
    within_x = np.sum(is_x * products, 0)
    across = np.sum(products, 0) - within_x
    within_y = np.sum(sums) - within_x - 2 * across
    values = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)
    to_x, to_y = products[:, 0], sums - products[:, 0]
    of_x = to_x[:n] / (n - 1) - to_y[:n] / m
    of_y = to_y[n:] / (m - 1) - to_x[n:] / n
    first = float(4 * (np.var(of_x, ddof=1) / n + np.var(of_y, ddof=1) / m))
    return _discrepancy(values, first, width)


def kernel_stein_discrepancy(
    energy_fn: EnergyLike, x: ArrayLike, bandwidth: float | None = None, num_bootstraps: int = 200, seed: Seed = 0
) -> Discrepancy:
    """Computes the squared kernel Stein discrepancy of rows and an energy, and a bootstrap test of x ~ exp(−E)/Z.

    The kernel is the inverse multiquadric k = (1 + ‖x − y‖²/h²)^(−½), which detects in any dimension that a sequence of
    samples does not converge. Like all measures based on scores, it hardly depends on the weights of separated modes.

    Args:
      energy_fn: an `EnergyModel`, an `EnergyDistribution`, a Keras network, or a callable `[batch, *event] -> [batch]`.
      x: rows `[rows, *event]`, at least two.
      bandwidth: h; default: the median distance between rows.
      num_bootstraps: number of bootstrap samples in the test; p is at least 1/(num_bootstraps + 1).
      seed: seed of the bootstrap, int or int32[2].

    Raises:
      TypeError, ValueError: if `x` is empty, not finite, or all rows are equal; if the energy has no gradient.

    References:
      Q. Liu, J. D. Lee & M. I. Jordan, arXiv:1602.03253; K. Chwialkowski, H. Strathmann & A. Gretton, arXiv:1602.02964;
      J. Gorham & L. Mackey, arXiv:1703.01717.

    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> import tensorflow as tf
    >>> right, wrong = (kernel_stein_discrepancy(lambda x: 0.5 * a * tf.reduce_sum(x**2, -1), x) for a in (1.0, 2.0))
    >>> right.p_value > 0.05, wrong.p_value < 0.01
    (True, True)
    """
    x = check_data("x", x, min_rows=2)
    num = len(x)
    num_bootstraps = check_count("num_bootstraps", num_bootstraps)
    score = densities.scores(energy_fn, x)
    if not np.isfinite(score).all():
        raise ValueError(f"the score must be finite, {int(np.sum(~np.isfinite(score).all(-1)))} of {num} are not.")
    rows: np.ndarray = x.reshape(num, -1).astype(np.float64)
    rng = _generator(seed)
    width = _bandwidth(rows, bandwidth, rng)
    rows -= rows.mean(0)  # only differences matter; this preserves their digits
    size = rows.shape[1]
    # the weights of a bootstrap draw minus those of the sample: of mean zero, as the kernel is under the hypothesis
    weights = (rng.multinomial(num, np.full(num, 1 / num), size=num_bootstraps).T - 1.0) / num
    resampled, sums = np.zeros(num_bootstraps), np.empty(num)
    along = np.sum(score * rows, -1)
    for block, squares in _squared_distances(rows):
        base = 1 + squares / width**2
        # s(x)ᵀ∇_y k + s(y)ᵀ∇_x k = (s(x) − s(y))ᵀ(x − y) (1 + r²)^(−3/2)/h²
        cross = along[block, None] - score[block] @ rows.T - rows[block] @ score.T + along
        kernel = (score[block] @ score.T) * base**-0.5 + cross * base**-1.5 / width**2
        kernel += size * base**-1.5 / width**2 - 3 * squares * base**-2.5 / width**4
        kernel[np.arange(block.stop - block.start), np.arange(block.start, block.stop)] = 0.0
        sums[block] = kernel.sum(1)
        resampled += np.sum(weights[block] * (kernel @ weights), 0)
    value = np.sum(sums) / (num * (num - 1))
    first = float(4 * np.var(sums / (num - 1), ddof=1) / num)
    return _discrepancy(np.concatenate([[value], resampled]), first, width)


def _discrepancy(values: np.ndarray, first: float, width: float) -> Discrepancy:
    """Computes the result from the estimate, resampled values under the hypothesis, and 4/n times Var of row means."""
    value, null = float(values[0]), values[1:]
    second = float(np.mean(null**2))
    error = float(np.sqrt(max(first - second, second)))
    return Discrepancy(value, error, float((1 + np.sum(null >= value)) / (1 + len(null))), width)


def _generator(seed: Seed) -> np.random.Generator:
    return np.random.default_rng([int(word) % 2**32 for word in stateless_seed(seed).numpy()])


def _squared_distances(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of rows of the matrix of ‖xᵢ − xⱼ‖²."""
    rows = rows - rows.mean(0)  # keeps the digits of data far from zero
    norms = np.sum(rows**2, -1)
    height = max(1, _BLOCK_NUMBERS // len(rows))
    for start in range(0, len(rows), height):
        block = slice(start, min(start + height, len(rows)))
        yield block, np.maximum(norms[block, None] + norms - 2 * rows[block] @ rows.T, 0.0)


def _bandwidth(rows: np.ndarray, bandwidth: Any, rng: np.random.Generator) -> float:
    if (rows == rows[0]).all():
        raise ValueError(f"all {len(rows)} rows are equal, so a kernel cannot compare them.")
    if bandwidth is not None:
        return check_positive("bandwidth", bandwidth)
    some = rows if len(rows) <= _MEDIAN_ROWS else rows[rng.choice(len(rows), _MEDIAN_ROWS, replace=False)]
    squares = np.concatenate([block.ravel() for _, block in _squared_distances(some)])
    scale = float(np.max(squares))
    # equal rows, whose distance is rounding error, are ignored
    apart = squares[squares > 1e-12 * scale]
    return float(np.sqrt(np.median(apart))) if len(apart) else 1.0
