"""Draws of the missing coordinates of x given all others, for energies whose log Z is 0.

Each function takes rows in which NaN marks what is missing, and returns completed rows of equal weight together with
log p of what was given, by which the parts of a mixture are weighed.

In a Gaussian mixture both are in closed form. In an autoregressive energy, given coordinates may come after missing
ones in its order, and a particle filter draws: particles take a given coordinate as it is, are weighted by its
conditional probability, and are resampled within their row when weights have become uneven (Doucet & Johansen 2009).

In an energy of linear combinations of the coordinates nothing is given in its own coordinates. A mixture that has such
parts draws from its other parts instead, and resamples these draws by the ratio of the densities; so does a density
with a correction, from the density below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.networks.autoregressive import AutoregressiveEnergy
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.linear import LinearEnergy, has_linear
from tfp_ebm.networks.normalized import MappedEnergy, MixtureEnergy, NormalizedEnergy
from tfp_ebm.networks.residual import ResidualEnergy
from tfp_ebm.tracing import graph_function

# Particles that run at once.
_MAX_PARTICLES = 2**16


class Completion(NamedTuple):
    """Completed rows `[rows, num_draws, size]`, and log p of the given cells `[rows]`, both float64."""

    states: np.ndarray
    log_prob: np.ndarray


def complete(network: NormalizedEnergy, x: np.ndarray, num_draws: int, num_particles: int, seed: Any) -> Completion:
    """Draws the missing coordinates of rows given the others.

    Args:
      network: an energy with log Z = 0 that is built of autoregressive energies and Gaussian mixtures.
      x: rows `[rows, size]` in the network's coordinates, NaN where missing.
      num_draws: completed rows for each row.
      num_particles: particles for each row and autoregressive energy, at least `num_draws`.
      seed: int32[2].

    Raises:
      TypeError: if the network has a part of another kind.
    """
    x = np.asarray(x, np.float64)
    if isinstance(network, MixtureEnergy):
        return _of_mixture(network, x, num_draws, num_particles, seed)
    if isinstance(network, ResidualEnergy):
        return _resampled(network, network.network, x, num_draws, num_particles, seed)
    if isinstance(network, MappedEnergy) and not isinstance(network, LinearEnergy):
        y, log_slopes = network.image(x)
        inner = complete(network.network, y, num_draws, num_particles, seed)
        return Completion(_with_given(network.preimage(inner.states), x), inner.log_prob + log_slopes.sum(1))
    if isinstance(network, GaussianMixtureEnergy):
        return _of_gaussians(network, x, num_draws, seed)
    if isinstance(network, AutoregressiveEnergy):
        return _of_autoregressive(network, x, num_draws, num_particles, seed)
    raise TypeError(f"`network` must be made of autoregressive energies and Gaussian mixtures, got {network!r}.")


def _with_given(states: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the states with the given cells exactly as they were given."""
    return np.where(np.isnan(x)[:, None], states, x[:, None])


def _rng(seed: Any) -> np.random.Generator:
    return np.random.default_rng([int(word) & 0xFFFFFFFF for word in np.asarray(seed)])


def _in_given_coordinates(network: MixtureEnergy) -> MixtureEnergy:
    """Returns the mixture of the parts that are no energies of linear combinations."""
    kept = [i for i, part in enumerate(network.parts) if not has_linear(part)]
    if not kept:
        raise TypeError("`network` must have a part that is no energy of linear combinations of the coordinates.")
    probs = np.asarray(network.probs, np.float64)[kept]
    return MixtureEnergy([network.parts[i] for i in kept], probs / probs.sum(), dtype=network.dtype)


def _resampled(
    network: NormalizedEnergy, others: NormalizedEnergy, x: np.ndarray, num_draws: int, num_particles: int, seed: Any
) -> Completion:
    """Draws from another density, and resamples by the ratio of the densities (Rubin 1987)."""
    number = max(num_draws, num_particles)
    drawn = complete(others, x, number, number, random.fold_in(seed, 0))
    flat = drawn.states.reshape(-1, x.shape[1])
    log_ratios = np.empty(len(flat))
    for start in range(0, len(flat), _MAX_PARTICLES):
        block = tf.constant(flat[start : start + _MAX_PARTICLES], network.dtype)
        log_ratios[start : start + _MAX_PARTICLES] = np.asarray(others(block) - network(block), np.float64)
    log_ratios = np.where(np.isfinite(log_ratios), log_ratios, -np.inf).reshape(len(x), number)
    total = np.logaddexp.reduce(log_ratios, axis=1)
    shares = np.exp(log_ratios - np.where(np.isfinite(total), total, 0.0)[:, None])
    shares = np.where(np.isfinite(total)[:, None], shares, 1.0 / number)  # no draw is explained
    rng = _rng(random.fold_in(seed, 1))
    # at even distances: as few copies as the weights allow; in random order
    places = (rng.permuted(np.tile(np.arange(num_draws), (len(x), 1)), axis=1) + rng.random((len(x), 1))) / num_draws
    cumulated = np.cumsum(shares, 1)
    chosen = np.stack([np.searchsorted(row / row[-1], at) for row, at in zip(cumulated, places, strict=True)])
    states = np.take_along_axis(drawn.states, np.minimum(chosen, number - 1)[..., None], 1)
    return Completion(states, drawn.log_prob + total - np.log(number))


