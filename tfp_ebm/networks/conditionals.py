"""Proposals q(xᵢ | x_<i) of an autoregressive energy: mixtures of logistics or normals, one for each coordinate.

`MixtureConditionals` are the conditionals of a Gaussian mixture, in closed form. With u = L_c⁻¹(x − m_c) component c
has

    xᵢ | x_<i, c ~ N(xᵢ − Lᵢᵢ uᵢ, Lᵢᵢ²),      log weight = log π_c + Σ_{j<i} [log N(u_j) − log L_jj],

because xᵢ = mᵢ + Σ_{j≤i} Lᵢⱼ uⱼ, and u_j for j < i depends on x_<i alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.networks.lattice import DEVIATION, log_density

# Scales stay within exp(±8) of one standard deviation.
LOG_SCALE_LIMIT = 8.0


class Conditionals(NamedTuple):
    """Parameters of the proposals, each `[..., size, num_components]`."""

    log_probs: tf.Tensor
    loc: tf.Tensor
    log_scale: tf.Tensor


class FreeConditionals:
    """Mixtures of logistics whose parameters are outputs of the network; all zeros give about N(0, 1).

    Args:
      num_components: logistics of each mixture.
    """

    family = "logistic"

    def __init__(self, num_components: int) -> None:
        self.num_components = num_components
        self.num_outputs = 3 * num_components
        # where the logistics are if the outputs are zero, their scale, and logits with which they are about N(0, 1)
        self.centres = 2.0 * np.linspace(-1.0, 1.0, num_components + 2)[1:-1] if num_components > 1 else np.zeros(1)
        self.width = 1.0 / (DEVIATION["logistic"] * (1.0 if num_components == 1 else 0.5 * num_components**0.5))
        variance = (self.width * DEVIATION["logistic"]) ** 2
        self.normal_logits = -0.5 * self.centres**2 / max(1.0 - variance, 0.1)

    def __call__(self, x: tf.Tensor, outputs: tf.Tensor) -> Conditionals:
        """Returns the proposals, given outputs `[..., size, num_outputs]`."""
        logits, loc, log_scale = tf.split(outputs, 3, axis=-1)
        log_scale = LOG_SCALE_LIMIT * tf.tanh(log_scale / LOG_SCALE_LIMIT) + tf.constant(np.log(self.width), loc.dtype)
        return Conditionals(tf.nn.log_softmax(logits), loc + tf.constant(self.centres, loc.dtype), log_scale)


class MixtureConditionals(keras.layers.Layer):
    """The conditionals of a Gaussian mixture, whose parameters are kept as weights that are not trained.

    Args:
      size: number of coordinates.
      num_components: components of the mixture.
    """

    family = "normal"
    num_outputs = 0

    def __init__(self, size: int, num_components: int, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.num_components = num_components

        def weight(name: str, shape: tuple[int, ...]) -> keras.Variable:
            return self.add_weight(shape=shape, initializer="zeros", trainable=False, name=name)

        self.log_probs = weight("log_probs", (num_components,))
        self.loc = weight("loc", (num_components, size))
        self.inverse = weight("inverse", (num_components, size, size))  # of L
        self.log_diagonal = weight("log_diagonal", (num_components, size))
        self.built = True

    def assign(self, probs: np.ndarray, loc: np.ndarray, covariance: np.ndarray) -> None:
        """Sets the mixture: `[c]`, `[c, size]` and `[c, size, size]`, in the order of dependence."""
        factor = np.linalg.cholesky(np.asarray(covariance, np.float64))
        self.log_probs.assign(np.log(probs))
        self.loc.assign(loc)
        self.inverse.assign(np.linalg.inv(factor))
        self.log_diagonal.assign(np.log(np.diagonal(factor, axis1=1, axis2=2)))

    def call(self, x: tf.Tensor, outputs: Any = None) -> Conditionals:
        """Returns the proposals at states `[batch, size]`."""
        u = tf.einsum("cij,bcj->bci", self.inverse.value, x[:, None, :] - self.loc.value)
        log_diagonal = self.log_diagonal.value
        log_joint = tf.cumsum(log_density("normal", u) - log_diagonal, axis=-1, exclusive=True)
        log_probs = tf.nn.log_softmax(self.log_probs.value[:, None] + log_joint, axis=1)
        loc = x[:, None, :] - tf.exp(log_diagonal) * u
        scales = tf.broadcast_to(log_diagonal, tf.shape(loc))
        return Conditionals(*(tf.transpose(value, [0, 2, 1]) for value in (log_probs, loc, scales)))


def gaussian_parts(distribution: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities, means and covariances of a Gaussian mixture or of a single multivariate normal."""
    parts = getattr(distribution, "components_distribution", distribution)
    if not isinstance(
        parts, tfp.distributions.MultivariateNormalLinearOperator | tfp.distributions.MultivariateNormalTriL
    ):
        raise TypeError(f"`proposal` must be a multivariate normal or a mixture of them, got {distribution!r}.")
    loc, covariance = np.asarray(parts.mean()), np.asarray(parts.covariance())
    if parts is distribution:
        return np.ones(1), loc.reshape(1, -1), covariance.reshape(1, *covariance.shape[-2:])
    return np.asarray(distribution.mixture_distribution.probs_parameter()), loc, covariance
