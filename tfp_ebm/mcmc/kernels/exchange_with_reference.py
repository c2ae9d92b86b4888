"""The transition of replica exchange between a target and a reference distribution, whose replica draws exactly.

Replica k runs on p_k ∝ b^(1−β_k) f^β_k, with 1 = β₀ > β₁ > … > β_K = 0, a reference b and the target f. The last
replica is a new draw from b in each step, so that states which reach the target are independent of its past. Neighbours
swap their states with probability min(1, exp((β_k − β_{k+1}) (h_{k+1} − h_k))), h = log f − log b.

The rejections r_k of the swaps give the barrier Λ = Σ r_k, a property of the path that hardly depends on the ladder
(Syed et al. 2019, arXiv:1905.02939), and the ladder of equal rejections. Stepping stones give

    log Z = Σ_k log E_{k+1} exp((β_k − β_{k+1}) h).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.energy.base import draw
from tfp_ebm.mcmc.kernels.kernel import LateKernel
from tfp_ebm.mcmc.results import refreshed
from tfp_ebm.random import fold_in, uniform

# Purposes of random numbers, folded into the seed of a step.
_MOVES, _REFERENCE, _SWAPS = range(3)
# Steps before the ladder first changes; each later period is twice as long.
_FIRST_PERIOD = 32
# The least rejection of a pair when the ladder changes, so that no two temperatures become equal.
_MIN_REJECTION = 1e-3


class ExchangeResults(NamedTuple):
    """The results of a step of replica exchange with a reference.

    Attributes:
      target_log_prob: log f of the cold replica, `[*chains]`.
      states: of all replicas, the cold one first, `[replicas, *chains, *event]`.
      replica_results: the results of the kernel of the replicas.
      inverse_temperatures: β, `[replicas]`, from 1 to 0.
      rejection: mean rejection of the swaps between neighbours since the ladder last changed, `[replicas − 1]`.
      barrier: Λ, the sum of the rejections.
      log_normalizer: the estimate of log Z by stepping stones, from the steps since the ladder last changed.
      num_round_trips: number of draws from the reference that have reached the target since then, `[*chains]`.
      is_swap_accepted_adjacent: whether replicas k and k + 1 have swapped in this step, `[replicas − 1, *chains]`.
      is_fresh: whether a state descends from a draw of the reference that has not reached the target yet.
      step: number of the next step.
      sums: of the rejections, and logs of the sums of exp((β_k − β_{k+1}) h), float64 `[2, replicas − 1]`.
      counts: of the steps with a proposed swap, and of all steps, float64 `[2, replicas − 1]`.
    """

    target_log_prob: Any
    states: Any
    replica_results: Any
    inverse_temperatures: Any
    rejection: Any
    barrier: Any
    log_normalizer: Any
    num_round_trips: Any
    is_swap_accepted_adjacent: Any
    is_fresh: Any
    step: Any
    sums: Any
    counts: Any


class ExchangeWithReference(LateKernel):
    """Replica exchange of a `ReplicaExchange` with a reference; the state is that of the cold replica."""

    def _reference(self) -> tfp.distributions.Distribution:
        recipe = self._parameters["kernel"]
        if recipe.standardization is None:
            return recipe.base
        return recipe.standardization.standardized(recipe.base)

    def _built(self, states: tf.Tensor, betas: tf.Tensor) -> tfp.mcmc.TransitionKernel:
        target, reference = self._parameters["target_log_prob_fn"], self._reference()

        def log_prob(x: tf.Tensor) -> tf.Tensor:
            log_target, log_base = target(x), reference.log_prob(x)
            beta = _along(betas, log_base)
            return tf.math.multiply_no_nan(log_target, beta) + tf.math.multiply_no_nan(log_base, 1 - beta)

        steps = tf.nest.map_structure(
            lambda step: (
                tf.ones([betas.shape[0]] + [1] * (states.shape.rank - 1), states.dtype)
                * tf.convert_to_tensor(step, states.dtype)
            ),
            self._parameters["step_size"],
        )
        return self._parameters["kernel"].kernel.build(log_prob, steps)

    def _log_ratio(self, states: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns h, float64, −∞ for NaN, and log f."""
        log_target = self._parameters["target_log_prob_fn"](states)
        ratio = tf.cast(log_target, tf.float64) - tf.cast(self._reference().log_prob(states), tf.float64)
        return tf.where(tf.math.is_nan(ratio), tf.constant(-np.inf, tf.float64), ratio), log_target

    def _with_draw(self, states: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Replaces the state of the last replica by a draw from the reference."""
        reference = self._reference()
        shape = tf.shape(states)[1 : states.shape.rank - reference.event_shape.rank]
        last = tf.ensure_shape(tf.cast(draw(reference, shape, seed), states.dtype), states.shape[1:])
        return tf.concat([states[:-1], last[None]], 0)

    def bootstrap_results(self, init_state: Any) -> ExchangeResults:
        """Returns the results before the first step; all replicas start at the state of the chain."""
        state = tf.convert_to_tensor(init_state)
        betas = tf.constant(self._parameters["kernel"].inverse_temperatures, state.dtype)
        num = betas.shape[0]
        states = tf.repeat(state[None], num, 0)
        log_target = self._parameters["target_log_prob_fn"](state)
        shape = tf.concat([[num], tf.shape(log_target)], 0)
        zeros = tf.zeros([2, num - 1], tf.float64)
        sums = tf.stack([zeros[0], tf.fill([num - 1], tf.constant(-np.inf, tf.float64))])
        nothing = tf.zeros([], tf.float64)
        return ExchangeResults(
            target_log_prob=log_target,
            states=states,
            replica_results=self._built(states, betas).bootstrap_results(states),
            inverse_temperatures=betas,
            rejection=zeros[0],
            barrier=nothing,
            log_normalizer=nothing,
            num_round_trips=tf.zeros(tf.shape(log_target), tf.int32),
            is_swap_accepted_adjacent=tf.zeros(shape, tf.bool)[1:],
            is_fresh=tf.zeros(shape, tf.bool),
            step=tf.constant(0),
            sums=sums,
            counts=zeros,
        )

    def one_step(
        self, current_state: Any, previous_kernel_results: ExchangeResults, seed: Any = None
    ) -> tuple[tf.Tensor, ExchangeResults]:
        """Moves all replicas, draws the last one anew, and proposes swaps of every other pair of neighbours."""
        now, seed = previous_kernel_results, tfp.random.sanitize_seed(seed)
        betas, num = now.inverse_temperatures, now.states.shape[0]
        states = tf.concat([tf.convert_to_tensor(current_state)[None], now.states[1:]], 0)
        built = self._built(states, betas)
        inner = refreshed(now.replica_results, built.bootstrap_results(states))
        states, inner = built.one_step(states, inner, seed=fold_in(seed, _MOVES))
        states = self._with_draw(tf.ensure_shape(states, now.states.shape), fold_in(seed, _REFERENCE))
        log_ratio, log_target = self._log_ratio(states)
        is_fresh = tf.concat([now.is_fresh[:-1], tf.ones_like(now.is_fresh[-1:])], 0)

        gaps = tf.cast(betas[:-1] - betas[1:], tf.float64)
        exponent = _along(gaps, log_ratio) * (log_ratio[1:] - log_ratio[:-1])
        probability = tf.exp(tf.minimum(exponent, 0.0))
        probability = tf.where(tf.math.is_nan(probability), tf.zeros_like(probability), probability)
        is_proposed = tf.range(num - 1) % 2 == now.step % 2
        u = uniform(tf.shape(probability), fold_in(seed, _SWAPS), tf.float64)
        swaps = (u < probability) & _along(is_proposed, probability)
        states, log_target, is_fresh = (_swapped(part, swaps) for part in (states, log_target, is_fresh))

        axes = list(range(1, log_ratio.shape.rank))
        rejected = tf.cast(is_proposed, tf.float64) * (1.0 - tf.reduce_mean(probability, axes))
        stones = _along(gaps, log_ratio) * log_ratio[1:]
        total = tf.reduce_logsumexp(stones, axes) - tf.math.log(tf.cast(tf.size(stones[0]), tf.float64))
        sums = tf.stack([now.sums[0] + rejected, tf.reduce_logsumexp([now.sums[1], total], 0)])
        counts = now.counts + tf.stack([tf.cast(is_proposed, tf.float64), tf.ones_like(rejected)])
        trips = now.num_round_trips + tf.cast(is_fresh[0], tf.int32)
        is_fresh = tf.concat([tf.zeros_like(is_fresh[:1]), is_fresh[1:]], 0)
        rejection = tf.math.divide_no_nan(sums[0], counts[0])
        step = now.step + 1
        last = self._parameters["kernel"].num_adaptation_steps or 0
        is_period = (step >= _FIRST_PERIOD) & (tf.bitwise.bitwise_and(step, step - 1) == 0)
        changes = (step <= last) & (is_period | (step == last))
        new_betas = tf.cast(equal_rejections(tf.cast(betas, tf.float64), rejection), betas.dtype)
        empty = tf.stack([tf.zeros_like(rejected), tf.fill([num - 1], tf.constant(-np.inf, tf.float64))])
        return states[0], ExchangeResults(
            target_log_prob=log_target[0],
            states=states,
            replica_results=inner,
            inverse_temperatures=tf.where(changes, new_betas, betas),
            rejection=rejection,
            barrier=tf.reduce_sum(rejection),
            log_normalizer=tf.reduce_sum(sums[1] - tf.math.log(counts[1])),
            num_round_trips=tf.where(changes, tf.zeros_like(trips), trips),
            is_swap_accepted_adjacent=swaps,
            is_fresh=is_fresh,
            step=step,
            sums=tf.where(changes, empty, sums),
            counts=tf.where(changes, tf.zeros_like(counts), counts),
        )


def equal_rejections(betas: tf.Tensor, rejection: tf.Tensor) -> tf.Tensor:
    """Returns a ladder of as many β, between which the rejections are equal if they add up along the path.

    Args:
      betas: β from 1 to 0, float64 `[replicas]`.
      rejection: mean rejection between neighbours, float64 `[replicas − 1]`.

    >>> ladder = equal_rejections(tf.constant([1.0, 0.5, 0.0], tf.float64), tf.constant([0.1, 0.3], tf.float64))
    >>> ladder.numpy().round(3).tolist()  # half of .4 is reached a third of the way from .5 to 0
    [1.0, 0.333, 0.0]
    """
    rejection = tf.maximum(rejection, _MIN_REJECTION)
    reached = tf.concat([tf.zeros([1], tf.float64), tf.cumsum(rejection)], 0)
    num = betas.shape[0]
    wanted = reached[-1] * tf.range(num, dtype=tf.float64) / (num - 1)
    after = tf.clip_by_value(tf.searchsorted(reached, wanted), 1, num - 1)
    low, high = tf.gather(reached, after - 1), tf.gather(reached, after)
    first, second = tf.gather(betas, after - 1), tf.gather(betas, after)
    between = first + (second - first) * (wanted - low) / (high - low)
    return tf.concat([betas[:1], between[1:-1], betas[-1:]], 0)


def _along(vector: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns a vector with axes of size 1 behind, so that it broadcasts over the first axis of `like`."""
    return tf.reshape(vector, [-1] + [1] * (like.shape.rank - 1))


def _swapped(part: tf.Tensor, swaps: tf.Tensor) -> tf.Tensor:
    """Exchanges neighbours along the first axis where `swaps`, `[replicas − 1, *chains]`, is True."""
    shape = tf.concat([tf.shape(swaps), tf.ones([part.shape.rank - swaps.shape.rank], tf.int32)], 0)
    swaps = tf.reshape(swaps, shape)
    none = tf.zeros_like(swaps[:1])
    from_next, from_previous = tf.concat([swaps, none], 0), tf.concat([none, swaps], 0)
    following, preceding = tf.concat([part[1:], part[-1:]], 0), tf.concat([part[:1], part[:-1]], 0)
    return tf.where(from_next, following, tf.where(from_previous, preceding, part))
