"""The compiled pass of a sequential Monte Carlo sampler through the densities p_β ∝ b^(1−β) f^β, from base b to f.

Each stage raises β, multiplies the weights by exp((β' − β) h), h = log f − log b, resamples the groups whose weights
have become too unequal, and moves all particles by kernels that leave p_β' invariant. The last stage has β' = β = 1: it
resamples all particles together and moves them more often, so that copies separate.

A first pass chooses each β, the scales and step sizes of the moves and their number, and returns them as a `Plan`. A
pass that follows a plan depends on its own particles only through the weights and the rule of resampling, so that the
mean of its Ẑ is exactly Z (Del Moral 2004).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running import particle_moves
from tfp_ebm.mcmc.running.particle_moves import (
    At,
    Bridge,
    pulled_back,
    ratio_and_faults,
    scale_of,
    value_and_gradient,
)
from tfp_ebm.mcmc.running.particle_state import (
    Effort,
    Particles,
    Passed,
    Plan,
    Settings,
    begun_pass,
    full_effort,
)
from tfp_ebm.mcmc.weights import effective_size, next_step, resample
from tfp_ebm.tracing import graph_function

# Purposes of random numbers within a stage, folded into its seed.
_RESAMPLING, _RESAMPLING_ALL, _MOVES = range(3)

# The gain of log ε ← log ε + gain·(acceptance − target)/√move, and how far from the target the acceptance of a stage's
# last move may be.
_GAIN, _ACCEPT_TOLERANCE = 0.5, 0.2
# Particles have moved if in each coordinate the correlation of x with x₀ is at most the first number, or the mean
# square of x − x₀ has stopped to grow: by less than the second, as a share per move.
_MAX_CORRELATION, _MAX_GROWTH = 0.1, 0.1
# Draws from the base are proposed as long as this share of them was accepted at the temperature before.
_MIN_BASE_ACCEPT = 0.001
# Resampling if the effective sample size of a group is below this share.
_MIN_ESS_SHARE = 0.5


def log_density_and_gradient(
    resolve: Callable[[], TargetLogProbFn], base: tfp.distributions.Distribution, x: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log f and its gradient at flat states, float64 `[n]` and `[n, d]`."""
    bridge = Bridge(resolve(), base)
    value, gradient = value_and_gradient(bridge.log_density, x)
    return tf.cast(value, tf.float64), tf.cast(gradient, tf.float64)


