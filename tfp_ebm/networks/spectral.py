"""Spectral normalisation as a differentiable function of the weights, which does not overwrite them.

A layer's kernel W, as a matrix from inputs to outputs, is replaced by W/σ, where σ is its largest singular value. The
layer then stretches no direction, and an energy made of such layers has a bounded gradient. σ is estimated by power
iteration, continued from one training step to the next,

    v ← Wu/‖Wu‖,   u ← Wᵀv/‖Wᵀv‖,   σ = vᵀWu,

where u and v are treated as constants in the derivative. This gives ∂σ/∂W = vuᵀ, exact once the iteration has
converged. Keras's layer of the same name overwrites the kernel by W/σ whenever it is called in training mode. A sampler
in training mode then changes the weights, and there is no gradient through σ. Here each call computes W/σ
differentiably, and a call in training mode assigns u only.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_count, check_keras_3
from tfp_ebm.networks.precision import at_least_float32

_OUTPUTS_LAST = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_OUTPUTS_SECOND_LAST = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_OUTPUTS_LAST_TWO = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SUPPORTED = _OUTPUTS_LAST + _OUTPUTS_SECOND_LAST + _OUTPUTS_LAST_TWO

# squared length below which a vector counts as zero: far below that of any kernel, far above float32's underflow
_ZERO = 1e-30


@keras.saving.register_keras_serializable(package="tfp_ebm")
class SpectralNormalization(keras.layers.Wrapper):
    """A wrapper that calls `layer` with its kernel divided by the kernel's largest singular value.

    The kernel of a convolution is treated as the matrix of one patch, `[positions · input channels, output channels]`,
    as in the paper. For a grouped or depthwise convolution the matrix is `[positions · input channels of a group, all
    output channels]`, whose norm is at least the true norm for a patch. A zero kernel is not changed.

    The result depends on `training` only through the stored vector u: the same u gives the same output, and
    `training=True` then stores the updated u, unless the layer is frozen. The initial u is a fixed generic direction,
    so the norm of the kernel approaches 1 within the first training steps.

    Args:
      layer: a Dense, Conv1D/2D/3D, Conv1D/2D/3DTranspose or DepthwiseConv1D/2D layer of Keras.
      power_iterations: number of iterations in a call. 1 is sufficient if the kernel changes slowly in training.
      **kwargs: Keras's own (`name`, `dtype`, `trainable`); the default of `dtype` is the dtype of the weights of
        `layer`.

    Input and output as for `layer`.

    Raises:
      TypeError: if `layer` is of another kind.
      ValueError: if `power_iterations` is below 1.

    References:
      Miyato, Kataoka, Koyama, Yoshida. Spectral normalization for generative adversarial networks. ICLR 2018.
      arXiv:1802.05957.

    >>> layer = SpectralNormalization(keras.layers.Dense(1, use_bias=False, kernel_initializer="ones"))
    >>> layer(tf.ones([1, 4])).numpy().tolist()  # W = (1, 1, 1, 1) has σ = 2
    [[2.0]]
    """

    def __init__(self, layer: keras.layers.Layer, power_iterations: int = 1, **kwargs: Any) -> None:
        check_keras_3("layer", layer)
        if not isinstance(layer, _SUPPORTED):
            kinds = ", ".join(kind.__name__ for kind in _SUPPORTED)
            raise TypeError(f"`layer` must be one of Keras's {kinds}, got {type(layer).__name__}.")
        # not the policy of `layer`: with a mixed policy, the norm would be that of a rounded kernel
        kwargs.setdefault("dtype", layer.variable_dtype)
        super().__init__(layer, autocast=False, **kwargs)
        self.power_iterations = check_count("power_iterations", power_iterations)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds `layer` and the vector u, `[outputs]`."""
        super().build(input_shape)
        self.u = self.add_weight(
            name="u",
            shape=(self._matrix(self.layer.kernel.value).shape[-1],),
            initializer=keras.initializers.RandomNormal(stddev=1.0, seed=0),
            dtype=self.layer.kernel.dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns `layer(inputs)` with the normalised kernel; stores u if `training` and not frozen."""
        variables = [(variable, variable.value) for variable in self.layer.variables]
        kernel = (self.layer.kernel, self.normalized_kernel(bool(training and self.trainable)))
        # the scope replaces values of variables without assigning them; the last entry of a variable counts
        with keras.StatelessScope([*variables, kernel], collect_losses=True) as scope:
            outputs = self.layer(inputs)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def normalized_kernel(self, training: bool = False) -> tf.Tensor:
        """Returns W/σ, of the kernel's shape; differentiable in the kernel.

        Args:
          training: whether to store the vector u after the power iteration.
        """
        kernel = at_least_float32(self.layer.kernel.value)
        matrix = self._matrix(kernel)
        constant, u = tf.stop_gradient(matrix), tf.cast(self.u.value, matrix.dtype)
        for _ in range(self.power_iterations):
            v = tf.math.l2_normalize(tf.linalg.matvec(constant, u), epsilon=_ZERO)
            u = tf.math.l2_normalize(tf.linalg.matvec(constant, v, transpose_a=True), epsilon=_ZERO)
        sigma = tf.tensordot(v, tf.linalg.matvec(matrix, u), 1)
        is_zero = tf.equal(sigma, 0)
        if training:
            self.u.assign(tf.where(is_zero, self.u.value, tf.cast(u, self.u.dtype)))
        return tf.cast(kernel / tf.where(is_zero, tf.ones_like(sigma), sigma), self.layer.kernel.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the output shape of `layer`."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "power_iterations": self.power_iterations}

    def _matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the kernel as a matrix `[inputs, outputs]`, whose norm is used."""
        if isinstance(self.layer, _OUTPUTS_SECOND_LAST):
            kernel = tf.linalg.matrix_transpose(kernel)
        outputs = 2 if isinstance(self.layer, _OUTPUTS_LAST_TWO) else 1
        return tf.reshape(kernel, [-1, math.prod(kernel.shape[-outputs:])])
