"""The compiled loop of annealed importance sampling, which moves chains through densities between base and target.

The densities between base b and target f are p_β ∝ b^(1−β) f^β. A run is a list of moves: before move t, δ_t h(x) with
h = log f − log b is added to the log weight of each chain; the move then leaves p_{β_t} invariant. Each move
initialises its kernel anew. A kernel's results hold log density and gradient at the previous β; reusing these values
would bias the weights (as it does in `tfp.mcmc.sample_annealed_importance_chain` with HMC).

The number of moves is an argument of the compiled function, up to a power of two that is part of its shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.energy.base import check_base, draw
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.evaluation import densities
from tfp_ebm.mcmc.kernels.adaptive import log_step_size_change
from tfp_ebm.mcmc.kernels.bridge import bridge_step
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.mcmc.results import accept_prob
from tfp_ebm.mcmc.running.compiled import Compiled, XlaOrGraph, compile_once, xla_pays
from tfp_ebm.mcmc.running.loop import iterate
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.random import chain_key

# Number of moves in one call of the compiled loop; an interrupt takes effect between two calls.
_STRETCH = 100
_MIN_CAPACITY = 32


@dataclasses.dataclass(frozen=True)
class Moves:
    """The moves of a run in order, arrays `[num_moves]`.

    Attributes:
      betas: β of each move.
      weights: δ, the weight of h before each move.
      step_sizes: the step size of each move, the kernel's `initial_step_size` with one axis in front; () for a kernel
        without one.
      gains: the gain of the adaptation of log ε to the acceptance at each move; with zero, log ε does not change.
    """

    betas: np.ndarray
    weights: np.ndarray
    step_sizes: Any
    gains: np.ndarray


@dataclasses.dataclass(frozen=True)
class Bridge:
    """A base and a target, in the coordinates of the chains.

    Attributes:
      target: log f, `[chains, *event] -> [chains]`.
      base: a distribution over x.
      base_log_prob: log b in the chains' coordinates.
      inward: maps x to those coordinates.
      standardization: the model's standardisation, if the chains run in its standardised coordinates.
    """

    target: TargetLogProbFn
    base: tfp.distributions.Distribution
    base_log_prob: TargetLogProbFn
    inward: Callable[[tf.Tensor], tf.Tensor]
    standardization: Any = None

    def draw_base(self, num_chains: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws states from the base."""
        return tf.ensure_shape(self.inward(draw(self.base, [num_chains], seed)), [num_chains, *self.base.event_shape])

    def log_ratio(self, states: tf.Tensor, needs_gradient: bool = False) -> np.ndarray:
        """Computes h = log f − log b, float64 `[chains]`.

        Raises:
          TypeError, ValueError: if the target does not fit the base, or lacks a gradient that is needed.
        """
        key = (serialization.fingerprint(self.base), needs_gradient, states.shape)
        log_ratio = compile_once(self.target, _log_ratio, self.base_log_prob, needs_gradient, key=key)
        return log_ratio(states).numpy()

    def run(
        self, kernel: Any, states: tf.Tensor, moves: Moves, seed: tf.Tensor, jit_compile: bool | str
    ) -> tuple[tf.Tensor, np.ndarray, np.ndarray]:
        """Makes the moves.

        Returns:
          The states; the log weights, float64 `[chains]`; and for each move, `[num_moves, 3]`, the log of the factor on
          the step size, the mean of min(1, acceptance ratio), and the variance of h before it.
        """
        num = len(moves.betas)
        log_weights = tf.zeros(states.shape[:1], tf.float64)
        if num == 0:
            return states, log_weights.numpy(), np.zeros([0, 3])
        capacity = max(_MIN_CAPACITY, 1 << (num - 1).bit_length())

        def padded(values: Any, dtype: tf.DType) -> tf.Tensor:
            values = np.asarray(values)
            return tf.constant(np.concatenate([values, np.repeat(values[-1:], capacity - num, axis=0)]), dtype)

        betas, weights, gains = (padded(row, tf.float64) for row in (moves.betas, moves.weights, moves.gains))
        step_sizes = tf.nest.map_structure(lambda step: padded(step, states.dtype), moves.step_sizes)
        given = (betas, weights, step_sizes, gains, chain_key(seed))
        recipe = kernel.without_step_size if isinstance(kernel, Kernel) else kernel
        loop = XlaOrGraph(functools.partial(self._find, recipe), jit_compile, xla_pays(kernel, num, states))
        carried = (states, log_weights, tf.zeros([], tf.float64))
        notes = []
        for first in range(0, num, _STRETCH):
            stretch = (tf.constant(first), tf.constant(min(num, first + _STRETCH)))
            carried, note = loop.run(Compiled.__call__, carried, stretch, *given)
            notes.append(note.numpy()[: int(stretch[1] - stretch[0])])
        return carried[0], carried[1].numpy(), np.concatenate(notes)

    def _find(self, kernel: Any, jit_compile: bool) -> Compiled:
        key = (kernel, serialization.fingerprint(self.base))
        return compile_once(self.target, _make_moves, self.base_log_prob, kernel, key=key, jit_compile=jit_compile)


