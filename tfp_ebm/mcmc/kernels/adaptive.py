"""Adaptation of step sizes to the acceptance.

Dual averaging (Nesterov 2009; Hoffman & Gelman 2014, §3.2) moves log ε by the running sum of (target acceptance − mean
acceptance of the chains). After the adaptation, ε is fixed at a weighted average of the values tried. While ε depends
on the past, the chain has no invariant distribution, so only draws after the adaptation are valid. The adaptation ends
within the burn-in; from then on the step size is constant.

`tfp.mcmc.DualAveragingStepSizeAdaptation` computes the average. It expects the step size in the kernel's results, but
TFP's random walk and Langevin kernels do not store it there; `_Tunable` does so for every kernel of this package.

A proposal whose acceptance ratio is not finite counts as rejected. A chain at a state where log p itself is not finite
rejects everything, at any step size; it is ignored, otherwise a few stuck chains would drive the step size to zero.

For chains without a burn-in (chains in a training step, pilot runs of annealed importance sampling),
`log_step_size_change` adapts log ε to the acceptance, without averaging.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments
from tfp_ebm.caller import warn
from tfp_ebm.mcmc.kernels.kernel import Kernel, LateKernel, TargetLogProbFn, Wrapper
from tfp_ebm.mcmc.results import find

# Adaptation ends before the burn-in, so that the chain forgets the states that determined its step size.
_ADAPTED_SHARE_OF_BURNIN = 0.8


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class Adaptive(Wrapper):
    """A kernel that adapts its step size during the first steps, until a given share of its proposals is accepted.

    All chains share one step size, which is adapted to their mean of min(1, acceptance ratio). A proposal with a
    non-finite ratio counts as rejected; a chain that is stuck where log p is not finite does not count. Arrays of step
    sizes and masses keep their proportions, since only one factor is adapted. With `num_adaptation_steps=0`, or without
    burn-in steps, the kernel equals the inner kernel.

    Args:
      kernel: `HMC`, `MALA`, `NUTS` or `RandomWalk`; the adaptation starts at its step size.
      num_adaptation_steps: number of adaptation steps. Default: 80 % of the burn-in of `ebm.mcmc.sample`.
      target_accept_prob: the target acceptance, in (0, 1). Default: the kernel's optimum, .75 for HMC, .8 for NUTS,
        .574 for MALA, .234 for RandomWalk.

    Raises:
      TypeError: if `kernel` cannot be adapted.
      ValueError: if `kernel` accepts everything (Langevin), or a number is out of range.

    >>> from tfp_ebm.mcmc.kernels import MALA
    >>> Adaptive(MALA(step_size=0.1)).target_accept_prob
    0.574
    """

    kernel: Kernel
    num_adaptation_steps: int | None = None
    target_accept_prob: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel) or isinstance(self.kernel, Adaptive):
            raise TypeError(f"`kernel` must be an HMC, MALA, NUTS or RandomWalk, got {self.kernel!r}.")
        optimum = self.kernel.optimal_accept_prob
        if optimum is None:
            raise ValueError(
                "`kernel` must have a step size, and accept or reject its proposals, as HMC, MALA, NUTS and RandomWalk "
                f"do, got {self.kernel!r}. If it wraps other kernels, adapt those instead."
            )
        target = arguments.check_positive(
            "target_accept_prob", optimum if self.target_accept_prob is None else self.target_accept_prob
        )
        if target >= 1:
            raise ValueError(f"`target_accept_prob` must lie between 0 and 1, got {target!r}.")
        steps = self.num_adaptation_steps
        self._normalize(
            num_adaptation_steps=None if steps is None else arguments.check_count("num_adaptation_steps", steps, 0),
            target_accept_prob=target,
        )

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`; the adaptation starts at `step_size`."""
        if self.num_adaptation_steps is None:
            raise ValueError(
                "`num_adaptation_steps` must be given: its default depends on the burn-in of `ebm.mcmc.sample`."
            )
        return tfp.mcmc.DualAveragingStepSizeAdaptation(
            _Tunable(self.kernel, target_log_prob_fn, step_size),
            num_adaptation_steps=self.num_adaptation_steps,
            target_accept_prob=self.target_accept_prob,
            step_size_setter_fn=lambda results, value: results._replace(step_size=value),
            step_size_getter_fn=lambda results: results.step_size,
            log_accept_prob_getter_fn=self._log_accept_prob,
        )

    def _log_accept_prob(self, results: Any) -> tf.Tensor:
        """Returns log min(1, ratio) of each chain; for a stuck chain the log of the target acceptance (no effect)."""
        ratio, log_prob = find(results, "log_accept_ratio"), find(results, "target_log_prob")
        log_accept_prob = tf.where(tf.math.is_finite(ratio), tf.minimum(ratio, 0.0), -math.inf)
        indifferent = tf.math.log(tf.constant(self.target_accept_prob, log_prob.dtype))
        return tf.where(tf.math.is_finite(log_prob), log_accept_prob, indifferent)

    @property
    def is_adaptive(self) -> bool:
        """Whether the step size adapts: True."""
        return True

    @property
    def unadapted(self) -> Kernel:
        """The inner kernel."""
        return self.kernel

    def with_burnin(self, num_burnin_steps: int) -> Adaptive:
        """Returns this kernel with a fixed number of adaptation steps."""
        if self.num_adaptation_steps is not None:
            if self.num_adaptation_steps > num_burnin_steps:
                warn(
                    f"The step size adapts for {self.num_adaptation_steps} steps, but the burn-in has "
                    f"{num_burnin_steps}: draws kept during the adaptation do not follow the target.",
                )
            return self
        return dataclasses.replace(self, num_adaptation_steps=int(_ADAPTED_SHARE_OF_BURNIN * num_burnin_steps))

    def step_size_after(self, results: Any, step_size: Any) -> Any:
        """Returns the adapted step size."""
        del step_size
        return results.new_step_size


def log_step_size_change(gain: Any, accept_prob: tf.Tensor, target_accept_prob: float) -> tf.Tensor:
    """Computes the change of log ε that adapts a step size to the acceptance, g·(acceptance − target).

    >>> float(log_step_size_change(0.5, tf.constant(0.75), 0.25))
    0.25
    """
    return gain * (accept_prob - target_accept_prob)


class _TunableResults(NamedTuple):
    inner_results: Any
    step_size: Any


class _Tunable(LateKernel):
    """A kernel that reads the step size from its results and rebuilds its inner kernel with it at each step."""

    def _build(self, step_size: Any) -> tfp.mcmc.TransitionKernel:
        return self._parameters["kernel"].build(self._parameters["target_log_prob_fn"], step_size)

    def bootstrap_results(self, init_state: Any) -> _TunableResults:
        inner_results = self._build(self._parameters["step_size"]).bootstrap_results(init_state)
        dtype = tf.nest.flatten(init_state)[0].dtype
        return _TunableResults(inner_results, tf.convert_to_tensor(self._parameters["step_size"], dtype))

    def one_step(
        self, current_state: Any, previous_kernel_results: _TunableResults, seed: Any = None
    ) -> tuple[Any, _TunableResults]:
        step_size = previous_kernel_results.step_size
        inner_results = previous_kernel_results.inner_results
        # NUTS reads its step size from its results; the other kernels leave that field empty or lack it.
        if tf.is_tensor(getattr(inner_results, "step_size", None)):
            inner_results = inner_results._replace(step_size=step_size)
        state, inner_results = self._build(step_size).one_step(current_state, inner_results, seed=seed)
        return state, _TunableResults(inner_results, step_size)
