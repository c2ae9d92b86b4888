"""Rules for layers that merge branches: sums and products of jets."""

from __future__ import annotations

import functools
import operator
from typing import Any

import keras

from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, no_rule
from tfp_ebm.derivatives.jet import Jet

__all__: list[str] = []


def _equal_rank(layer: Any, jets: list[Any]) -> list[Any]:
    if len({len(jet.shape) for jet in jets}) > 1:
        raise no_rule(layer, "merges tensors of different rank")
    return jets


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
    if any(not isinstance(jet, Jet) for jet in jets):
        raise no_rule(layer, "merges a tensor that does not depend on x")
    return Jet.concatenate(jets, layer.axis)
