"""Draws along a fixed plan, with log Z and a verdict, inside a graph that depends on TensorFlow alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.mcmc.draws import MAX_NESTED_R_HAT, MIN_ANCESTORS, MIN_GROUP_ESS
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running.particle_state import Plan, Settings, initial_particles
from tfp_ebm.mcmc.running.particles import draw_and_weigh, run_pass
from tfp_ebm.mcmc.weights import effective_size

# Purposes of random numbers, folded into the seed: of a pass, and of the order of the draws.
_START, _PASS = range(2)
_ORDER = 2**31 - 1
# The code of trouble is a sum of these.
TROUBLE_OF_PLAN, GROUPS_DIFFER, FEW_ANCESTORS, HIGH_R_HAT = 1, 2, 4, 8


class OnePass(NamedTuple):
    """Particles of equal weights, from one pass.

    Attributes:
      x: `[num, d]`.
      groups, ancestors: the group, and the number of the first particle, from which a particle descends, int32 `[num]`.
      log_normalizers: log Ẑ of each group, float64 `[num_groups]`.
      relative_variance: estimate of Var Ẑ / Z² from the descent of the particles, float64; 0 if there is none.
    """

    x: tf.Tensor
    groups: tf.Tensor
    ancestors: tf.Tensor
    log_normalizers: tf.Tensor
    relative_variance: tf.Tensor


class FrozenDraws(NamedTuple):
    """Draws of as many passes as they need.

    Attributes:
      states: `[num_samples, d]`.
      log_normalizer: log Ẑ, float64; the mean of Ẑ over seeds is exactly Z.
      standard_error: of log Ẑ, float64.
      trouble: 0, or the sum of the codes of what is wrong, int32.
    """

    states: tf.Tensor
    log_normalizer: tf.Tensor
    standard_error: tf.Tensor
    trouble: tf.Tensor


class Frozen(NamedTuple):
    """What a pass along a fixed plan needs.

    Attributes:
      base: the distribution from which particles start.
      settings: the settings; `max_temperatures` is the number of stages less one.
      plan: the plan, of as many stages.
      num_particles: number of particles of a pass.
    """

    base: tfp.distributions.Distribution
    settings: Settings
    plan: Plan
    num_particles: int

    def draw(self, target: TargetLogProbFn, num_samples: tf.Tensor, seed: tf.Tensor) -> FrozenDraws:
        """Draws flat states from log f; `num_samples` is an int32 scalar, at least 1, and `seed` is int32[2]."""
        shape = (self.num_particles, int(np.prod(self.base.event_shape)))
        groups = self.settings.num_groups
        return draws_of_passes(lambda seed: self._pass(target, seed), shape, groups, self.base.dtype, num_samples, seed)

    def _pass(self, target: TargetLogProbFn, seed: tf.Tensor) -> OnePass:
        start_seed, pass_seed = random.fold_in(seed, _START), random.fold_in(seed, _PASS)
        x, log_ratio, _ = draw_and_weigh(lambda: target, self.base, self.num_particles, start_seed)
        particles = initial_particles(x, log_ratio, self.settings.num_groups)
        args = (self.settings, particles, self.plan, tf.constant(True), tf.zeros([], tf.float64), pass_seed)
        passed = run_pass(lambda: target, self.base, *args)
        now = passed.particles
        return OnePass(now.x, now.groups, now.ancestors, now.log_normalizers, passed.relative_variance)


def draws_of_passes(
    run: Callable[[tf.Tensor], OnePass],
    shape: tuple[int, int],
    num_groups: int,
    dtype: tf.DType,
    num_samples: tf.Tensor,
    seed: tf.Tensor,
) -> FrozenDraws:
    """Draws flat states: particles of as many independent passes as are needed.

    Args:
      run: seed ↦ a pass.
      shape: the shape `[num, d]` of its particles.
      num_groups: the number of its groups.
      dtype: the dtype of the particles.
      num_samples: number of draws, int32 scalar, at least 1.
      seed: int32[2].
    """
    num, size = shape
    count = (num_samples + num - 1) // num

    def array(dtype: tf.DType, shape: list[int]) -> tf.TensorArray:
        return tf.TensorArray(dtype, count, element_shape=shape)

    parts = OnePass(
        array(dtype, [num, size]),
        array(tf.int32, [num]),
        array(tf.int32, []),  # the number of ancestors alone
        array(tf.float64, [num_groups]),
        array(tf.float64, []),
    )

    def one(i: tf.Tensor, parts: OnePass) -> tuple[tf.Tensor, OnePass]:
        found = run(random.fold_in(seed, i))
        found = found._replace(
            groups=found.groups + i * num_groups, ancestors=tf.size(tf.unique(found.ancestors).y, tf.int32)
        )
        return i + 1, OnePass(*(part.write(i, value) for part, value in zip(parts, found, strict=True)))

    _, parts = tf.while_loop(lambda i, _: i < count, one, (tf.constant(0), parts), parallel_iterations=1)
    total = count * num
    found = OnePass(*(part.stack() for part in parts))
    x, groups = tf.reshape(found.x, [total, size]), tf.reshape(found.groups, [total])
    log_normalizers = tf.reshape(found.log_normalizers, [count * num_groups])
    value, error = log_mean_and_error(log_normalizers)
    of_descent = tf.sqrt(tf.reduce_mean(found.relative_variance) / tf.cast(count, tf.float64))
    codes = {
        GROUPS_DIFFER: effective_size(log_normalizers) < MIN_GROUP_ESS * tf.cast(count * num_groups, tf.float64),
        FEW_ANCESTORS: tf.reduce_sum(found.ancestors) < tf.cast(MIN_ANCESTORS * tf.cast(total, tf.float64), tf.int32),
        HIGH_R_HAT: nested_r_hat_of(tf.cast(x, tf.float64), groups, count * num_groups) > MAX_NESTED_R_HAT,
    }
    trouble = tf.add_n([code * tf.cast(is_wrong, tf.int32) for code, is_wrong in codes.items()])
    u = random.uniform([1 + num_samples], random.fold_in(seed, _ORDER), tf.float64)
    share = (tf.cast(tf.range(num_samples), tf.float64) + u[0]) / tf.cast(num_samples, tf.float64)
    index = tf.cast(tf.floor(share * tf.cast(total, tf.float64)), tf.int32)
    index = tf.gather(tf.minimum(index, total - 1), tf.argsort(u[1:], stable=True))
    return FrozenDraws(tf.gather(x, index), value, tf.maximum(error, of_descent), trouble)


def log_mean_and_error(log_weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log w̄ and its jackknife standard error as `weights.jackknife_of_log_mean` does, in a graph.

    >>> value, error = log_mean_and_error(tf.math.log(tf.constant([1.0, 2.0, 3.0, 2.0] * 25, tf.float64)))
    >>> round(float(tf.exp(value)), 6), round(float(error), 3)
    (2.0, 0.036)
    """
    num = tf.cast(tf.size(log_weights), tf.float64)
    value = tf.reduce_logsumexp(log_weights) - tf.math.log(num)
    weights = tf.exp(log_weights - tf.reduce_max(log_weights))
    left_out = tf.math.log((tf.reduce_sum(weights) - weights) / (num - 1.0))
    error = tf.sqrt((num - 1.0) * tf.math.reduce_variance(left_out))
    return value, tf.where(tf.math.is_finite(error), error, tf.constant(np.inf, tf.float64))


