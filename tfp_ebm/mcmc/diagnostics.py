"""Diagnostics of chains: effective sample size, Monte Carlo error, R̂, and counts of faulty chains.

The mean over a chain has the variance sd²/ESS with ESS = N/(1 + 2Σₖ ρₖ), where ρₖ is the correlation at lag k. For an
autoregressive chain, ρₖ = ρᵏ, ESS is N(1 − ρ)/(1 + ρ). R̂ compares the variance of all draws with that within half
chains: it is 1 if every half of every chain covers the same distribution, and exceeds `MAX_RHAT` otherwise,

    R̂ = √((n − 1)/n + B/W),   W the mean variance within half chains of n draws, B the variance of their means.

Stan and ArviZ also take the root. (`tfp.mcmc.potential_scale_reduction` returns the square, times (m + 1)/m for m
chains, so its value 1.10 corresponds to 1.05 here.)

This ESS is that of the mean. It is meaningless if the variance does not exist, and exceeds the number of draws if
chains alternate between x and −x while their width does not mix. *Bulk* ESS is that of the draws' ranks (as normal
scores, over half chains). It is invariant under increasing transforms of the coordinate, and measures how well the
middle of the distribution is explored. The same holds for R̂ of ranks. R̂ of the ranks of |x − median| also detects
chains that agree in the middle but differ in width. `Diagnostics.trouble` uses both R̂. The cost of a sampler is its
number of evaluations of the target's gradient, so samplers are compared by effective draws per evaluation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm import arguments
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.sampling import Samples

# The largest R̂ of chains that have mixed: 4 % of the variance is then between chains. Other limits in use are 1.01
# (Vehtari et al. 2021), for a few long chains, and 1.05 to 1.1.
MAX_RHAT = 1.02

# R̂ needs a variance in each half of a chain.
_MIN_RESULTS = 4

# Numbers per block of coordinates; the autocorrelation by FFT takes some 100 bytes for each.
_BLOCK_NUMBERS = 4_000_000


class Diagnostics(NamedTuple):
    """The result of `diagnose`, as NumPy arrays.

    Attributes:
      mean: mean over all draws of all chains, `[*event]`.
      sd: standard deviation over all draws of all chains, `[*event]`.
      mcse: standard error of `mean`, sd/√ESS, `[*event]`.
      ess: number of independent draws that would estimate `mean` equally well, over all chains, `[*event]`. NaN if it
        is unknown: for fewer than 4 results per chain, or for a coordinate that never changes.
      rhat: split R̂ of Gelman & Rubin, `[*event]`; NaN as for `ess`. It omits the last of an odd number of results.
      acceptance_rate: share of kept steps that were accepted; None if only states were given.
      num_stuck: number of chains whose results are all equal. With one result per chain, the number of chains that
        never moved from their initial state; None if only states were given.
      num_nonfinite: number of chains with a NaN or an infinity. They are not excluded: if there are any, the statistics
        above are NaN.
      ess_bulk: effective sample size of the ranks, `[*event]`; NaN as for `ess`.
      ess_per_gradient: `ess_bulk` divided by the number of target evaluations of all chains from the first result to
        the last (including thinning, without burn-in), `[*event]`. A lower bound for NUTS, whose evaluations are
        counted as the largest possible number. None for a kernel from another package, or if only states were given.
      rhat_rank: the larger of split R̂ of the ranks and of those of |x − median|, `[*event]`; `arviz.summary` shows it.
      num_bad_gradients: number of chains with a NaN or infinite gradient at a point of finite log density; None if
        unknown.
    """

    mean: np.ndarray
    sd: np.ndarray
    mcse: np.ndarray
    ess: np.ndarray
    rhat: np.ndarray
    acceptance_rate: float | None
    num_stuck: int | None
    num_nonfinite: int
    ess_bulk: np.ndarray
    ess_per_gradient: np.ndarray | None
    rhat_rank: np.ndarray
    num_bad_gradients: int | None = None

    @property
    def max_rhat(self) -> float:
        """The largest R̂, of the draws and of their ranks, over all coordinates; NaN if one of them is unknown."""
        return float(np.max(np.maximum(self.rhat, self.rhat_rank)))

    @property
    def trouble(self) -> tuple[str, ...]:
        """Sentences that describe the faults of the chains; empty if there are none.

        >>> diagnose(tf.random.stateless_normal([100, 8, 2], seed=[0, 1])).trouble
        ()
        """
        found = []
        if self.max_rhat > MAX_RHAT:
            found.append(f"R-hat is {self.max_rhat:.3g}, above {MAX_RHAT}: the chains have not mixed.")
        if self.num_stuck:
            found.append(f"{self.num_stuck} chains never moved.")
        if self.num_nonfinite:
            found.append(f"{self.num_nonfinite} chains have a NaN or an infinity.")
        if self.num_bad_gradients:
            found.append(f"{self.num_bad_gradients} chains had a NaN or infinite gradient.")
        return tuple(found)


def diagnose(samples: Any, event_ndims: int = 1) -> Diagnostics:
    """Computes diagnostics of chains from their draws.

    ESS is computed as in Stan (Geyer's initial positive and monotone sequence over the mean autocorrelation of half
    chains), R̂ of ranks as in Vehtari et al. (2021, arXiv:1903.08008), and R̂ as in Gelman & Rubin (1992) on half
    chains, all in float64. `ess`, `ess_bulk`, `mcse` and `rhat_rank` equal ArviZ's ess(method="mean"), ess_bulk,
    mcse_mean and r_hat.

    Args:
      samples: a `Samples`, whose log densities have the axes of the chains; or an array
        `[num_results, *chains, *event]`.
      event_ndims: number of event axes of an array. Not used for a `Samples`.

    Returns:
      A `Diagnostics`.

    Raises:
      TypeError: if the array does not hold real numbers.
      ValueError: if it has too few axes or no draws.

    >>> draws = tf.random.stateless_normal([500, 40, 2], seed=[0, 1])  # 40 chains of independent draws
    >>> result = diagnose(draws)
    >>> bool((abs(result.rhat - 1) < 0.01).all()), bool((abs(result.ess / 20_000 - 1) < 0.1).all())
    (True, True)
    >>> result.num_stuck, result.num_nonfinite
    (0, 0)
    """
    if isinstance(samples, Samples):
        states = np.asarray(samples.states)
        event_ndims = states.ndim - np.ndim(samples.unnormalized_log_prob)
        acceptance_rate: float | None = float(np.mean(samples.is_accepted))
        evaluations = samples.evaluations_per_result
        num_nonfinite = int(samples.num_nonfinite)
        num_unmoved, num_bad_gradients = (
            None if count is None else int(count) for count in (samples.num_stuck, samples.num_bad_gradients)
        )
    else:
        event_ndims = arguments.check_count("event_ndims", event_ndims, minimum=0)
        states = np.asarray(samples)
        if states.dtype.kind not in "fiu":
            raise TypeError(f"`samples` must hold real numbers, got dtype {states.dtype}.")
        if states.ndim < 1 + event_ndims or states.size == 0:
            raise ValueError(
                f"`samples` must have shape [num_results, *chains, *event] with {event_ndims} event axes and at least "
                f"one draw, got shape {states.shape}."
            )
        acceptance_rate = evaluations = num_unmoved = num_bad_gradients = None
        num_nonfinite = int(count_nonfinite(tf.constant(states, tf.float64), states.ndim - event_ndims))
    num_results, event_shape = len(states), states.shape[states.ndim - event_ndims :]
    states = states.reshape(num_results, -1, *event_shape).astype(np.float64)
    num_chains = states.shape[1]

    ess = ess_bulk = rhat = rhat_rank = np.full(event_shape, np.nan)
    if num_results >= _MIN_RESULTS:
        flat = states.reshape(num_results, num_chains, -1)
        block = max(1, _BLOCK_NUMBERS // (num_results * num_chains))
        blocks = [_judged(flat[..., first : first + block]) for first in range(0, flat.shape[2], block)]
        ess, ess_bulk, rhat, rhat_rank = np.concatenate(blocks, 1).reshape(4, *event_shape)
    sd = states.std(axis=(0, 1), ddof=1) if num_results * num_chains > 1 else np.full(event_shape, np.nan)
    still = (states == states[:1]).all(axis=(0, *range(2, states.ndim)))
    return Diagnostics(
        mean=states.mean(axis=(0, 1)),
        sd=sd,
        mcse=sd / np.sqrt(ess),
        ess=ess,
        rhat=rhat,
        acceptance_rate=acceptance_rate,
        num_stuck=int(still.sum()) if num_results > 1 else num_unmoved,
        num_nonfinite=num_nonfinite,
        ess_bulk=ess_bulk,
        ess_per_gradient=None if evaluations is None else ess_bulk / (num_results * num_chains * evaluations),
        rhat_rank=rhat_rank,
        num_bad_gradients=num_bad_gradients,
    )


def _judged(states: np.ndarray) -> np.ndarray:
    """Computes ESS, bulk ESS, split R̂ and R̂ of ranks, `[4, coordinates]`, of `[num_results, chains, coordinates]`."""
    half = len(states) // 2
    halves = np.concatenate([states[:half], states[-half:]], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranked, folded = _scores(halves), _scores(np.abs(halves - np.median(halves, (0, 1))))
        bulk = _ess(ranked) if half >= _MIN_RESULTS else np.full(states.shape[2], np.nan)
        rhat = _rhat(np.concatenate([states[:half], states[half : 2 * half]], 1))
        rhat_rank = np.maximum(_rhat(ranked), _rhat(folded))
        return np.stack([_ess(halves), bulk, rhat, rhat_rank])


def _scores(draws: np.ndarray) -> np.ndarray:
    """Computes normal scores Φ⁻¹((rank − ⅜)/(S + ¼)) of all S draws of a coordinate; NaN if one is not finite."""
    scores = np.empty_like(draws)
    for k in range(draws.shape[2]):
        _, inverse, counts = np.unique(draws[..., k], return_inverse=True, return_counts=True)
        ranks = np.cumsum(counts) - 0.5 * (counts - 1)  # equal draws get the mean of their ranks
        p = (ranks - 0.375) / (inverse.size + 0.25)
        scores[..., k] = tf.math.ndtri(p).numpy()[inverse.reshape(draws.shape[:2])]
        if not np.isfinite(draws[..., k]).all():
            scores[..., k] = np.nan
    return scores


def _rhat(chains: np.ndarray) -> np.ndarray:
    """Computes √((n − 1)/n + B/W) of `[n, chains, coordinates]`."""
    n = len(chains)
    return np.sqrt((n - 1) / n + chains.mean(0).var(0, ddof=1) / chains.var(0, ddof=1).mean(0))


def _ess(chains: np.ndarray) -> np.ndarray:
    """Computes the ESS of `[n, chains, coordinates]` over all chains (Vehtari et al. 2021, §3.2); NaN if constant."""
    n, num_chains = chains.shape[:2]
    means = chains.mean(0)
    spectrum = np.fft.rfft(chains - means, 2 ** (2 * n - 1).bit_length(), axis=0)
    covariance = np.fft.irfft((spectrum.real**2 + spectrum.imag**2).mean(1), axis=0)[:n] / n
    variance = covariance[0] + means.var(0, ddof=1)
    rho = 1.0 - (covariance[0] * n / (n - 1) - covariance) / variance
    rho[0] = np.where(np.isnan(variance), np.nan, 1.0)
    num_pairs = max(0, (n - 3) // 2) + 1
    even, odd = rho[0 : 2 * num_pairs : 2], rho[1 : 2 * num_pairs : 2]
    pairs = even + odd
    # Geyer: true sums of neighbours are positive and decreasing, so the sum ends at the first that is not positive
    stops = np.concatenate([pairs[:-1] <= 0.0, np.ones_like(pairs[:1], bool)])
    last = np.argmax(stops, 0)
    counted = np.arange(num_pairs)[:, None] < last
    total = np.where(counted, np.minimum.accumulate(pairs, 0), 0.0).sum(0)
    end_even, end_pair = (np.take_along_axis(part, last[None], 0)[0] for part in (even, pairs))
    total_draws = n * num_chains
    tau = 2.0 * total - 1.0 + np.where((end_even > 0.0) | (end_pair >= 0.0) | np.isnan(end_even), end_even, 0.0)
    # Stan's upper bound for anticorrelated draws, where the estimate can even be negative
    return total_draws / np.maximum(tau, 1.0 / np.log10(total_draws))
