"""What `adapt` learns from data: the units in which a network sees it, and the Gaussian fitted to it.

Both are Keras layers that only hold weights, so that `.keras` files, weight files and checkpoints carry them.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.caller import warn
from tfp_ebm.energy.moments import DataMoments


class Standardization(keras.layers.Layer):
    """The standardisation z = (x − loc)/scale, per coordinate; identity until `assign`ed.

    Args:
      event_shape: shape of one state; `loc` and `scale` have it too.
    """

    def __init__(self, event_shape: tuple[int, ...], dtype: str, name: str = "standardization") -> None:
        super().__init__(dtype=dtype, trainable=False, name=name)
        self.event_shape = tuple(event_shape)
        self.loc = self.add_weight(shape=event_shape, initializer="zeros", trainable=False, name="loc")
        self.scale = self.add_weight(shape=event_shape, initializer="ones", trainable=False, name="scale")
        self.built = True

    def assign(self, moments: DataMoments) -> None:
        """Takes location and scale from data; constant coordinates keep scale 1 and are named in one warning.

        Raises:
          ValueError: if every coordinate is constant.
        """
        moments.check_varies()
        size = len(moments.mean)
        constant = np.flatnonzero(moments.is_constant)
        lost = np.flatnonzero(moments.scale < 10 * np.finfo(self.variable_dtype).eps * np.abs(moments.mean))
        lost = np.setdiff1d(lost, constant)
        if len(lost):
            raise ValueError(
                f"{self.variable_dtype} cannot resolve `x` in coordinates {self._listed(lost)}: their mean is over "
                "a million times their standard deviation; subtract it first, or use a float64 network."
            )
        if len(constant):
            warn(
                f"{len(constant)} of {size} coordinates are constant and keep scale 1: {self._listed(constant)}.",
            )
        self.loc.assign(moments.mean.reshape(self.event_shape))
        self.scale.assign(moments.scale.reshape(self.event_shape))

    def _listed(self, coordinates: np.ndarray) -> str:
        indices = [tuple(int(i) for i in np.unravel_index(c, self.event_shape)) for c in coordinates[:20]]
        names = ", ".join(str(index[0] if len(index) == 1 else index) for index in indices)
        return names if len(coordinates) <= 20 else f"{names} and {len(coordinates) - 20} more"

    def to_z(self, x: tf.Tensor) -> tf.Tensor:
        """(x − loc)/scale."""
        return (x - self.loc.value) / self.scale.value

    def to_x(self, z: tf.Tensor) -> tf.Tensor:
        """loc + scale·z."""
        return self.loc.value + self.scale.value * z

    def standardized(self, distribution: tfp.distributions.Distribution) -> tfp.distributions.Distribution:
        """The law of z = to_z(x) for x of a distribution over x."""
        to_z = tfp.bijectors.Chain([tfp.bijectors.Scale(1.0 / self.scale.value), tfp.bijectors.Shift(-self.loc.value)])
        return tfp.distributions.TransformedDistribution(distribution, to_z)

    def log_scale_sum(self) -> tf.Tensor:
        """Σ log scale, the log-determinant of `to_x`."""
        return tf.reduce_sum(tf.math.log(self.scale.value))
