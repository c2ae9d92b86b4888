"""Layer and group normalisation with correct second derivatives.

Both standardise the units of an example within sets S of units, by the mean and variance over the set,

    y_i = γ_i (x_i − m) / √(v + ε) + β_i,     m = mean_{j∈S} x_j,   v = mean_{j∈S} (x_j − m)²,

and differ in S. Keras's layers of the same names compute v by `tf.nn.moments`, which stops the gradient at the mean
inside the square. The first derivative is still right, since ∂v/∂m = −2 mean(x − m) = 0, but in the second derivative
the term ∂²v/∂x_j∂x_k = 2(δ_jk − 1/n)/n loses its 1/n. Scores are therefore right, but training on a derivative of the
score (all score matching, including denoising) silently follows a wrong gradient. The layers below are Keras's own,
with this formula computed explicitly.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_count
from tfp_ebm.networks.precision import at_least_float32


def _standardize(x: tf.Tensor, axes: list[int], epsilon: float) -> tf.Tensor:
    """Computes (x − m)/√(v + ε) over `axes`, including the gradient of m in v."""
    centered = x - tf.reduce_mean(x, axes, keepdims=True)
    return centered * tf.math.rsqrt(tf.reduce_mean(tf.square(centered), axes, keepdims=True) + epsilon)


def _affine(x: tf.Tensor, gamma: Any, beta: Any, shape: list[int]) -> tf.Tensor:
    """Computes γ x + β, where γ and β may be None and are reshaped to broadcast against x."""
    if gamma is not None:
        x = x * tf.reshape(tf.cast(gamma, x.dtype), shape)
    if beta is not None:
        x = x + tf.reshape(tf.cast(beta, x.dtype), shape)
    return x


@keras.saving.register_keras_serializable(package="tfp_ebm")
class LayerNormalization(keras.layers.LayerNormalization):
    """Layer normalisation of each example over the given axes: S is all units of an example along `axis`.

    Arguments, weights (`gamma`, `beta`) and outputs are the same as for `keras.layers.LayerNormalization`, whose second
    derivatives are wrong (see the module's docstring). Under a mixed policy it computes in float32.

    Args:
      axis: axis or axes to normalise over, without the batch axis.
      epsilon: ε, added to the variance.
      center: whether there is an offset β, of the shape of the normalised axes.
      scale: whether there is a factor γ, of the shape of the normalised axes.
      **kwargs: as in Keras: `beta_initializer`, `gamma_initializer`, `..._regularizer`, `..._constraint`, `name`,
        `dtype`. Keras's deprecated `rms_scaling` raises an error: use `keras.layers.RMSNormalization`, which is
        correct.

    Input and output `[batch, ...]` of equal shape.

    Raises:
      ValueError: if `rms_scaling` is set.

    References:
      Ba, Kiros, Hinton. Layer normalization. 2016. arXiv:1607.06450.

    >>> LayerNormalization(epsilon=0.0)(tf.constant([[2.0, 4.0]])).numpy().round(3).tolist()
    [[-1.0, 1.0]]
    """

    differentiates_moments = True

    def __init__(
        self, axis: int | list[int] = -1, epsilon: float = 1e-3, center: bool = True, scale: bool = True, **kwargs: Any
    ) -> None:
        if kwargs.get("rms_scaling"):
            raise ValueError("`rms_scaling` is not supported; use keras.layers.RMSNormalization.")
        super().__init__(axis=axis, epsilon=epsilon, center=center, scale=scale, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the normalised `inputs`."""
        x = at_least_float32(inputs)
        axes = sorted(axis % x.shape.rank for axis in self.axis)
        shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.shape.rank)]
        return tf.cast(_affine(_standardize(x, axes, self.epsilon), self.gamma, self.beta, shape), self.compute_dtype)


@keras.saving.register_keras_serializable(package="tfp_ebm")
class GroupNormalization(keras.layers.GroupNormalization):
    """Group normalisation of each example: S is the channels of one group, at all positions.

    Arguments, weights (`gamma`, `beta`) and outputs are the same as for `keras.layers.GroupNormalization`, whose second
    derivatives are wrong (see the module's docstring). Under a mixed policy it computes in float32.

    Args:
      groups: number of groups, a divisor of the number of channels. 1 normalises over all units of an example, −1 over
        each channel separately (instance normalisation).
      axis: the axis of the channels.
      epsilon: ε, added to the variance.
      center: whether there is an offset β for each channel.
      scale: whether there is a factor γ for each channel.
      **kwargs: as in Keras: `beta_initializer`, `gamma_initializer`, `..._regularizer`, `..._constraint`, `name`,
        `dtype`.

    Input and output `[batch, ...]` of equal shape.

    Raises:
      ValueError: if `groups` is not a positive integer or −1, or does not divide the number of channels.

    References:
      Wu, He. Group normalization. ECCV 2018. arXiv:1803.08494.

    >>> GroupNormalization(2, epsilon=0.0)(tf.constant([[1.0, 2.0, 30.0, 50.0]])).numpy().round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    differentiates_moments = True

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        **kwargs: Any,
    ) -> None:
        if groups != -1:
            check_count("groups", groups)
        super().__init__(groups=groups, axis=axis, epsilon=epsilon, center=center, scale=scale, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the normalised `inputs`."""
        x = at_least_float32(inputs)
        rank, sizes = x.shape.rank, tf.shape(x)
        axis = self.axis % rank
        channels = x.shape[axis]
        split = tf.concat([sizes[:axis], [self.groups, channels // self.groups], sizes[axis + 1 :]], axis=0)
        within = [a for a in range(1, rank + 1) if a != axis]  # after inserting the group axis at position `axis`
        standardized = tf.reshape(_standardize(tf.reshape(x, split), within, self.epsilon), sizes)
        shape = [channels if a == axis else 1 for a in range(rank)]
        outputs = _affine(tf.ensure_shape(standardized, x.shape), self.gamma, self.beta, shape)
        return tf.cast(outputs, self.compute_dtype)
