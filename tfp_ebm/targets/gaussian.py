"""Targets made of Gaussians: mixtures of round Gaussians, curves with added noise, and Gaussians bent along a parabola.

All three have exact moments, which the functions below derive.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_count
from tfp_ebm.random import normal, uniform
from tfp_ebm.targets.target import Sampler, Target, component, named, split


def _round_gaussians(
    label: str, weights: np.ndarray, locs: np.ndarray, scale: float, dtype: Any, sample_fn: Sampler | None = None
) -> Target:
    """Returns Σₖ wₖ N(x; mₖ, s²I), with weights `[K]`, locs `[K, 2]`, and its moments.

    The mean is m = Σ wₖmₖ, the covariance s²I + Σ wₖ(mₖ − m)(mₖ − m)ᵀ.
    """
    offset = np.log(weights) - math.log(2 * math.pi * scale**2)
    # hundreds of nodes for every point of a fine grid would need gigabytes, so a few nodes are evaluated at a time
    groups = np.array_split(np.arange(len(weights)), math.ceil(len(weights) / 32))

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        # not |x|² − 2xm + |m|²: this form has no cancellation, and no product that a GPU would round to TensorFloat-32
        parts = []
        for k in groups:
            squares = (x[..., :1] - locs[k, 0]) ** 2 + (x[..., 1:] - locs[k, 1]) ** 2
            parts.append(tf.reduce_logsumexp(offset[k] - squares / (2 * scale**2), axis=-1))
        return tf.reduce_logsumexp(tf.stack(parts), axis=0)

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        which, noise = split(seed, 2)
        centres = tf.gather(tf.constant(locs, dtype), component(n, which, weights))
        return centres + scale * normal([n, 2], noise, dtype=dtype)

    mean = weights @ locs
    covariance = scale**2 * np.eye(2) + (weights[:, None] * (locs - mean)).T @ (locs - mean)
    return Target(log_prob, sample_fn or sample, mean, covariance, dtype=dtype, label=label)


@named
def two_gaussians(dtype: Any = tf.float32) -> Target:
    """Returns a mixture of two separated modes of unequal weight: .3 N((−2, 0), .5²I) + .7 N((2, 0), .5²I).

    This is the mixture of Fig. 1 of the note. Score matching and uncalibrated chains get its weights wrong.

    Args:
      dtype: tf.float32 or tf.float64.

    >>> two_gaussians(tf.float64).mean().numpy().round(3).tolist()
    [0.8, 0.0]
    """
    return _round_gaussians("two_gaussians", np.array([0.3, 0.7]), np.array([[-2.0, 0.0], [2.0, 0.0]]), 0.5, dtype)


@named
def eight_gaussians(dtype: Any = tf.float32) -> Target:
    """Returns a mixture of eight equal modes N(mₖ, .2²I) on the circle of radius 2, at the angles kπ/4.

    Args:
      dtype: tf.float32 or tf.float64.

    >>> eight_gaussians().sample(5, seed=0).shape
    TensorShape([5, 2])
    """
    angles = np.arange(8) * math.pi / 4
    locs = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return _round_gaussians("eight_gaussians", np.full(8, 1 / 8), locs, 0.2, dtype)


def _thick_curve(label: str, curve: Callable[[Any, Any], Any], num_pieces: int, scale: float, dtype: Any) -> Target:
    """Returns the distribution of c(u) + N(0, s²I), u ~ U(0, 1).

    `curve(u, lib)` maps u `[n]` to `[n, 2]` with the functions of lib (numpy or tf); it is smooth on each of
    `num_pieces` equal parts of [0, 1].
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(160)
    u = (np.arange(num_pieces)[:, None] + (nodes + 1) / 2) / num_pieces
    weights = np.tile(node_weights, num_pieces) / (2 * num_pieces)

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        along, noise = split(seed, 2)
        return curve(uniform([n], along, dtype=dtype), tf) + scale * normal([n, 2], noise, dtype=dtype)

    return _round_gaussians(label, weights, curve(u.ravel(), np), scale, dtype, sample)


@named
def two_moons(dtype: Any = tf.float32) -> Target:
    """Returns two interleaved half circles with noise, centred, with standard deviations near one.

    A point is (cos t, sin t) or (1 − cos t, .5 − sin t), t ~ U(0, π), equally likely, minus (.5, .25), plus N(0, .1²I),
    all × 1.5. The density and the moments are integrals over t, computed with 160 Gauss-Legendre nodes per moon (exact
    to rounding).

    Args:
      dtype: tf.float32 or tf.float64.

    >>> p = two_moons()
    >>> p.event_shape, p.log_prob(tf.zeros([3, 4, 2])).shape
    (TensorShape([2]), TensorShape([3, 4]))
    """

    def moons(u: Any, lib: types.ModuleType) -> Any:
        # the moons are the halves of one circle, the lower one shifted by (1, .5)
        lower, angle = lib.floor(2 * u), 2 * math.pi * u
        return 1.5 * lib.stack([lib.cos(angle) + lower - 0.5, lib.sin(angle) + 0.5 * lower - 0.25], axis=-1)

    return _thick_curve("two_moons", moons, num_pieces=2, scale=0.15, dtype=dtype)


