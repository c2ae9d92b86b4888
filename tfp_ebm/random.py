"""Random numbers that are the same in graph mode and under XLA, and are fast in both.

TensorFlow's stateless generator, when set to Philox, produces the same *bits* in graph mode and under XLA, but the two
convert these bits to floating-point numbers differently. Besides, on a CPU, XLA's Philox takes longer than the matrix
products of a small network. It therefore generates only a key of 128 bits for each seed. Number j is then the j-th
output of the counter-based generator SplitMix64 (Steele, Lea & Flood 2014), where the second half of the key enters
between its two multiplications,

    z = k₁ + jγ,   z ← (z ⊕ z/2³⁰)·m₁ ⊕ k₂,   z ← (z ⊕ z/2²⁷)·m₂,   z ← z ⊕ z/2³¹    (mod 2⁶⁴, quotients cut)

so that streams with neighbouring k₁ do not overlap in a visible way. Each number takes a dozen elementwise operations,
which XLA fuses into the operations that use it. A normal number is √2·erf⁻¹(u), with u uniform on (−1, 1).

Reference: G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators, 2014 (OOPSLA).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["fold_in", "normal", "rademacher", "stateless_seed", "uniform"]


def stateless_seed(seed: Any, name: str = "seed") -> tf.Tensor:
    """Turns a public seed into the int32[2] tensor that TensorFlow's stateless operations take.

    TFP treats an int seed as *stateful* (two calls differ); here the same seed always gives the same bits.

    Args:
      seed: an int (any size), a pair of ints, or an integer tensor of shape [2].
      name: the argument's name, for the error messages.

    Returns:
      int32 tensor of shape [2].

    Raises:
      TypeError: if `seed` is None or not made of integers.
      ValueError: if `seed` is an array of another shape.

    >>> stateless_seed(3).numpy().tolist()
    [0, 3]
    """
    expected = f"`{name}` must be an int or two ints (int32[2])"
    if tf.is_tensor(seed):
        if not seed.dtype.is_integer:
            raise TypeError(f"{expected}, got a tensor of dtype {seed.dtype.name}.")
        if seed.shape.rank == 1 and seed.shape[0] == 2:
            return tf.cast(seed, tf.int32)
        if seed.shape.rank == 0:
            words = tf.bitcast(tf.cast(seed, tf.int64), tf.int32)  # low word first
            return tf.stack([words[1], words[0]])
        raise ValueError(f"{expected}, got a tensor of shape {tuple(seed.shape)}.")
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed = np.uint64(seed % 2**64)  # TFP's own joint distributions derive seeds of hundreds of bits
    array = np.asarray(seed)
    if seed is None or array.dtype.kind not in "iu":
        raise TypeError(f"{expected}, got {seed!r}.")
    if array.shape not in ((), (2,)):
        raise ValueError(f"{expected}, got an array of shape {array.shape}.")
    if array.ndim == 0:
        value = int(array)
        words = [value >> 32, value]
    else:
        words = [int(word) for word in array]
    return tf.constant([((word + 2**31) % 2**32) - 2**31 for word in words], tf.int32)


def fold_in(seed: tf.Tensor, number: Any) -> tf.Tensor:
    """Returns a new seed, derived from a seed and a number, the same in graph mode and under XLA.

    >>> fold_in(stateless_seed(0), 1).numpy().tolist() != fold_in(stateless_seed(0), 2).numpy().tolist()
    True
    """
    seed, number = tf.convert_to_tensor(seed), tf.convert_to_tensor(number)
    return (_folded_in if tf.executing_eagerly() else _folded_in.python_function)(seed, number)


@tf.function(autograph=False)  # executed eagerly, its dozen operations would take milliseconds
def _folded_in(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    return tf.stack([uniform_integers([], seed, number.dtype), number])


# By TensorFlow, the key with which it turns a seed into the key and the counter of a stream.
_KEY_OF_SEEDS, _PHILOX = 0x02461E293EC8F720, 1


def uniform_integers(shape: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the integers of `tf.random.stateless_uniform(shape, seed, None, None, dtype, alg="philox")`.

    TensorFlow puts the key and the counter of a stream together by a dozen operations. Three suffice, which matters in
    the training steps of small networks.
    """
    draw, key = tf.raw_ops.StatelessRandomUniformFullIntV2, tf.constant([_KEY_OF_SEEDS], tf.uint64)
    words = draw(shape=[2], key=key, counter=tf.cast(seed, tf.uint64), dtype=tf.uint64, alg=_PHILOX)
    counter = tf.pad(words[1:], [[1, 0]])
    return draw(shape=shape, key=words[:1], counter=counter, dtype=dtype, alg=_PHILOX)


