"""Passes of particles along a fixed plan, inside a graph that depends on TensorFlow alone, such as an export."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running.particles import Passed, Plan, Settings, draw_and_weigh, initial_particles, run_pass

# Purposes of random numbers, folded into the seed: of a pass, and of the order of the draws.
_START, _PASS = range(2)
_ORDER = 2**31 - 1


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

    def draw(self, target: TargetLogProbFn, num_samples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws flat states `[num_samples, d]`: particles of as many independent passes as are needed.

        Args:
          target: log f.
          num_samples: number of draws, int32 scalar, at least 1.
          seed: int32[2].
        """
        shape = (self.num_particles, int(np.prod(self.base.event_shape)))
        return draws_of_passes(
            lambda seed: self._pass(target, seed).particles.x, shape, self.base.dtype, num_samples, seed
        )

    def log_normalizer(self, target: TargetLogProbFn, seed: tf.Tensor) -> tf.Tensor:
        """Estimates log Z by one pass; the mean of the estimates of Z over seeds is exactly Z. Float64 scalar."""
        log_normalizers = self._pass(target, seed).particles.log_normalizers
        return tf.reduce_logsumexp(log_normalizers) - np.log(self.settings.num_groups)

    def _pass(self, target: TargetLogProbFn, seed: tf.Tensor) -> Passed:
        start_seed, pass_seed = random.fold_in(seed, _START), random.fold_in(seed, _PASS)
        x, log_ratio, _ = draw_and_weigh(lambda: target, self.base, self.num_particles, start_seed)
        particles = initial_particles(x, log_ratio, self.settings.num_groups)
        args = (self.settings, particles, self.plan, tf.constant(True), tf.zeros([], tf.float64), pass_seed)
        return run_pass(lambda: target, self.base, *args)


def draws_of_passes(
    run: Callable[[tf.Tensor], tf.Tensor],
    shape: tuple[int, int],
    dtype: tf.DType,
    num_samples: tf.Tensor,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Draws flat states `[num_samples, d]`: particles of as many independent passes as are needed.

    Args:
      run: seed ↦ particles of equal weights of one pass.
      shape: the shape `[num, d]` of these.
      dtype: their dtype.
      num_samples: number of draws, int32 scalar, at least 1.
      seed: int32[2].
    """
    num, size = shape
    count = (num_samples + num - 1) // num
    parts = tf.TensorArray(dtype, count, element_shape=[num, size])

    def one(i: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return i + 1, parts.write(i, run(random.fold_in(seed, i)))

    _, parts = tf.while_loop(lambda i, _: i < count, one, (tf.constant(0), parts), parallel_iterations=1)
    u = random.uniform([1 + num_samples], random.fold_in(seed, _ORDER), tf.float64)
    share = (tf.cast(tf.range(num_samples), tf.float64) + u[0]) / tf.cast(num_samples, tf.float64)
    index = tf.cast(tf.floor(share * tf.cast(count * num, tf.float64)), tf.int32)
    index = tf.gather(tf.minimum(index, count * num - 1), tf.argsort(u[1:], stable=True))
    return tf.gather(tf.reshape(parts.stack(), [count * num, size]), index)
