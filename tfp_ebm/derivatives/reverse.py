"""First and second derivatives by reverse mode: nested tapes, for any differentiable energy.

E(x) maps `[..., *event]` to `[...]`, one number per row, and rows do not depend on each other. The gradient of ΣE is
therefore, row by row, ∇ₓE, and the gradient of Σ⟨∇E, v⟩ is the Hessian-vector product Hv: two tapes, reverse over
reverse. The energy and its gradient are computed once for all directions; each direction costs one more backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Number of directions in one chunk, whose backward passes are unrolled.
UNROLLED = 8
# Largest number of directions to unroll if chunks are not possible; a loop handles more, but not under XLA.
MAX_UNROLLED = 64


def gradient_of_energy(energy_fn: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes E(x) and ∇ₓE(x) by one backward pass; an outer tape can differentiate both."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        energy = energy_fn(x)
    gradient = tape.gradient(energy, x)
    if gradient is None:
        raise ValueError(
            "`energy_fn` must be differentiable in x, but no path leads from x to E(x): its gradient is None."
        )
    return energy, gradient


def reverse_jet(
    energy_fn: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, directions: tf.Tensor, per_direction: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, ∇E and vₖᵀ∇²E vₖ by reverse over reverse.

    Args:
      energy_fn: E, `[..., *event] -> [...]`.
      x: states `[..., *event]`.
      directions: v, `[K, ..., *event]`, or with size 1 for the leading dimensions.
      per_direction: whether second derivatives are returned for each direction instead of summed.

    Returns:
      `(E [...], ∇E [..., *event], second derivatives [K, ...] or their sum [...])`.
    """
    with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
        tape.watch(x)
        energy, gradient = gradient_of_energy(energy_fn, x)
    event_axes = list(range(energy.shape.rank, x.shape.rank))

    def second_derivative(v: tf.Tensor) -> tf.Tensor:
        upstream = tf.broadcast_to(v, tf.shape(x))
        product = tape.gradient(gradient, x, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.reduce_sum(product * v, event_axes)

    count = directions.shape[0]
    if count is not None and count <= MAX_UNROLLED:
        second = tf.stack([second_derivative(directions[k]) for k in range(count)])
    else:
        signature = tf.TensorSpec(energy.shape, energy.dtype)
        second = tf.map_fn(second_derivative, directions, fn_output_signature=signature, parallel_iterations=1)
    return energy, gradient, second if per_direction else tf.reduce_sum(second, 0)
