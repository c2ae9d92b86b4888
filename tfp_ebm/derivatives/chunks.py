"""Sums over chunks of directions that need the memory of one chunk only, in the sum and in its gradient.

Automatic differentiation of a loop keeps the intermediate results of every iteration. Here the gradient is another
loop, which computes each chunk again and differentiates it immediately. Memory then does not grow with the number of
chunks, at the cost of one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Chunk = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def sum_over_chunks(chunk: Chunk, x: tf.Tensor, num_chunks: int) -> tf.Tensor:
    """Computes Σᵢ chunk(x, i), differentiable in x and in the variables that `chunk` reads.

    Args:
      chunk: `(x [batch, *event], i) -> [batch]`. It must not depend on other differentiated tensors: captured tensors
        are constants in its gradient.
      x: states `[batch, *event]`.
      num_chunks: number of chunks.

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


def map_over_chunks(chunk: Chunk, x: tf.Tensor, directions: tf.Tensor) -> tf.Tensor:
    """Computes chunk(x, directions[i]) for every i, differentiable in x, in the directions and in variables.

    Args:
      chunk: `(x [batch, *event], v [step, ...]) -> [step, batch]`. It must not depend on other differentiated tensors.
      x: states `[batch, *event]`.
      directions: `[chunks, step, ...]`.

    Returns:
      The results, `[chunks, step, batch]`.
    """

    @tf.custom_gradient
    def every(x: tf.Tensor, directions: tf.Tensor) -> Any:
        num_chunks, step = directions.shape[:2]

        def fill(i: tf.Tensor, results: tf.Tensor) -> list[tf.Tensor]:
            return [i + 1, _with_row(results, i, chunk(x, tf.gather(directions, i)))]

        shape = tf.stack([num_chunks, step, tf.shape(x)[0]])
        result = _loop(fill, [tf.zeros(shape, x.dtype)], num_chunks)[0]

        def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] | None = None) -> Any:
            sources = [x, *(variables or ())]

            def accumulate(i: tf.Tensor, of_directions: tf.Tensor, *so_far: tf.Tensor) -> list[tf.Tensor]:
                v = tf.gather(directions, i)
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([*sources, v])
                    part = chunk(x, v)
                *gradients, of_v = tape.gradient(
                    part, [*sources, v], tf.gather(upstream, i), unconnected_gradients=tf.UnconnectedGradients.ZERO
                )
                sums = [a + tf.convert_to_tensor(b) for a, b in zip(so_far, gradients, strict=True)]
                return [i + 1, _with_row(of_directions, i, of_v), *sums]

            start = [tf.zeros_like(directions), *(tf.zeros_like(source) for source in sources)]
            of_directions, of_x, *of_variables = _loop(accumulate, start, num_chunks)
            return ((of_x, of_directions), of_variables) if variables is not None else (of_x, of_directions)

        return tf.ensure_shape(result, [num_chunks, step, x.shape[0]]), gradient

    return every(x, directions)


def _with_row(rows: tf.Tensor, i: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.tensor_scatter_nd_update(rows, [[i]], row[tf.newaxis]), rows.shape)


def _loop(body: Callable[..., Any], start: list[tf.Tensor], times: int) -> list[tf.Tensor]:
    _, *results = tf.while_loop(
        lambda i, *_: i < times, body, [tf.constant(0), *start], parallel_iterations=1, maximum_iterations=times
    )
    return results
