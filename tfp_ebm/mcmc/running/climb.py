"""Climbs from many points to maxima of a log density, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running.particles import log_density_and_gradient

# Steps at most; the length of a step, in standard deviations of the base; the gain, in nats, below which a climb ends.
_NUM_STEPS, _MAX_LENGTH, _MIN_GAIN = 150, 1.0, 1e-3
# The share of the gain that the gradient predicts which a step must make, and the factor of a step after a failure.
_ARMIJO, _SHORTER = 1e-4, 0.3
# Growth of the step where the log density is not concave along it.
_GROWTH = 2.0


def climb(
    resolve: Callable[[], TargetLogProbFn], base: tfp.distributions.Distribution, x: tf.Tensor, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Moves points uphill in log f by the method of Broyden, Fletcher, Goldfarb and Shanno, each on its own.

    One evaluation per step: a step that gains too little is undone, and the next one is shorter.

    Args:
      resolve, base: log f and b.
      x: points `[n, d]`.
      scale: unit of each coordinate, float64 `[d]`.

    Returns:
      The last points, `[n, d]`; log f there; and approximate inverses of −∇² log f in units of `scale`, `[n, d, d]`;
      all float64.
    """
    num, size = x.shape

    def at(y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        value, gradient = log_density_and_gradient(resolve, base, tf.cast(y * scale, x.dtype))
        return value, gradient * scale

    def step(i: tf.Tensor, *state: Any) -> tuple[Any, ...]:
        y, value, gradient, inverse, length, is_first = state
        move = tf.linalg.matvec(inverse, gradient)
        norm = tf.norm(move, axis=1)
        move *= (length * tf.minimum(_MAX_LENGTH / tf.maximum(norm, 1e-300), 1.0))[:, None]
        new_value, new_gradient = at(y + move)
        slope = tf.reduce_sum(gradient * move, 1)
        is_finite = tf.math.is_finite(new_value) & tf.reduce_all(tf.math.is_finite(new_gradient), 1)
        is_good = is_finite & (new_value >= value + _ARMIJO * slope)
        change = gradient - new_gradient
        product = tf.reduce_sum(move * change, 1)
        is_concave = is_good & (product > 1e-12 * tf.norm(move, axis=1) * tf.norm(change, axis=1))
        ratio = product / tf.maximum(tf.reduce_sum(change * change, 1), 1e-300)
        inverse = tf.where((is_concave & is_first)[:, None, None], ratio[:, None, None] * eye, inverse)
        inverse = tf.where(is_concave[:, None, None], _updated(inverse, move, change, product), inverse)
        inverse *= tf.where(is_good & ~is_concave, _GROWTH * tf.ones_like(value), tf.ones_like(value))[:, None, None]
        length = tf.where(is_good, tf.ones_like(length), _SHORTER * length)
        y = tf.where(is_good[:, None], y + move, y)
        value = tf.where(is_good, new_value, value)
        gradient = tf.where(is_good[:, None], new_gradient, gradient)
        return i + 1, y, value, gradient, inverse, length, is_first & ~is_concave

    def goes_on(i: tf.Tensor, *state: Any) -> tf.Tensor:
        _, _, gradient, inverse, length, _ = state
        gain = tf.reduce_sum(gradient * tf.linalg.matvec(inverse, gradient), 1)
        return (i < _NUM_STEPS) & tf.reduce_any((gain > _MIN_GAIN) & (length > 1e-6))

    eye = tf.eye(size, batch_shape=[num], dtype=tf.float64)
    y = tf.cast(x, tf.float64) / scale
    value, gradient = at(y)
    gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
    start = (tf.constant(0), y, value, gradient, eye, tf.ones_like(value), tf.fill([num], True))
    _, y, value, _, inverse, _, _ = tf.while_loop(goes_on, step, start, parallel_iterations=1)
    return y * scale, value, inverse


def _updated(inverse: tf.Tensor, move: tf.Tensor, change: tf.Tensor, product: tf.Tensor) -> tf.Tensor:
    """Returns the approximation of an inverse Hessian that maps `change` to `move`."""
    safe = tf.where(product > 0, product, tf.ones_like(product))[:, None, None]
    mapped = tf.linalg.matvec(inverse, change)
    both = move[:, :, None] * mapped[:, None, :]
    factor = 1.0 + tf.reduce_sum(change * mapped, 1)[:, None, None] / safe
    return inverse + (factor * move[:, :, None] * move[:, None, :] - both - tf.linalg.matrix_transpose(both)) / safe
