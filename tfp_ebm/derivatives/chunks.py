"""Sums over chunks of directions, whose memory stays that of one chunk: in the sum and in its gradient.

A loop that automatic differentiation runs backwards keeps every iteration's intermediate results. Here the gradient is
another loop that computes each chunk again and differentiates it on the spot, so that memory does not grow with the
number of chunks, at the price of one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Chunk = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def sum_over_chunks(chunk: Chunk, x: tf.Tensor, num_chunks: int) -> tf.Tensor:
    """Σᵢ chunk(x, i), differentiable in x and in the variables that `chunk` reads.

    Args:
      chunk: `(x [batch, *event], i) -> [batch]`. It must depend on nothing else that is differentiated: tensors that
        it captures are constants to its gradient.
      x: states `[batch, *event]`.
      num_chunks: how many there are.

    Returns:
      The sum, `[batch]`.
    """

    @tf.custom_gradient
    def total(x: tf.Tensor) -> Any:
        def add(i: tf.Tensor, so_far: tf.Tensor) -> list[tf.Tensor]:
            return [i + 1, so_far + chunk(x, i)]

        result = _loop(add, [tf.zeros(tf.shape(x)[:1], x.dtype)], num_chunks)[0]

        def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] | None = None) -> Any:
            sources = [x, *(variables or ())]

            def accumulate(i: tf.Tensor, *so_far: tf.Tensor) -> list[tf.Tensor]:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    part = chunk(x, i)
                gradients = tape.gradient(part, sources, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)
                return [i + 1, *(a + tf.convert_to_tensor(b) for a, b in zip(so_far, gradients, strict=True))]

            sums = _loop(accumulate, [tf.zeros_like(source) for source in sources], num_chunks)
            return (sums[0], sums[1:]) if variables is not None else sums[0]

        return tf.ensure_shape(result, x.shape[:1]), gradient

    return total(x)


def _loop(body: Callable[..., Any], start: list[tf.Tensor], times: int) -> list[tf.Tensor]:
    _, *results = tf.while_loop(
        lambda i, *_: i < times, body, [tf.constant(0), *start], parallel_iterations=1, maximum_iterations=times
    )
    return results