@named
def swiss_roll(dtype: Any = tf.float32) -> Target:
    """Returns a spiral with noise: (t cos t, t sin t)/5 + N(0, .2²I), t ~ U(1.5π, 4.5π).

    The density and the moments are integrals over t, computed with 160 Gauss-Legendre nodes per half turn (exact to
    rounding).

    Args:
      dtype: tf.float32 or tf.float64.

    >>> swiss_roll().sample([2, 3], seed=0).shape
    TensorShape([2, 3, 2])
    """

    def spiral(u: Any, lib: types.ModuleType) -> Any:
        t = 1.5 * math.pi * (1 + 2 * u)
        return lib.stack([t * lib.cos(t), t * lib.sin(t)], axis=-1) / 5

    return _thick_curve("swiss_roll", spiral, num_pieces=3, scale=0.2, dtype=dtype)


def _bent_gaussian(
    label: str,
    dtype: Any,
    *,
    loc: float = 0.0,
    scale: float = 1.0,
    bend: float = 0.0,
    shift: float = 0.0,
    width: float = 1.0,
    flare: float = 0.0,
) -> Target:
    """Returns x₁ ~ N(m, s²), x₂ | x₁ ~ N(a x₁² + b, (t exp(c x₁))²), with arguments in the order m, s, a, b, t, c.

    From E x₁² = m² + s², Var x₁² = 4m²s² + 2s⁴, Cov(x₁, x₁²) = 2ms² and E exp(2c x₁) = exp(2cm + 2c²s²):
    E x₂ = a(m² + s²) + b, Var x₂ = a² Var x₁² + t² exp(2cm + 2c²s²), Cov(x₁, x₂) = 2ams².
    """

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        first, second = x[..., 0], x[..., 1]
        z = (first - loc) / scale
        w = (second - bend * first**2 - shift) / (width * tf.exp(flare * first))
        return -(z**2 + w**2) / 2 - flare * first - math.log(2 * math.pi * scale * width)

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        z, w = tf.unstack(normal([n, 2], seed, dtype=dtype), axis=-1)
        first = loc + scale * z
        return tf.stack([first, bend * first**2 + shift + width * tf.exp(flare * first) * w], axis=-1)

    variance = scale**2
    covariance = 2 * bend * loc * variance
    second_variance = bend**2 * (4 * loc**2 * variance + 2 * variance**2)
    second_variance += width**2 * math.exp(2 * flare * loc + 2 * flare**2 * variance)
    return Target(
        log_prob,
        sample,
        mean=(loc, bend * (loc**2 + variance) + shift),
        covariance=((variance, covariance), (covariance, second_variance)),
        dtype=dtype,
        label=label,
    )


@named
def banana(dtype: Any = tf.float32) -> Target:
    """Returns a curved ridge: x₁ ~ N(0, 1), x₂ | x₁ ~ N(.5x₁² − .5, .3²), uncorrelated but far from independent.

    Args:
      dtype: tf.float32 or tf.float64.

    >>> banana(tf.float64).covariance().numpy().round(3).tolist()
    [[1.0, 0.0], [0.0, 0.59]]
    """
    return _bent_gaussian("banana", dtype, bend=0.5, shift=-0.5, width=0.3)


@named
def rosenbrock(dtype: Any = tf.float32) -> Target:
    """Returns Rosenbrock's valley as a density: log p = −((1 − x)² + 100(y − x²)²)/20 + const.

    This is the target of Fig. 3 of the note: x ~ N(1, 10), y | x ~ N(x², .1) (variances), a ridge of width .3 and a
    length of hundreds.

    Args:
      dtype: tf.float32 or tf.float64.

    >>> rosenbrock(tf.float64).mean().numpy().round(3).tolist()
    [1.0, 11.0]
    """
    return _bent_gaussian("rosenbrock", dtype, loc=1.0, scale=math.sqrt(10), bend=1.0, width=math.sqrt(0.1))


@named
def funnel(num_coordinates: int = 2, dtype: Any = tf.float32) -> Target:
    """Returns Neal's funnel: x₁ ~ N(0, 3²), xₖ | x₁ ~ N(0, exp(x₁)) for all other k.

    The scale of x₂, … varies over four orders of magnitude.

    Args:
      num_coordinates: number of coordinates, at least 2.
      dtype: tf.float32 or tf.float64.

    Reference: Neal, Slice sampling, Annals of Statistics 31(3), 2003, section 8.

    >>> funnel(dtype=tf.float64).stddev().numpy().round(3).tolist()
    [3.0, 9.488]
    >>> funnel(10).event_shape
    TensorShape([10])
    """
    if check_count("num_coordinates", num_coordinates, 2) == 2:
        return _bent_gaussian("funnel", dtype, scale=3.0, flare=0.5)
    others = num_coordinates - 1

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        first, squares = x[..., 0], tf.reduce_sum(x[..., 1:] ** 2, axis=-1)
        constant = math.log(3.0) + 0.5 * num_coordinates * math.log(2 * math.pi)
        return -(first**2) / 18 - squares * tf.exp(-first) / 2 - others * first / 2 - constant

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        z = normal([n, num_coordinates], seed, dtype=dtype)
        first = 3.0 * z[:, :1]
        return tf.concat([first, tf.exp(first / 2) * z[:, 1:]], -1)

    return Target(
        log_prob,
        sample,
        mean=np.zeros(num_coordinates),
        covariance=np.diag([9.0] + [math.exp(4.5)] * others),
        dtype=dtype,
        num_coordinates=num_coordinates,
        label="funnel",
    )
