"""The energy of a Gaussian mixture or a kernel density, with its parameters in weights."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_count
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, draw_of_gaussians
from tfp_ebm.networks.normalized import NormalizedEnergy, in_blocks

# Distances that one block of rows may hold.
_MAX_DISTANCES = 2**24


@keras.saving.register_keras_serializable("tfp_ebm")
class GaussianMixtureEnergy(NormalizedEnergy):
    """The energy E(x) = −log Σₖ wₖ N(x; μₖ, LₖLₖᵀ), whose log Z is 0.

    Its weights are not trained; `assign` sets them.

    Args:
      event_shape: shape of one state, a vector.
      num_components: number of Gaussians.
      is_shared: whether all have one covariance, as in a kernel density.
      allows_missing: whether cells may be missing, NaN; E(x) is then −log of the marginal density of the others.

    >>> energy = GaussianMixtureEnergy([2], num_components=1)
    >>> energy.assign(MixtureParameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]))
    >>> round(float(energy(tf.zeros([1, 2]))[0]), 4)
    1.8379
    """

    def __init__(
        self,
        event_shape: Any,
        num_components: int,
        is_shared: bool = False,
        allows_missing: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(event_shape, **kwargs)
        (size,) = self.event_shape
        if is_shared and allows_missing:
            raise ValueError("`allows_missing` must be False in a kernel density.")
        self._allows_missing = bool(allows_missing)
        self.num_components, self.is_shared = check_count("num_components", num_components), bool(is_shared)
        factor_shape = (size, size) if is_shared else (num_components, size, size)

        def weight(name: str, shape: tuple[int, ...]) -> keras.Variable:
            return self.add_weight(shape=shape, initializer="zeros", trainable=False, name=name)

        self.probs = weight("probs", (num_components,))
        self.center = weight("center", (size,))
        self.loc = weight("loc", (num_components, size))  # relative to `center`, around which squares lose few digits
        self.scale = weight("scale", factor_shape)
        self.inverse = weight("inverse", factor_shape)
        self.log_weights = weight("log_weights", (num_components,))
        self.built = True

    @classmethod
    def of(cls, parameters: MixtureParameters, **kwargs: Any) -> GaussianMixtureEnergy:
        """Returns the energy of a mixture that was fitted."""
        energy = cls(parameters.loc.shape[1:], len(parameters.probs), parameters.scale_tril.ndim == 2, **kwargs)
        energy.assign(parameters)
        return energy

    def assign(self, parameters: MixtureParameters) -> None:
        """Sets the mixture."""
        probs, loc, scale = parameters
        center = probs @ loc
        self.log_weights.assign(parameters.log_weights)
        self.probs.assign(probs)
        self.center.assign(center)
        self.loc.assign(loc - center)
        self.scale.assign(scale)
        self.inverse.assign(np.linalg.inv(scale))

    @property
    def allows_missing(self) -> bool:
        """Whether cells may be missing."""
        return self._allows_missing

    def _marginal_energy(self, x: tf.Tensor) -> tf.Tensor:
        """Returns −log of the density of the given cells of rows `[rows, size]`.

        A missing cell counts as one that is independent of all others, with variance 1 and its mean as value.
        """
        loc = self.loc.value + self.center.value
        given = tf.cast(~tf.math.is_nan(x), x.dtype)[:, None]
        covariance = tf.matmul(self.scale.value, self.scale.value, transpose_b=True)
        both = given[..., :, None] * given[..., None, :]
        factor = tf.linalg.cholesky(both * covariance + tf.linalg.diag(1.0 - given))
        residual = tf.where(given > 0.0, x[:, None] - loc, tf.zeros_like(loc))
        y = tf.linalg.triangular_solve(factor, residual[..., None])[..., 0]
        volume = tf.reduce_sum(tf.math.log(tf.linalg.diag_part(factor)), -1)
        constant = 0.5 * math.log(2.0 * math.pi) * tf.reduce_sum(given, -1)
        exponent = tf.math.log(self.probs.value) - volume - constant - 0.5 * tf.reduce_sum(tf.square(y), -1)
        return -tf.reduce_logsumexp(exponent, -1)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, of states `[batch, size]`."""
        del training
        if self._allows_missing:
            numbers = self.num_components * self.event_shape[0] ** 2
            return in_blocks(self._marginal_energy, x, max(1, _MAX_DISTANCES // (4 * numbers)))
        inverse, loc = self.inverse.value, self.loc.value
        if self.is_shared:
            whitened = tf.matmul(loc, inverse, transpose_b=True)
            norms = tf.reduce_sum(tf.square(whitened), -1)

        def energy(rows: tf.Tensor) -> tf.Tensor:
            centred = rows - self.center.value
            if self.is_shared:
                y = tf.matmul(centred, inverse, transpose_b=True)
                products = tf.matmul(y, whitened, transpose_b=True)
                squares = tf.maximum(tf.reduce_sum(tf.square(y), -1, keepdims=True) + norms - 2.0 * products, 0.0)
            else:
                y = tf.einsum("kij,bkj->bki", inverse, centred[:, None, :] - loc)
                squares = tf.reduce_sum(tf.square(y), -1)
            return -tf.reduce_logsumexp(self.log_weights.value - 0.5 * squares, -1)

        per_row = self.num_components * (1 if self.is_shared else self.event_shape[0])
        return in_blocks(energy, x, max(1, _MAX_DISTANCES // per_row))

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples `[num_samples, size]`."""
        shares = tf.cumsum(self.probs.value)
        shares = shares[:-1] / shares[-1]
        return self.center.value + draw_of_gaussians(shares, self.loc.value, self.scale.value, num_samples, seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            **super().get_config(),
            "event_shape": self.event_shape,
            "num_components": self.num_components,
            "is_shared": self.is_shared,
            "allows_missing": self._allows_missing,
        }
