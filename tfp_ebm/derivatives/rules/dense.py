"""Rules for dense layers and activation layers: y = s(xW + b)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import activate, forward_laplacian_rule, no_rule, weight
from tfp_ebm.derivatives.jet import Jet

__all__: list[str] = []


@forward_laplacian_rule(keras.layers.Dense)
def _dense(layer: Any, jet: Jet) -> Jet:
    if getattr(layer, "quantization_mode", None) is not None:
        raise no_rule(layer, "is quantized")
    kernel = weight(layer.kernel, jet)
    jet = jet.linear(lambda t: tf.tensordot(t, kernel, 1) if t.shape.rank != 2 else tf.matmul(t, kernel))
    if layer.bias is not None:
        jet += weight(layer.bias, jet)
    return activate(jet, layer.activation)


@forward_laplacian_rule(keras.layers.Activation)
def _activation(layer: Any, jet: Jet) -> Jet:
    return activate(jet, layer.activation)


@forward_laplacian_rule(keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.PReLU)
def _elementwise_layer(layer: Any, jet: Jet) -> Jet:
    return jet.elementwise(layer.call)
