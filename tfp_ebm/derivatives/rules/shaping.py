"""Rules for layers that are linear maps without weights: average pooling, and layers that only rearrange numbers."""

from __future__ import annotations

from typing import Any

import keras

from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule
from tfp_ebm.derivatives.jet import Jet

__all__: list[str] = []

_POOLING = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)
_MOVING = (
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.RepeatVector,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
    keras.layers.UpSampling3D,
)


@forward_laplacian_rule(*_POOLING, *_MOVING)
def _linear(layer: Any, jet: Jet) -> Jet:
    return jet.linear(layer.call)


@forward_laplacian_rule(keras.layers.Identity, keras.layers.ActivityRegularization)
def _identity(layer: Any, jet: Jet) -> Jet:
    del layer
    return jet


@forward_laplacian_rule(
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    inference_only=True,
)
def _silent(layer: Any, jet: Jet) -> Jet:
    del layer
    return jet
