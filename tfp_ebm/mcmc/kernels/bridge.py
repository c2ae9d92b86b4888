"""One step at a density p_β ∝ b^(1−β) p^β between a base b and a target p."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn, build


def bridge_step(
    kernel: Any,
    target_log_prob_fn: TargetLogProbFn,
    base_log_prob_fn: TargetLogProbFn,
    beta: tf.Tensor,
    step_size: Any,
    state: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, Any]:
    """Makes one step of a kernel that leaves p_β invariant.

    The kernel is built and initialised anew at each call. The log density and gradient in its results depend on β;
    reusing the values of another β would bias the acceptance, and with it the weights of annealed importance sampling.

    Args:
      kernel: a kernel of `ebm.mcmc`, or any callable `target -> tfp.mcmc.TransitionKernel`.
      target_log_prob_fn, base_log_prob_fn: log p and log b, up to a constant, `[*chains, *event] -> [*chains]`.
      beta: β, scalar of the state's dtype.
      step_size: the step size of a kernel of `ebm.mcmc`.
      state: `[*chains, *event]`.
      seed: int32[2].

    Returns:
      The new state, and the kernel's results there.
    """

    def log_prob(x: tf.Tensor) -> tf.Tensor:
        return beta * target_log_prob_fn(x) + (1 - beta) * base_log_prob_fn(x)

    built = build(kernel, log_prob, step_size)
    moved, results = built.one_step(state, built.bootstrap_results(state), seed=seed)
    return tf.ensure_shape(moved, state.shape), results
