"""The standardization z = (x − loc)/scale that `adapt` computes from data, and conversions between x and z.

`Standardization` is a Keras layer that only holds weights, so that `.keras` files, weight files and checkpoints contain
it. `Coordinates` is for code that runs chains in z but takes and returns x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.caller import warn
from tfp_ebm.energy.moments import DataMoments


class Standardization(keras.layers.Layer):
    """The standardisation z = (x − loc)/scale, per coordinate; the identity until `assign` is called.

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
        """Sets location and scale from data; constant coordinates keep scale 1, and a single warning names them.

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
        """Returns (x − loc)/scale."""
        return (x - self.loc.value) / self.scale.value

    def to_x(self, z: tf.Tensor) -> tf.Tensor:
        """Returns loc + scale·z."""
        return self.loc.value + self.scale.value * z

    def standardized(self, distribution: tfp.distributions.Distribution) -> tfp.distributions.Distribution:
        """Returns the distribution of z = to_z(x) for x of a distribution over x."""
        to_z = tfp.bijectors.Chain([tfp.bijectors.Scale(1.0 / self.scale.value), tfp.bijectors.Shift(-self.loc.value)])
        return tfp.distributions.TransformedDistribution(distribution, to_z)

    def log_scale_sum(self) -> tf.Tensor:
        """Returns Σ log scale, the log-determinant of `to_x`."""
        return tf.reduce_sum(tf.math.log(self.scale.value))


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Conversions between the user's x and the coordinates of chains: z for a model, x itself for a callable.

    With z = (x − loc)/scale, log p_x(x) = log p_z(z) − Σ log scale. The weights are read at each call and never cached.

    Attributes:
      standardization: the model's standardisation; None if chains run in x.

    >>> layer = Standardization((2,), "float32")
    >>> _ = layer.loc.assign([1.0, 0.0]), layer.scale.assign([2.0, 0.5])
    >>> Coordinates(layer).to_chain(tf.constant([[3.0, 1.0]])).numpy().tolist()
    [[1.0, 2.0]]
    >>> Coordinates.of(lambda x: x).to_chain(3.0)
    3.0
    """

    standardization: Standardization | None = None

    @classmethod
    def of(cls, energy: Any) -> Coordinates:
        """Returns the coordinates of an `EnergyFunction`, which takes z; the identity for models, which take x."""
        takes_x = hasattr(energy, "energy_function")
        return cls(None if takes_x else getattr(energy, "standardization", None))

    def to_chain(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the chains' coordinates of states x."""
        return x if self.standardization is None else self.standardization.to_z(x)

    def from_chain(self, z: tf.Tensor) -> tf.Tensor:
        """Returns x of states in the chains' coordinates."""
        return z if self.standardization is None else self.standardization.to_x(z)

    def log_volume(self) -> tf.Tensor | float:
        """Returns log |dx/dz| = Σ log scale; 0 if chains run in x."""
        return 0.0 if self.standardization is None else self.standardization.log_scale_sum()

    def finish(self, samples: Any) -> Any:
        """Returns `Samples` with states and log densities converted to x."""
        if self.standardization is None:
            return samples
        return samples._replace(
            states=self.from_chain(samples.states),
            unnormalized_log_prob=samples.unnormalized_log_prob - self.log_volume(),
        )

    def log_prob_in_chain(self, log_prob: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a log density over x as one over the chains' coordinates."""
        if self.standardization is None:
            return log_prob
        return lambda z: log_prob(self.from_chain(z)) + self.log_volume()

    def distribution_in_chain(self, distribution: tfp.distributions.Distribution) -> tfp.distributions.Distribution:
        """Returns a distribution over x as one over the chains' coordinates."""
        return distribution if self.standardization is None else self.standardization.standardized(distribution)
