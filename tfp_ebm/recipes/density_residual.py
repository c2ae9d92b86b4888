"""A global energy on top of a density, learned by noise contrastive estimation with the density as the noise.

With as many weighted draws y of p' as rows x, the loss E softplus(−g(x)) + E softplus(g(y)) is least at
g = log p/p' (Gutmann & Hyvärinen 2012). It needs draws of p' alone. log Z = log E exp(g(y)) is a mean over fresh draws,
whose error is known; so is the gain of the held-out log-likelihood, the mean of g(x) − log Z over these rows.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.networks.residual import ResidualEnergy
from tfp_ebm.random import stateless_seed
from tfp_ebm.recipes.density_rows import mean_and_error, resampled
from tfp_ebm.tracing import graph_function

# Draws for each row, and in all, at most; draws that estimate log Z; passes over the rows; rows of a batch.
_NUM_DRAWS, _MAX_DRAWS, _NUM_JUDGES, _NUM_PASSES, _BATCH_SIZE = 4, 200_000, 50_000, 10, 256
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.01
# Rows that are worth a correction, and columns up to which there is one.
MIN_ROWS, MAX_COLUMNS = 5000, 32


class Gain(NamedTuple):
    """The gain of a correction in held-out log-likelihood, its standard error with that of log Z, and log Z."""

    value: float
    error: float
    log_normalizer: float


def _gain(
    held_out: np.ndarray, draws: np.ndarray, weights: np.ndarray | None = None, labels: np.ndarray | None = None
) -> Gain:
    """Returns the gain, from g at the rows held out and at draws of the density.

    The rows may have weights, and numbers of their groups.

    >>> round(_gain(np.log([2.0, 2.0]), np.log([0.5, 1.5])).value, 4), round(_gain(np.zeros(9), np.zeros(9)).error, 4)
    (0.6931, 0.0)
    """
    factors = np.exp(draws)
    log_mass = math.log(factors.mean())
    of_mass = factors.std(ddof=1) / factors.mean() / math.sqrt(len(draws))
    mean, of_rows = mean_and_error(held_out, weights, labels)
    return Gain(mean - log_mass, math.hypot(of_rows, of_mass), log_mass)


def fit_residual(
    network: NormalizedEnergy,
    rows: np.ndarray,
    held_out: np.ndarray,
    seed: int,
    weights: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    labels: np.ndarray | None = None,
) -> ResidualEnergy | None:
    """Learns a correction of a density, and returns the corrected one, or None if it is no better.

    It is better if the gain on the rows held out is larger than two standard errors.

    Args:
      network: the density, an energy of vectors with log Z = 0.
      rows: `[rows, columns]` to learn from, in the network's coordinates.
      held_out: rows that choose when the training stops, and whether it is kept.
      seed: of weights, draws and batches.
      weights: of the rows, which are drawn in proportion to them, and of the rows held out; None: equal ones.
      labels: numbers of the groups of the rows held out, for the standard error; None: each row is one.
    """
    energy = ResidualEnergy(network, seed=seed)
    energy.seen_range.assign(np.stack([rows.min(0), rows.max(0)]))
    number = min(_NUM_DRAWS, _MAX_DRAWS // len(rows))
    words = [stateless_seed([seed, word]) for word in (1, 2)]
    draw = graph_function(network.draw)
    noise = draw(max(1, number) * len(rows), words[0]).numpy()
    judges = draw(_NUM_JUDGES, words[1]).numpy()
    num_batches = len(rows) // _BATCH_SIZE
    total = _NUM_PASSES * num_batches
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, total), weight_decay=_WEIGHT_DECAY, global_clipnorm=10.0
    )
    variables = energy.correction.trainable_variables
    optimizer.build(variables)

    @functools.partial(graph_function, jit_compile=True)
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softplus(-energy.log_ratio(x)))
            loss += tf.reduce_mean(tf.nn.softplus(energy.log_ratio(y)))
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)

    ratio = graph_function(energy.log_ratio, reduce_retracing=True)

    def at(x: np.ndarray) -> np.ndarray:
        parts = np.array_split(x.astype(energy.dtype), max(1, len(x) // 10_000))
        return np.concatenate([ratio(tf.constant(part)).numpy() for part in parts]).astype(np.float64)

    rng = np.random.default_rng([seed, 17])
    best, kept = Gain(0.0, 0.0, 0.0), None
    for _ in range(_NUM_PASSES):
        x: np.ndarray = rows.astype(energy.dtype)
        x = rng.permutation(x) if weights[0] is None else x[resampled(weights[0], len(x), rng)]
        y = rng.permutation(noise)
        own, other = (np.array_split(part[: len(part) // num_batches * num_batches], num_batches) for part in (x, y))
        for one, two in zip(own, other, strict=True):
            step(one, two)
        gain = _gain(at(held_out), at(judges), weights[1], labels)
        if gain.value - 2.0 * gain.error > best.value - 2.0 * best.error:
            best, kept = gain, energy.get_weights()
    if kept is None:
        return None
    energy.set_weights(kept)
    energy.log_mass.assign(best.log_normalizer)
    return energy