def log_densities(
    resolve: Callable[[], TargetLogProbFn], base: tfp.distributions.Distribution, x: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns log f and log b at flat states, float64 `[n]`."""
    log_target, log_base = Bridge(resolve(), base).both(x)
    return tf.cast(log_target, tf.float64), tf.cast(log_base, tf.float64)


def draw_flat(
    resolve: Callable[[], TargetLogProbFn], base: tfp.distributions.Distribution, num: int, seed: tf.Tensor
) -> tf.Tensor:
    """Returns flat draws from the base."""
    return Bridge(resolve(), base).draw(num, seed)


def draw_and_weigh(
    resolve: Callable[[], TargetLogProbFn], base: tfp.distributions.Distribution, num: int, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns flat draws from the base, their h, and the number of NaN and +∞ among its values."""
    bridge = Bridge(resolve(), base)
    x = bridge.draw(num, seed)
    log_ratio, is_bad = bridge.log_ratio(x)
    return x, log_ratio, tf.reduce_sum(tf.cast(is_bad, tf.int32))


def run_pass(
    resolve: Callable[[], TargetLogProbFn],
    base: tfp.distributions.Distribution,
    settings: Settings,
    particles: Particles,
    plan: Plan,
    is_planned: tf.Tensor,
    log_step_size: tf.Tensor,
    seed: tf.Tensor,
) -> Passed:
    """Moves weighted particles from their β to 1, inside a function being compiled.

    Args:
      resolve, base: log f and b.
      settings: the settings.
      particles: for example draws from the base, with β = 0 and log weights 0.
      plan: the plan to follow; not read if there is none, but of the right shapes.
      is_planned: whether to follow the plan, bool scalar.
      log_step_size: log ε at the start if there is no plan, float64 scalar.
      seed: int32[2].
    """
    begun = begun_pass(settings, particles, plan, log_step_size)
    stop = tf.constant(settings.max_temperatures + 1)
    return continue_pass(resolve, base, settings, begun, plan, is_planned, seed, full_effort(settings), stop)


def continue_pass(
    resolve: Callable[[], TargetLogProbFn],
    base: tfp.distributions.Distribution,
    settings: Settings,
    begun: Passed,
    plan: Plan,
    is_planned: tf.Tensor,
    seed: tf.Tensor,
    effort: Effort,
    stop: tf.Tensor,
) -> Passed:
    """Continues a pass until it is done or has `stop` stages; the division into calls changes no number.

    Args:
      resolve, base, settings, plan, is_planned, seed: as for `run_pass`.
      begun: the pass so far.
      effort: that of a pass without a plan.
      stop: int32 scalar.
    """
    bridge = Bridge(resolve(), base)
    last = settings.max_temperatures - 1

    def stage(k: tf.Tensor, now: Particles, log_step_size: tf.Tensor, *state: Any) -> tuple[Any, ...]:
        _, proposes, ess, variance, notes, num_faults = state
        stage_seed = random.fold_in(seed, k)
        is_last = now.beta >= 1.0
        beta = tf.where(is_planned, plan.betas[k], _next_beta(settings, now, effort.conditional_ess))
        beta = tf.where(is_last | (k >= last), tf.ones_like(beta), beta)
        now = _weighted(settings, now, beta)
        ess = tf.where(is_last, effective_size(_total_log_weights(now)), ess)
        variance = tf.where(is_last, _relative_variance(now), variance)
        now = _resampled(settings, now, is_last, stage_seed)
        log_prob, gradient = bridge.tempered_and_gradient(now.beta, now.x)
        scale = tf.cond(
            is_planned,
            lambda: plan.scales[k],
            lambda: scale_of(now.x, gradient, now.log_weights, settings.has_covariance),
        )
        at = At(log_prob, pulled_back(gradient, scale))
        log_step_size = tf.where(is_planned, plan.log_step_sizes[k], log_step_size)
        proposes = tf.where(is_planned, plan.proposes[k], proposes)
        most = tf.where(is_last, effort.num_last_moves, effort.max_moves)
        fewest = tf.where(is_last, tf.minimum(settings.min_last_moves, effort.num_last_moves), 1)
        fewest = tf.where(is_planned, plan.num_moves[k], fewest)
        most = tf.where(is_planned, plan.num_moves[k], most)
        how = _How(fewest, most, scale, proposes, ~is_planned)
        now, log_step_size, num_moves, accept, accept_base, faults = _moves(
            bridge, settings, now, at, how, log_step_size, stage_seed
        )
        values = (beta, num_moves, log_step_size, scale, proposes, accept, accept_base)
        notes = tuple(note.write(k, value) for note, value in zip(notes, values, strict=True))
        proposes &= accept_base >= _MIN_BASE_ACCEPT
        return k + 1, now, log_step_size, is_last, proposes, ess, variance, notes, num_faults + faults

    noted = (*begun.plan, begun.accept, begun.accept_base)
    notes = tuple(
        tf.TensorArray(part.dtype, part.shape[0], element_shape=part.shape[1:]).unstack(part) for part in noted
    )
    start = (
        begun.num_stages,
        begun.particles,
        begun.log_step_size,
        begun.is_done,
        begun.proposes,
        begun.ess,
        begun.relative_variance,
        notes,
        begun.num_faults,
    )
    num_stages, particles, log_step_size, is_done, proposes, ess, variance, notes, num_faults = tf.while_loop(
        lambda k, now, log_step_size, is_done, *_: ~is_done & (k < stop), stage, start, parallel_iterations=1
    )
    *followed, accept, accept_base = (note.stack() for note in notes)
    plan, ending = Plan(*followed), (num_faults, log_step_size, proposes, is_done)
    return Passed(particles, ess, variance, num_stages, plan, accept, accept_base, *ending)


def move_at_target(
    resolve: Callable[[], TargetLogProbFn],
    base: tfp.distributions.Distribution,
    settings: Settings,
    particles: Particles,
    log_step_size: tf.Tensor,
    most: tf.Tensor,
    seed: tf.Tensor,
) -> Passed:
    """Moves particles of equal weights at β = 1, as the last stage of a pass, inside a function being compiled.

    Args:
      resolve, base, settings: as for `run_pass`.
      particles: for example draws from the base, resampled.
      log_step_size: log ε at the start, float64 scalar.
      most: the largest number of moves, int32 scalar.
      seed: int32[2].
    """
    bridge, yes = Bridge(resolve(), base, is_at_target=True), tf.constant(True)
    log_prob, gradient = bridge.tempered_and_gradient(particles.beta, particles.x)
    scale = scale_of(particles.x, gradient, particles.log_weights, settings.has_covariance)
    how = _How(tf.minimum(settings.min_last_moves, most), most, scale, proposes=yes, adapts=yes)
    at = At(log_prob, pulled_back(gradient, scale))
    particles, after, *numbers, num_faults = _moves(bridge, settings, particles, at, how, log_step_size, seed)
    num_moves, accept, accept_base = (tf.expand_dims(number, 0) for number in numbers)
    plan = Plan(particles.beta[None], num_moves, log_step_size[None], scale[None], yes[None])
    ess = effective_size(particles.log_weights)
    ending = (num_faults, after, yes, yes)
    return Passed(particles, ess, tf.zeros_like(ess), tf.constant(1), plan, accept, accept_base, *ending)


def _next_beta(settings: Settings, now: Particles, conditional_ess: tf.Tensor) -> tf.Tensor:
    """Returns the next β, by the conditional effective sample size with the current weights."""
    weights = tf.exp(now.log_weights - tf.reduce_max(now.log_weights))
    grouped = tf.reshape(weights, [settings.num_groups, -1])
    totals = tf.reduce_sum(grouped, 1, keepdims=True)
    grouped = tf.math.divide_no_nan(grouped, totals)  # each group counts as much
    largest = 1.0 - now.beta
    delta = next_step(tf.reshape(grouped, [-1]), now.log_ratio, largest, conditional_ess)
    return tf.where(delta >= largest, tf.ones_like(delta), now.beta + delta)


def _weighted(settings: Settings, now: Particles, beta: tf.Tensor) -> Particles:
    """Multiplies the weights by exp((β' − β) h)."""
    gain = tf.math.multiply_no_nan(now.log_ratio, beta - now.beta)
    return now._replace(log_weights=now.log_weights + gain, beta=beta)


def _total_log_weights(now: Particles) -> tf.Tensor:
    """Returns the logs of the weights, those of a group times the factors of its Ẑ so far."""
    return now.log_weights + tf.gather(now.log_normalizers, now.groups)


def _relative_variance(now: Particles) -> tf.Tensor:
    """Estimates Var Ẑ / Z² by Σ mᵢ² − 1/n, with mᵢ the share of the weight that descends from the first particle i.

    This is the estimator of Lee & Whiteley (2018, arXiv:1509.00394) but for terms that resampling as rare and as even
    as here does not need.
    """
    num = now.x.shape[0]
    shares = tf.math.unsorted_segment_sum(tf.nn.softmax(_total_log_weights(now)), now.eves, num)
    return tf.maximum(tf.reduce_sum(tf.square(shares)) - 1.0 / num, 0.0)


def _resampled(settings: Settings, now: Particles, is_last: tf.Tensor, seed: tf.Tensor) -> Particles:
    """Resamples the groups of unequal weights, each alone, or in the last stage all particles together."""
    groups, num = settings.num_groups, now.x.shape[0]
    size = num // groups
    grouped = tf.reshape(now.log_weights, [groups, size])
    is_needed = (effective_size(grouped) < _MIN_ESS_SHARE * size) & ~is_last
    u = random.uniform([groups], random.fold_in(seed, _RESAMPLING), tf.float64)
    own = tf.range(num)
    within = tf.reshape(resample(grouped, u, size) + size * tf.range(groups)[:, None], [num])
    u = random.uniform([1], random.fold_in(seed, _RESAMPLING_ALL), tf.float64)
    among = resample(_total_log_weights(now)[None], u, num)[0]
    needed = tf.reshape(tf.repeat(is_needed, size), [num])
    index = tf.where(is_last, among, tf.where(needed, within, own))
    log_means = tf.reduce_logsumexp(grouped, 1) - np.log(size)
    ends = is_needed | is_last
    log_normalizers = now.log_normalizers + tf.where(ends, log_means, tf.zeros_like(log_means))
    log_weights = tf.where(needed | is_last, tf.zeros_like(now.log_weights), now.log_weights)
    x, log_ratio, labels, ancestors, eves = (
        tf.gather(part, index) for part in (now.x, now.log_ratio, now.groups, now.ancestors, now.eves)
    )
    return Particles(x, log_ratio, log_weights, log_normalizers, labels, ancestors, now.beta, eves)


class _How(NamedTuple):
    """How particles are moved at a temperature.

    Attributes:
      fewest, most: the smallest and largest number of moves, int32 scalars.
      scale: L.
      proposes: whether draws from the base are proposed, bool scalar.
      adapts: whether the step size changes, bool scalar.
    """

    fewest: tf.Tensor
    most: tf.Tensor
    scale: tf.Tensor
    proposes: tf.Tensor
    adapts: tf.Tensor


def _moves(
    bridge: Bridge,
    settings: Settings,
    now: Particles,
    at: At,
    how: _How,
    log_step_size: tf.Tensor,
    stage_seed: tf.Tensor,
) -> tuple[Any, ...]:
    """Moves the particles at one β.

    Returns:
      The particles, log ε, the number of moves, the mean acceptance of trajectories and of proposals from the base, and
      the number of faults.
    """
    moves_seed = random.fold_in(stage_seed, _MOVES)
    weights = tf.nn.softmax(now.log_weights)[:, None]
    start = tf.cast(now.x, tf.float64)
    mean = tf.reduce_sum(weights * start, 0)
    variance = tf.reduce_sum(weights * tf.square(start - mean), 0)
    num = now.x.shape[0]
    move_particles = functools.partial(particle_moves.move_all, bridge, settings.num_leapfrog_steps, settings.kernel)
    target_accept = particle_moves.target_accept(settings.kernel)
    if settings.jit_moves:
        move_particles = graph_function(move_particles, jit_compile=True)

    def move(
        m: tf.Tensor,
        x: tf.Tensor,
        log_ratio: tf.Tensor,
        at: At,
        ancestors: tf.Tensor,
        log_step_size: tf.Tensor,
        jumps: tf.Tensor,
        totals: tf.Tensor,
        faults: tf.Tensor,
        is_done: tf.Tensor,
    ) -> tuple[Any, ...]:
        seed = random.fold_in(moves_seed, m)
        x, log_ratio, at, is_new, accept, accept_base, bad = move_particles(
            now.beta, how.proposes, x, log_ratio, at, how.scale, tf.exp(log_step_size), seed
        )
        # numbers of draws that no other draw has, as long as there are fewer than 2³¹
        fresh = tf.range(num) + num * (1 + tf.reduce_max(ancestors) // num)
        ancestors = tf.where(is_new, fresh, ancestors)
        faults += bad
        gain = _GAIN / tf.sqrt(tf.cast(m + 1, tf.float64))
        change = tf.where(how.adapts, gain * (accept - target_accept), tf.zeros_like(accept))
        jump = tf.reduce_sum(weights * tf.square(tf.cast(x, tf.float64) - start), 0)
        has_moved = jump >= 2 * (1 - _MAX_CORRELATION) * variance
        is_settled = has_moved | (jump - jumps < _MAX_GROWTH * jump)
        is_done = tf.reduce_all(is_settled) & (tf.abs(accept - target_accept) < _ACCEPT_TOLERANCE)
        return (
            m + 1,
            x,
            log_ratio,
            at,
            ancestors,
            log_step_size + change,
            jump,
            totals + tf.stack([accept, accept_base]),
            faults,
            is_done,
        )

    def goes_on(m: tf.Tensor, *state: Any) -> tf.Tensor:
        return (m < how.fewest) | ((m < how.most) & ~state[-1])

    counters = (tf.zeros_like(variance), tf.zeros([2], tf.float64), tf.constant(0), tf.constant(False))
    begin = (tf.constant(0), now.x, now.log_ratio, at, now.ancestors, log_step_size, *counters)
    m, x, log_ratio, _, ancestors, log_step_size, _, totals, faults, _ = tf.while_loop(
        goes_on, move, begin, parallel_iterations=1
    )
    log_ratio, bad = tf.cond(how.proposes, lambda: (log_ratio, tf.constant(0)), lambda: ratio_and_faults(bridge, x))
    now = now._replace(x=x, log_ratio=log_ratio, ancestors=ancestors)
    accept, accept_base = tf.unstack(totals / tf.cast(tf.maximum(m, 1), tf.float64))
    return now, log_step_size, m, accept, accept_base, faults + bad
