"""The moves of particles at one density p_β ∝ b^(1−β) f^β between a base b and a target f.

A move is a proposal from the base (which moves particles between modes; it is left out once hardly any is accepted),
then a trajectory of Hamiltonian Monte Carlo in the coordinates y, x = x₀ + L y. The scale L comes from the particles:
with C Cᵀ their covariance and S = E g gᵀ, g the gradient of log p_β in the coordinates C⁻¹x, L Lᵀ = C S^(−1/2) Cᵀ, the
geometric mean of the covariance and of the inverse of E ∇log p ∇log pᵀ. For a Gaussian the two are equal. For separated
modes the first is much larger than the scale of the density within a mode, which the second has; where the scale of the
density varies, the second is too small. In each move, some particles, chosen at random, have a smaller step size, so
that they also move in parts of space that are much narrower than most, such as the neck of a funnel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.energy.base import draw
from tfp_ebm.mcmc.draws import MIN_ACCEPT
from tfp_ebm.mcmc.kernels.hamiltonian import HamiltonianMonteCarlo
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn, build
from tfp_ebm.mcmc.running.steps import move
from tfp_ebm.mcmc.weights import effective_size

# Purposes within a move, folded into the seed of the move.
_PROPOSAL, _ACCEPTANCE, _TRAJECTORY, _REDUCTION = range(4)
# The share of particles whose step size is reduced in a move, by a factor from this one to 1, uniform in its logarithm.
_REDUCED_SHARE, _MIN_REDUCTION = 0.3, 0.03
# The target acceptance of Hamiltonian Monte Carlo, and the least one of unknown kernels that is no trouble.
_TARGET_ACCEPT, _MIN_ACCEPT_OF_OTHERS = 0.75, 0.1
# Rounds of the iteration for an inverse root: it gains a factor of 1.5 per round, then becomes quadratic.
_NUM_REFINEMENTS = 40


class Bridge:
    """The functions log f, log b and h of flat states `[n, d]`, inside a function being compiled.

    Args:
      target: log f, `[n, *event] -> [n]`.
      base: a distribution with normalised density b.
      is_at_target: whether β is always 1, so that log p_β is log f, and log b need not be computed for it.
    """

    def __init__(
        self, target: TargetLogProbFn, base: tfp.distributions.Distribution, is_at_target: bool = False
    ) -> None:
        self._target, self._base, self._is_at_target = target, base, is_at_target
        self._event_shape = tuple(base.event_shape)

    def draw(self, num: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws flat states from the base."""
        return tf.reshape(draw(self._base, [num], seed), [num, int(np.prod(self._event_shape))])

    def log_density(self, x: tf.Tensor) -> tf.Tensor:
        """Computes log f, `[n]`."""
        event = self._event(x)
        log_target = tf.convert_to_tensor(self._target(event))
        if log_target.dtype != x.dtype:
            raise TypeError(
                f"`target_log_prob_fn` must return values of the base's dtype {x.dtype.name}, got "
                f"{log_target.dtype.name}."
            )
        if log_target.shape.rank is not None and tuple(log_target.shape) != (x.shape[0],):
            raise ValueError(
                f"`target_log_prob_fn` must return one number per state, shape {(x.shape[0],)}, for states of shape "
                f"{tuple(event.shape)}, got {tuple(log_target.shape)}."
            )
        return tf.ensure_shape(log_target, x.shape[:1])

    def both(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes log f and log b, `[n]` each."""
        return self.log_density(x), self._base.log_prob(self._event(x))

    def log_ratio(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes h, float64 `[n]`, −∞ in place of NaN and +∞, and whether it was one of these."""
        log_target, log_base = (tf.cast(part, tf.float64) for part in self.both(x))
        ratio = tf.where(log_target == -np.inf, log_target, log_target - log_base)
        is_bad = tf.math.is_nan(ratio) | (ratio == np.inf)
        return tf.where(is_bad, tf.constant(-np.inf, tf.float64), ratio), is_bad

    def tempered(self, beta: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Computes β log f + (1 − β) log b, `[n]`."""
        if self._is_at_target:  # with a gradient, zero, also where the density is piecewise constant
            return self.log_density(x) + tf.reduce_sum(tf.math.multiply_no_nan(x, tf.zeros_like(x)), -1)
        log_target, log_base = self.both(x)
        # at β = 1 the base does not matter, even where its density is zero
        return beta * log_target + tf.math.multiply_no_nan(log_base, 1 - beta)

    def tempered_and_gradient(self, beta: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes β log f + (1 − β) log b, `[n]`, and its gradient, `[n, d]`; β is float64."""
        return value_and_gradient(lambda x: self.tempered(tf.cast(beta, x.dtype), x), x)

    def _event(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [x.shape[0], *self._event_shape])


def value_and_gradient(log_prob_fn: TargetLogProbFn, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes a log density `[n]` and its gradient `[n, d]`, which is zero if the density is piecewise constant."""
    value, gradient = tfp.math.value_and_gradient(log_prob_fn, x)
    return value, tf.zeros_like(x) if gradient is None else gradient


def scale_of(x: tf.Tensor, gradient: tf.Tensor, log_weights: tf.Tensor, has_covariance: bool) -> tf.Tensor:
    """Returns L, from weighted particles and the gradients of log p_β at them.

    Args:
      x: particles `[n, d]`.
      gradient: the gradients `[n, d]`.
      log_weights: float64 `[n]`.
      has_covariance: whether L is a matrix `[d, d]`; False: a diagonal `[d]`.
    """
    dtype = x.dtype
    weights = tf.nn.softmax(log_weights)[:, None]
    exact = tf.cast(x, tf.float64)
    centred = exact - tf.reduce_sum(weights * exact, 0)
    variance = tf.reduce_sum(weights * tf.square(centred), 0)
    variance = tf.where(variance > 0, variance, tf.ones_like(variance))
    deviation = tf.sqrt(variance)
    gradient = tf.cast(gradient, tf.float64)
    gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
    if not has_covariance:
        curvature = tf.reduce_sum(weights * tf.square(gradient * deviation), 0)
        return tf.cast(deviation * tf.where(curvature > 0, curvature, tf.ones_like(curvature)) ** -0.25, dtype)
    size = x.shape[1]
    unit, eye = centred / deviation, tf.eye(size, dtype=tf.float64)
    # the shrinkage keeps the factor regular where there are few distinct particles
    shrink = 1e-4 + tf.minimum(size / effective_size(log_weights), 0.5)
    correlation = tf.matmul(weights * unit, unit, transpose_a=True)
    factor = deviation[:, None] * tf.linalg.cholesky((1 - shrink) * correlation + shrink * eye)
    inward = tf.matmul(gradient, factor)
    curvature = tf.matmul(weights * inward, inward, transpose_a=True)
    mean = tf.linalg.trace(curvature) / size
    mean = tf.where(mean > 0, mean, tf.ones_like(mean))
    curvature = (1 - shrink) * curvature / mean + (shrink + 1e-12) * eye
    return tf.cast(mean**-0.25 * tf.matmul(factor, tf.linalg.cholesky(_inverse_root(curvature))), dtype)


def _inverse_root(matrix: tf.Tensor) -> tf.Tensor:
    """Computes A^(−1/2) of a positive definite matrix by the coupled iteration of Newton and Schulz.

    >>> matrix = tf.constant([[2.0, 1.0], [1.0, 3.0]], tf.float64)
    >>> root = _inverse_root(matrix)
    >>> bool(tf.reduce_max(tf.abs(root @ matrix @ root - tf.eye(2, dtype=tf.float64))) < 1e-10)
    True
    """
    eye = tf.eye(matrix.shape[0], dtype=matrix.dtype)
    norm = tf.norm(matrix)

    def refine(i: tf.Tensor, root: tf.Tensor, inverse: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step = 0.5 * (3.0 * eye - inverse @ root)
        return i + 1, root @ step, step @ inverse

    inverse = tf.while_loop(lambda i, *_: i < _NUM_REFINEMENTS, refine, (tf.constant(0), matrix / norm, eye))[2]
    return 0.5 * (inverse + tf.transpose(inverse)) / tf.sqrt(norm)


class At(NamedTuple):
    """What is known of log p_β at the particles.

    Attributes:
      log_prob: its values, `[n]`.
      gradient: its gradients with respect to y, `[n, d]`.
    """

    log_prob: tf.Tensor
    gradient: tf.Tensor


def move_all(
    bridge: Bridge,
    num_leapfrog_steps: tuple[int, int],
    kernel: Any,
    beta: tf.Tensor,
    proposes: tf.Tensor,
    x: tf.Tensor,
    log_ratio: tf.Tensor,
    at: At,
    scale: tf.Tensor,
    step_size: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[Any, ...]:
    """Makes one move of each particle.

    Args:
      bridge: the bridge.
      num_leapfrog_steps: smallest and largest number of leapfrog steps.
      kernel: makes the move in place of Hamiltonian Monte Carlo; None for the latter.
      beta: β, float64 scalar.
      proposes: whether draws from the base are proposed first, bool scalar.
      x: particles `[n, d]`.
      log_ratio: h there, float64 `[n]`; read, and computed anew, only if draws from the base are proposed.
      at: log p_β there; read, and computed anew, only by Hamiltonian Monte Carlo.
      scale: L, `[d, d]`, or `[d]` if it is diagonal.
      step_size: ε, float64 scalar.
      seed: int32[2].

    Returns:
      The states; h and log p_β there; whether the proposal from the base was accepted, `[n]`; the mean acceptance of
      the trajectories and of the proposals from the base; and the number of faults.
    """

    def propose() -> tuple[Any, ...]:
        proposed = _from_base(bridge, beta, x, log_ratio, seed)
        return *proposed, at_particles(bridge, beta, proposed[0], scale) if kernel is None else at

    def stay() -> tuple[Any, ...]:
        return x, log_ratio, tf.zeros_like(log_ratio, tf.bool), tf.zeros([], tf.float64), at

    x, log_ratio, is_new, accept_base, at = tf.cond(proposes, propose, stay)
    if kernel is None:
        x, at, accept = _trajectory(bridge, num_leapfrog_steps, beta, x, at, scale, step_size, seed)
    else:
        x, accept = _step(bridge, kernel, beta, x, scale, step_size, seed)
    log_ratio, num_faults = tf.cond(proposes, lambda: ratio_and_faults(bridge, x), lambda: (log_ratio, tf.constant(0)))
    return x, log_ratio, at, is_new, accept, accept_base, num_faults


def at_particles(bridge: Bridge, beta: tf.Tensor, x: tf.Tensor, scale: tf.Tensor) -> At:
    """Computes log p_β and its gradient at particles."""
    log_prob, gradient = bridge.tempered_and_gradient(beta, x)
    return At(log_prob, pulled_back(gradient, scale))


def ratio_and_faults(bridge: Bridge, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns h of particles, float64 `[n]`, and the number of NaN and +∞ among its values, int32."""
    log_ratio, is_bad = bridge.log_ratio(x)
    return log_ratio, tf.reduce_sum(tf.cast(is_bad, tf.int32))


def target_accept(kernel: Any) -> float:
    """Returns the acceptance at which the step size of the moves aims."""
    optimum = kernel.optimal_accept_prob if isinstance(kernel, Kernel) else None
    return _TARGET_ACCEPT if optimum is None else optimum


def least_accept(kernel: Any) -> float:
    """Returns the acceptance below which moves are in trouble: about half of the best one, where that is known."""
    if kernel is None or isinstance(kernel, Kernel):
        return MIN_ACCEPT * (target_accept(kernel) / _TARGET_ACCEPT)
    return _MIN_ACCEPT_OF_OTHERS


def _step(
    bridge: Bridge, kernel: Any, beta: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, factor: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes one step of any kernel in y, x + L y; `factor` multiplies its step size. Returns states and acceptance."""

    def log_prob(y: tf.Tensor) -> tf.Tensor:
        return bridge.tempered(tf.cast(beta, x.dtype), displaced(x, scale, y))

    step_size: Any = ()
    if isinstance(kernel, Kernel) and kernel.step_size_field is not None:
        step_size = tf.cast(factor, x.dtype) * tf.cast(kernel.initial_step_size, x.dtype)
    moved = move(build(kernel, log_prob, step_size), tf.zeros_like(x), 1, random.fold_in(seed, _TRAJECTORY))
    return tf.ensure_shape(displaced(x, scale, moved.states), x.shape), tf.cast(moved.accept_prob, tf.float64)


def _from_base(
    bridge: Bridge, beta: tf.Tensor, x: tf.Tensor, log_ratio: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Proposes draws from the base, accepted with probability min(1, exp(β (h' − h)))."""
    proposal = bridge.draw(x.shape[0], random.fold_in(seed, _PROPOSAL))
    proposed, _ = bridge.log_ratio(proposal)
    log_u = tf.math.log(random.uniform([x.shape[0]], random.fold_in(seed, _ACCEPTANCE), tf.float64))
    difference = beta * (proposed - log_ratio)  # NaN if both densities are zero: rejected
    accepted = log_u < difference
    probability = tf.exp(tf.minimum(difference, 0.0))
    accept = tf.reduce_mean(tf.where(tf.math.is_nan(difference), tf.zeros_like(probability), probability))
    return tf.where(accepted[:, None], proposal, x), tf.where(accepted, proposed, log_ratio), accepted, accept


def displaced(x: tf.Tensor, scale: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns x + L y of states and displacements `[n, d]`, with L `[d, d]`, or `[d]` if it is diagonal."""
    return x + (tf.matmul(y, scale, transpose_b=True) if len(scale.shape) == 2 else scale * y)


def pulled_back(gradient: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Returns the gradients with respect to y, of those with respect to x, `[n, d]`."""
    return tf.matmul(gradient, scale) if len(scale.shape) == 2 else scale * gradient


def _trajectory(
    bridge: Bridge,
    num_leapfrog_steps: tuple[int, int],
    beta: tf.Tensor,
    x: tf.Tensor,
    at: At,
    scale: tf.Tensor,
    step_size: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, At, tf.Tensor]:
    """Makes one step of Hamiltonian Monte Carlo in y, x + L y.

    Returns:
      The states, log p_β there, and the mean acceptance of the trajectories with the full step size.
    """
    num = x.shape[0]
    draws = random.uniform([2, num, 1], random.fold_in(seed, _REDUCTION), x.dtype)
    is_full = draws[0] >= _REDUCED_SHARE
    reduction = tf.where(is_full, tf.ones_like(draws[1]), tf.exp(math.log(_MIN_REDUCTION) * draws[1]))

    def log_prob(y: tf.Tensor) -> tf.Tensor:
        return bridge.tempered(tf.cast(beta, x.dtype), displaced(x, scale, y))

    step_size = tf.cast(step_size, x.dtype) * reduction
    kernel = HamiltonianMonteCarlo(log_prob, step_size, num_leapfrog_steps)
    y = tf.zeros_like(x)
    # only the shapes of the bootstrapped results are used, so that nothing is computed for them
    begin = kernel.bootstrap_results(y)
    inner = begin.accepted_results._replace(target_log_prob=at.log_prob, grads_target_log_prob=[at.gradient])
    y, results = kernel.one_step(y, begin._replace(accepted_results=inner), seed=random.fold_in(seed, _TRAJECTORY))
    log_accept = tf.cast(results.log_accept_ratio, tf.float64)
    accept = tf.exp(tf.minimum(log_accept, 0.0))
    counted = tf.cast(is_full[:, 0], tf.float64)
    accept = tf.reduce_sum(tf.where(tf.math.is_nan(accept), tf.zeros_like(accept), accept) * counted)
    at = At(results.accepted_results.target_log_prob, results.accepted_results.grads_target_log_prob[0])
    return tf.ensure_shape(displaced(x, scale, y), x.shape), at, accept / tf.maximum(tf.reduce_sum(counted), 1.0)