def _log_ratio(
    resolve: Callable[[], TargetLogProbFn], base_log_prob: TargetLogProbFn, needs_gradient: bool, states: tf.Tensor
) -> tf.Tensor:
    states = tf.identity(states)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(states)
        value = tf.convert_to_tensor(resolve()(states))
    if value.dtype != states.dtype:
        raise TypeError(
            f"`energy_fn` must return values of the base's dtype {states.dtype.name}, got {value.dtype.name}."
        )
    if value.shape != states.shape[:1]:
        raise ValueError(
            f"`energy_fn` must return one number per state, shape {tuple(states.shape[:1])}, for states of shape "
            f"{tuple(states.shape)}, got {tuple(value.shape)}."
        )
    if needs_gradient and tape.gradient(value, states) is None:
        raise ValueError("`energy_fn` must be differentiable for this kernel; RandomWalk needs no gradient.")
    return _difference(value, base_log_prob(states))


def _difference(log_target: tf.Tensor, log_base: tf.Tensor) -> tf.Tensor:
    """Computes h in float64; −∞ where the target's density is zero, even if that of the base is zero too."""
    log_target = tf.cast(log_target, tf.float64)
    return tf.where(log_target == -np.inf, log_target, log_target - tf.cast(log_base, tf.float64))


def _make_moves(
    resolve: Callable[[], TargetLogProbFn],
    base_log_prob: TargetLogProbFn,
    kernel: Any,
    carried: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    stretch: tuple[tf.Tensor, tf.Tensor],
    betas: tf.Tensor,
    weights: tf.Tensor,
    step_sizes: Any,
    gains: tf.Tensor,
    key: tf.Tensor,
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
    """Makes the moves `stretch[0]` to `stretch[1] - 1`.

    Args:
      resolve, base_log_prob, kernel: log f, log b and the kernel, without its step size.
      carried: states, log weights, and the log of the factor on the step size.
      stretch: the numbers of the first move and of the move after the last.
      betas, weights, step_sizes, gains: see `Moves`.
      key: scalar from which the noise of each move is derived.

    Returns:
      The new value of `carried`, and the values that `Bridge.run` returns for each of these moves.
    """
    target = resolve()
    aim = getattr(kernel, "optimal_accept_prob", None)

    def move(
        t: tf.Tensor, states: tf.Tensor, log_weights: tf.Tensor, log_factor: tf.Tensor, notes: tf.TensorArray
    ) -> tuple[Any, ...]:
        log_ratio = _difference(target(states), base_log_prob(states))
        log_weights += tf.math.multiply_no_nan(log_ratio, weights[t])
        beta, factor = tf.cast(betas[t], states.dtype), tf.cast(tf.exp(log_factor), states.dtype)
        step_size = tf.nest.map_structure(lambda step: step[t] * factor, step_sizes)
        seed = tf.stack([key, t])
        states, results = bridge_step(kernel, target, base_log_prob, beta, step_size, states, seed)
        accept = accept_prob(results, tf.float64)
        finite = tf.math.is_finite(log_ratio)
        known = tf.where(finite, log_ratio, tf.zeros_like(log_ratio))
        share = tf.maximum(tf.reduce_mean(tf.cast(finite, tf.float64)), 1e-12)
        mean = tf.reduce_mean(known) / share
        variance = tf.reduce_mean(tf.where(finite, tf.square(known - mean), tf.zeros_like(known))) / share
        notes = notes.write(t - stretch[0], tf.stack([log_factor, accept, variance]))
        if aim is not None:
            log_factor += log_step_size_change(gains[t], accept, aim)
        return states, log_weights, log_factor, notes

    notes = tf.TensorArray(tf.float64, _STRETCH, element_shape=[3])
    *after, notes = iterate(move, stretch, *carried, notes)
    return tuple(after), notes.stack()


def make_bridge(energy_fn: Any, base: Any) -> Bridge:
    """Creates the bridge from a base to exp(−E); chains of a model run in its standardised coordinates.

    Args:
      energy_fn: as for `densities.energy_of`.
      base: a distribution; None for the model's base.

    Raises:
      TypeError: if `energy_fn` is not an energy, or `base` is not a distribution or has another dtype.
      ValueError: if there is no base, or it is not over states of the energy.
    """
    energy = EnergyDistribution(energy_fn) if isinstance(energy_fn, EnergyModel) else energy_fn
    if base is None and isinstance(energy, EnergyDistribution):
        base = energy.base
    if base is None:
        raise ValueError("`base` must be given, since the energy has no base distribution.")
    if not isinstance(energy, tfp.distributions.Distribution):
        densities.energy_of(energy)  # the checks
        check_base("base", base)
        return Bridge(densities.negated(energy), base, base.log_prob, lambda x: x)
    if tuple(energy.batch_shape) != ():
        raise ValueError(f"`energy_fn` must be one distribution, got a batch of shape {tuple(energy.batch_shape)}.")
    check_base("base", base, energy.dtype, tuple(energy.event_shape))
    inner = energy.parameters["energy"] if isinstance(energy, EnergyDistribution) else None
    if not isinstance(inner, EnergyModel):
        is_energy = isinstance(energy, EnergyDistribution)
        log_density = energy.negative_energy if is_energy else energy.unnormalized_log_prob
        return Bridge(log_density, base, base.log_prob, lambda x: x)
    function = inner.energy_function
    coordinates = Coordinates.of(function)
    base_log_prob = coordinates.log_prob_in_chain(base.log_prob)
    return Bridge(
        function.unnormalized_log_prob, base, base_log_prob, coordinates.to_chain, coordinates.standardization
    )
