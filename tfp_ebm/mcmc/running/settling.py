"""Moves of draws at the target itself, with step sizes that follow the scale of the density from place to place."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.mcmc.kernels.hamiltonian import LocalHamiltonianMonteCarlo
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running.particle_moves import Bridge, displaced

# Smallest and largest number of leapfrog steps.
_LEAPFROG_STEPS = (8, 24)
# The target acceptance, and the gain of log ε ← log ε + gain·(acceptance − target)/√move.
_TARGET_ACCEPT, _GAIN = 0.65, 0.5


def settle(
    resolve: Callable[[], TargetLogProbFn],
    base: tfp.distributions.Distribution,
    num_moves: int,
    x: tf.Tensor,
    scale: tf.Tensor,
    log_step_size: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Moves flat states by Hamiltonian Monte Carlo in y, x + L y, that leaves the target invariant.

    Args:
      resolve, base: log f, and a distribution that has its event shape.
      num_moves: number of moves.
      x: states `[n, d]`.
      scale: L, `[d, d]`, or `[d]` if it is diagonal.
      log_step_size: log ε before the first move, float64 scalar.
      seed: int32[2].

    Returns:
      The states and log ε after the last move.
    """
    bridge = Bridge(resolve(), base)

    def move(m: tf.Tensor, x: tf.Tensor, log_step_size: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step_size = tf.cast(tf.exp(log_step_size), x.dtype)
        kernel = LocalHamiltonianMonteCarlo(
            lambda y: bridge.both(displaced(x, scale, y))[0], step_size, _LEAPFROG_STEPS
        )
        y = tf.zeros_like(x)
        y, results = kernel.one_step(y, kernel.bootstrap_results(y), seed=random.fold_in(seed, m))
        accept = tf.exp(tf.minimum(tf.cast(results.log_accept_ratio, tf.float64), 0.0))
        accept = tf.reduce_mean(tf.where(tf.math.is_nan(accept), tf.zeros_like(accept), accept))
        change = _GAIN * (accept - _TARGET_ACCEPT) / tf.sqrt(tf.cast(m + 1, tf.float64))
        return m + 1, tf.ensure_shape(displaced(x, scale, y), x.shape), log_step_size + change

    _, x, log_step_size = tf.while_loop(
        lambda m, *_: m < num_moves, move, (tf.constant(0), x, log_step_size), parallel_iterations=1
    )
    return x, log_step_size