def _of_mixture(network: MixtureEnergy, x: np.ndarray, num_draws: int, num_particles: int, seed: Any) -> Completion:
    if any(has_linear(part) for part in network.parts):
        return _resampled(network, _in_given_coordinates(network), x, num_draws, num_particles, seed)
    parts = [
        complete(part, x, num_draws, num_particles, random.fold_in(seed, i + 1)) for i, part in enumerate(network.parts)
    ]
    log_probs = np.stack([part.log_prob for part in parts], 1) + np.log(np.asarray(network.probs, np.float64))
    total = np.logaddexp.reduce(log_probs, axis=1)
    shares = np.exp(log_probs - np.where(np.isfinite(total), total, 0.0)[:, None])
    shares = np.where(np.isfinite(total)[:, None], shares, np.asarray(network.probs))  # no part can explain the row
    u = _rng(random.fold_in(seed, 0)).random((len(x), num_draws, 1))
    chosen = np.minimum((u > np.cumsum(shares, 1)[:, None] / shares.sum(1)[:, None, None]).sum(-1), len(parts) - 1)
    rows, draws = np.indices(chosen.shape)
    return Completion(np.stack([part.states for part in parts])[chosen, rows, draws], total)


def _of_gaussians(network: GaussianMixtureEnergy, x: np.ndarray, num_draws: int, seed: Any) -> Completion:
    center, loc, scale = (np.asarray(value, np.float64) for value in (network.center, network.loc, network.scale))
    probs, loc = np.asarray(network.probs, np.float64), loc + center
    covariance = scale @ np.swapaxes(scale, -1, -2)
    covariance = covariance[None] if network.is_shared else covariance
    rng = _rng(seed)
    states, log_prob = np.repeat(x[:, None], num_draws, 1), np.zeros(len(x))
    is_missing = np.isnan(x)
    patterns, group = np.unique(is_missing, axis=0, return_inverse=True)
    for number, missing in enumerate(patterns):
        rows = np.flatnonzero(group.reshape(-1) == number)
        gaps, given = np.flatnonzero(missing), np.flatnonzero(~missing)
        own = covariance[:, given][:, :, given]
        factor = np.linalg.cholesky(own) if len(given) else np.zeros((len(covariance), 0, 0))
        inverse = np.linalg.inv(factor)
        residual = x[rows][:, None, given] - loc[:, given]  # [rows, components, given]
        z = np.einsum("kij,bkj->bki", np.broadcast_to(inverse, (len(loc), *inverse.shape[1:])), residual)
        volume = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
        log_weights = np.log(probs) - volume - 0.5 * np.square(z).sum(-1) - 0.5 * len(given) * np.log(2.0 * np.pi)
        log_prob[rows] = np.logaddexp.reduce(log_weights, axis=1)
        if not len(gaps):
            continue
        shares = np.exp(log_weights - log_prob[rows][:, None])
        u = rng.random((len(rows), num_draws, 1))
        component = np.minimum((u > np.cumsum(shares, 1)[:, None]).sum(-1), len(loc) - 1)
        gain = covariance[:, gaps][:, :, given] @ np.swapaxes(inverse, -1, -2)  # of z
        rest = covariance[:, gaps][:, :, gaps] - gain @ np.swapaxes(gain, -1, -2)
        spread = np.linalg.cholesky(
            rest + 1e-12 * np.trace(covariance, axis1=1, axis2=2)[:, None, None] * np.eye(len(gaps))
        )
        shared = np.zeros_like(component) if network.is_shared else component
        chosen_z = np.take_along_axis(z, component[..., None], 1)
        mean = loc[component][..., gaps] + np.einsum("bdij,bdj->bdi", gain[shared], chosen_z)
        noise = np.einsum("bdij,bdj->bdi", spread[shared], rng.normal(size=mean.shape))
        states[np.ix_(rows, np.arange(num_draws), gaps)] = mean + noise
    return Completion(states, log_prob)


