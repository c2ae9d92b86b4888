"""Energies of coordinates with two edges, such as shares and angles, in which the density ends at once.

A smooth density has to fall from the edge on, which a network learns badly. The map of this module makes the uniform
distribution between the edges a standard normal one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import scipy.special
import tensorflow as tf

from tfp_ebm.networks.normalized import MappedEnergy, NormalizedEnergy


class EdgeMap:
    """The map y of coordinates x some of which lie between two edges a < b.

        yᵢ = Φ⁻¹((vᵢ + δ)/(1 + 2δ)),   vᵢ = (xᵢ − aᵢ)/(bᵢ − aᵢ) in [0, 1]

    Φ is the distribution function of the standard normal distribution. Outside the edges, at a distance of t(b − a), y
    differs from its value at the edge by log(1 + st), where s is the slope dy/dv at the edge: the map has a derivative
    everywhere, and a state a little outside has a small density in place of none.

    Args:
      edges: for each coordinate its edges, or None if it has none.
      margin: δ, positive.
    """

    def __init__(self, edges: Sequence[Sequence[float] | None], margin: float) -> None:
        self.edges = tuple(None if pair is None else (float(pair[0]), float(pair[1])) for pair in edges)
        self.margin = float(margin)
        if not all(pair is None or -math.inf < pair[0] < pair[1] < math.inf for pair in self.edges):
            raise ValueError(f"`edges` must be None, or two finite numbers of which the first is less, got {edges}.")
        if not 0.0 < self.margin < math.inf:
            raise ValueError(f"`margin` must be positive, got {margin}.")
        self._has_edges = np.array([pair is not None for pair in self.edges])
        self._low, self._high = np.array([pair or (0.0, 1.0) for pair in self.edges]).T
        self._log_size = math.log1p(2.0 * self.margin)
        self._at_edge = -float(scipy.special.ndtri(self.margin / (1.0 + 2.0 * self.margin)))
        self._log_slope_at_edge = self._log_slope(self._at_edge)

    def _log_slope(self, y: Any) -> Any:
        """Returns log dy/dv between the edges."""
        return 0.5 * math.log(2.0 * math.pi) + 0.5 * y * y - self._log_size

    def forward(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y and log dyᵢ/dxᵢ, which is 0 where a cell is missing, in the dtype of x."""
        low, high = tf.constant(self._low, x.dtype), tf.constant(self._high, x.dtype)
        counts = self._has_edges & ~tf.math.is_nan(x)
        within = tf.where(counts, x, 0.5 * (low + high))  # keeps gradients finite
        below, above = (within - low) / (high - low), (high - within) / (high - low)
        is_left = below <= above
        nearest = tf.where(is_left, below, above)  # near the edges, v and 1 − v have the precision that δ needs
        size = -tf.math.ndtri((tf.maximum(nearest, 0.0) + self.margin) * math.exp(-self._log_size))
        step = tf.math.log1p(tf.maximum(-nearest, 0.0) * math.exp(self._log_slope_at_edge))
        log_slope = self._log_slope(size) - step - tf.math.log(high - low)
        y = tf.where(is_left, -size - step, size + step)
        return tf.where(counts, y, x), tf.where(counts, log_slope, tf.zeros_like(x))

    def inverse(self, y: tf.Tensor) -> tf.Tensor:
        """Returns x, in the dtype of y."""
        low, high = tf.constant(self._low, y.dtype), tf.constant(self._high, y.dtype)
        size = tf.abs(y)
        nearest = 0.5 * math.exp(self._log_size) * tf.math.erfc(math.sqrt(0.5) * tf.minimum(size, self._at_edge))
        beyond = tf.math.expm1(tf.maximum(size - self._at_edge, 0.0)) * math.exp(-self._log_slope_at_edge)
        inside = (high - low) * (nearest - self.margin - beyond)
        return tf.where(self._has_edges, tf.where(y <= 0.0, low + inside, high - inside), y)


@keras.saving.register_keras_serializable("tfp_ebm")
class BoundedEnergy(MappedEnergy):
    """The energy of x some of whose coordinates lie between two edges, with the Jacobian of their map.

        E(x) = E'(y) − Σ log dyᵢ/dxᵢ

    y is that of `EdgeMap`; coordinates without edges stay as they are.

    Args:
      network: a `NormalizedEnergy` of vectors.
      edges: for each coordinate its edges a < b, or None if it has none.
      margin: δ, positive. One over the number of rows is about the mass that a fit leaves outside each edge.

    >>> import tensorflow_probability as tfp
    >>> from tfp_ebm.networks.normalized import DistributionEnergy
    >>> normal = DistributionEnergy(tfp.distributions.MultivariateNormalDiag([0.0]))
    >>> energy = BoundedEnergy(normal, [(2.0, 6.0)], margin=1e-4)
    >>> np.exp(-energy(tf.constant([[2.0], [3.0], [6.0], [6.1]]))).round(3).tolist()
    [0.25, 0.25, 0.25, 0.0]
    """

    def __init__(
        self, network: NormalizedEnergy, edges: Sequence[Sequence[float] | None], margin: float, **kwargs: Any
    ) -> None:
        super().__init__(network, **kwargs)
        if (len(edges),) != self.event_shape:
            raise ValueError(f"`edges` must have one entry for each of {self.event_shape}, got {len(edges)}.")
        self.map = EdgeMap(edges, margin)
        self.built = True

    def _forward(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y, log_slopes = self.map.forward(x)
        return y, -tf.reduce_sum(log_slopes, -1)

    def image(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `MappedEnergy`."""
        y, log_slopes = self.map.forward(tf.constant(x, tf.float64))
        return y.numpy(), log_slopes.numpy()

    def preimage(self, y: np.ndarray) -> np.ndarray:
        """See `MappedEnergy`."""
        return self.map.inverse(tf.constant(y, tf.float64)).numpy()

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples `[num_samples, size]`."""
        return self.map.inverse(tf.cast(self.network.draw(num_samples, seed), self.dtype))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "edges": self.map.edges, "margin": self.map.margin}
