"""What a pass of particles is built for, what it follows, and what it returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class Settings(NamedTuple):
    """What a compiled pass is built for.

    Attributes:
      num_groups: number of groups that are resampled separately.
      conditional_ess: the conditional effective sample size of each step in β, as a share.
      num_leapfrog_steps: smallest and largest number of leapfrog steps of a trajectory.
      max_moves: the largest number of moves at a temperature.
      num_last_moves: the largest number of moves at β = 1 after the last resampling.
      max_temperatures: the largest number of steps in β; the last goes to 1 in any case.
      has_covariance: whether L is a matrix; False: it is diagonal, from the diagonals of all matrices.
      jit_moves: whether XLA compiles the moves, inside a pass in graph mode.
      min_last_moves: the smallest one; the moves end when the particles have moved.
      kernel: moves the particles; None: Hamiltonian Monte Carlo.
    """

    num_groups: int
    conditional_ess: float
    num_leapfrog_steps: tuple[int, int]
    max_moves: int
    num_last_moves: int
    max_temperatures: int
    has_covariance: bool
    jit_moves: bool = False
    min_last_moves: int = 4
    kernel: Any = None


class Effort(NamedTuple):
    """How fine a pass without a plan is; tensors, so that passes of several efforts share a compiled function.

    Attributes:
      conditional_ess, max_moves, num_last_moves: as in `Settings`, scalars.
    """

    conditional_ess: tf.Tensor
    max_moves: tf.Tensor
    num_last_moves: tf.Tensor


class Plan(NamedTuple):
    """What a pass chose for each of its stages, or is to follow; one axis `[max_temperatures + 1]` in front.

    Attributes:
      betas: β after each stage, float64.
      num_moves: number of moves, int32.
      log_step_sizes: log ε, float64.
      scales: L, `[..., d, d]`, or `[..., d]` if it is diagonal; in the dtype of the particles.
      proposes: whether draws from the base are proposed, bool.
    """

    betas: tf.Tensor
    num_moves: tf.Tensor
    log_step_sizes: tf.Tensor
    scales: tf.Tensor
    proposes: tf.Tensor


def full_effort(settings: Settings) -> Effort:
    """Returns the effort of the settings."""
    ess, moves, last = settings.conditional_ess, settings.max_moves, settings.num_last_moves
    return Effort(tf.constant(ess, tf.float64), tf.constant(moves), tf.constant(last))


def empty_plan(settings: Settings, size: int, dtype: tf.DType) -> Plan:
    """Returns a plan of zeros for particles of `size` coordinates."""
    count = settings.max_temperatures + 1
    shape = [count, size, size] if settings.has_covariance else [count, size]
    numbers = tf.zeros([count], tf.float64)
    return Plan(numbers, tf.zeros([count], tf.int32), numbers, tf.zeros(shape, dtype), tf.zeros([count], tf.bool))


class Particles(NamedTuple):
    """Weighted particles.

    Attributes:
      x: `[n, d]`.
      log_ratio: h, float64 `[n]`; −∞ where it is not a number or the target's density is zero.
      log_weights: log weights since the last resampling, float64 `[n]`.
      log_normalizers: log of the factors of Ẑ of each group up to the last resampling, float64 `[num_groups]`.
      groups: the group to which a particle belongs, int32 `[n]`.
      ancestors: number of the draw from the base from which a particle descends, int32 `[n]`.
      beta: β, float64 scalar.
      eves: number of the first particle from which a particle descends by resampling, int32 `[n]`.
    """

    x: tf.Tensor
    log_ratio: tf.Tensor
    log_weights: tf.Tensor
    log_normalizers: tf.Tensor
    groups: tf.Tensor
    ancestors: tf.Tensor
    beta: tf.Tensor
    eves: tf.Tensor


class Passed(NamedTuple):
    """The result of a pass.

    Attributes:
      particles: of equal weights, at β = 1.
      ess: effective sample size of the weights before the last resampling, float64.
      relative_variance: estimate of Var Ẑ / Z² from the descent of the particles, float64.
      num_stages: number of stages, the last included.
      plan: what the pass chose or followed.
      accept: mean acceptance of the trajectories in each stage, float64 `[max_temperatures + 1]`.
      accept_base: mean acceptance of the proposals from the base, likewise.
      num_faults: number of values of h that were NaN or +∞ at particles.
      log_step_size: log ε of the next stage, float64.
      proposes: whether draws from the base are proposed in the next stage, bool.
      is_done: whether the pass is complete; else the particles are those after `num_stages` stages.
    """

    particles: Particles
    ess: tf.Tensor
    relative_variance: tf.Tensor
    num_stages: tf.Tensor
    plan: Plan
    accept: tf.Tensor
    accept_base: tf.Tensor
    num_faults: tf.Tensor
    log_step_size: tf.Tensor
    proposes: tf.Tensor
    is_done: tf.Tensor


def begun_pass(settings: Settings, particles: Particles, plan: Plan, log_step_size: tf.Tensor) -> Passed:
    """Returns a pass of no stages, for `continue_pass`; of the plan only the shapes matter."""
    zero, zeros = tf.zeros([], tf.float64), tf.zeros([settings.max_temperatures + 1], tf.float64)
    nothing = tf.constant(0)
    plan, ending = Plan(*map(tf.zeros_like, plan)), (nothing, log_step_size, tf.constant(True), tf.constant(False))
    return Passed(particles, zero, zero, nothing, plan, zeros, zeros, *ending)


def initial_particles(x: tf.Tensor, log_ratio: tf.Tensor, num_groups: int, beta: float = 0.0) -> Particles:
    """Returns particles of equal weights in groups of equal size, each its own ancestor."""
    num = x.shape[0]
    own = tf.range(num)
    zeros = tf.zeros([num], tf.float64)
    log_normalizers = tf.zeros([num_groups], tf.float64)
    groups = own // (num // num_groups)
    return Particles(x, log_ratio, zeros, log_normalizers, groups, own, tf.constant(beta, tf.float64), own)
