"""A few steps of many chains within a training step: only final states and the acceptance are kept, no draws."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn, build
from tfp_ebm.mcmc.results import accept_prob, find
from tfp_ebm.mcmc.running.chain import value_at_start
from tfp_ebm.mcmc.running.loop import run_steps, seeds_of
from tfp_ebm.random import chain_key, fold_in
from tfp_ebm.tracing import graph_function


class Moved(NamedTuple):
    """Chains after some steps.

    Attributes:
      states: `[num_chains, *event]`.
      log_prob: the target at the states, `[num_chains]`, or None for a kernel whose results do not hold it.
      accept_prob: mean over steps and chains of min(1, acceptance ratio), where a non-finite ratio counts as 0; 1 for
        kernels that accept everything.
    """

    states: tf.Tensor
    log_prob: tf.Tensor | None
    accept_prob: tf.Tensor


def move(kernel: tfp.mcmc.TransitionKernel, states: tf.Tensor, num_steps: Any, seed: tf.Tensor) -> Moved:
    """Runs `num_steps` steps of a TFP kernel, as part of the function being compiled.

    Args:
      kernel: a kernel of a target `[num_chains, *event] -> [num_chains]`.
      states: `[num_chains, *event]`.
      num_steps: at least 1; int, or int32 scalar.
      seed: int32[2].

    >>> from tfp_ebm.mcmc.kernels import MALA
    >>> kernel = MALA(0.5)(lambda x: -0.5 * tf.reduce_sum(x**2, -1))
    >>> moved = move(kernel, tf.zeros([100, 2]), 5, tf.constant([0, 1]))
    >>> moved.states.shape, bool(0.5 < moved.accept_prob < 1.0)
    (TensorShape([100, 2]), True)
    """
    dtype = states.dtype
    states, results, total = run_steps(
        lambda _: kernel,
        states,
        kernel.bootstrap_results(states),
        (0, num_steps),
        seeds_of(chain_key(seed)),
        tf.zeros([], dtype),
        lambda total, t, before, after, results: total + accept_prob(results, dtype),
    )
    return Moved(states, find(results, "target_log_prob"), total / tf.cast(num_steps, dtype))


def last_state(
    target: TargetLogProbFn, kernel: Any, state: tf.Tensor, step_size: Any, seed: tf.Tensor, num_steps: tf.Tensor
) -> tf.Tensor:
    """Returns the state after `num_steps` steps that `ebm.mcmc.sample` would run, inside a function being compiled.

    Args:
      target: log p up to a constant, `[*chains, *event] -> [*chains]`.
      kernel: a kernel of `ebm.mcmc`, or any callable `target -> tfp.mcmc.TransitionKernel`.
      state: `[*chains, *event]`.
      step_size: the kernel's step size, in the form of its `initial_step_size`; () for a kernel without one.
      seed: int32[2].
      num_steps: int32 scalar.
    """
    value_at_start(target, kernel, state)
    return move(build(kernel, target, step_size), state, num_steps, seed).states


def move_by_xla(
    kernel: tfp.mcmc.TransitionKernel, states: tf.Tensor, num_steps: int, seed: tf.Tensor, *, halve: bool
) -> Moved:
    """Runs `move` compiled by XLA, inside a function that XLA does not compile.

    Args:
      kernel, states, num_steps, seed: as for `move`.
      halve: whether the two halves of the chains become two calls, which the outer function can make at the same time,
        each on its own core. The kernel must then move each chain independently. The draws differ from those of
        `move`.
    """
    compiled = functools.partial(move, kernel, num_steps=num_steps)
    if not tf.executing_eagerly():  # eagerly, every call would be compiled again
        compiled = graph_function(compiled, jit_compile=True)
    if not halve:
        return compiled(states, seed=seed)
    number = tf.shape(states)[0]
    half = number // 2
    first, second = (compiled(part, seed=fold_in(seed, i)) for i, part in enumerate((states[:half], states[half:])))
    states, log_prob = tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), first[:2], second[:2])
    sizes = tf.cast(tf.stack([half, number - half]), states.dtype)
    # with one chain the first half is empty, and its mean is NaN
    total = tf.reduce_sum(tf.math.multiply_no_nan(tf.stack([first.accept_prob, second.accept_prob]), sizes))
    return Moved(states, log_prob, total / tf.reduce_sum(sizes))
