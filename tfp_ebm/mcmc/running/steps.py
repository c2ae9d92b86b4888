"""A few steps of many chains inside a training step: no draws are kept, only where the chains are and how it went."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.mcmc.results import accept_prob, find
from tfp_ebm.random import chain_key, fold_in


class Moved(NamedTuple):
    """Chains after some steps.

    Attributes:
      states: `[num_chains, *event]`.
      log_prob: the target there, `[num_chains]`, or None for a kernel whose results do not tell.
      accept_prob: mean over steps and chains of min(1, acceptance ratio), a non-finite ratio counting as 0; 1 for
        kernels that accept everything.
    """

    states: tf.Tensor
    log_prob: tf.Tensor | None
    accept_prob: tf.Tensor


def move(kernel: tfp.mcmc.TransitionKernel, states: tf.Tensor, num_steps: int, seed: tf.Tensor) -> Moved:
    """Runs `num_steps` steps of a TFP kernel; part of the function that is being compiled.

    Args:
      kernel: of a target `[num_chains, *event] -> [num_chains]`.
      states: `[num_chains, *event]`.
      num_steps: at least 1.
      seed: int32[2].

    >>> from tfp_ebm.mcmc.kernels import MALA
    >>> kernel = MALA(0.5)(lambda x: -0.5 * tf.reduce_sum(x**2, -1))
    >>> moved = move(kernel, tf.zeros([100, 2]), 5, tf.constant([0, 1]))
    >>> moved.states.shape, bool(0.5 < moved.accept_prob < 1.0)
    (TensorShape([100, 2]), True)
    """
    key = chain_key(seed)

    def step(
        count: tf.Tensor, states: tf.Tensor, results: Any, total: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, Any, tf.Tensor]:
        moved, results = kernel.one_step(states, results, seed=tf.stack([key, count]))
        return count + 1, tf.ensure_shape(moved, states.shape), results, total + accept_prob(results, states.dtype)

    start = (tf.constant(0), states, kernel.bootstrap_results(states), tf.zeros([], states.dtype))
    _, states, results, total = tf.while_loop(lambda count, *_: count < num_steps, step, start, parallel_iterations=1)
    log_prob = find(results, "target_log_prob")
    return Moved(states, log_prob, total / num_steps)


def move_by_xla(
    kernel: tfp.mcmc.TransitionKernel, states: tf.Tensor, num_steps: int, seed: tf.Tensor, *, halve: bool
) -> Moved:
    """`move`, compiled by XLA inside a function that is not.

    Args:
      kernel, states, num_steps, seed: as for `move`.
      halve: whether the two halves of the chains become calls that the outer function can make at the same time, each
        on a core of its own; the kernel must then move every chain by itself. Draws are others than those of `move`.
    """
    # `partial`, because TensorFlow counts traces by code object and would warn of those of many losses.
    compiled = functools.partial(move, kernel, num_steps=num_steps)
    if not tf.executing_eagerly():  # where every call would be compiled anew
        compiled = tf.function(compiled, autograph=False, jit_compile=True)
    if not halve:
        return compiled(states, seed=seed)
    number = tf.shape(states)[0]
    half = number // 2
    first, second = (compiled(part, seed=fold_in(seed, i)) for i, part in enumerate((states[:half], states[half:])))
    states, log_prob = tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), first[:2], second[:2])
    sizes = tf.cast(tf.stack([half, number - half]), states.dtype)
    # the first half of one chain is empty, and its mean NaN
    total = tf.reduce_sum(tf.math.multiply_no_nan(tf.stack([first.accept_prob, second.accept_prob]), sizes))
    return Moved(states, log_prob, total / tf.reduce_sum(sizes))
