"""An energy of linear combinations of the coordinates, whose matrix is learned with the energy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.networks.normalized import MappedEnergy, MixtureEnergy, NormalizedEnergy


@keras.saving.register_keras_serializable("tfp_ebm")
class LinearEnergy(MappedEnergy):
    """The energy of x whose image y = W x has the energy of another network; W is trained with it.

        E(x) = E'(W x) − log |det W|

    The conditionals of an autoregressive energy depend on the coordinates: those of a rotated distribution may be far
    from simple, while some linear combinations have simple ones.

    Args:
      network: a `NormalizedEnergy` of vectors.
      matrix: W at the start, `[size, size]`, invertible; default: the unit matrix.

    >>> import tensorflow_probability as tfp
    >>> from tfp_ebm.networks.normalized import DistributionEnergy
    >>> inner = DistributionEnergy(tfp.distributions.MultivariateNormalDiag([0.0, 0.0]))
    >>> energy = LinearEnergy(inner, [[1.0, 1.0], [0.0, 2.0]])
    >>> round(float(energy(tf.zeros([1, 2]))[0]), 4)  # log 2π − log 2
    1.1447
    """

    def __init__(self, network: NormalizedEnergy, matrix: Any = None, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        if len(self.event_shape) != 1 or network.allows_missing:
            raise ValueError("`network` must be an energy of vectors without missing cells.")
        size = self.event_shape[0]
        matrix = np.eye(size) if matrix is None else np.asarray(matrix, np.float64)
        if matrix.shape != (size, size) or not np.linalg.slogdet(matrix)[0]:
            raise ValueError(f"`matrix` must be invertible, of shape {(size, size)}, got shape {matrix.shape}.")
        self.matrix = self.add_weight(shape=matrix.shape, initializer="zeros", name="matrix")
        self.matrix.assign(matrix)
        self.built = True

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """Returns y = W x, `[batch, size]`."""
        return tf.matmul(x, self.matrix.value, transpose_b=True)

    def _forward(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.forward(x), -_log_volume(self.matrix.value)

    def put_before(self, matrix: np.ndarray, y: np.ndarray) -> None:
        """Makes W the present W times a matrix; the network sees coordinates in the range of W y alone.

        Args:
          matrix: `[size, size]`, which makes y of the states x.
          y: rows `[rows, size]`.
        """
        own = np.asarray(self.matrix.numpy(), np.float64)
        seen = y @ own.T
        if hasattr(self.network, "seen_range"):
            self.network.seen_range.assign(np.stack([seen.min(0), seen.max(0)]))
        self.matrix.assign(own @ matrix)

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples `[num_samples, size]`."""
        y = tf.cast(self.network.draw(num_samples, seed), self.dtype)
        return tf.matmul(y, tf.linalg.inv(self.matrix.value), transpose_b=True)


def has_linear(network: Any) -> bool:
    """Returns whether an energy, or what it is made of, is one of linear combinations of the coordinates."""
    if isinstance(network, MixtureEnergy):
        return any(has_linear(part) for part in network.parts)
    return isinstance(network, LinearEnergy) or (isinstance(network, MappedEnergy) and has_linear(network.network))


def _log_volume(matrix: tf.Tensor) -> tf.Tensor:
    """Returns log |det W|, by the QR decomposition: XLA has no determinant."""
    return tf.reduce_sum(tf.math.log(tf.abs(tf.linalg.diag_part(tf.linalg.qr(matrix)[1]))))
