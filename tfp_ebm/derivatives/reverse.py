"""First and second derivatives by reverse mode: nested tapes, good for any differentiable energy.

E(x) maps `[..., *event]` to `[...]`, one number per row, and rows do not see each other. So the gradient of ΣE is,
row by row, ∇ₓE, and the gradient of Σ⟨∇E, v⟩ is the Hessian-vector product Hv: two tapes, reverse over reverse.
The energy and its gradient are computed once and serve every direction; each direction costs one backward pass more.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

# Directions of one chunk, whose backward passes are written out one after the other.
UNROLLED = 8
# Directions up to which they are written out where chunks are not possible; a loop does more, but not under XLA.
MAX_UNROLLED = 64


def gradient_of_energy(energy_fn: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """E(x) and ∇ₓE(x) by one backward pass; an outer tape sees through both."""
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
    """E, vₖ·∇E and vₖᵀ∇²E vₖ by reverse over reverse.

    Args:
      energy_fn: E, `[..., *event] -> [...]`.
      x: states `[..., *event]`.
      directions: v, `[K, ..., *event]`, or with sizes 1 in place of the leading dimensions.
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
