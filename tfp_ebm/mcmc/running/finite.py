"""Checks for chains with a NaN or an infinity in a state or its log density."""

from __future__ import annotations

import tensorflow as tf


def is_finite(states: tf.Tensor, num_leading: int, log_prob: tf.Tensor | None = None) -> tf.Tensor:
    """Returns whether each state, and its log density if given, is finite.

    Args:
      states: any number of leading axes, followed by the event's axes.
      num_leading: number of axes before the event.
      log_prob: log densities, of the shape of the leading axes.

    Returns:
      bool, of the shape of the leading axes.

    >>> x = tf.constant([[1.0, 2.0], [1.0, float("nan")], [3.0, 4.0]])
    >>> is_finite(x, 1, log_prob=tf.constant([0.0, 0.0, float("inf")])).numpy().tolist()
    [True, False, False]
    """
    finite = tf.reduce_all(tf.math.is_finite(states), axis=list(range(num_leading, states.shape.rank)))
    return finite if log_prob is None else finite & tf.math.is_finite(log_prob)


def count_nonfinite(states: tf.Tensor, num_leading: int, log_prob: tf.Tensor | None = None) -> tf.Tensor:
    """Counts the chains with a NaN or an infinity in any of their states.

    Args:
      states: `[num_results, *chains, *event]`.
      num_leading: number of axes before the event.
      log_prob: log densities `[num_results, *chains]`, also checked if given.

    Returns:
      int32 scalar.

    >>> int(count_nonfinite(tf.constant([[[1.0], [2.0]], [[1.0], [float("inf")]]]), 2))
    1
    """
    finite = is_finite(states, num_leading, log_prob)
    return tf.reduce_sum(tf.cast(~tf.reduce_all(finite, axis=0), tf.int32))
