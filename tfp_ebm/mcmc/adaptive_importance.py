"""Adaptive importance sampling: a density fitted to particles, and again to its own draws, resampled by their weights.

Particles of few moves have the modes and about the scales of the target, but neither right shares nor right widths. A
density that is fitted to them draws proposals; these, resampled by their weights f/q, are nearer to the target, and the
density is fitted again, to both (population Monte Carlo, Cappé et al. 2004). Of equal resampled draws one is kept, so
that a draw of large weight is no spike. What q leaves out, no weight shows: particles at which f/q is larger than at
all proposals are signs of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random, serialization
from tfp_ebm.mcmc.copula import Copula, fit_copula
from tfp_ebm.mcmc.running.compiled import compile_once
from tfp_ebm.mcmc.running.particles import draw_flat, log_densities
from tfp_ebm.mcmc.weights import effective_size, pareto_shape, resample
from tfp_ebm.types import TargetLogProbFn

# When draws can be resampled by their weights: the shape of the tail of these, and their effective share.
_MAX_SHAPE, _MIN_ESS = 0.5, 0.1
# Fits at most; the least growth of the effective number of draws after which one more is made, and the least number for
# one.
_MAX_FITS, _MIN_GROWTH, _MIN_DRAWS = 4, 1.1, 100.0
# Weighed draws per point that is resampled from them, and the effective share with which two fits are enough.
_DRAWS_PER_POINT, _ENOUGH = 4, 0.2
# The largest share of particles at which the weight may be larger than at all proposals.
_MAX_UNCOVERED = 0.02
# The share of the base among proposals.
_BASE_SHARE = 0.1


class Proposals:
    """Draws from fitted densities, each with a share of the base, and their weights.

    Args:
      target: log f.
      base: b.
      num_groups: number of groups of equal size.
      group_size: number of draws in a group.

    Attributes:
      num_faults: number of values of log f that were NaN or +∞.
    """

    def __init__(
        self, target: TargetLogProbFn, base: tfp.distributions.Distribution, num_groups: int, group_size: int
    ) -> None:
        self._target, self._base, self._num_groups, self._group_size = target, base, num_groups, group_size
        self._num_of_base = max(1, round(_BASE_SHARE * group_size))
        self._key = serialization.fingerprint(base)
        self.num_faults = 0

    def draw(self, fitted: Copula, seed: tf.Tensor) -> tf.Tensor:
        """Returns flat draws; in each group, the first are from the base."""
        count = self._num_of_base * self._num_groups
        rng = np.random.default_rng(random.fold_in(seed, 0).numpy().astype(np.uint32))
        x = fitted.draw(rng.standard_normal([self._num_groups * self._group_size, len(fitted.low)]))
        x = x.reshape(self._num_groups, self._group_size, -1)
        of_base = compile_once(self._target, draw_flat, self._base, count, key=(self._key, count))
        x[:, : self._num_of_base] = of_base(random.fold_in(seed, 1)).numpy().reshape(self._num_groups, -1, x.shape[2])
        return tf.constant(x.reshape(-1, x.shape[2]), self._base.dtype)

    def weigh(self, fitted: Copula, x: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns log f/q, with q the mixture of the fitted density and the base, and log f/b at points."""
        log_fitted = fitted.log_prob(x.numpy().astype(np.float64))
        share = self._num_of_base / self._group_size
        found = compile_once(self._target, log_densities, self._base, key=(self._key,))(x)
        log_target, log_base = (part.numpy() for part in found)
        is_bad = np.isnan(log_target) | (log_target == np.inf)
        self.num_faults += int(is_bad.sum())
        log_target[is_bad] = -np.inf
        zero = np.isneginf(log_target)
        log_proposal = np.logaddexp(np.log1p(-share) + log_fitted, np.log(share) + log_base)
        with np.errstate(invalid="ignore"):
            log_weights, log_ratio = (np.where(zero, -np.inf, log_target - part) for part in (log_proposal, log_base))
        return log_weights, log_ratio


def effective_number(log_weights: np.ndarray) -> float:
    """Returns (Σw)²/Σw²; 0 if all weights are zero.

    >>> effective_number(np.zeros(7)), effective_number(np.full(3, -np.inf))
    (7.0, 0.0)
    """
    return float(effective_size(tf.constant(log_weights)))


def suffices(log_weights: np.ndarray) -> bool:
    """Returns whether draws of these weights can be resampled.

    >>> rng = np.random.default_rng(0)
    >>> suffices(rng.normal(size=4000)), suffices(3.0 * rng.normal(size=4000))
    (True, False)
    """
    if not np.isfinite(log_weights).any():
        return False
    shape = pareto_shape(np.exp(log_weights - log_weights.max()))  # NaN for equal weights
    return bool(not shape >= _MAX_SHAPE and effective_number(log_weights) >= _MIN_ESS * len(log_weights))


def fit_by_weights(
    x: np.ndarray, weigh: Callable[[Copula, int], tuple[np.ndarray, np.ndarray]]
) -> tuple[Copula, np.ndarray]:
    """Fits a density to points, and to these and its own draws as long as the effective number of its weights grows.

    Args:
      x: points `[n, d]`, which vary in each coordinate.
      weigh: maps a density and the number of the fit to draws from a proposal that contains it, `[m, d]`, and the
        logs of their weights, `[m]`.

    Returns:
      The density of the largest effective number, and the log weights of its draws.
    """
    points = x
    found: list[tuple[float, Copula, np.ndarray]] = []
    for i in range(_MAX_FITS):
        fitted = fit_copula(points)
        draws, log_weights = weigh(fitted, i)
        number, last = effective_number(log_weights), found[-1][0] if found else 0.0
        found.append((number, fitted, log_weights))
        enough = i > 0 and number >= _ENOUGH * len(draws)
        if enough or number < max(_MIN_GROWTH * last, _MIN_DRAWS):
            break
        middle = tf.constant([0.5], tf.float64)
        index = resample(tf.constant(log_weights)[None], middle, len(draws) // _DRAWS_PER_POINT)[0]
        points = np.concatenate([x, draws[np.unique(index)]])
    _, fitted, log_weights = max(found, key=lambda one: one[0])
    return fitted, log_weights


def covers(log_weights: np.ndarray, log_weights_of_particles: np.ndarray) -> bool:
    """Returns whether proposals of these weights lie where the particles lie.

    >>> covers(np.zeros(100), np.array([0.0] * 99 + [5.0])), covers(np.zeros(100), np.array([0.0, 5.0]))
    (True, False)
    """
    return bool(np.mean(log_weights_of_particles > log_weights.max()) <= _MAX_UNCOVERED)
