"""Draws of `EnergyDistribution.sample`: sequential Monte Carlo where it is possible, and the last states of chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.caller import is_called_by, warn
from tfp_ebm.mcmc.arrival import last_states
from tfp_ebm.mcmc.diagnostics import MAX_RHAT

# The largest number of coordinates for which the draws are those of sequential Monte Carlo. It runs at least 1024
# particles, whatever the number of draws, and needs more temperatures with more coordinates.
MAX_COORDINATES = 50
# TFP's joint distributions draw from their parts in this method, only to find out the structure of the parts.
_STRUCTURE = "_get_single_sample_distributions"


def has_density(base: tfp.distributions.Distribution | None, is_normalized: bool = False) -> bool:
    """Returns whether a base has a density of its own; unless `is_normalized`, it may be an unnormalised one."""
    names = ("_log_prob", "_prob") if is_normalized else ("_log_prob", "_prob", "_unnormalized_log_prob")
    return any(hasattr(base, name) for name in names)


def suits_sequential_monte_carlo(base: tfp.distributions.Distribution | None) -> bool:
    """Returns whether sequential Monte Carlo can start from a base: it has a normalised density over few numbers."""
    if base is None or not has_density(base, is_normalized=True):
        return False
    return base.dtype in (tf.float32, tf.float64) and math.prod(base.event_shape) <= MAX_COORDINATES


def is_for_structure() -> bool:
    """Returns whether a joint distribution of TFP draws now to find out its structure; such draws are not returned."""
    return is_called_by(_STRUCTURE)


def warned_states(drawn: mcmc.Draws) -> tf.Tensor:
    """Returns the states of draws, and warns of what is wrong with them."""
    if drawn.trouble:
        warn(
            f"The draws may not have the distribution of the energy. {' '.join(drawn.trouble)} A base is passed as "
            "`EnergyDistribution(energy, base=...)`; `kernel=...` gives the last states of chains instead."
        )
    return drawn.states


def warned_last_states(
    target: Callable[..., tf.Tensor], start: tf.Tensor, kernel: Any, seed: tf.Tensor, num_burnin_steps: int
) -> tf.Tensor:
    """Returns the last states of chains, `[chains, *event]`, and warns if R-hat is significantly too large.

    Args:
      target, start, kernel, seed: as in `mcmc.sample`.
      num_burnin_steps: number of burn-in steps, at least 1.
    """
    states, arrival = last_states(target, start, kernel, num_burnin_steps=num_burnin_steps, seed=seed)
    if arrival.at_least > MAX_RHAT:
        warn(
            f"R-hat is {arrival.rhat:.3g}, above {MAX_RHAT}: in the second half of the {num_burnin_steps} burn-in "
            "steps the chains did not forget their earlier states, so the shares of modes may be those of the initial "
            "states. A larger `num_burnin_steps`, or a kernel that moves between modes, helps."
        )
    return states
