"""Rules for all convolutions, which are linear in their input: value and slopes pass through the same kernel."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import activate, forward_laplacian_rule, weight
from tfp_ebm.derivatives.jet import Jet

__all__: list[str] = []


def _finish(layer: Any, jet: Jet) -> Jet:
    """Adds the bias along the axis of the channels, and applies the activation."""
    if layer.bias is not None:
        bias = weight(layer.bias, jet)
        if layer.data_format == "channels_first":
            bias = tf.reshape(bias, [-1, *[1] * (jet.shape.rank - 2)])
        jet += bias
    return activate(jet, layer.activation)


def _settings(layer: Any) -> dict[str, Any]:
    names = ("strides", "padding", "dilation_rate", "data_format")
    return {name: getattr(layer, name) for name in names}


@forward_laplacian_rule(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def _convolution(layer: Any, jet: Jet) -> Jet:
    kernel = weight(layer.kernel, jet)
    settings = _settings(layer)
    if layer.padding != "causal":
        return _finish(layer, jet.linear(lambda t: keras.ops.conv(t, kernel, **settings)))
    before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    along = [[before, 0], [0, 0]] if layer.data_format == "channels_last" else [[0, 0], [before, 0]]
    settings["padding"] = "valid"
    return _finish(layer, jet.linear(lambda t: keras.ops.conv(tf.pad(t, [[0, 0], *along]), kernel, **settings)))


@forward_laplacian_rule(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def _depthwise(layer: Any, jet: Jet) -> Jet:
    kernel = weight(layer.kernel, jet)
    return _finish(layer, jet.linear(lambda t: keras.ops.depthwise_conv(t, kernel, **_settings(layer))))


@forward_laplacian_rule(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def _separable(layer: Any, jet: Jet) -> Jet:
    kernels = weight(layer.depthwise_kernel, jet), weight(layer.pointwise_kernel, jet)
    return _finish(layer, jet.linear(lambda t: keras.ops.separable_conv(t, *kernels, **_settings(layer))))


@forward_laplacian_rule(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
def _transposed(layer: Any, jet: Jet) -> Jet:
    kernel = weight(layer.kernel, jet)
    settings = {**_settings(layer), "output_padding": layer.output_padding}
    return _finish(layer, jet.linear(lambda t: keras.ops.conv_transpose(t, kernel, **settings)))
