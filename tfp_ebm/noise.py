"""Random numbers that are the same in graph mode and under XLA.

TensorFlow's stateless generator gives the same *bits* on both roads once it is told to use Philox, but turns them into
floating-point numbers in different ways, so `tf.random.stateless_normal` draws different noise in the two. Here the
bits become numbers by operations of our own: a normal is √2·erf⁻¹(u) of a u uniform on (−1, 1), which under XLA is also
fused into what uses it, and faster than TensorFlow's.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

__all__ = ["normal", "rademacher", "uniform"]


def _bits(shape: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, None, None, dtype, alg="philox")


def _symmetric(shape: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Uniform on the midpoints of a grid over (−1, 1) as fine as the mantissa, so that ±1 and 0 never come."""
    if dtype == tf.float64:
        whole, drop, digits = _bits(shape, seed, tf.int64), 11, 52
    else:
        whole, drop, digits = _bits(shape, seed, tf.int32), 8, 23
    # an arithmetic shift: the sign stays
    return (tf.cast(tf.bitwise.right_shift(whole, drop), dtype) + 0.5) * 2.0**-digits


def normal(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Standard normal numbers.

    Args:
      shape: of the result.
      seed: int32[2].
      dtype: float32 or float64.

    >>> x = normal([10_000], tf.constant([0, 1]))
    >>> abs(float(tf.reduce_mean(x))) < 0.05, abs(float(tf.math.reduce_std(x)) - 1) < 0.05
    (True, True)
    """
    return math.sqrt(2.0) * tf.math.erfinv(_symmetric(shape, seed, tf.as_dtype(dtype)))


def uniform(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Uniform numbers on (0, 1).

    >>> bool(tf.reduce_all(uniform([100], tf.constant([0, 1])) > 0))
    True
    """
    return 0.5 + 0.5 * _symmetric(shape, seed, tf.as_dtype(dtype))


def rademacher(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """−1 and +1, each with probability ½.

    >>> sorted(set(rademacher([100], tf.constant([0, 1])).numpy().tolist()))
    [-1.0, 1.0]
    """
    signs = tf.bitwise.right_shift(_bits(shape, seed, tf.int32), 31)  # −1 or 0
    return tf.cast(2 * signs + 1, dtype)
