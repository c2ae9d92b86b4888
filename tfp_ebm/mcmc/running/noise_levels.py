"""The compiled pass of weighted particles down the noise levels, from the largest to the smallest.

A particle y at level t moves to level s < t by a Gaussian step towards the data,

    y' = y + (t − s) ∇ log f(y, t) + √v z,      v = (t − s) √(s/t),

and its weight is multiplied by f(y', s) N(y; y', (t − s)I) / (f(y, t) N(y'; mean, vI)). Since p_t is p_s plus noise of
variance t − s, the mean of the products of weights is exactly Z of f(·, s), whatever the variances are; the step is the
conditional distribution of y' given y where the densities are locally Gaussian and wide, and the levels are close. Then
groups of particles whose weights are too unequal are resampled, and Hamiltonian Monte Carlo moves all particles at
level s. An adaptive pass chooses the step sizes of these moves; a pass that follows them has other random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.energy.base import draw
from tfp_ebm.mcmc.kernels.hamiltonian import HamiltonianMonteCarlo
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.weights import effective_size, resample

# Purposes of random numbers within a level, folded into its seed.
_STEP, _RESAMPLING, _MOVES = range(3)
_TARGET_ACCEPT, _GAIN = 0.8, 0.4
_MIN_ESS_SHARE = 0.5


class LevelSettings(NamedTuple):
    """What a compiled pass is built for.

    Attributes:
      num: number of particles.
      num_groups: number of groups that never interact before the last level; it divides `num`.
      num_leapfrog_steps: smallest and largest number of leapfrog steps of a move.
    """

    num: int
    num_groups: int
    num_leapfrog_steps: tuple[int, int]


class Descended(NamedTuple):
    """The result of a pass: particles of equal weights at the last level.

    Attributes:
      x: `[num, d]`.
      log_normalizers: log Ẑ of each group, float64 `[num_groups]`.
      groups: the group from which a particle comes, int32 `[num]`.
      ancestors: number of the particle from which it descends, int32 `[num]`.
      ess: effective number of particles before the last resampling, float64.
      log_step_sizes: log ε at each level, float64 `[levels]`.
      accept: mean acceptance at each level, float64 `[levels]`.
      num_faults: number of log densities that were NaN or +∞.
    """

    x: tf.Tensor
    log_normalizers: tf.Tensor
    groups: tf.Tensor
    ancestors: tf.Tensor
    ess: tf.Tensor
    log_step_sizes: tf.Tensor
    accept: tf.Tensor
    num_faults: tf.Tensor


class _State(NamedTuple):
    """Weighted particles at one level; `log_weights` since the last resampling of their group."""

    x: tf.Tensor
    log_weights: tf.Tensor
    log_normalizers: tf.Tensor
    ancestors: tf.Tensor
    log_step_size: tf.Tensor
    num_faults: tf.Tensor


def density_at(
    target: TargetLogProbFn, event_shape: tuple[int, ...], sigma: tf.Tensor
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns log f(·, σ) of flat states `[n, d]`."""

    def log_density(x: tf.Tensor) -> tf.Tensor:
        value = tf.convert_to_tensor(target(tf.reshape(x, [x.shape[0], *event_shape]), tf.fill(x.shape[:1], sigma)))
        if value.dtype != x.dtype or (value.shape.rank is not None and tuple(value.shape) != (x.shape[0],)):
            raise ValueError(
                f"`target_log_prob_fn` must return one number per state, {x.dtype.name} of shape {(x.shape[0],)}, got "
                f"{value.dtype.name} of shape {tuple(value.shape)}."
            )
        return tf.ensure_shape(value, x.shape[:1])

    return log_density


