"""Warnings about chains whose draws do not follow the target: chains that never moved, and NaN gradients.

All draws of a chain that never moved equal its initial state. A chain without a fault and with acceptance rate a does
not move within T steps with probability (1 − a)^T, so after a few steps this happens to some chains. If it happens to
more chains than that, they cannot move, however long the burn-in is. Runs of fewer than ten steps are not checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.caller import warn
from tfp_ebm.tracing import graph_function

# The largest probability of a warning for chains without a fault.
_FALSE_ALARM = 1e-3
# Acceptance differs from chain to chain. Half the mean is assumed, but at least a minimum: for rates below it, a
# warning is appropriate even if all chains have such a rate.
_ASSUMED_SHARE, _LEAST_ACCEPTANCE = 0.5, 0.1
_MIN_STEPS = 10
# Numbers of a dtype that are further apart than this are too coarse for log densities, whose differences of about 1
# decide Metropolis steps. Rounded to .5, they cost up to 3 % of the acceptance, see the tests.
_COARSE = 0.3


def never_moved(start: tf.Tensor, states: tf.Tensor, is_accepted: tf.Tensor) -> tf.Tensor:
    """Returns whether each chain is at its initial state in all results, bool `[*chains]`.

    A chain that accepted a step and is at its initial state has returned to it, which only happens on a grid. If there
    is such a chain, a chain at its initial state need not be stuck, and the result is False for all chains.

    Args:
      start: `[*chains, *event]`.
      states: `[num_results, *chains, *event]`.
      is_accepted: whether the step to each result was accepted, bool `[num_results, *chains]`.

    >>> states = tf.constant([[[1.0], [2.0]], [[1.0], [3.0]]])
    >>> never_moved(tf.constant([[1.0], [2.0]]), states, tf.constant([[False, False], [False, True]])).numpy().tolist()
    [True, False]
    """
    same = tf.reduce_all(states == start, list(range(is_accepted.shape.rank, states.shape.rank)))
    same = tf.reduce_all(same, 0)
    return same & ~tf.reduce_any(same & tf.reduce_any(is_accepted, 0))


def is_implausible(num_stuck: int, num_chains: int, num_steps: int, acceptance_rate: float) -> bool:
    """Returns whether so many chains without a fault would fail to move with a probability below 0.001 only.

    Args:
      num_stuck: number of chains that never moved.
      num_chains: number of all chains.
      num_steps: number of steps of each chain.
      acceptance_rate: mean acceptance rate of the chains that moved.

    >>> is_implausible(3, 1000, 5, 0.75), is_implausible(3, 1000, 50, 0.75)
    (False, True)
    """
    if num_stuck == 0 or num_steps < _MIN_STEPS:
        return False
    still = (1.0 - max(_ASSUMED_SHARE * acceptance_rate, _LEAST_ACCEPTANCE)) ** num_steps
    # P(X ≥ k) of a binomial distribution with n draws is the incomplete beta function I_p(k, n − k + 1)
    k, n, p = (tf.constant(value, tf.float64) for value in (num_stuck, num_chains, max(still, 1e-300)))
    return float(tf.math.betainc(k, n - k + 1.0, p)) < _FALSE_ALARM


def warn_of_stuck(
    stuck: Any,
    acceptance_rate: Any,
    num_steps: int,
    num_known: int,
    log_prob_fn: Callable[[tf.Tensor], tf.Tensor],
    start: tf.Tensor,
    jit_compile: bool,
) -> bool:
    """Warns if more chains never moved than chance explains, and returns whether it warned.

    Args:
      stuck: whether each chain never moved, bool `[*chains]`.
      acceptance_rate: share of accepted steps of each chain, `[*chains]`.
      num_steps: number of steps of each chain.
      num_known: number of stuck chains for which there was a warning before.
      log_prob_fn: the target.
      start: initial states of the chains, `[*chains, *event]`.
      jit_compile: whether the chains were compiled by XLA, whose gradients may differ from those in graph mode.
    """
    stuck, acceptance_rate = np.asarray(stuck), np.asarray(acceptance_rate)
    num_stuck = int(stuck.sum())
    moving = float(acceptance_rate[~stuck].mean()) if num_stuck < stuck.size else 0.0
    if num_stuck <= num_known or not is_implausible(num_stuck, stuck.size, num_steps, moving):
        return False
    reason = ""
    try:
        look = graph_function(functools.partial(_value_and_gradient, log_prob_fn), jit_compile=jit_compile)
        log_prob, gradient = look(tf.identity(start))
        low = float(np.min(np.asarray(log_prob)[stuck]))
        reason = f" The lowest log density at their states is {low:.4g}."
        if gradient is not None and not np.isfinite(np.asarray(gradient)[stuck]).all():
            reason += " Its gradient is NaN or infinite there."
    except (ValueError, TypeError, tf.errors.OpError):  # the reason is optional
        pass
    warn(
        f"{num_stuck} of {stuck.size} chains never moved in {num_steps} steps: their draws are their initial states, "
        f"not draws from the target.{reason} Remedies are initial states of higher density, a smaller step size, or a "
        "kernel with global moves such as IndependenceMetropolis(base); a longer burn-in does not help."
    )
    return True


def warn_of_rounding(log_prob: Any) -> None:
    """Warns if log densities are so large that rounding them changes which steps are accepted.

    Args:
      log_prob: log densities at states of the chains, of any shape.

    >>> warn_of_rounding(np.float32([-1e6, -2e6]))
    """
    values = np.abs(np.asarray(log_prob))
    values = values[np.isfinite(values)]
    if not values.size:
        return
    size = np.median(values)
    spacing = float(np.spacing(size.astype(values.dtype)))
    if spacing > _COARSE:
        warn(
            f"The log density is about {size:.2g} in size, where {values.dtype.name} numbers are {spacing:.2g} apart. "
            "Metropolis steps compare log densities, so rounding changes which steps are accepted. Subtract a constant "
            "from the energy where it is computed, or compute the energy in float64."
        )


def _value_and_gradient(log_prob_fn: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tuple[tf.Tensor, Any]:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        log_prob = log_prob_fn(x)
    return log_prob, tape.gradient(log_prob, x)


def warn_of_gradients(num_failed: int, num_chains: int) -> None:
    """Warns about chains with a NaN or infinite gradient at a point where the log density is finite."""
    if num_failed:
        warn(
            f"In {num_failed} of {num_chains} chains the gradient of the target was NaN or infinite at a point where "
            "its log density is finite. Every proposal through such a point is rejected, so the draws may miss a part "
            "of the target. Usual causes are tf.norm or tf.sqrt at 0, and tf.where with an unused branch that is NaN. "
            "Under XLA such a gradient can differ from that in graph mode."
        )
