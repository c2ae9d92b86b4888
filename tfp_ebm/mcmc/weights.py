"""Importance weights: temperatures from them, resampling by them, and the error of their mean.

A sequential Monte Carlo sampler multiplies the weight of a particle by exp(δ h), h = log f − log b, when the inverse
temperature grows by δ. The *conditional* effective sample size of this step (Zhou, Johansen & Aston 2016),

    CESS(δ) = (Σ Wᵢ uᵢ)² / Σ Wᵢ uᵢ²,    u = exp(δ h),

with the weights W before the step, Σ W = 1, is 1 for δ = 0 and decreases. Unlike the effective sample size of the new
weights, it measures this step alone, whenever the last resampling was.

All functions of tensors work in float64, in graph mode and under XLA.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# Bisections of the step in inverse temperature; the step is then exact to 2⁻⁴⁰ of its largest value.
_NUM_BISECTIONS = 40


def conditional_ess(weights: tf.Tensor, log_ratio: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Computes the conditional effective sample size, as a share from 0 to 1, of a step δ in inverse temperature.

    Particles with h = −∞ are left out: they lose their weight at any δ > 0, however small.

    Args:
      weights: weights before the step, float64 `[n]`, not all zero; they need not sum to 1.
      log_ratio: h, float64 `[n]`.
      delta: δ, float64 scalar.

    >>> h = tf.constant([0.0, np.log(3.0)], tf.float64)
    >>> round(float(conditional_ess(tf.ones([2], tf.float64), h, tf.constant(1.0, tf.float64))), 3)  # 16/(2·10)
    0.8
    """
    finite = tf.math.is_finite(log_ratio)
    weights = tf.where(finite, weights, tf.zeros_like(weights))
    weights /= tf.reduce_sum(weights)
    exponent = tf.where(finite, delta * log_ratio, tf.zeros_like(log_ratio))
    u = tf.exp(exponent - tf.reduce_max(tf.where(weights > 0, exponent, -np.inf)))
    # a particle without weight may have the largest u
    u = tf.where(weights > 0, u, tf.zeros_like(u))
    return tf.square(tf.reduce_sum(weights * u)) / tf.reduce_sum(weights * tf.square(u))


def effective_size(log_weights: tf.Tensor) -> tf.Tensor:
    """Computes the effective sample size (Σw)²/Σw² along the last axis; 0 if all weights are zero.

    >>> float(effective_size(tf.zeros([7])))
    7.0
    """
    weights = tf.exp(log_weights - tf.reduce_max(log_weights, -1, keepdims=True))
    weights = tf.where(tf.math.is_nan(weights), tf.zeros_like(weights), weights)
    return tf.math.divide_no_nan(tf.square(tf.reduce_sum(weights, -1)), tf.reduce_sum(tf.square(weights), -1))


def next_step(weights: tf.Tensor, log_ratio: tf.Tensor, largest: tf.Tensor, threshold: float | tf.Tensor) -> tf.Tensor:
    """Returns the largest step δ ≤ `largest` whose conditional effective sample size is at least `threshold`.

    >>> h = tf.constant(np.random.default_rng(0).normal(size=4000))
    >>> weights, one = tf.ones([4000], tf.float64), tf.ones([], tf.float64)
    >>> delta = next_step(weights, 10.0 * h, one, 0.9)  # exp(−(10 δ)²) = .9 for a normal h
    >>> 0.031 < float(delta) < 0.034, float(next_step(weights, 0.1 * h, one, 0.9))
    (True, 1.0)
    """

    def halve(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, ...]:
        middle = 0.5 * (low + high)
        is_safe = conditional_ess(weights, log_ratio, middle) >= threshold
        return i + 1, tf.where(is_safe, middle, low), tf.where(is_safe, high, middle)

    start = (tf.constant(0), tf.zeros_like(largest), largest)
    low = tf.while_loop(lambda i, *_: i < _NUM_BISECTIONS, halve, start)[1]
    return tf.where(conditional_ess(weights, log_ratio, largest) >= threshold, largest, low)