@tf.function(autograph=False)  # as above
def chain_key(seed: tf.Tensor) -> tf.Tensor:
    """Returns a hash of the seed. The seed of each step is the pair of this hash and the step's number."""
    return uniform_integers([], seed, tf.int32)


_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _bits(shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Returns an array of int64 with 64 random bits in each entry."""
    shape = tf.convert_to_tensor(shape, tf.int32)
    first, second = tf.unstack(uniform_integers([2], seed, tf.uint64))
    counts = tf.cast(tf.range(tf.reduce_prod(shape)), tf.uint64)
    z = first + counts * tf.constant(_GAMMA, tf.uint64)
    z = tf.bitwise.bitwise_xor(_shifted_in(z, 30) * tf.constant(_FIRST, tf.uint64), second)
    z = _shifted_in(_shifted_in(z, 27) * tf.constant(_SECOND, tf.uint64), 31)
    return tf.reshape(tf.bitcast(z, tf.int64), shape)


def _shifted_in(z: tf.Tensor, digits: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(z, tf.bitwise.right_shift(z, tf.constant(digits, tf.uint64)))


def _grid(shape: Any, seed: tf.Tensor, dtype: tf.DType, digits: int) -> tf.Tensor:
    """Returns uniform whole numbers from −2^(digits − 1) to 2^(digits − 1) − 1, in a dtype that represents them."""
    # an arithmetic shift keeps the sign
    whole = tf.bitwise.right_shift(_bits(shape, seed), tf.constant(64 - digits, tf.int64))
    # int32 where it is wide enough, because one instruction converts it to a float
    return tf.cast(whole if digits > 32 else tf.cast(whole, tf.int32), dtype)


def normal(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Draws standard normal numbers.

    Args:
      shape: the shape of the result.
      seed: int32[2].
      dtype: float32 or float64.

    >>> x = normal([10_000], tf.constant([0, 1]))
    >>> abs(float(tf.reduce_mean(x))) < 0.05, abs(float(tf.math.reduce_std(x)) - 1) < 0.05
    (True, True)
    """
    dtype = tf.as_dtype(dtype)
    digits = 53 if dtype == tf.float64 else 24
    # midpoints of a grid over (−1, 1) as fine as the mantissa, so that u is never ±1 or 0
    u = (_grid(shape, seed, dtype, digits) + 0.5) * 2.0 ** (1 - digits)
    # erfinv of the negative half only: TensorFlow computes it from (u + 1)/2, which near u = 1 rounds to 1 (infinity)
    return -math.sqrt(2.0) * tf.sign(u) * tf.math.erfinv(-tf.abs(u))


def uniform(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Draws uniform numbers on (0, 1): odd multiples of 2⁻²⁴ (float32) or 2⁻⁵³ (float64), so never 0 or 1.

    >>> bool(tf.reduce_all(uniform([100], tf.constant([0, 1])) > 0))
    True
    """
    dtype = tf.as_dtype(dtype)
    digits = 52 if dtype == tf.float64 else 23
    return (_grid(shape, seed, dtype, digits) + (2.0 ** (digits - 1) + 0.5)) * 2.0**-digits


def rademacher(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Draws −1 and +1, each with probability ½.

    >>> sorted(set(rademacher([100], tf.constant([0, 1])).numpy().tolist()))
    [-1.0, 1.0]
    """
    return 2 * _grid(shape, seed, tf.as_dtype(dtype), 1) + 1
