"""Counts, means and sums of squares of chains, computed in one pass without keeping the draws.

The n-th result x of a chain updates the mean and the sum of squared deviations by (Welford 1962)

    δ = x − m,    m ← m + δ/n,    S ← S + δ²(n − 1)/n,

and two stretches a, b of a chain are joined by (Chan, Golub & LeVeque 1979)

    δ = m_b − m_a,    m = m_a + δ·n_b/n,    S = S_a + S_b + δ²·n_a·n_b/n,    n = n_a + n_b.

No large squares are subtracted from each other, so the variance loses no digits even if the mean is a million standard
deviations. All sums are in float64, whatever the chain's dtype: in float32 the mean of 10⁷ draws would stop changing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfp_ebm.mcmc.running.finite import is_finite


class Moments(NamedTuple):
    """The moments of the results so far.

    `mean` and `squares` have an entry for the states and one for the log densities. The latter is missing for kernels
    from other packages, whose results may hold the log density of another target.

    Attributes:
      number: number of results per chain.
      mean: means per chain, `[*chains, *event]` and `[*chains]`.
      squares: sums of squared deviations from `mean`.
      scatter: sum over chains and results of the outer products of the deviations from the mean of all chains,
        `[size, size]`; () if it is not computed.
      num_accepted: number of accepted steps, among those that led to a result, `[*chains]`.
      is_finite: whether all states and log densities were finite, `[*chains]`.
    """

    number: tf.Tensor
    mean: tuple[tf.Tensor, ...]
    squares: tuple[tf.Tensor, ...]
    scatter: Any
    num_accepted: tf.Tensor
    is_finite: tf.Tensor


def zero_moments(state: tf.Tensor, per_chain: tf.Tensor, with_log_prob: bool, with_scatter: bool) -> Moments:
    """Returns the moments of zero results.

    Args:
      state: `[*chains, *event]`.
      per_chain: `[*chains]`.
      with_log_prob: whether the moments include those of the log densities.
      with_scatter: whether the moments include `scatter`.
    """
    zeros = tuple(tf.zeros_like(part, tf.float64) for part in ((state, per_chain) if with_log_prob else (state,)))
    size = state.shape[per_chain.shape.rank :].num_elements()
    return Moments(
        number=tf.zeros([], tf.float64),
        mean=zeros,
        squares=zeros,
        scatter=tf.zeros([size, size], tf.float64) if with_scatter else (),
        num_accepted=tf.zeros_like(per_chain, tf.float64),
        is_finite=tf.ones_like(per_chain, tf.bool),
    )


def add_step(
    moments: Moments, is_result: tf.Tensor, state: tf.Tensor, log_prob: Any, is_accepted: tf.Tensor
) -> Moments:
    """Updates the moments by one step, if it is a result.

    Args:
      moments: the moments before the step.
      is_result: bool scalar; a step that is not a result changes nothing.
      state: `[*chains, *event]`.
      log_prob: `[*chains]`; () if the moments do not include it.
      is_accepted: `[*chains]`.
    """
    number = moments.number + tf.cast(is_result, tf.float64)
    share = 1 / tf.maximum(number, 1)
    values = [tf.cast(value, tf.float64) for value in (state, log_prob)[: len(moments.mean)]]
    # `where` instead of a product with 0, since a step that is not a result may hold infinite values.
    zero = tf.zeros([], tf.float64)
    deltas = [tf.where(is_result, value - mean, zero) for value, mean in zip(values, moments.mean, strict=True)]
    scatter = moments.scatter
    if tf.is_tensor(scatter):
        flat, mean = (_flat(part, is_accepted.shape.rank) for part in (values[0], moments.mean[0]))
        center = tf.reduce_mean(flat, 0)
        spread = tf.where(is_result, flat - center, zero)
        moved = tf.where(is_result, center - tf.reduce_mean(mean, 0), zero)
        scatter += tf.linalg.matmul(spread, spread, transpose_a=True)
        scatter += _length(flat) * (number - 1) * share * _outer(moved)
    finite = is_finite(state, is_accepted.shape.rank, log_prob if tf.is_tensor(log_prob) else None)
    return Moments(
        number=number,
        mean=tuple(mean + share * delta for mean, delta in zip(moments.mean, deltas, strict=True)),
        squares=tuple(
            squares + (number - 1) * share * delta**2 for squares, delta in zip(moments.squares, deltas, strict=True)
        ),
        scatter=scatter,
        num_accepted=moments.num_accepted + tf.cast(is_accepted & is_result, tf.float64),
        is_finite=moments.is_finite & (finite | ~is_result),
    )


def join_stretches(stretches: Sequence[Moments]) -> Moments:
    """Joins the moments of consecutive stretches of the same chains."""
    return functools.reduce(_join_stretches, stretches)


def _join_stretches(a: Moments, b: Moments) -> Moments:
    number = a.number + b.number
    share = b.number / tf.maximum(number, 1)
    deltas = [after - before for before, after in zip(a.mean, b.mean, strict=True)]
    scatter = a.scatter
    if tf.is_tensor(scatter):
        delta = _flat(deltas[0], a.is_finite.shape.rank)
        scatter += b.scatter + _length(delta) * a.number * share * _outer(tf.reduce_mean(delta, 0))
    return Moments(
        number=number,
        mean=tuple(mean + share * delta for mean, delta in zip(a.mean, deltas, strict=True)),
        squares=tuple(
            first + second + a.number * share * delta**2
            for first, second, delta in zip(a.squares, b.squares, deltas, strict=True)
        ),
        scatter=scatter,
        num_accepted=a.num_accepted + b.num_accepted,
        is_finite=a.is_finite & b.is_finite,
    )


def join_chains(a: Moments, b: Moments) -> Moments:
    """Joins the moments of different chains over the same steps, along the first axis."""
    rank = a.is_finite.shape.rank
    scatter = a.scatter
    if tf.is_tensor(scatter):
        first, second = (_flat(half.mean[0], rank) for half in (a, b))
        share = a.number / (1 / _length(first) + 1 / _length(second))
        scatter += b.scatter + share * _outer(tf.reduce_mean(second, 0) - tf.reduce_mean(first, 0))
    per_chain = [half._replace(number=(), scatter=()) for half in (a, b)]
    whole: Moments = tf.nest.map_structure(lambda *halves: tf.concat(halves, 0), *per_chain)
    return whole._replace(number=a.number, scatter=scatter)


def rhat(stretches: Sequence[Moments], entry: int) -> tf.Tensor:
    """Computes R̂ = √((n − 1)/n + B/W) of Gelman & Rubin (1992), see `diagnostics.py`; each stretch counts as a chain.

    Args:
      stretches: moments of equal numbers of results.
      entry: 0 for the states, 1 for the log densities.

    Returns:
      `[*event]`; NaN for a single chain, fewer than two results, or chains that never moved.
    """
    rank, number = stretches[0].is_finite.shape.rank, stretches[0].number
    means = tf.concat([over_chains(part.mean[entry], rank) for part in stretches], 0)
    squares = tf.concat([over_chains(part.squares[entry], rank) for part in stretches], 0)
    within = tf.reduce_mean(squares, 0) / (number - 1)
    between = tf.reduce_sum((means - tf.reduce_mean(means, 0)) ** 2, 0) / (_length(means) - 1)
    return tf.sqrt((number - 1) / number + between / within)


def over_chains(values: tf.Tensor, rank: int) -> tf.Tensor:
    """Reshapes `[*chains, *event]` to `[all chains, *event]`."""
    return tf.reshape(values, [-1, *values.shape[rank:]])


def _flat(values: tf.Tensor, rank: int) -> tf.Tensor:
    return tf.reshape(values, [-1, values.shape[rank:].num_elements()])


def _length(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.shape(values)[0], tf.float64)


def _outer(vector: tf.Tensor) -> tf.Tensor:
    return vector[:, None] * vector[None, :]