def resample(log_weights: tf.Tensor, u: tf.Tensor, num: int) -> tf.Tensor:
    """Draws ancestors by systematic resampling, in each row independently.

    Item i of n has ⌊num·Wᵢ⌋ or ⌈num·Wᵢ⌉ offspring, num·Wᵢ on average. The time is linear in n.

    Args:
      log_weights: float64 `[rows, n]`; a row of −∞ alone counts as one of equal weights.
      u: uniform numbers on (0, 1), float64 `[rows]`.
      num: number of ancestors to draw in each row.

    Returns:
      Indices in ascending order, int32 `[rows, num]`.

    >>> resample(tf.math.log([[0.5, 0.0, 0.25, 0.25]]), tf.constant([0.5]), 4).numpy().tolist()
    [[0, 0, 2, 3]]
    """
    rows, n = log_weights.shape
    largest = tf.reduce_max(log_weights, 1, keepdims=True)
    # a row without any weight keeps its items
    weights = tf.where(tf.math.is_finite(largest), tf.exp(log_weights - largest), tf.ones_like(log_weights))
    shares = tf.cumsum(weights, 1)
    shares /= shares[:, -1:]  # the last is then exactly 1
    # The positions (u + j)/num, j < num, that are at most the cumulative share: these are the offspring up to an item.
    counts = tf.cast(tf.floor(num * shares - u[:, None]) + 1.0, tf.int32)
    counts = tf.clip_by_value(counts, 0, num)
    counts = tf.concat([counts[:, :-1], tf.fill([rows, 1], num)], 1)
    # offspring j descends from the item whose number is that of items with at most j offspring up to them
    index = tf.stack([tf.broadcast_to(tf.range(rows)[:, None], [rows, n]), counts], -1)
    ends = tf.scatter_nd(index, tf.ones([rows, n], tf.int32), [rows, num + 1])
    return tf.cumsum(ends[:, :num], 1)


def jackknife_of_log_mean(log_weights: np.ndarray) -> tuple[float, float]:
    """Returns log w̄ and its jackknife standard error, for float64 log weights `[n]`, n ≥ 2.

    >>> value, error = jackknife_of_log_mean(np.log([1.0, 2.0, 3.0, 2.0] * 25))
    >>> round(float(np.exp(value)), 6), round(error, 3)
    (2.0, 0.036)
    """
    num = len(log_weights)
    largest = float(np.max(log_weights))
    if not np.isfinite(largest):
        return largest, np.nan
    weights = np.exp(log_weights - largest)
    value = largest + float(np.log(np.mean(weights)))
    if np.ptp(weights) == 0:  # the rounding error of the mean is no spread
        return value, 0.0
    rest = np.sum(weights) - weights
    top = int(np.argmax(weights))
    rest[top] = np.sum(np.delete(weights, top))  # no subtraction of nearly equal numbers
    with np.errstate(divide="ignore"):
        left_out = np.log(rest / (num - 1))
    if not np.isfinite(left_out).all():
        return value, np.inf
    return value, float(np.sqrt((num - 1) / num * np.sum(np.square(left_out - np.mean(left_out)))))


def pareto_shape(weights: np.ndarray) -> float:
    """Fits a generalised Pareto distribution to the largest weights and returns its shape k; NaN if they are equal.

    The estimate is that of Zhang & Stephens (2009) for the min(n/5, 3√n) largest weights, with a weak prior towards ½,
    as in Vehtari et al. 2024 (arXiv:1507.02646).

    Args:
      weights: positive, `[n]`.

    >>> u = (np.arange(100_000) + 0.5) / 100_000
    >>> round(pareto_shape(u**-0.8), 1), round(pareto_shape(u**-0.3), 1)  # Pareto distributions of shape .8 and .3
    (0.8, 0.3)
    """
    ordered = np.sort(weights)
    number = int(min(len(ordered) / 5, 3 * np.sqrt(len(ordered))))
    excess = ordered[-number:] - ordered[-number - 1]
    excess = excess[excess > 1e-12 * ordered[-number - 1]]  # equal weights may differ by rounding
    number = len(excess)
    if number < 5:
        return np.nan
    size = 30 + int(np.sqrt(number))
    quartile = excess[int(number / 4 + 0.5) - 1]
    b = 1 / excess[-1] + (1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))) / (3 * quartile)
    k = np.mean(np.log1p(-b[:, None] * excess), 1)
    profile = number * (np.log(-b / k) - k - 1)
    with np.errstate(over="ignore"):  # 1/inf is the right weight of a value of b that the tail excludes
        b_mean = float(np.sum(b / np.sum(np.exp(profile - profile[:, None]), 1)))
    return float((number * np.mean(np.log1p(-b_mean * excess)) + 5) / (number + 10))
