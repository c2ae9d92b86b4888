"""Targets with a symmetry of the plane: rings and pinwheel (rotations), checkerboard (translations).

The moments follow from the symmetry, and the densities from polar coordinates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.random import normal, uniform
from tfp_ebm.targets.target import Target, component, named, radius_of, split


@named
def rings(dtype: Any = tf.float32) -> Target:
    """Returns three concentric rings: uniform angle, radius N(R, .08²), R one of .7, 1.5, 2.3, equally likely.

    With ρ = ‖x‖ the density is ⅓ Σ_R [N(ρ; R, .08²) + N(−ρ; R, .08²)]/(2πρ); a point of negative radius is on the
    opposite side of the origin. The pole at the origin has negligible weight (1e-16 per unit of radius). Within a
    distance of the machine's ε from the origin the log-density is constant, so that a chain may start there. E x = 0,
    covariance ½(mean R² + .08²)I.

    Args:
      dtype: tf.float32 or tf.float64.

    >>> rings(tf.float64).covariance().numpy().round(4).tolist()
    [[1.3415, 0.0], [0.0, 1.3415]]
    """
    radii, scale = np.array([0.7, 1.5, 2.3]), 0.08
    signed = np.concatenate([-radii, radii])
    offset = math.log(3 * 2 * math.pi * scale * math.sqrt(2 * math.pi))

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        radius = radius_of(x)
        terms = -(((radius[..., None] - signed) / scale) ** 2) / 2
        return tf.reduce_logsumexp(terms, axis=-1) - tf.math.log(radius) - offset

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        which, noise, turn = split(seed, 3)
        radius = tf.gather(tf.constant(radii, dtype), component(n, which, np.full(3, 1 / 3)))
        radius += scale * normal([n], noise, dtype=dtype)
        angle = 2 * math.pi * uniform([n], turn, dtype=dtype)
        return radius[:, None] * tf.stack([tf.cos(angle), tf.sin(angle)], axis=-1)

    covariance = (np.mean(radii**2) + scale**2) / 2 * np.eye(2)
    return Target(log_prob, sample, (0.0, 0.0), covariance, dtype=dtype, label="rings")


@named
def pinwheel(dtype: Any = tf.float32) -> Target:
    """Returns a pinwheel of five curved arms, x = 2 R(2πk/5 + ¼ exp ‖v‖) v.

    Here v = (r, t), r ~ N(1, .3²), t ~ N(0, .1²), k is uniform on 0 … 4, and R(φ) is the rotation by φ. The angle
    depends only on the radius ‖v‖, which the rotation does not change, so the map preserves area: in polar coordinates
    it is (ρ, θ) -> (ρ, θ + φ(ρ)). Hence p(x) = ¼ · ⅕ Σₖ N(R(−φₖ(‖x‖/2)) x/2) exactly. (In the classic construction the
    angle depends on r; that map has the Jacobian 1 − t φ'(r) and no inverse in closed form, but looks the same.) From
    the five-fold symmetry, E x = 0, covariance ½·4·(1 + .3² + .1²)I = 2.2 I.

    Reference: Johnson et al., Composing graphical models with neural networks, 2016, https://arxiv.org/abs/1603.06277

    Args:
      dtype: tf.float32 or tf.float64.

    >>> pinwheel(tf.float64).covariance().numpy().round(3).tolist()
    [[2.2, 0.0], [0.0, 2.2]]
    """
    arms = np.arange(5) * 2 * math.pi / 5
    radial, tangential, rate = 0.3, 0.1, 0.25
    offset = math.log(4 * 5 * 2 * math.pi * radial * tangential)

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        v = x[..., None, :] / 2
        # an infinite angle has no cosine; at such a distance the density is zero in any case
        angle = arms + rate * tf.exp(tf.minimum(radius_of(v), 80.0))
        r = tf.cos(angle) * v[..., 0] + tf.sin(angle) * v[..., 1]
        t = tf.cos(angle) * v[..., 1] - tf.sin(angle) * v[..., 0]
        return tf.reduce_logsumexp(-(((r - 1) / radial) ** 2 + (t / tangential) ** 2) / 2, axis=-1) - offset

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        which, noise = split(seed, 2)
        v = normal([n, 2], noise, dtype=dtype) * (radial, tangential) + (1.0, 0.0)
        angle = tf.gather(tf.constant(arms, dtype), component(n, which, np.full(5, 1 / 5)))
        angle += rate * tf.exp(radius_of(v))
        r, t = tf.unstack(v, axis=-1)
        return 2 * tf.stack([tf.cos(angle) * r - tf.sin(angle) * t, tf.sin(angle) * r + tf.cos(angle) * t], axis=-1)

    covariance = 2 * (1 + radial**2 + tangential**2) * np.eye(2)
    return Target(log_prob, sample, (0.0, 0.0), covariance, dtype=dtype, label="pinwheel")


@named
def checkerboard(dtype: Any = tf.float32) -> Target:
    """Returns the uniform distribution on the squares with i + j even of the 4 × 4 board on [−2, 2)².

    The density is constant inside and zero outside (log density −inf), so its gradient is of no use:
    `is_differentiable` is False, and gradient kernels raise an error. Random-walk and independence proposals work. The
    default bijector maps the plane to the board, where the density on the other squares is zero. Each coordinate is
    uniform with variance 4/3; their covariance is 1/4.

    Args:
      dtype: tf.float32 or tf.float64.

    >>> checkerboard(tf.float64).log_prob([[-1.5, -1.5], [-0.5, -1.5], [3.0, 3.0]]).numpy().round(3).tolist()
    [-2.079, -inf, -inf]
    >>> checkerboard().is_differentiable
    False
    """

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        on_board = tf.reduce_all((x >= -2) & (x < 2), axis=-1)
        even = tf.math.floormod(tf.reduce_sum(tf.floor(x), axis=-1), 2) == 0
        log_density = tf.where(on_board & even, tf.constant(-math.log(8), x.dtype), tf.constant(-math.inf, x.dtype))
        # NaN is on no square, but its log-density must be NaN, not −inf
        nan = tf.reduce_any(tf.math.is_nan(x), axis=-1)
        return tf.where(nan, tf.constant(math.nan, x.dtype), log_density)

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        which, within = split(seed, 2)
        square = tf.random.stateless_uniform([n], which, 0, 8, tf.int32, alg="philox")
        column = square // 2
        row = 2 * (square % 2) + column % 2
        corner = tf.cast(tf.stack([column, row], axis=-1) - 2, dtype)
        # shifted by half a grid step the uniforms are even multiples, so these sums are exact and none rounds upwards
        half = 2.0**-24 if dtype == tf.float32 else 2.0**-53
        return corner + (uniform([n, 2], within, dtype=dtype) - half)

    return Target(
        log_prob,
        sample,
        mean=(0.0, 0.0),
        covariance=((4 / 3, 1 / 4), (1 / 4, 4 / 3)),
        is_differentiable=False,
        box=(-2.0, 2.0),
        dtype=dtype,
        label="checkerboard",
    )
