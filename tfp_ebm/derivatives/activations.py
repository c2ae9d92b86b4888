"""Elementwise functions with the derivatives that second-order propagation needs.

A network's energy and its first two derivatives in x need s, s' and s'' of every activation, and their parameter
gradient also needs s'''. If these are known in closed form, they share subexpressions (for silu one sigmoid gives all
four), and the derivative of each is the next one, s to s' to s'' to s''', without automatic differentiation. Any other
function is differentiated by nested tapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Elementwise = Callable[[tf.Tensor], tf.Tensor]
Derivatives = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]]


def _silu(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    s = tf.sigmoid(a)
    p, q = s * (1.0 - s), 1.0 - 2.0 * s
    return a * s, a * p + s, p * (a * q + 2.0), p * (a * (1.0 - 6.0 * p) + 3.0 * q)


def _sigmoid(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    s = tf.sigmoid(a)
    p = s * (1.0 - s)
    return s, p, p * (1.0 - 2.0 * s), p * (1.0 - 6.0 * p)


def _softplus(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    s = tf.sigmoid(a)
    p = s * (1.0 - s)
    return tf.math.softplus(a), s, p, p * (1.0 - 2.0 * s)


def _tanh(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    t = tf.tanh(a)
    p = 1.0 - t * t
    return t, p, -2.0 * t * p, p * (4.0 - 6.0 * p)


def _gelu(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    # tf.nn.gelu rounds √½ to float32 whatever the dtype, and this must be the function that the network computes
    r = tf.cast(tf.constant(math.sqrt(0.5), tf.float32), a.dtype)
    c = (a * r) ** 2
    cdf = 0.5 * tf.math.erfc(-a * r)
    pdf = r / math.sqrt(math.pi) * tf.exp(-c)
    return a * cdf, cdf + a * pdf, 2.0 * pdf * (1.0 - c), 4.0 * r * r * a * pdf * (c - 2.0)


def _softsign(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    r = 1.0 / (1.0 + tf.abs(a))
    return a * r, r * r, -2.0 * tf.sign(a) * r**3, 6.0 * r**4


def _exponential(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    e = tf.exp(a)
    return e, e, e, e


def _square(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    return a * a, 2.0 * a, 2.0 * tf.ones_like(a), tf.zeros_like(a)


def _reciprocal(a: tf.Tensor) -> tuple[tf.Tensor, ...]:
    r = 1.0 / a
    return r, -r * r, 2.0 * r**3, -6.0 * r**4


def _activations(names: str) -> frozenset[Any]:
    """Returns Keras's activation functions of these names, as far as this version has them."""
    return frozenset(getattr(keras.activations, name) for name in names.split() if hasattr(keras.activations, name))


PIECEWISE_LINEAR = _activations("relu relu6 leaky_relu hard_sigmoid hard_tanh hard_shrink soft_shrink sparse_sigmoid")
CLOSED_FORMS: dict[Any, Derivatives] = {
    keras.activations.silu: _silu,
    keras.activations.sigmoid: _sigmoid,
    keras.activations.softplus: _softplus,
    keras.activations.tanh: _tanh,
    keras.activations.gelu: _gelu,
    keras.activations.softsign: _softsign,
    keras.activations.exponential: _exponential,
    tf.square: _square,
    tf.math.reciprocal: _reciprocal,
}
# Functions that apply to each number separately, unlike softmax or glu.
ELEMENTWISE = PIECEWISE_LINEAR.union(
    CLOSED_FORMS,
    _activations("elu selu celu mish log_sigmoid squareplus tanh_shrink hard_silu sparse_plus"),
)


def value_slope_bend(function: Elementwise, a: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """Returns s(a), s'(a) and s''(a) of an elementwise function, each differentiable in a; None for a zero s''."""
    if function in CLOSED_FORMS:
        return _linked(a, *CLOSED_FORMS[function](a))
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(a)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(a)
            s = function(a)
        s1 = inner.gradient(s, a, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return s, s1, None if function in PIECEWISE_LINEAR else outer.gradient(s1, a)


def _linked(
    a: tf.Tensor, s: tf.Tensor, s1: tf.Tensor, s2: tf.Tensor, s3: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the first three functions, each with the next one as its derivative in a."""

    @tf.custom_gradient
    def bend(a: tf.Tensor) -> Any:
        del a
        return s2, lambda upstream: upstream * s3

    @tf.custom_gradient
    def slope(a: tf.Tensor) -> Any:
        return s1, lambda upstream: upstream * bend(a)

    @tf.custom_gradient
    def value(a: tf.Tensor) -> Any:
        return s, lambda upstream: upstream * slope(a)

    return value(a), slope(a), bend(a)
