"""Simulation-based calibration: whether posteriors have, over many simulations, the widths and places that they claim.

If θ* comes from the prior, x from the simulator at θ*, and θ₁, …, θ_L from p(θ | x), then all L + 1 values have one
distribution, so that the rank of each coordinate of θ* among the draws is uniform on 0, …, L. Too many ranks in the
middle mean that posteriors are too wide, too many at the ends that they are too narrow, and a slope that they are
shifted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_count, check_data, numbers_of

# Bins of the test, at most, and simulations in each, at least.
_MAX_BINS, _ROWS_PER_BIN = 20, 10


class RankCalibration(NamedTuple):
    """The result of `simulation_based_calibration`.

    Attributes:
      ranks: of each coordinate of each θ*, from 0 to `num_draws`, int `[simulations, parameters]`.
      num_draws: L.
      p_values: of the test that the ranks of a coordinate are uniform, `[parameters]`.
      p_value: of all together, by Bonferroni's bound: the smallest times their number, at most 1.
    """

    ranks: np.ndarray
    num_draws: int
    p_values: np.ndarray
    p_value: float


def simulation_based_calibration(theta: Any, draws: Any, *, num_bins: int | None = None) -> RankCalibration:
    """Computes the ranks of true parameters among draws of their posteriors, and tests that they are uniform.

    The rank of θ*ᵢ is the number of draws whose coordinate i is below it; ties count half, rounded down. The test is
    Pearson's χ² of the ranks in bins. With right posteriors and independent draws each p-value is about uniform on
    (0, 1). Posteriors equal to the prior pass too, and a wrong dependence between coordinates is not seen.

    Args:
      theta: parameters `[simulations, parameters]`, drawn from the prior, and not used in training.
      draws: for each of them draws of the posterior given its simulation, `[draws, simulations, parameters]`, as
        `model.given(x).sample(100, seed=0)` returns them.
      num_bins: bins of the test; default: one for ten simulations, from 2 to 20.

    Returns:
      A `RankCalibration`; `plotting.rank_histograms` draws it.

    Raises:
      TypeError, ValueError: if the shapes do not fit, or a number is not finite.

    Reference: S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, Validating Bayesian inference algorithms with
    simulation-based calibration, 2018, arXiv:1804.06788.

    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(500, 1))
    >>> x = theta + rng.normal(size=(500, 1))  # the posterior is N(x/2, 1/2)
    >>> draws = 0.5 * x + 0.5**0.5 * rng.normal(size=(99, 500, 1))
    >>> narrow = 0.5 * x + 0.5 * (draws - 0.5 * x)
    >>> [simulation_based_calibration(theta, values).p_value > 0.01 for values in (draws, narrow)]
    [True, False]
    """
    truth: np.ndarray = np.asarray(check_data("theta", theta), np.float64)
    values: np.ndarray = np.asarray(numbers_of("draws", draws), np.float64)
    if truth.ndim != 2:
        raise ValueError(f"`theta` must have shape [simulations, parameters], got {truth.shape}.")
    if values.ndim != 3 or values.shape[1:] != truth.shape or not len(values):
        expected = ", ".join(map(str, truth.shape))
        raise ValueError(f"`draws` must have shape [draws, {expected}], got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`draws` must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinities.")
    below = (values < truth).sum(0) + 0.5 * (values == truth).sum(0)
    ranks = np.floor(below).astype(int)
    number = len(values)
    if num_bins is None:
        num_bins = min(_MAX_BINS, max(2, len(truth) // _ROWS_PER_BIN))
    num_bins = min(check_count("num_bins", num_bins, minimum=2), number + 1)
    p_values = np.array([_uniformity(column, number, num_bins) for column in ranks.T])
    return RankCalibration(ranks, number, p_values, float(min(1.0, len(p_values) * p_values.min())))


def bins_of_ranks(num_draws: int, num_bins: int) -> np.ndarray:
    """Returns the bin of each rank 0, …, L, int `[L + 1]`; their sizes differ by one at most.

    >>> bins_of_ranks(4, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.arange(num_draws + 1) * num_bins // (num_draws + 1)


def _uniformity(ranks: np.ndarray, num_draws: int, num_bins: int) -> float:
    """Returns the p-value of Pearson's χ² test."""
    import scipy.stats

    bins = bins_of_ranks(num_draws, num_bins)
    expected = len(ranks) * np.bincount(bins, minlength=num_bins) / (num_draws + 1)
    found = np.bincount(bins[ranks], minlength=num_bins)
    return float(scipy.stats.chi2.sf(((found - expected) ** 2 / expected).sum(), num_bins - 1))
