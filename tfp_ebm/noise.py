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


def _grid(shape: Any, seed: tf.Tensor, dtype: tf.DType, digits: int) -> tf.Tensor:
    """Whole numbers, equally likely, from −2^(digits − 1) to 2^(digits − 1) − 1."""
    whole = tf.int64 if dtype == tf.float64 else tf.int32
    # an arithmetic shift: the sign stays
    return tf.bitwise.right_shift(_bits(shape, seed, whole), 8 * whole.size - digits)


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
    dtype = tf.as_dtype(dtype)
    digits = 53 if dtype == tf.float64 else 24
    # midpoints of a grid over (−1, 1) as fine as the mantissa, so that neither ±1 nor 0 ever comes
    u = (tf.cast(_grid(shape, seed, dtype, digits), dtype) + 0.5) * 2.0 ** (1 - digits)
    # erfinv of the negative half: TensorFlow's goes through (u + 1)/2, which rounds to 1, and so to infinity, at +1
    return -math.sqrt(2.0) * tf.sign(u) * tf.math.erfinv(-tf.abs(u))


def uniform(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Uniform numbers on (0, 1): odd multiples of 2⁻²⁴ (float32) or 2⁻⁵³ (float64), so neither end ever comes.

    >>> bool(tf.reduce_all(uniform([100], tf.constant([0, 1])) > 0))
    True
    """
    dtype = tf.as_dtype(dtype)
    digits = 52 if dtype == tf.float64 else 23
    whole = _grid(shape, seed, dtype, digits) + 2 ** (digits - 1)
    return (tf.cast(whole, dtype) + 0.5) * 2.0**-digits


def rademacher(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """−1 and +1, each with probability ½.

    >>> sorted(set(rademacher([100], tf.constant([0, 1])).numpy().tolist()))
    [-1.0, 1.0]
    """
    signs = tf.bitwise.right_shift(_bits(shape, seed, tf.int32), 31)  # −1 or 0
    return tf.cast(2 * signs + 1, dtype)
