"""Units in which noise is added to a table: without heavy tails, and without columns that are almost collinear.

One noise scale for all columns must be small beside all of the data's structure. A column with heavy tails has a narrow
middle and rows far out; columns that are almost linear combinations of others vary little along some direction. In

    y = A (a(z) − m),      a(z) = asinh((z − c)/w) in columns with heavy tails, else z,

they are as other columns. A density of y is one of z, times |dy/dz|.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.energy.moments import TAIL_SHARES, has_heavy_tails

# A has the directions of y mixed only if the smallest eigenvalue of the columns' correlation matrix is below this.
_COLLINEAR = 0.01
# Eigenvalues below this share of their mean count as this share of it.
_LEAST = 1e-10
# asinh of the largest state: its hyperbolic sine is finite in float32.
_LARGEST = 80.0


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseUnits(keras.layers.Layer):
    """The units y of states z, `[batch, *event]`; those of z itself until `adapt_to` is called.

    Args:
      size: number of coordinates.

    >>> rows = np.random.default_rng(0).standard_t(1.5, size=(1000, 2))
    >>> units = NoiseUnits(2)
    >>> units.adapt_to(rows)
    >>> y = units.to_y(tf.constant(rows, tf.float32))
    >>> bool(np.abs(y).max() < 8.0), bool(np.abs(units.to_z(y) / rows - 1.0).max() < 1e-3)
    (True, True)
    """

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.size = size

        def weight(name: str, shape: tuple[int, ...], initializer: Any) -> keras.Variable:
            return self.add_weight(shape=shape, initializer=initializer, trainable=False, name=name)

        self.is_heavy = weight("is_heavy", (size,), "zeros")
        self.center, self.width = weight("center", (size,), "zeros"), weight("width", (size,), "ones")
        self.mean = weight("mean", (size,), "zeros")
        self.axes, self.inverse = (weight(name, (size, size), "identity") for name in ("axes", "inverse"))
        self.log_volume = weight("log_volume", (), "zeros")
        self.built = True

    def adapt_to(self, rows: np.ndarray) -> None:
        """Finds the units of rows `[rows, size]`, float64."""
        quantiles = np.quantile(rows, TAIL_SHARES, axis=0)
        is_heavy = has_heavy_tails(rows, quantiles)
        _, low, center, high, _ = quantiles
        width = np.where(is_heavy, (high - low) / 1.349, 1.0)
        a = np.where(is_heavy, np.arcsinh((rows - center) / width), rows)
        mean, deviation = a.mean(0), np.where(is_heavy, a.std(0), 1.0)
        axes = np.diag(1.0 / deviation)
        values, vectors = np.linalg.eigh(np.cov(a / deviation, rowvar=False).reshape(self.size, self.size))
        is_collinear = values[0] < _COLLINEAR * values.mean()
        if is_collinear:
            axes = axes @ (vectors / np.sqrt(np.maximum(values, _LEAST * values.mean()))) @ vectors.T
        self.is_heavy.assign(is_heavy)
        self.center.assign(center)
        self.width.assign(width)
        self.mean.assign(mean if is_collinear or is_heavy.any() else np.zeros(self.size))
        self.axes.assign(axes)
        self.inverse.assign(np.linalg.inv(axes))
        self.log_volume.assign(np.linalg.slogdet(axes)[1])

    def _asinh(self, z: tf.Tensor) -> tf.Tensor:
        return tf.math.asinh((z - self.center.value) / self.width.value)

    def _flat(self, state: tf.Tensor) -> tf.Tensor:
        return tf.reshape(state, [-1, self.size])

    def to_y(self, z: tf.Tensor) -> tf.Tensor:
        """Returns y of states z."""
        flat = self._flat(z)
        a = tf.where(self.is_heavy.value > 0.0, self._asinh(flat), flat)
        return tf.reshape(tf.matmul(a - self.mean.value, self.axes.value), tf.shape(z))

    def to_z(self, y: tf.Tensor) -> tf.Tensor:
        """Returns the states z of y."""
        a = tf.matmul(self._flat(y), self.inverse.value) + self.mean.value
        is_heavy = self.is_heavy.value > 0.0
        inside = tf.clip_by_value(tf.where(is_heavy, a, tf.zeros_like(a)), -_LARGEST, _LARGEST)
        z = tf.where(is_heavy, self.center.value + self.width.value * tf.sinh(inside), a)
        return tf.reshape(z, tf.shape(y))

    def log_slope(self, z: tf.Tensor) -> tf.Tensor:
        """Returns log |dy/dz| of states z, `[batch]`."""
        distance = tf.abs(self._asinh(self._flat(z)))
        log_cosh = distance + tf.math.log1p(tf.exp(-2.0 * distance)) - math.log(2.0)
        slopes = -self.is_heavy.value * (log_cosh + tf.math.log(self.width.value))
        return tf.reduce_sum(slopes, 1) + self.log_volume.value

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "size": self.size}