def _of_autoregressive(
    network: AutoregressiveEnergy, x: np.ndarray, num_draws: int, num_particles: int, seed: Any
) -> Completion:
    num_particles = max(num_draws, num_particles)
    block = max(1, _MAX_PARTICLES // num_particles)
    ordered = x.reshape(len(x), -1)[:, list(network.order)]
    ordered = np.pad(ordered, ((0, -len(x) % block if len(x) > block else 0), (0, 0)), mode="edge")
    block = min(block, len(ordered))
    run = graph_function(_particles)
    states, log_prob = [], []
    for number in range(0, len(ordered), block):
        y, weights = run(
            network,
            tf.constant(ordered[number : number + block], network.dtype),
            num_particles,
            num_draws,
            random.fold_in(seed, number),
        )
        states.append(np.asarray(y, np.float64)[..., np.argsort(network.order)])
        log_prob.append(np.asarray(weights, np.float64))
    return Completion(_with_given(np.concatenate(states)[: len(x)], x), np.concatenate(log_prob)[: len(x)])


def _particles(
    network: AutoregressiveEnergy, y: tf.Tensor, num_particles: int, num_draws: int, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `[rows, num_draws, size]` and log p of given cells; rows `[rows, size]` in the order of dependence."""
    num_rows, size = y.shape
    shape = [num_rows, num_particles]

    def resampled(states: tf.Tensor, log_weights: tf.Tensor, number: int, salt: tf.Tensor) -> tf.Tensor:
        """Returns `number` particles of each row, chosen by their weights at even distances."""
        shares = tf.cumsum(tf.nn.softmax(log_weights), axis=-1)
        u = random.uniform([num_rows, 1], random.fold_in(seed, salt), y.dtype)
        places = (tf.cast(tf.range(number), y.dtype) + u) / number * shares[:, -1:]
        chosen = tf.minimum(tf.searchsorted(shares, places), num_particles - 1)
        return tf.gather(tf.reshape(states, [num_rows, num_particles, size]), chosen, batch_dims=1)

    def step(
        i: tf.Tensor, states: tf.Tensor, log_weights: tf.Tensor, log_prob: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        # rows where the coordinate is missing draw it, and the others are weighted by what is given
        is_missing = tf.math.is_nan(y[:, i])
        gaps, rest = tf.where(tf.repeat(is_missing, num_particles)), tf.where(tf.repeat(~is_missing, num_particles))
        u = random.uniform([2, num_rows * num_particles], random.fold_in(seed, 3 * i), y.dtype)
        drawn = network.invert(
            *network.at_coordinate(tf.gather_nd(states, gaps), i),
            i,
            *(tf.gather_nd(value, gaps) for value in tf.unstack(u)),
        )
        own = tf.tensor_scatter_nd_update(tf.repeat(y[:, i], num_particles), gaps, drawn)
        states = tf.where(tf.range(size) == i, own[:, None], states)
        some = tf.gather_nd(states, rest)
        factor = tf.scatter_nd(
            rest,
            network.log_conditional(some, *network.at_coordinate(some, i), i),
            [tf.constant(num_rows * num_particles, tf.int64)],
        )
        log_weights += tf.reshape(factor, shape)
        spread = tf.reduce_logsumexp(2.0 * log_weights, -1) - 2.0 * tf.reduce_logsumexp(log_weights, -1)
        is_uneven = tf.exp(-spread) < 0.5 * num_particles
        average = tf.reduce_logsumexp(log_weights, -1) - tf.math.log(tf.cast(num_particles, y.dtype))
        log_prob += tf.where(is_uneven, average, tf.zeros_like(average))
        chosen = resampled(states, log_weights, num_particles, 3 * i + 1)
        states = tf.where(is_uneven[:, None, None], chosen, tf.reshape(states, tf.shape(chosen)))
        log_weights = tf.where(is_uneven[:, None], tf.zeros_like(log_weights), log_weights)
        return i + 1, tf.reshape(states, [-1, size]), log_weights, log_prob

    start = tf.zeros([num_rows * num_particles, size], y.dtype)
    loop = (tf.constant(0), start, tf.zeros(shape, y.dtype), tf.zeros([num_rows], y.dtype))
    _, states, log_weights, log_prob = tf.while_loop(lambda i, *_: i < size, step, loop, parallel_iterations=1)
    log_prob += tf.reduce_logsumexp(log_weights, -1) - tf.math.log(tf.cast(num_particles, y.dtype))
    chosen = resampled(states, log_weights, num_draws, tf.constant(3 * size + 2))
    order = tf.argsort(random.uniform([num_rows, num_draws], random.fold_in(seed, 3 * size + 3), y.dtype), axis=-1)
    return tf.gather(chosen, order, batch_dims=1), log_prob
