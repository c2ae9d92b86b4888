"""Distribution functions of one coordinate given others, P(Xᵢ ≤ xᵢ | given), for energies whose log Z is 0.

In a Gaussian mixture they are in closed form whatever is given. In an autoregressive energy they are one-dimensional
integrals if exactly the coordinates before i in its order are given; with no coordinate given, this is the marginal of
the first. A mixture weighs its parts by their density of what is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf

from tfp_ebm.networks.autoregressive import AutoregressiveEnergy, bounded
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.lattice import integrals_below
from tfp_ebm.networks.linear import LinearEnergy
from tfp_ebm.networks.normalized import MappedEnergy, MixtureEnergy, NormalizedEnergy
from tfp_ebm.tracing import graph_function


class Cumulative(NamedTuple):
    """P(Xᵢ ≤ xᵢ | given) and log p(given), both float64 `[rows]`."""

    cdf: np.ndarray
    log_prob: np.ndarray


def cumulative(network: NormalizedEnergy, x: np.ndarray, i: int) -> Cumulative:
    """Returns the distribution function of coordinate i at xᵢ given the other coordinates that are not NaN.

    Args:
      network: an energy with log Z = 0 that is built of autoregressive energies and Gaussian mixtures.
      x: rows `[rows, size]` in the network's coordinates, all with NaN in the same places.
      i: the coordinate.

    Raises:
      TypeError: if the network has a part of another kind.
      ValueError: if other coordinates are given than those before i in the order of an autoregressive energy, or the
        network has a part of linear combinations of the coordinates.
    """
    if isinstance(network, MixtureEnergy):
        parts = [cumulative(part, x, i) for part in network.parts]
        log_probs = np.stack([part.log_prob for part in parts], 1) + np.log(np.asarray(network.probs, np.float64))
        total = np.logaddexp.reduce(log_probs, axis=1)
        shares = np.exp(log_probs - total[:, None])
        return Cumulative((shares * np.stack([part.cdf for part in parts], 1)).sum(1), total)
    given = ~np.isnan(x) & (np.arange(x.shape[1]) != i)
    if isinstance(network, GaussianMixtureEnergy):
        return _of_gaussians(network, x, i, np.flatnonzero(given[0]))
    if isinstance(network, AutoregressiveEnergy):
        return _of_autoregressive(network, x, i, np.flatnonzero(given[0]))
    if isinstance(network, LinearEnergy):
        raise ValueError(
            "`density` must not have parts that are energies of linear combinations of the coordinates: their "
            "distribution functions have no closed form. Draw with `impute` instead."
        )
    if isinstance(network, MappedEnergy):
        y, log_slopes = network.image(x)
        inner = cumulative(network.network, y, i)
        return Cumulative(inner.cdf, inner.log_prob + np.where(given, log_slopes, 0.0).sum(1))
    raise TypeError(f"`network` must be made of autoregressive energies and Gaussian mixtures, got {network!r}.")


def _of_gaussians(network: GaussianMixtureEnergy, x: np.ndarray, i: int, given: np.ndarray) -> Cumulative:
    center, loc, factor = (np.asarray(value, np.float64) for value in (network.center, network.loc, network.scale))
    probs, loc = np.asarray(network.probs, np.float64), loc + center
    covariance = factor @ np.swapaxes(factor, -1, -2)
    covariance = covariance[None] if network.is_shared else covariance
    own = np.linalg.cholesky(covariance[:, given][:, :, given])
    inverse = np.linalg.inv(own)
    residual = x[:, None, given] - loc[:, given]
    z = np.einsum("kij,bkj->bki", np.broadcast_to(inverse, (len(loc), *inverse.shape[1:])), residual)
    volume = np.log(np.diagonal(own, axis1=1, axis2=2)).sum(1)
    log_weights = np.log(probs) - volume - 0.5 * np.square(z).sum(-1) - 0.5 * len(given) * np.log(2.0 * np.pi)
    log_prob = np.logaddexp.reduce(log_weights, axis=1)
    gain = np.einsum("kij,kj->ki", inverse, covariance[:, given, i])
    deviation = np.sqrt(covariance[:, i, i] - np.square(gain).sum(1))
    t = (x[:, i, None] - loc[:, i] - (z * gain).sum(-1)) / deviation
    return Cumulative((np.exp(log_weights - log_prob[:, None]) * scipy.special.ndtr(t)).sum(1), log_prob)


def _of_autoregressive(network: AutoregressiveEnergy, x: np.ndarray, i: int, given: np.ndarray) -> Cumulative:
    place = network.order.index(i)
    before = network.order[:place]
    if set(before) != set(given.tolist()):
        raise ValueError(
            f"`x` must give exactly the coordinates {sorted(before)}, those before {i} in the order of an "
            f"autoregressive energy, besides {i} itself, but it gives {given.tolist()}. The distribution function has "
            "no closed form there; draw with `impute` instead."
        )
    ordered = np.nan_to_num(x[:, list(network.order)])  # what comes after i is not read
    run = graph_function(_at_place)
    size = max(1, 2**22 // (network.num_nodes[1] * network.proposal.num_components * network.num_functions))
    values = [
        run(network, tf.constant(rows, network.dtype), place) for rows in np.split(ordered, range(size, len(x), size))
    ]
    cdf, log_prob = (np.concatenate([np.asarray(value[k], np.float64) for value in values]) for k in (0, 1))
    return Cumulative(cdf, log_prob)


def _at_place(network: AutoregressiveEnergy, y: tf.Tensor, place: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns P(Yᵢ ≤ yᵢ | y_<i) and log p(y_<i), `[batch]`, of rows in the order of dependence."""
    log_prob = tf.reduce_sum(network.log_conditionals(y, network.num_nodes[1])[:, :place], -1)
    i = tf.constant(place)
    proposal, outputs = network.at_coordinate(y, i)
    own: Any = y[:, place]
    if place in network.lines:
        coefficients = network.coefficients(outputs)

        def log_factor(t: tf.Tensor) -> tf.Tensor:
            if t.shape.rank == 1:
                return -bounded(tf.tensordot(coefficients, network.functions(t), [[-1], [-1]]))
            return -bounded(tf.einsum("bcj,bcnj->bcn", coefficients, network.functions(t)))

        t = (own[:, None] - proposal.loc) * tf.exp(-proposal.log_scale)
        below, total = integrals_below(network.proposal.family, 2 * network.num_nodes[1], t, log_factor)
        weights = tf.exp(proposal.log_probs)
        cdf = tf.reduce_sum(weights * below, -1) / tf.reduce_sum(weights * total, -1)
    else:
        of_values, at = network.log_probs_at(proposal, outputs, i)
        cdf = network.value_conditionals.below(of_values, own, at)
    return tf.clip_by_value(cdf, 0.0, 1.0), log_prob
