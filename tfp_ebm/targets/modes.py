"""Targets with separated modes in any number of coordinates, whose exact shares and log Z judge a sampler.

A sampler that draws well within each mode may still give the modes wrong shares. `Target.modes` returns the mode of
each draw, and `Target.shares` the exact shares.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.random import normal, uniform
from tfp_ebm.targets.target import Target, component, named, split

# Half width of the interval on which the double well is integrated and inverted, and the points there.
_WELL_RADIUS, _NUM_WELL_POINTS = 4.0, 40_001


def _gaussians(label: str, weights: np.ndarray, locs: np.ndarray, scales: np.ndarray, dtype: Any) -> Target:
    """Returns Σₖ wₖ N(x; mₖ, sₖ²I), with weights `[K]`, locs `[K, d]`, scales `[K]`."""
    d = locs.shape[1]
    offset = np.log(weights) - d * np.log(scales) - 0.5 * d * math.log(2 * math.pi)

    def log_parts(x: tf.Tensor) -> tf.Tensor:
        squares = tf.stack([tf.reduce_sum((x - loc) ** 2, -1) for loc in locs], -1)
        return offset - squares / (2 * scales**2)

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        which, noise = split(seed, 2)
        index = component(n, which, weights)
        z = normal([n, d], noise, dtype=dtype)
        return tf.gather(tf.constant(locs, dtype), index) + tf.gather(tf.constant(scales, dtype), index)[:, None] * z

    mean = weights @ locs
    covariance = (weights @ scales**2) * np.eye(d) + (weights[:, None] * (locs - mean)).T @ (locs - mean)
    return Target(
        lambda x: tf.reduce_logsumexp(log_parts(x), -1),
        sample,
        mean,
        covariance,
        dtype=dtype,
        num_coordinates=d,
        shares=weights,
        mode_fn=lambda x: tf.argmax(log_parts(x), -1, tf.int32),
        label=label,
    )


@named
def gmm40(dtype: Any = tf.float32) -> Target:
    """Returns a mixture of 40 equal Gaussians N(mₖ, 1.3133²I) on the plane, with mₖ drawn uniformly from [−40, 40]².

    The mixture is that of Midgley et al. 2023 (arXiv:2208.01893) but for the 40 means, which come from another random
    number generator. Some modes overlap; `modes` gives the most likely component.

    Args:
      dtype: tf.float32 or tf.float64.

    >>> gmm40().shares.shape, gmm40().sample(3, seed=0).shape
    ((40,), TensorShape([3, 2]))
    """
    locs = np.random.default_rng(0).uniform(-40.0, 40.0, (40, 2))
    return _gaussians("gmm40", np.full(40, 1 / 40), locs, np.full(40, math.log1p(math.e)), dtype)


@named
def two_widths(
    num_coordinates: int = 10, separation: float = 10.0, ratio: float = 0.5, dtype: Any = tf.float32
) -> Target:
    """Returns .3 N(−a, I) + .7 N(a, ratio²I), with a = (separation/2, 0, …, 0): two modes of unequal width.

    Along a path of powers from a broad base, the wide mode takes all particles before the narrow one has its share
    (Woodard et al. 2009), so annealing from a Gaussian fails in many coordinates.

    Args:
      num_coordinates: number of coordinates.
      separation: distance of the modes.
      ratio: standard deviation of the mode of share .7; that of the other is 1.
      dtype: tf.float32 or tf.float64.

    >>> two_widths(5).shares.tolist(), two_widths(5).modes([[4.0] + 4 * [0.0]]).numpy().tolist()
    ([0.3, 0.7], [1])
    """
    locs = np.zeros([2, check_count("num_coordinates", num_coordinates)])
    locs[:, 0] = -0.5 * separation, 0.5 * separation
    check_positive("separation", separation)
    return _gaussians("two_widths", np.array([0.3, 0.7]), locs, np.array([1.0, check_positive("ratio", ratio)]), dtype)


@named
def many_well(num_coordinates: int = 32, dtype: Any = tf.float32) -> Target:
    """Returns independent pairs of a double well and a Gaussian: E(x) = Σ x₁⁴ − 6x₁² − ½x₁ + ½x₂² over pairs (x₁, x₂).

    `unnormalized_log_prob` is −E, and `log_normalizer` its log Z, 164.6957 for 32 coordinates (Noé et al. 2019, Midgley
    et al. 2023). The modes are the 2^(d/2) combinations of wells; `modes` gives, for each pair, whether it is in the
    right well (x₁ > 0), `[..., d/2]`, and `shares` the shares of the left and the right well of each pair.

    Args:
      num_coordinates: number of coordinates d, even.
      dtype: tf.float32 or tf.float64.

    >>> round(many_well(32).log_normalizer, 4), many_well(32).shares.round(4).tolist()
    (164.6957, [0.1557, 0.8443])
    """
    if check_count("num_coordinates", num_coordinates, 2) % 2:
        raise ValueError(f"`num_coordinates` must be even, got {num_coordinates}.")
    pairs = num_coordinates // 2
    grid = np.linspace(-_WELL_RADIUS, _WELL_RADIUS, _NUM_WELL_POINTS)
    height = np.exp(-(grid**4) + 6 * grid**2 + 0.5 * grid)
    spacing = grid[1] - grid[0]
    # the trapezoidal rule is exact to rounding, since the density and its derivatives vanish at the ends
    mass = spacing * height.sum()
    share = float(spacing * (height[grid > 0].sum() + 0.5 * height[grid == 0].sum()) / mass)
    first, second = (float(spacing * (height * grid**power).sum() / mass) for power in (1, 2))
    log_normalizer = pairs * (math.log(mass) + 0.5 * math.log(2 * math.pi))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (height[1:] + height[:-1]))])
    cumulative /= cumulative[-1]

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        well, other = x[..., 0::2], x[..., 1::2]
        return tf.reduce_sum(-(well**4) + 6 * well**2 + 0.5 * well - 0.5 * other**2, -1) - log_normalizer

    def sample(n: Any, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        wells, others = split(seed, 2)
        u = uniform([n * pairs], wells, dtype=tf.float64)
        upper = tf.clip_by_value(tf.searchsorted(tf.constant(cumulative), u), 1, len(grid) - 1)
        low, high = tf.gather(cumulative, upper - 1), tf.gather(cumulative, upper)
        well = tf.gather(grid, upper - 1) + spacing * (u - low) / (high - low)
        other = normal([n, pairs], others, dtype=dtype)
        return tf.reshape(tf.stack([tf.cast(tf.reshape(well, [n, pairs]), dtype), other], -1), [n, num_coordinates])

    return Target(
        log_prob,
        sample,
        mean=np.tile([first, 0.0], pairs),
        covariance=np.diag(np.tile([second - first**2, 1.0], pairs)),
        dtype=dtype,
        num_coordinates=num_coordinates,
        log_normalizer=log_normalizer,
        shares=(1 - share, share),
        mode_fn=lambda x: tf.cast(x[..., 0::2] > 0, tf.int32),
        label="many_well",
    )
