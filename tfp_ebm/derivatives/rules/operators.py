"""Rules for operators in functional graphs: `2 * x + y`, `x ** 2`, `keras.ops.exp(x)`, sums over axes, indexing.

Keras records each operator as an operation of a class that it does not export; classes missing in a version are
skipped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, no_rule
from tfp_ebm.derivatives.jet import Jet
from tfp_ebm.derivatives.rules.merging import all_jets

__all__: list[str] = []


def _classes(*names: str) -> list[type]:
    modules = (keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.math)
    found = (next((getattr(module, name) for module in modules if hasattr(module, name)), None) for name in names)
    return [operation for operation in found if operation is not None]


def _register_arithmetic(function: Callable[[Any, Any], Any], *names: str) -> None:
    @forward_laplacian_rule(*_classes(*names))
    def rule(operation: Any, left: Any, right: Any) -> Any:
        ranks = [len(side.shape) if hasattr(side, "shape") else 0 for side in (left, right)]
        jets = [isinstance(side, Jet) for side in (left, right)]
        if (all(jets) and ranks[0] != ranks[1]) or ranks[jets.index(True)] < max(ranks):
            raise no_rule(operation, f"broadcasts tensors of rank {ranks[0]} and {ranks[1]}")
        dtype = next(side.dtype for side in (left, right) if isinstance(side, Jet))
        # numbers are not converted, because tf.cast would first round them to float32
        return function(
            *(
                tf.cast(side, dtype) if rank and not jet else side
                for side, rank, jet in zip((left, right), ranks, jets, strict=True)
            )
        )


_register_arithmetic(operator.add, "Add")
_register_arithmetic(operator.sub, "Subtract")
_register_arithmetic(operator.mul, "Multiply")
_register_arithmetic(operator.truediv, "Divide", "TrueDivide")


@forward_laplacian_rule(*_classes("Negative"))
def _negative(operation: Any, jet: Jet) -> Jet:
    del operation
    return -jet


# operations without settings that have closed forms
for _name, _function in {
    "Square": tf.square,
    "Exp": keras.activations.exponential,
    "Tanh": keras.activations.tanh,
    "Sigmoid": keras.activations.sigmoid,
    "Silu": keras.activations.silu,
    "Softplus": keras.activations.softplus,
    "Softsign": keras.activations.softsign,
    "Reciprocal": tf.math.reciprocal,
}.items():

    @forward_laplacian_rule(*_classes(_name))
    def _closed_form(operation: Any, jet: Jet, function: Any = _function) -> Jet:
        del operation
        return jet.elementwise(function)


@forward_laplacian_rule(
    *_classes("Sqrt", "Rsqrt", "Log", "Log1p", "Expm1", "Sin", "Cos", "Sinh", "Cosh", "Arctan", "Erf"),
    *_classes("Gelu", "Elu", "Selu", "Celu", "LogSigmoid", "Squareplus", "TanhShrink", "Relu", "LeakyRelu", "Absolute"),
)
def _elementwise(operation: Any, jet: Jet) -> Jet:
    return jet.elementwise(operation.call)


@forward_laplacian_rule(*_classes("Power"))
def _power(operation: Any, base: Any, exponent: Any) -> Jet:
    if not isinstance(base, Jet) or isinstance(exponent, Jet) or len(getattr(exponent, "shape", ())):
        raise no_rule(operation, "has an exponent that is not a number")
    return base.elementwise(tf.square if exponent == 2 else lambda t: operation.call(t, exponent))


def _row_axes(operation: Any, jet: Jet) -> tuple[int, ...]:
    axes = operation.axis
    rank = len(jet.shape)
    axes = tuple(range(rank)) if axes is None else tuple(a % rank for a in ((axes,) if isinstance(axes, int) else axes))
    if 0 in axes:
        raise no_rule(operation, "works along the batch axis")
    return axes


@forward_laplacian_rule(*_classes("Sum"))
def _sum(operation: Any, jet: Jet) -> Jet:
    return jet.sum(_row_axes(operation, jet), operation.keepdims)


@forward_laplacian_rule(*_classes("Mean"))
def _mean(operation: Any, jet: Jet) -> Jet:
    return jet.mean(_row_axes(operation, jet), operation.keepdims)


@forward_laplacian_rule(*_classes("Squeeze"))
def _squeeze(operation: Any, jet: Jet) -> Jet:
    axes = list(_row_axes(operation, jet))
    return jet.linear(lambda t: tf.squeeze(t, axes))


@forward_laplacian_rule(*_classes("ExpandDims"))
def _expand_dims(operation: Any, jet: Jet) -> Jet:
    axis = operation.axis
    if not isinstance(axis, int) or axis % (len(jet.shape) + 1) == 0:
        raise no_rule(operation, "puts a new axis before the batch")
    return jet.linear(lambda t: tf.expand_dims(t, axis))


@forward_laplacian_rule(*_classes("Concatenate"))
def _concatenate(operation: Any, jets: list[Any]) -> Jet:
    if operation.axis % len(jets[0].shape) == 0:
        raise no_rule(operation, "joins rows")
    return Jet.concatenate(all_jets(jets), operation.axis)


@forward_laplacian_rule(*_classes("GetItem"))
def _get_item(operation: Any, jet: Jet, key: Any) -> Jet:
    key = tuple(key) if isinstance(key, tuple | list) else (key,)
    if key[0] is not Ellipsis and key[0] != slice(None):
        raise no_rule(operation, "takes some rows of the batch")
    return jet.linear(lambda t: t[key])


@forward_laplacian_rule(*_classes("Matmul"))
def _matmul(operation: Any, left: Any, right: Any) -> Jet:
    if not isinstance(left, Jet) or isinstance(right, Jet) or len(right.shape) != 2:
        raise no_rule(operation, "is not a row times a constant matrix")
    matrix = tf.cast(right, left.dtype)
    return left.linear(lambda t: tf.tensordot(t, matrix, 1))
