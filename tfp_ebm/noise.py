"""Random numbers that are the same in graph mode and under XLA, and cost little under either.

TensorFlow's stateless generator makes the same *bits* on both roads once it is told to use Philox, but turns them into
floating-point numbers in different ways; and XLA's Philox takes longer on a CPU than the matrix products of a small
network. So only a key comes from it, 128 bits for each seed. From there number j is the j-th of the counter-based
generator SplitMix64 (Steele, Lea & Flood 2014), the second half of the key entered between its two multiplications,

    z = k₁ + jγ,   z ← (z ⊕ z/2³⁰)·m₁ ⊕ k₂,   z ← (z ⊕ z/2²⁷)·m₂,   z ← z ⊕ z/2³¹    (mod 2⁶⁴, quotients cut)

so that streams with neighbouring k₁ have nothing in common. A dozen operations that know nothing of each other's
numbers: XLA fuses them into what uses them. A normal is √2·erf⁻¹(u) of a u uniform on (−1, 1).

Reference: G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators, 2014 (OOPSLA).
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

__all__ = ["normal", "rademacher", "uniform"]

_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _bits(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """64 random bits each, as int64."""
    shape = tf.convert_to_tensor(shape, tf.int32)
    keys = tf.random.stateless_uniform([2], seed, None, None, tf.int64, alg="philox")
    first, second = tf.unstack(tf.bitcast(keys, tf.uint64))
    counts = tf.cast(tf.range(tf.reduce_prod(shape)), tf.uint64)
    z = first + counts * tf.constant(_GAMMA, tf.uint64)
    z = tf.bitwise.bitwise_xor(_shifted_in(z, 30) * tf.constant(_FIRST, tf.uint64), second)
    z = _shifted_in(_shifted_in(z, 27) * tf.constant(_SECOND, tf.uint64), 31)
    return tf.reshape(tf.bitcast(z, tf.int64), shape)


def _shifted_in(z: tf.Tensor, digits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, tf.constant(digits, tf.uint64)))


def _grid(shape: Any, seed: tf.Tensor, dtype: tf.DType, digits: int) -> tf.Tensor:
    """Whole numbers, equally likely, from −2^(digits − 1) to 2^(digits − 1) − 1, in a dtype that holds them."""
    # an arithmetic shift: the sign stays
    whole = tf.bitwise.right_shift(_bits(shape, seed), tf.constant(64 - digits, tf.int64))
    # int32 where it is wide enough, because that becomes a float in one instruction
    return tf.cast(whole if digits > 32 else tf.cast(whole, tf.int32), dtype)


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
    u = (_grid(shape, seed, dtype, digits) + 0.5) * 2.0 ** (1 - digits)
    # erfinv of the negative half: TensorFlow's goes through (u + 1)/2, which rounds to 1, and so to infinity, at +1
    return -math.sqrt(2.0) * tf.sign(u) * tf.math.erfinv(-tf.abs(u))


def uniform(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Uniform numbers on (0, 1): odd multiples of 2⁻²⁴ (float32) or 2⁻⁵³ (float64), so neither end ever comes.

    >>> bool(tf.reduce_all(uniform([100], tf.constant([0, 1])) > 0))
    True
    """
    dtype = tf.as_dtype(dtype)
    digits = 52 if dtype == tf.float64 else 23
    return (_grid(shape, seed, dtype, digits) + (2.0 ** (digits - 1) + 0.5)) * 2.0**-digits


def rademacher(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """−1 and +1, each with probability ½.

    >>> sorted(set(rademacher([100], tf.constant([0, 1])).numpy().tolist()))
    [-1.0, 1.0]
    """
    return 2 * _grid(shape, seed, tf.as_dtype(dtype), 1) + 1
