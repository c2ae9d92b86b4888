"""Initial states of chains at which the density is positive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.caller import warn
from tfp_ebm.mcmc.running.finite import is_finite
from tfp_ebm.random import fold_in

# Number of times that an initial state of zero or NaN density is drawn again.
_MAX_REDRAWS = 20


def usable_starts(
    base: tfp.distributions.Distribution,
    negative_energy: Callable[[tf.Tensor], tf.Tensor],
    num_chains: Any,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Draws initial states `[num_chains, *event]` from a base; if eager, redraws those of zero or NaN density.

    Args:
      base: a distribution over x.
      negative_energy: −E, `[chains, *event] -> [chains]`.
      num_chains: an int, or a scalar tensor.
      seed: int32[2].
    """
    event_shape = tuple(base.event_shape)
    # A new tensor, because TFP's bijectors cache their draws, and a cached value has no gradient.
    start = tf.identity(base.sample(num_chains, seed=seed))
    start = tf.ensure_shape(start, [tf.get_static_value(num_chains), *event_shape])
    for number in range(_MAX_REDRAWS if tf.executing_eagerly() else 0):
        usable = is_finite(start, 1, negative_energy(start))
        if tf.reduce_all(usable):
            break
        if number == 0:
            warn(
                f"{int(tf.reduce_sum(tf.cast(~usable, tf.int32)))} of {num_chains} chains start at a state of "
                "zero or NaN density and are drawn again from the base."
            )
        fresh = base.sample(num_chains, seed=fold_in(seed, number))
        start = tf.where(tf.reshape(usable, [-1] + [1] * len(event_shape)), start, fresh)
    return start
