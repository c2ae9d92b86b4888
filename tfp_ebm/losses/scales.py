"""Which row is noised at which of several scales."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

__all__ = ["scale_of_rows"]


def scale_of_rows(sigmas: Sequence[float], x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """One of `sigmas` for each row, `[batch, 1, ...]`: all in turn from a random first one: equal shares."""
    first = tf.random.stateless_uniform([], seed, 0, len(sigmas), tf.int32, alg="philox")
    indices = (first + tf.range(tf.shape(x)[0])) % len(sigmas)
    return tf.reshape(tf.gather(tf.constant(sigmas, x.dtype), indices), [-1] + [1] * (x.shape.rank - 1))