def value_and_gradient(
    resolve: Callable[[], TargetLogProbFn], event_shape: tuple[int, ...], x: tf.Tensor, sigma: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log f(·, σ) and its gradient at flat states, float64 `[n]` and `[n, d]`."""
    value, gradient = tfp.math.value_and_gradient(density_at(resolve(), event_shape, sigma), x)
    return tf.cast(value, tf.float64), tf.cast(gradient, tf.float64)


def descend(
    resolve: Callable[[], TargetLogProbFn],
    base: tfp.distributions.Distribution,
    settings: LevelSettings,
    sigmas: tf.Tensor,
    log_step_sizes: tf.Tensor,
    num_moves: tuple[tf.Tensor, tf.Tensor],
    is_planned: tf.Tensor,
    refreshed: tf.Tensor,
    seed: tf.Tensor,
) -> Descended:
    """Runs a pass, inside a function being compiled.

    Args:
      resolve, base: log f, and the distribution from which particles start at the largest level.
      settings: the settings.
      sigmas: the noise scales, in decreasing order, `[levels]`.
      log_step_sizes: log ε at each level if it is planned, else of the first level, float64 `[levels]`.
      num_moves: number of moves at each level, and after the last resampling.
      is_planned: whether step sizes stay as they are given, bool scalar.
      refreshed: the number of levels after which particles count as ancestors, int32 scalar.
      seed: int32[2].
    """
    target, event_shape, num = resolve(), tuple(base.event_shape), settings.num
    x = tf.reshape(draw(base, [num], seed), [num, -1])
    log_density, bad = _checked(density_at(target, event_shape, sigmas[0])(x))
    log_base = tf.cast(base.log_prob(tf.reshape(x, [num, *event_shape])), tf.float64)
    groups = tf.range(num) // (num // settings.num_groups)
    start = _State(
        x,
        log_density - log_base,
        tf.zeros([settings.num_groups], tf.float64),
        tf.range(num),
        log_step_sizes[0],
        bad,
    )
    count = sigmas.shape[0]
    notes = tuple(tf.TensorArray(tf.float64, count, element_shape=[]) for _ in range(2))

    def moved(now: _State, k: tf.Tensor, moves: tf.Tensor) -> tuple[_State, tf.Tensor]:
        log_step_size = tf.where(is_planned, log_step_sizes[k], now.log_step_size)
        density = density_at(target, event_shape, sigmas[k])
        level_seed = random.fold_in(random.fold_in(seed, k), _MOVES)
        x, log_step_size, accept = _moves(
            density, settings, now.x, log_step_size, moves, is_planned, random.fold_in(level_seed, moves)
        )
        return now._replace(x=x, log_step_size=log_step_size), accept

    def level(k: tf.Tensor, now: _State, notes: tuple[Any, ...]) -> tuple[Any, ...]:
        level_seed = random.fold_in(seed, k)
        now = _stepped(target, event_shape, now, sigmas[k - 1], sigmas[k], random.fold_in(level_seed, _STEP))
        now = now._replace(ancestors=tf.where(k <= refreshed, tf.range(num), now.ancestors))
        now = _resampled(settings, now, random.fold_in(level_seed, _RESAMPLING))
        now, accept = moved(now, k, num_moves[0])
        notes = tuple(note.write(k, value) for note, value in zip(notes, (now.log_step_size, accept), strict=True))
        return k + 1, now, notes

    notes = (notes[0].write(0, start.log_step_size), notes[1].write(0, tf.ones([], tf.float64)))
    _, now, notes = tf.while_loop(lambda k, *_: k < count, level, (tf.constant(1), start, notes), parallel_iterations=1)
    size = num // settings.num_groups
    log_normalizers = now.log_normalizers + tf.reduce_logsumexp(tf.reshape(now.log_weights, [-1, size]), 1)
    log_normalizers -= math.log(size)
    total = now.log_weights + tf.gather(now.log_normalizers, groups)
    u = random.uniform([1], random.fold_in(random.fold_in(seed, count), _RESAMPLING), tf.float64)
    index = resample(total[None], u, num)[0]
    now, accept = moved(now._replace(x=tf.gather(now.x, index)), tf.constant(count - 1), num_moves[1])
    accepts = tf.concat([notes[1].stack()[:-1], [accept]], 0)
    return Descended(
        now.x,
        log_normalizers,
        tf.gather(groups, index),
        tf.gather(now.ancestors, index),
        effective_size(total),
        notes[0].stack(),
        accepts,
        now.num_faults,
    )


def _checked(log_density: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log densities in float64, with −∞ in place of NaN and +∞, and how many of these there were."""
    log_density = tf.cast(log_density, tf.float64)
    is_bad = tf.math.is_nan(log_density) | (log_density == np.inf)
    log_density = tf.where(is_bad, tf.constant(-np.inf, tf.float64), log_density)
    return log_density, tf.reduce_sum(tf.cast(is_bad, tf.int32))


def _stepped(
    target: TargetLogProbFn, event_shape: tuple[int, ...], now: _State, above: tf.Tensor, below: tf.Tensor, seed: Any
) -> _State:
    """Moves the particles from the level of one noise scale to the next, and multiplies their weights."""
    t, s = tf.square(above), tf.square(below)
    gap = t - s
    variance = gap * tf.sqrt(s / t)
    value, gradient = tfp.math.value_and_gradient(density_at(target, event_shape, above), now.x)
    gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
    z = random.normal(tf.shape(now.x), seed, now.x.dtype)
    step = gap * gradient + tf.sqrt(variance) * z
    x = tf.ensure_shape(now.x + step, now.x.shape)
    before, bad_before = _checked(value)
    after, bad = _checked(density_at(target, event_shape, below)(x))
    exact = [tf.cast(part, tf.float64) for part in (tf.square(step), tf.square(z), gap, variance)]
    squares, noise, gap, variance = exact
    backward = -0.5 * tf.reduce_sum(squares / gap + tf.math.log(gap), 1)
    forward = -0.5 * tf.reduce_sum(noise + tf.math.log(variance), 1)
    gain = tf.where(after == -np.inf, after, after - before + backward - forward)
    return now._replace(x=x, log_weights=now.log_weights + gain, num_faults=now.num_faults + bad_before + bad)


def _resampled(settings: LevelSettings, now: _State, seed: tf.Tensor) -> _State:
    """Resamples the groups of unequal weights, each alone."""
    groups, size = settings.num_groups, settings.num // settings.num_groups
    grouped = tf.reshape(now.log_weights, [groups, size])
    is_needed = effective_size(grouped) < _MIN_ESS_SHARE * size
    index = resample(grouped, random.uniform([groups], seed, tf.float64), size) + size * tf.range(groups)[:, None]
    index = tf.where(is_needed[:, None], index, tf.reshape(tf.range(settings.num), [groups, size]))
    log_means = tf.reduce_logsumexp(grouped, 1) - math.log(size)
    index = tf.reshape(index, [-1])
    return now._replace(
        x=tf.gather(now.x, index),
        log_weights=tf.reshape(tf.where(is_needed[:, None], tf.zeros_like(grouped), grouped), [-1]),
        log_normalizers=now.log_normalizers + tf.where(is_needed, log_means, tf.zeros_like(log_means)),
        ancestors=tf.gather(now.ancestors, index),
    )


def _moves(
    log_density: Callable[[tf.Tensor], tf.Tensor],
    settings: LevelSettings,
    x: tf.Tensor,
    log_step_size: tf.Tensor,
    num_moves: tf.Tensor,
    is_planned: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Makes moves by Hamiltonian Monte Carlo; returns the states, log ε and the mean acceptance."""

    def move(m: tf.Tensor, x: tf.Tensor, log_step_size: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step_size = tf.cast(tf.exp(log_step_size), x.dtype)
        kernel = HamiltonianMonteCarlo(log_density, step_size, settings.num_leapfrog_steps)
        state, results = kernel.one_step(x, kernel.bootstrap_results(x), seed=random.fold_in(seed, m))
        accept = tf.exp(tf.minimum(tf.cast(results.log_accept_ratio, tf.float64), 0.0))
        accept = tf.reduce_mean(tf.where(tf.math.is_nan(accept), tf.zeros_like(accept), accept))
        change = tf.where(is_planned, tf.zeros_like(accept), _GAIN * (accept - _TARGET_ACCEPT))
        return m + 1, tf.ensure_shape(state, x.shape), log_step_size + change, total + accept

    start = (tf.constant(0), x, log_step_size, tf.zeros([], tf.float64))
    m, x, log_step_size, total = tf.while_loop(lambda m, *_: m < num_moves, move, start, parallel_iterations=1)
    return x, log_step_size, total / tf.cast(tf.maximum(m, 1), tf.float64)
