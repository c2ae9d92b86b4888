"""Rules for normalisations by fixed statistics (affine maps), and by the mean square of each row."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, weight
from tfp_ebm.derivatives.jet import Jet

__all__: list[str] = []


def _along_axis(t: tf.Tensor, axis: int, jet: Jet) -> tf.Tensor:
    """Reshapes a vector of weights to broadcast along axis `axis` of a jet."""
    shape = [1] * jet.shape.rank
    shape[axis] = -1
    return tf.reshape(t, shape)


@forward_laplacian_rule(keras.layers.BatchNormalization, inference_only=True)
def _batch_normalization(layer: Any, jet: Jet) -> Jet:
    scale = tf.math.rsqrt(weight(layer.moving_variance, jet) + layer.epsilon)
    if layer.scale:
        scale *= weight(layer.gamma, jet)
    shift = -weight(layer.moving_mean, jet) * scale
    if layer.center:
        shift += weight(layer.beta, jet)
    return jet * _along_axis(scale, layer.axis, jet) + _along_axis(shift, layer.axis, jet)


@forward_laplacian_rule(keras.layers.Normalization)
def _normalization(layer: Any, jet: Jet) -> Jet:
    mean, variance = weight(layer.mean, jet), weight(layer.variance, jet)
    scale = tf.maximum(tf.sqrt(variance), keras.config.epsilon())
    return jet * scale + mean if layer.invert else (jet - mean) / scale


@forward_laplacian_rule(keras.layers.Rescaling)
def _rescaling(layer: Any, jet: Jet) -> Jet:
    scale = keras.ops.cast(layer.scale, jet.dtype)
    if scale.shape.rank and keras.config.image_data_format() == "channels_first":
        scale = tf.reshape(scale, [*scale.shape, *[1] * (3 - scale.shape.rank)])
    return jet * scale + keras.ops.cast(layer.offset, jet.dtype)


@forward_laplacian_rule(keras.layers.RMSNormalization)
def _rms_normalization(layer: Any, jet: Jet) -> Jet:
    axes = tuple(layer.axis) if isinstance(layer.axis, list | tuple) else layer.axis
    precise = jet.at_least_float32()
    mean_square = precise.elementwise(tf.square).mean(axes, keepdims=True)
    normalized = precise * (mean_square + layer.epsilon).elementwise(tf.math.rsqrt)
    return (normalized * weight(layer.scale, precise)).cast(jet.dtype)
