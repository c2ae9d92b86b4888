"""A cast to at least float32, for sums over many units, phases and norms, where half precision is not sufficient."""

from __future__ import annotations

import keras
import tensorflow as tf


def at_least_float32(x: tf.Tensor) -> tf.Tensor:
    """Returns `x` in float32 if it is in half precision, else unchanged.

    >>> at_least_float32(tf.ones([2], tf.bfloat16)).dtype.name
    'float32'
    """
    x = tf.convert_to_tensor(x)
    return tf.cast(x, keras.backend.result_type(x.dtype.name, "float32"))
