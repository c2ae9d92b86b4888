"""Averages over given points: held-out log-likelihood, bits per dimension, KL and Fisher divergence.

    log p(x) = −E(x) − log Z        (eqs. 1-2)

An error of log Z shifts all terms equally and does not average out, so it is added to the standard error of the mean.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.evaluation import densities
from tfp_ebm.evaluation.estimate import combined, mean_estimate, value_and_error
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.types import ArrayLike, EnergyLike, Estimate, Seed


def log_likelihood(energy_fn: EnergyLike, x: ArrayLike, log_normalizer: Estimate | float) -> Estimate:
    """Computes the mean of log p(x) = −E(x) − log Z over rows, in nats, with the error of both terms.

    Args:
      energy_fn: an `EnergyModel`, an `EnergyDistribution`, a Keras network, or a callable `[batch, *event] -> [batch]`.
      x: rows that the model was not trained on, `[rows, *event]`.
      log_normalizer: log Z: an `Estimate`, whose standard error is included, or a number, taken as exact.

    Raises:
      TypeError, ValueError: if `x` is empty or not finite, or log Z is not a finite number.

    >>> import tensorflow as tf
    >>> x = np.random.default_rng(0).normal(size=(10_000, 2))
    >>> held_out = log_likelihood(lambda x: 0.5 * tf.reduce_sum(x**2, -1), x, math.log(2 * math.pi))
    >>> abs(held_out.value - (-1 - math.log(2 * math.pi))) < 4 * held_out.standard_error
    True
    """
    value, error = value_and_error(log_normalizer)
    return combined(mean_estimate(-densities.energies(energy_fn, x), "the energy"), -value, error)


def bits_per_dimension(
    energy_fn: EnergyLike, x: ArrayLike, log_normalizer: Estimate | float, bin_width: float = 1.0
) -> Estimate:
    """Computes the code length of held-out data in bits per coordinate, −(mean log p(x)/d + log δ)/log 2.

    δ is the width of the bins in which a coordinate is encoded: for pixels k/256 plus uniform noise on [0, 1/256),
    δ = 1/256. For dequantised data the result is an upper bound of the code length of the discrete data (Theis, van den
    Oord & Bethge 2016, arXiv:1511.01844).

    Args:
      energy_fn, x, log_normalizer: as for `log_likelihood`.
      bin_width: δ.

    Raises:
      TypeError, ValueError: as for `log_likelihood`; if `bin_width` is not positive.

    >>> import tensorflow as tf
    >>> x = np.random.default_rng(0).uniform(size=(100, 3))
    >>> bits_per_dimension(lambda x: tf.zeros(len(x)), x, 0.0, bin_width=1 / 256).value
    8.0
    """
    width = check_positive("bin_width", bin_width)
    size = check_data("x", x)[0].size
    nats = log_likelihood(energy_fn, x, log_normalizer)
    return combined(nats, size * math.log(width), 0.0, -1 / (size * math.log(2)))


def kl_divergence(
    energy_fn: EnergyLike,
    reference: tfp.distributions.Distribution,
    log_normalizer: Estimate | float,
    num_samples: int = 10_000,
    seed: Seed = 0,
) -> Estimate:
    """Returns KL(reference ‖ model) = E_p[log p(x) + E(x)] + log Z in nats, by exact draws of the reference p.

    Maximum likelihood minimises it. It is zero only if the model equals the reference; the estimate may be negative by
    chance.

    Args:
      energy_fn, log_normalizer: as for `log_likelihood`.
      reference: the true distribution p, a `tfd.Distribution` with exact draws and an exact `log_prob`, such as those
        of `ebm.targets`. An `EnergyDistribution` draws by chains, so the estimate has `is_approximate` set.
      num_samples: number of draws.
      seed: int or int32[2].

    Raises:
      TypeError: if `reference` is no distribution.
      ValueError: as for `log_likelihood`.

    >>> from tfp_ebm import targets
    >>> p = targets.two_gaussians()
    >>> abs(kl_divergence(lambda x: -p.log_prob(x), p, 0.0, num_samples=100).value) < 1e-5
    True
    """
    densities.check_reference(reference)
    value, error = value_and_error(log_normalizer)
    x = densities.draws(reference, check_count("num_samples", num_samples), seed)
    terms = densities.known_log_prob(reference, x) + densities.energies(energy_fn, x)
    return combined(_labelled(mean_estimate(terms, "log p(x) + E(x)"), reference), value, error)


def fisher_divergence(
    energy_fn: EnergyLike, reference: tfp.distributions.Distribution, num_samples: int = 10_000, seed: Seed = 0
) -> Estimate:
    """Returns the Fisher divergence ½ E_p‖∇ log p(x) + ∇E(x)‖², which score matching minimises (eq. 40).

    It needs no log Z, and has the same factor ½ as `losses.ScoreMatching`. It hardly depends on the weights of
    separated modes: the score inside one mode is the same whatever the weight of the others.

    Args:
      energy_fn, num_samples, seed: as for `kl_divergence`.
      reference: the true distribution p, a `tfd.Distribution` with exact draws and a differentiable `log_prob`.

    Raises:
      TypeError: if `reference` is no distribution.
      ValueError: if the reference or the energy is not differentiable.

    References:
      A. Hyvärinen, Estimation of non-normalized statistical models by score matching, JMLR 6, 2005.

    >>> from tfp_ebm import targets
    >>> p = targets.two_gaussians()
    >>> fisher_divergence(lambda x: 1.0 - p.log_prob(x), p, num_samples=100).value < 1e-9
    True
    """
    densities.check_reference(reference)
    if not getattr(reference, "is_differentiable", True):
        raise ValueError(f"`reference` must have a score, but {reference.label} has none.")
    x = densities.draws(reference, check_count("num_samples", num_samples), seed)
    known = densities.scores(lambda rows: -reference.log_prob(rows), x)
    terms = 0.5 * np.sum((known - densities.scores(energy_fn, x)) ** 2, -1)
    return _labelled(mean_estimate(terms, "the difference of scores"), reference)


def _labelled(estimate: Estimate, reference: tfp.distributions.Distribution) -> Estimate:
    """Marks an estimate as approximate if the draws come from chains."""
    return estimate._replace(is_approximate=isinstance(reference, EnergyDistribution))
