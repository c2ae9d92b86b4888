"""Forward-mode rules for the layers of this package: how each layer propagates second-order jets."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, propagate, weight
from tfp_ebm.derivatives.jet import Jet
from tfp_ebm.networks.fourier import FourierFeatures
from tfp_ebm.networks.normalization import GroupNormalization, LayerNormalization
from tfp_ebm.networks.spectral import SpectralNormalization

__all__: list[str] = []


def _standardized(jet: Jet, axes: tuple[int, ...], epsilon: float) -> Jet:
    centred = jet - jet.mean(axes, keepdims=True)
    return centred * ((centred * centred).mean(axes, keepdims=True) + epsilon).elementwise(tf.math.rsqrt)


def _affine(layer: Any, jet: Jet, shape: list[Any]) -> Jet:
    if layer.gamma is not None:
        jet = jet * tf.reshape(weight(layer.gamma, jet), shape)
    if layer.beta is not None:
        jet = jet + tf.reshape(weight(layer.beta, jet), shape)
    return jet


@forward_laplacian_rule(LayerNormalization)
def _layer_normalization(layer: LayerNormalization, jet: Jet) -> Jet:
    rank = jet.shape.rank
    axes = tuple(axis % rank for axis in layer.axis)
    shape = [jet.shape[axis] if axis in axes else 1 for axis in range(rank)]
    standardized = _standardized(jet.at_least_float32(), axes, layer.epsilon)
    return _affine(layer, standardized, shape).cast(jet.dtype)


@forward_laplacian_rule(GroupNormalization)
def _group_normalization(layer: GroupNormalization, jet: Jet) -> Jet:
    rank, row = jet.shape.rank, list(jet.shape[1:])
    axis = layer.axis % rank
    channels = jet.shape[axis]
    split = [*row[: axis - 1], layer.groups, channels // layer.groups, *row[axis:]]
    within = tuple(a for a in range(1, rank + 1) if a != axis)  # after inserting the group axis at position `axis`
    split_jet = jet.at_least_float32().linear(lambda t: tf.reshape(t, [-1, *split]))
    grouped = _standardized(split_jet, within, layer.epsilon)
    shape = [channels if a == axis else 1 for a in range(rank)]
    return _affine(layer, grouped.linear(lambda t: tf.reshape(t, [-1, *row])), shape).cast(jet.dtype)


@forward_laplacian_rule(FourierFeatures)
def _fourier_features(layer: FourierFeatures, jet: Jet) -> Jet:
    phase = jet.linear(lambda t: tf.tensordot(t, weight(layer.kernel, jet), 1))
    return Jet.concatenate([jet, phase.elementwise(tf.cos), phase.elementwise(tf.sin)], -1)


@forward_laplacian_rule(SpectralNormalization, inference_only=True)
def _spectral_normalization(layer: SpectralNormalization, jet: Jet) -> Jet:
    with keras.StatelessScope([(layer.layer.kernel, layer.normalized_kernel())]):
        return propagate(layer.layer, jet)
