"""Rules for layers that merge branches: sums and products of jets."""

from __future__ import annotations

import functools
import operator
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, no_rule
from tfp_ebm.derivatives.jet import Jet

__all__: list[str] = []


def all_jets(parts: list[Any]) -> list[Jet]:
    """Returns jets and tensors, such as the conditions of a network, all as jets."""
    first = next(part for part in parts if isinstance(part, Jet))
    return [part if isinstance(part, Jet) else first.constant(tf.cast(part, first.dtype)) for part in parts]


def _equal_rank(layer: Any, jets: list[Any]) -> list[Any]:
    if len({len(jet.shape) for jet in jets}) > 1:
        raise no_rule(layer, "merges tensors of different rank")
    dtype = next(jet.dtype for jet in jets if isinstance(jet, Jet))
    return [jet if isinstance(jet, Jet) else tf.cast(jet, dtype) for jet in jets]


@forward_laplacian_rule(keras.layers.Add)
def _add(layer: Any, jets: list[Any]) -> Jet:
    return functools.reduce(operator.add, _equal_rank(layer, jets))


@forward_laplacian_rule(keras.layers.Average)
def _average(layer: Any, jets: list[Any]) -> Jet:
    return _add(layer, jets) * (1.0 / len(jets))


@forward_laplacian_rule(keras.layers.Subtract)
def _subtract(layer: Any, jets: list[Any]) -> Jet:
    return functools.reduce(operator.sub, _equal_rank(layer, jets))


@forward_laplacian_rule(keras.layers.Multiply)
def _multiply(layer: Any, jets: list[Any]) -> Jet:
    return functools.reduce(operator.mul, _equal_rank(layer, jets))


@forward_laplacian_rule(keras.layers.Concatenate)
def _concatenate(layer: Any, jets: list[Any]) -> Jet:
    return Jet.concatenate(all_jets(_equal_rank(layer, jets)), layer.axis)