def nested_r_hat_of(x: tf.Tensor, groups: tf.Tensor, num_groups: tf.Tensor) -> tf.Tensor:
    """Computes the largest nested R̂ of columns `[n, columns]` as `draws.nested_r_hat` does, in a graph.

    >>> x = tf.constant(np.random.default_rng(0).normal(size=(800, 1)))
    >>> groups = tf.range(800) % 8
    >>> round(float(nested_r_hat_of(x + tf.cast(groups, tf.float64)[:, None], groups, tf.constant(8))), 1)
    2.6
    """
    counts = tf.math.unsorted_segment_sum(tf.ones_like(x[:, :1]), groups, num_groups)
    means = tf.math.unsorted_segment_sum(x, groups, num_groups) / tf.maximum(counts, 1.0)
    parts, full = counts / tf.reduce_sum(counts), tf.math.count_nonzero(counts, dtype=tf.float64)
    within = tf.reduce_sum(tf.square(x - tf.gather(means, groups)), 0)
    within /= tf.maximum(tf.cast(tf.shape(x)[0], tf.float64) - full, 1.0)
    ratio = tf.cast(num_groups, tf.float64) / tf.cast(num_groups - 1, tf.float64)
    between = ratio * tf.reduce_sum(parts * tf.square(means - tf.reduce_sum(parts * means, 0)), 0)
    return tf.sqrt(1.0 + tf.reduce_max(tf.math.divide_no_nan(between, within)))
