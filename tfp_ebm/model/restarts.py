"""Chains from a base, where chains that never moved run again from other draws of the base.

A chain does not move if its kernel rejects every proposal from its initial state, as where the gradient is NaN or the
step size is much too large for the density there. If others moved, another initial state helps. A restarted chain has a
burn-in of its own, so it is as good as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfp_ebm import mcmc
from tfp_ebm.caller import warn
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.running.trouble import is_implausible, never_moved
from tfp_ebm.random import fold_in

# Number folded into the seed of restarted chains.
_RESTART = 1


def sample_with_restarts(
    chains: Callable[[Any, tf.Tensor], tuple[Any, tf.Tensor, Any, tf.Tensor]],
    num_chains: Any,
    seed: tf.Tensor,
    settings: Mapping[str, Any],
) -> mcmc.Samples:
    """Runs chains; if eager, runs those that never moved once more from other draws of the base, and warns.

    Chains are restarted if more of them never moved than chance explains, but not all.

    Args:
      chains: maps a number of chains and a seed to target, initial states, kernel, and the seed of the chains.
      num_chains: number of chains.
      seed: int32[2].
      settings: further arguments of `mcmc.sample`.
    """
    target, start, kernel, chain_seed = chains(num_chains, seed)
    samples = mcmc.sample(target, start, kernel, seed=chain_seed, **settings)
    if not tf.executing_eagerly():
        return samples
    stuck = never_moved(start, samples.states, samples.is_accepted)
    num_stuck, num_all = int(tf.math.count_nonzero(stuck)), stuck.shape.num_elements()
    if num_stuck in (0, num_all):
        return samples
    moving = tf.boolean_mask(tf.cast(samples.is_accepted, tf.float64), ~stuck, axis=1)
    stride = 1 + settings["num_steps_between_results"]
    num_steps = settings["num_burnin_steps"] + stride * (len(samples.states) - 1) + 1
    if not is_implausible(num_stuck, num_all, num_steps, float(tf.reduce_mean(moving))):
        return samples
    target, start, kernel, chain_seed = chains(num_stuck, fold_in(seed, _RESTART))
    again = mcmc.sample(target, start, kernel, seed=chain_seed, **{**settings, "backup_dir": None})
    num_kept = min(len(samples.states), len(again.states))  # an interrupt returns fewer results
    places = tf.where(stuck)

    def replaced(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        axes = [1, 0, *range(2, old.shape.rank)]
        old, new = (tf.transpose(part[:num_kept], axes) for part in (old, new))
        return tf.transpose(tf.tensor_scatter_nd_update(old, places, new), axes)

    still = never_moved(start, again.states, again.is_accepted)
    num_moved = num_stuck - int(tf.math.count_nonzero(still))
    warn(
        f"{num_stuck} of {num_all} chains never moved and were restarted, with a new burn-in, from other draws of the "
        f"base; {num_moved} of them then moved."
    )
    states = replaced(samples.states, again.states)
    log_prob = replaced(samples.unnormalized_log_prob, again.unnormalized_log_prob)
    return samples._replace(
        states=states,
        unnormalized_log_prob=log_prob,
        is_accepted=replaced(samples.is_accepted, again.is_accepted),
        num_nonfinite=count_nonfinite(states, 2, log_prob),
        num_stuck=again.num_stuck,
    )
