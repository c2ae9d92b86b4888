"""The loop over the steps of a kernel.

Burn-in, kept steps and dropped steps are all steps of one `tf.while_loop`, so the kernel appears once in the compiled
program. The noise of step t depends on the seed of the step alone, so the loop can stop at any step and continue in
another call, and the result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp


def iterate(step: Callable[..., tuple[Any, ...]], steps: tuple[Any, Any], *carried: Any) -> tuple[Any, ...]:
    """Repeats `carried = step(t, *carried)` for t from `steps[0]` to `steps[1] - 1`, and returns `carried`."""
    return tf.while_loop(
        lambda t, *_: t < steps[1],
        lambda t, *carried: (t + 1, *step(t, *carried)),
        (tf.convert_to_tensor(steps[0]), *carried),
        parallel_iterations=1,
    )[1:]


def seeds_of(key: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function that maps the number of a step to its seed, int32[2]."""
    return lambda t: tf.stack([key, t])


def run_steps(
    kernel_at: Callable[[tf.Tensor], tfp.mcmc.TransitionKernel],
    state: tf.Tensor,
    results: Any,
    steps: tuple[Any, Any],
    seed_at: Callable[[tf.Tensor], tf.Tensor],
    record: Any = (),
    add: Callable[..., Any] = lambda record, *_: record,
) -> tuple[tf.Tensor, Any, Any]:
    """Runs the steps `steps[0]` to `steps[1] - 1` of chains.

    Args:
      kernel_at: returns the kernel of step t.
      state: `[*chains, *event]`.
      results: the kernel's results at `state`.
      steps: the numbers of the first step and of the step after the last.
      seed_at: returns the seed of step t.
      record: the initial record.
      add: `(record, t, state before, state after, results after) -> record`.

    Returns:
      The state, results and record after the last step.
    """

    def step(t: tf.Tensor, state: tf.Tensor, results: Any, record: Any) -> tuple[tf.Tensor, Any, Any]:
        moved, results = kernel_at(t).one_step(state, results, seed=seed_at(t))
        moved = tf.ensure_shape(moved, state.shape)
        return moved, results, add(record, t, state, moved, results)

    return iterate(step, steps, state, results, record)
