"""Metropolis-Hastings steps that record faults which TFP silently treats as rejections.

`tfp.mcmc.MetropolisHastings` rejects every proposal whose acceptance ratio is not finite. This hides two faults:

- The gradient is NaN at a point where the log density is finite, as for `tf.norm` at 0. Every trajectory through such a
  point is rejected, so the chain stays on one side of it, or at its start. `CheckedMetropolis` records, for each chain,
  whether this has happened.
- The density at the chain's state is zero or NaN. The ratio p(x*)/p(x) is then infinite, so a proposal of positive
  density should be accepted. TFP rejects it, and the chain never moves. `RescuingMetropolis` accepts it.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

# Difference of log densities beyond which a proposal is certain to be rejected, as in TFP's No-U-Turn Sampler.
_MAX_DIFFERENCE = 1000.0

# Fields of kernel results that hold the results of another kernel for the state that the chain is in.
_NESTED = ("accepted_results", "inner_results", "post_swap_replica_results", "part_results")


def is_bad_gradient(log_prob: tf.Tensor, gradients: list[tf.Tensor], current: tf.Tensor) -> tf.Tensor:
    """Returns whether the gradient is NaN or infinite at a point that the chain could visit, bool `[*chains]`.

    A point whose log density is not finite, or is lower than the chain's by more than 1000, is rejected in any case. At
    such a point an overflow of the gradient does not count.

    Args:
      log_prob: log density at the point, `[*chains]`.
      gradients: its gradients at the point, for each part of the state, `[*chains, *event]`.
      current: the log density at the chain's current state, `[*chains]`.

    >>> gradient = tf.constant([[1.0], [float("nan")], [float("nan")]])
    >>> is_bad_gradient(tf.constant([0.0, 0.0, -1e6]), [gradient], tf.zeros([3])).numpy().tolist()
    [False, True, False]
    """
    near = tf.math.is_finite(log_prob) & (log_prob > current - _MAX_DIFFERENCE)
    bad = tf.zeros_like(near)
    for gradient in gradients:
        axes = list(range(log_prob.shape.rank, gradient.shape.rank))
        bad |= near & ~tf.reduce_all(tf.math.is_finite(gradient), axes)
    return bad


def gradient_failed(results: Any) -> tf.Tensor | None:
    """Returns whether each chain has had a non-finite gradient, bool `[*chains]`; None if no kernel checked this.

    Args:
      results: the results of any TFP kernel, possibly nested.
    """
    if hasattr(results, "gradient_failed"):
        return results.gradient_failed if tf.is_tensor(results.gradient_failed) else None
    if isinstance(results, tuple) and not hasattr(results, "_fields"):
        found = [part for part in map(gradient_failed, results) if part is not None]
        return tf.reduce_any(tf.stack(found), 0) if found else None
    for name in _NESTED:
        if hasattr(results, name):
            failed = gradient_failed(getattr(results, name))
            # the first axis of the results of replica exchange is the replica
            return tf.reduce_any(failed, 0) if failed is not None and name == "post_swap_replica_results" else failed
    return None


class CheckedMetropolis(tfp.mcmc.MetropolisHastings):
    """`tfp.mcmc.MetropolisHastings` around a kernel with the result field `gradient_failed`, which stays set.

    Args:
      inner_kernel, name: as TFP's.
    """

    def one_step(self, current_state: Any, previous_kernel_results: Any, seed: Any = None) -> tuple[Any, Any]:
        """Proposes, and accepts or rejects."""
        state, results = super().one_step(current_state, previous_kernel_results, seed=seed)
        failed = previous_kernel_results.accepted_results.gradient_failed | results.proposed_results.gradient_failed
        return state, results._replace(accepted_results=results.accepted_results._replace(gradient_failed=failed))


class RescuingMetropolis(tfp.mcmc.MetropolisHastings):
    """`tfp.mcmc.MetropolisHastings` that can leave states where the density is zero or NaN.

    Args:
      inner_kernel, name: as TFP's.
    """

    def one_step(self, current_state: Any, previous_kernel_results: Any, seed: Any = None) -> tuple[Any, Any]:
        """Proposes, and accepts or rejects."""
        state, results = super().one_step(current_state, previous_kernel_results, seed=seed)
        before, proposed = previous_kernel_results.accepted_results, results.proposed_results
        rescued = ~tf.math.is_finite(before.target_log_prob) & tf.math.is_finite(proposed.target_log_prob)

        def chosen(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
            missing = new.shape.rank - rescued.shape.rank
            return tf.where(tf.reshape(rescued, tf.concat([tf.shape(rescued), [1] * missing], 0)), new, old)

        accepted = results.accepted_results
        return tf.nest.map_structure(chosen, results.proposed_state, state), results._replace(
            accepted_results=accepted._replace(
                target_log_prob=chosen(proposed.target_log_prob, accepted.target_log_prob)
            ),
            is_accepted=results.is_accepted | rescued,
            log_accept_ratio=chosen(tf.zeros_like(results.log_accept_ratio), results.log_accept_ratio),
        )
