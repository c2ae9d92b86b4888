"""Draws that have not reached narrow parts of the density: whether further moves shift them, and a base made of them.

Where the scale of a density varies strongly, as in a funnel, moves with one step size do not enter its narrow parts on
the path from the base, and the estimate of Z is too small. Neither groups of particles, which all miss the same parts,
nor a search for modes shows it. But moves whose step sizes follow the scale of the density shift such draws: for draws
from the target, the mean of each coordinate stays. Once they have moved, a mixture of Gaussians fitted to them is a
base that covers what was missed.
"""

from __future__ import annotations

import numpy as np
import scipy.special
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.energy.base import fit_base

# The scale of a density is uneven if the norm of the gradient at few draws, at most this share, exceeds its median by
# more than in a Gaussian, times a factor.
_QUANTILE, _FACTOR = 0.99, 1.9
# The least shift that counts, in standard deviations; by how many standard errors it must differ from zero; and by how
# many to be examined by more moves.
_MIN_SHIFT, NUM_ERRORS, NUM_ERRORS_OF_DOUBT = 0.05, 4.0, 2.0
# The shares of the broad part in a mixture fitted to draws, and of the first base in a mixture with it.
_SHARE = 0.1


def is_uneven(x: np.ndarray, gradient: np.ndarray) -> bool:
    """Returns whether the scale of a density varies more between draws than that of a Gaussian.

    Args:
      x, gradient: draws, and the gradient of the log density there, `[n, d]`.

    >>> rng = np.random.default_rng(0)
    >>> x, scale = rng.normal(size=(4000, 5)), np.exp(rng.normal(size=(4000, 1)))
    >>> is_uneven(x, -x), is_uneven(scale * x, -x / scale)
    (False, True)
    """
    norms = np.linalg.norm(gradient * x.std(0), axis=1)
    norms = norms[np.isfinite(norms)]
    if not norms.any():
        return False
    usual = np.sqrt(np.divide(*scipy.special.chdtri(x.shape[1], [1 - _QUANTILE, 0.5])))
    high, median = np.quantile(norms, [_QUANTILE, 0.5])
    return bool(high > _FACTOR * usual * median)


def shift(
    before: np.ndarray, after: np.ndarray, groups: np.ndarray, num_groups: int, num_errors: float = NUM_ERRORS
) -> float:
    """Returns the largest significant shift of the mean of a coordinate, in its standard deviations.

    Shifts of at least .05 count, if they are more than `num_errors` times their standard error, from the groups.

    Args:
      before, after: draws before and after moves, `[n, d]`.
      groups, num_groups: the group of each draw, and how many there are.
      num_errors: how many standard errors make a shift significant.

    >>> rng = np.random.default_rng(0)
    >>> x, groups = rng.normal(size=(4000, 2)), np.arange(4000) % 8
    >>> moved = 0.6 * x + 0.8 * rng.normal(size=(4000, 2))
    >>> shift(x, moved, groups, 8), round(shift(x, moved + [0.0, 0.2], groups, 8), 1)
    (0.0, 0.2)
    """
    terms = (after - before) / np.maximum(after.std(0), 1e-300)
    counts = np.bincount(groups, minlength=num_groups).astype(np.float64)
    sums = np.zeros([num_groups, terms.shape[1]])
    np.add.at(sums, groups, terms)
    parts = (counts / counts.sum())[:, None]
    means = sums / np.maximum(counts, 1.0)[:, None]
    mean = (parts * means).sum(0)
    variance = num_groups / (num_groups - 1) * (np.square(parts) * np.square(means - mean)).sum(0)
    # groups may agree by chance, but the shifts of single draws are at best independent
    variance = np.maximum(variance, terms.var(0) / len(terms))
    counts_as_shift = (np.abs(mean) > num_errors * np.sqrt(variance)) & (np.abs(mean) > _MIN_SHIFT)
    return float(np.max(np.abs(mean) * counts_as_shift, initial=0.0))


def base_of_draws(x: np.ndarray, base: tfp.distributions.Distribution, seed: int) -> tfp.distributions.Distribution:
    """Returns a mixture of a base, and of Gaussians fitted to draws `[n, d]` with a broad part of a tenth.

    Args:
      x: the draws.
      base: a distribution over `[*event]`.
      seed: of the fit.
    """
    states = x.reshape(len(x), *base.event_shape)
    fitted = fit_base(states, dtype=base.dtype, kind="gaussian_mixture", broad_share=_SHARE, seed=seed)
    tfd = tfp.distributions
    return tfd.Mixture(tfd.Categorical(probs=tf.constant([_SHARE, 1.0 - _SHARE], base.dtype)), [base, fitted])
