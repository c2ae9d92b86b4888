"""Nodes and weights for expectations over a standard logistic or normal variable.

With t = a·sinh(v) the expectation E f(T) = ∫ f(t) q(t) dt is an integral over v whose integrand is smooth and falls off
faster than any exponential, so that the trapezoid rule on an even lattice converges exponentially (Trefethen & Weideman
2014). Nodes lie close together in the middle and reach far into the tails, where the quantiles of q have none. Shifted
by a random share of the spacing the rule is unbiased: the mean over all shifts is the integral itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# The sinh map's a, and the largest |t|: beyond it lies less than 1e-10 of a logistic, and of a normal variable.
STRETCH = 1.5
_REACH = {"logistic": 25.0, "normal": 7.0}
# Standard deviations of the standard variables.
DEVIATION = {"logistic": math.pi / math.sqrt(3.0), "normal": 1.0}


class Lattice(NamedTuple):
    """Nodes and logarithms of weights, `[..., num_nodes]`: E f(T) ≈ Σ exp(log_weights) f(nodes)."""

    nodes: tf.Tensor
    log_weights: tf.Tensor


def log_density(family: str, t: tf.Tensor) -> tf.Tensor:
    """Log density of the standard logistic or normal distribution.

    >>> [round(float(log_density(family, tf.constant(0.0))), 4) for family in ("logistic", "normal")]
    [-1.3863, -0.9189]
    """
    if family == "normal":
        return -0.5 * t**2 - 0.5 * math.log(2.0 * math.pi)
    size = tf.abs(t)
    return -size - 2.0 * tf.math.log1p(tf.exp(-size))


def lattice(family: str, num_nodes: int, shift: tf.Tensor) -> Lattice:
    """The lattice of `num_nodes` nodes, moved by `shift` spacings.

    Args:
      family: "logistic" or "normal".
      num_nodes: number of nodes.
      shift: floating-point `[...]`, from 0 to 1; ½ is the symmetric lattice.

    >>> grid = lattice("normal", 24, tf.constant(0.5, tf.float64))
    >>> round(float(tf.reduce_sum(tf.exp(grid.log_weights) * grid.nodes**2)), 8)
    1.0
    """
    width = math.asinh(_REACH[family] / STRETCH)
    spacing = 2.0 * width / num_nodes
    v = spacing * (tf.constant(np.arange(num_nodes), shift.dtype) + shift[..., None]) - width
    nodes = STRETCH * tf.sinh(v)
    log_weights = log_density(family, nodes) + tf.math.log(tf.cosh(v)) + math.log(STRETCH * spacing)
    return Lattice(nodes, log_weights)


def invert_trapezoid(nodes: tf.Tensor, density: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Returns the quantiles v `[batch]` of densities on an even lattice, linear between neighbours.

    Args:
      nodes: places `[batch, k]`, smooth in the lattice's own coordinate.
      density: values `[batch, k]`, of any sum, with respect to that coordinate.
      v: from 0 to 1.
    """
    cells = 0.5 * (density[:, 1:] + density[:, :-1])
    below = tf.cumsum(cells, axis=-1)
    goal = v * below[:, -1]
    cell = tf.minimum(tf.reduce_sum(tf.cast(goal[:, None] > below, tf.int32), -1), cells.shape[-1] - 1)
    index = cell[:, None]

    def at(values: tf.Tensor, offset: int = 0) -> tf.Tensor:
        return tf.gather(values, index + offset, batch_dims=1)[:, 0]

    low, high = at(density), at(density, 1)
    rest = tf.maximum(goal - (at(below) - at(cells)), 0.0)
    tiny = tf.constant(np.finfo(v.dtype.as_numpy_dtype).tiny, v.dtype)
    share = 2.0 * rest / tf.maximum(low + tf.sqrt(tf.maximum(low**2 + 2.0 * (high - low) * rest, 0.0)), tiny)
    share = tf.clip_by_value(share, 0.0, 1.0)
    return at(nodes) + share * (at(nodes, 1) - at(nodes))


def integrals_below(
    family: str, num_nodes: int, t: tf.Tensor, log_factor: Callable[[tf.Tensor], tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns E[exp(f(T)); T ≤ t] and E exp(f(T)), of the shape of t.

    The sum up to a node has the end correction of Euler and Maclaurin, and the rest of the cell is integrated by four
    Gauss-Legendre points; so the error falls with the fourth power of the spacing.

    Args:
      family: "logistic" or "normal".
      num_nodes: number of nodes.
      t: upper limits, `[batch, components]`.
      log_factor: returns f, `[batch, components, n]`, at places `[n]` or `[batch, components, n]`.

    >>> t = tf.constant([[0.0, 1.0]], tf.float64)
    >>> below, total = integrals_below("normal", 64, t, lambda t: tf.zeros([1, 2, 1], t.dtype))
    >>> below.numpy().round(5).tolist(), total.numpy().round(5).tolist()
    ([[0.5, 0.84134]], [[1.0, 1.0]])
    """
    grid = lattice(family, num_nodes, tf.constant(0.5, t.dtype))
    values = tf.exp(grid.log_weights + log_factor(grid.nodes))
    width = math.asinh(_REACH[family] / STRETCH)
    spacing = 2.0 * width / num_nodes
    place = tf.clip_by_value((tf.asinh(t / STRETCH) + width) / spacing - 0.5, 0.0, num_nodes - 1.0)
    node = tf.cast(place, tf.int32)

    def at(array: tf.Tensor, offset: int) -> tf.Tensor:
        padded = tf.pad(array, [[0, 0], [0, 0], [1, 1]])
        return tf.gather(padded, (node + 1 + offset)[..., None], batch_dims=2)[..., 0]

    sums = at(tf.cumsum(values, axis=-1), 0) - 0.5 * at(values, 0) - (at(values, 1) - at(values, -1)) / 24.0
    points, shares = (tf.constant(array, t.dtype) for array in np.polynomial.legendre.leggauss(4))
    start = tf.cast(node, t.dtype)
    rest = (place - start) * spacing
    v = ((start + 0.5) * spacing - width)[..., None] + rest[..., None] * 0.5 * (points + 1.0)
    inside = STRETCH * tf.sinh(v)
    density = tf.exp(log_density(family, inside) + tf.math.log(STRETCH * tf.cosh(v)) + log_factor(inside))
    return sums + rest * tf.reduce_sum(0.5 * shares * density, -1), tf.reduce_sum(values, -1)
