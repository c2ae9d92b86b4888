"""Can these chains be trusted? Effective sample size, Monte Carlo error, R̂, and the chains that went wrong.

The mean over a chain has the variance sd²/ESS with ESS = N/(1 + 2Σₖ ρₖ), ρₖ the correlation at lag k; for an
autoregressive chain ρₖ = ρᵏ that is N(1 − ρ)/(1 + ρ). R̂ compares the variance of all draws with that within half
chains: it is 1 when every half of every chain covers the same law, and exceeds 1.05 or so when they do not.

ESS so defined is that of the mean, and means nothing where there is no variance. *Bulk* ESS is that of the draws' ranks
(as normal scores, over half chains): whatever increasing transform is applied to the coordinate, it stays the same, and
it says how well the middle of the law is explored. What a sampler costs is its evaluations of the target's gradient,
so samplers are compared by effective draws per evaluation.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments
from tfp_ebm.mcmc.finite import count_nonfinite
from tfp_ebm.mcmc.sampling import Samples

__all__ = ["Diagnostics", "diagnose"]

# R̂ needs a variance in each half of a chain.
_MIN_RESULTS = 4

# Numbers per block of coordinates; the autocorrelation by FFT takes some 100 bytes for each.
_BLOCK_NUMBERS = 4_000_000


class Diagnostics(NamedTuple):
    """What `diagnose` returns, in NumPy.

    Attributes:
      mean: over all draws of all chains, `[*event]`.
      sd: standard deviation over all draws of all chains, `[*event]`.
      mcse: standard error of `mean`, sd/√ESS, `[*event]`.
      ess: number of independent draws that would estimate `mean` as well, all chains together, `[*event]`. NaN where
        it cannot be known: fewer than 4 results per chain, or a coordinate that never changes.
      rhat: split R̂ of Gelman & Rubin, `[*event]`; NaN as `ess`.
      acceptance_rate: share of kept steps that were accepted; None if only states were given.
      num_stuck: number of chains that never moved; None for one result per chain, which cannot tell.
      num_nonfinite: number of chains that hold a NaN or an infinity. They are not left out: where it is not 0, expect
        NaN above.
      ess_bulk: as `ess`, of the ranks, `[*event]`.
      ess_per_gradient: `ess_bulk` of all chains over all their evaluations of the target from the first result to the
        last (thinning included, burn-in not), `[*event]`; for NUTS, whose evaluations are counted as the most that its
        tree allows, a lower bound. None for a kernel that is not one of this package's, or if only states were given.
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


def diagnose(samples: Any, event_ndims: int = 1) -> Diagnostics:
    """Judges chains by their draws.

    ESS as in Stan (Geyer's initial positive sequence over the chains' mean autocorrelation, Vehtari et al. 2021,
    arXiv:1903.08008), R̂ as in Gelman & Rubin (1992) on split chains; both are TFP's, computed in float64.

    Args:
      samples: a `Samples`, whose log densities tell how many axes are chains; or an array
        `[num_results, *chains, *event]`.
      event_ndims: number of event axes of an array. Not used for a `Samples`.

    Returns:
      A `Diagnostics`.

    Raises:
      TypeError: if the array is not made of real numbers.
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
        acceptance_rate = evaluations = None
        num_nonfinite = int(count_nonfinite(tf.constant(states, tf.float64), states.ndim - event_ndims))
    num_results, event_shape = len(states), states.shape[states.ndim - event_ndims :]
    states = states.reshape(num_results, -1, *event_shape).astype(np.float64)
    num_chains = states.shape[1]

    ess = ess_bulk = rhat = np.full(event_shape, np.nan)
    if num_results >= _MIN_RESULTS:
        flat = states.reshape(num_results, num_chains, -1)
        ess, rhat = (part.reshape(event_shape) for part in _ess_and_rhat(flat))
        ess_bulk = _ess_of_ranks(flat).reshape(event_shape)
    sd = states.std(axis=(0, 1), ddof=1) if num_results * num_chains > 1 else np.full(event_shape, np.nan)
    still = (states == states[:1]).all(axis=(0, *range(2, states.ndim)))
    return Diagnostics(
        mean=states.mean(axis=(0, 1)),
        sd=sd,
        mcse=sd / np.sqrt(ess),
        ess=ess,
        rhat=rhat,
        acceptance_rate=acceptance_rate,
        num_stuck=int(still.sum()) if num_results > 1 else None,
        num_nonfinite=num_nonfinite,
        ess_bulk=ess_bulk,
        ess_per_gradient=None if evaluations is None else ess_bulk / (num_results * num_chains * evaluations),
    )


def _ess_of_ranks(states: np.ndarray) -> np.ndarray:
    """ESS of the normal scores Φ⁻¹((rank − ⅜)/(S + ¼)) of `[num_results, chains, coordinates]`, over half chains
    (Vehtari et al. 2021); NaN where a coordinate has a NaN or never changes."""
    half, num_coordinates = len(states) // 2, states.shape[2]
    halves = np.concatenate([states[:half], states[half : 2 * half]], 1)
    if half < _MIN_RESULTS:
        return np.full(num_coordinates, np.nan)
    scores = np.empty_like(halves)
    for k in range(num_coordinates):
        draws = halves[..., k]
        _, inverse, counts = np.unique(draws, return_inverse=True, return_counts=True)
        ranks = np.cumsum(counts) - 0.5 * (counts - 1)  # equal draws share the mean of their ranks
        p = (ranks - 0.375) / (draws.size + 0.25)
        scores[..., k] = tf.math.ndtri(p).numpy()[inverse.reshape(draws.shape)]
        if not np.isfinite(draws).all():
            scores[..., k] = np.nan
    return _ess_and_rhat(scores)[0]


def _ess_and_rhat(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ESS and split R̂ of `[num_results, chains, coordinates]`, a block of coordinates at a time to bound memory."""
    num_results, num_chains, size = states.shape
    total = num_results * num_chains
    pooled = {"cross_chain_dims": 1} if num_chains > 1 else {}
    ess, rhat = np.empty(size), np.empty(size)
    block = max(1, _BLOCK_NUMBERS // total)
    logger = tf.get_logger()
    logger.addFilter(_not_about_imaginary_parts)
    try:
        for first in range(0, size, block):
            part = states[:, :, first : first + block]
            estimate = tfp.mcmc.effective_sample_size(part, filter_beyond_positive_pairs=True, **pooled).numpy()
            ess[first : first + block] = estimate.reshape(part.shape[2])
            rhat[first : first + block] = tfp.mcmc.potential_scale_reduction(part, split_chains=True).numpy()
    finally:
        logger.removeFilter(_not_about_imaginary_parts)
    # Stan's bound on what anticorrelated draws may be worth; the estimate can even turn negative there.
    return total / np.maximum(total / ess, 1 / np.log10(total)), rhat


def _not_about_imaginary_parts(record: logging.LogRecord) -> bool:
    """TFP drops the imaginary part of an inverse FFT, which is rounding, and TensorFlow warns of it at every call."""
    return "discard the imaginary part" not in record.getMessage()
