"""Functions that read and update the current state's log density and gradient in nested TFP kernel results.

In addition to diagnostics, a kernel's results hold the log density of the current state and, for gradient kernels,
∇log p. The results of a kernel that wraps another one contain the inner results as `inner_results` or
`accepted_results`. The results of a proposal (`proposed_results`) are never read.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

# Fields that depend on the current state alone.
POINT = ("target_log_prob", "grads_target_log_prob", "transformed_state")


_NESTED = ("inner_results", "accepted_results")


def find(results: Any, name: str) -> Any:
    """Returns the outermost field of that name in nested kernel results; None if it is missing or empty."""
    while results is not None:
        if tf.nest.flatten(getattr(results, name, ())):
            return getattr(results, name)
        results = next((getattr(results, nested) for nested in _NESTED if hasattr(results, nested)), None)
    return None


def accept_prob(results: Any, dtype: tf.DType) -> tf.Tensor:
    """Returns the mean over chains of min(1, acceptance ratio), where NaN counts as 0; 1 if nothing is rejected."""
    log_ratio = find(results, "log_accept_ratio")
    if log_ratio is None:
        return tf.ones([], dtype)
    log_ratio = tf.cast(log_ratio, dtype)
    log_ratio = tf.where(tf.math.is_nan(log_ratio), tf.constant(-float("inf"), dtype), log_ratio)
    return tf.reduce_mean(tf.exp(tf.minimum(log_ratio, 0.0)))


def replaced(results: Any, **fields: Any) -> Any:
    """Returns nested kernel results in which every field of the given names is replaced."""
    if not hasattr(results, "_fields"):
        return results
    changes = {
        name: tf.nest.pack_sequence_as(getattr(results, name), tf.nest.flatten(value))
        for name, value in fields.items()
        if name in results._fields
    }
    changes |= {name: replaced(getattr(results, name), **fields) for name in _NESTED if name in results._fields}
    return results._replace(**changes)


def refreshed(results: Any, fresh: Any) -> Any:
    """Copies the current-state fields of `fresh`, results of the same structure, into nested kernel results."""
    if isinstance(results, tuple) and not hasattr(results, "_fields"):
        return tuple(refreshed(*pair) for pair in zip(results, fresh, strict=True))
    if not hasattr(results, "_fields"):
        return results
    changes = {name: getattr(fresh, name) for name in POINT if name in results._fields}
    for name in (*_NESTED, "part_results"):
        if name in results._fields:
            changes[name] = refreshed(getattr(results, name), getattr(fresh, name))
    return results._replace(**changes)


def is_accepted(
    kernel: tfp.mcmc.TransitionKernel, results: Any, before: tf.Tensor, after: tf.Tensor, like: tf.Tensor
) -> tf.Tensor:
    """Returns whether a step was accepted, bool of the shape of `like`, `[*chains]`.

    The value is True for kernels that accept everything. If the results do not record it, it is whether the chain
    moved.
    """
    if not kernel.is_calibrated:
        return tf.ones_like(like, tf.bool)
    accepted = find(results, "is_accepted")
    if accepted is None:
        accepted = tf.reduce_any(before != after, axis=list(range(like.shape.rank, after.shape.rank)))
    return accepted
