"""Random-walk Metropolis (§2.1.2 of the note): TFP's kernel with steps from `tfp_ebm.random`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn, _positive


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis (§2.1.2): proposes x* = x + scale·Z and accepts with probability min(1, p(x*)/p(x)).

    It needs no gradient. The implementation is `tfp.mcmc.RandomWalkMetropolis` with normal steps. Roberts, Gelman &
    Gilks (1997) recommend an acceptance of .234 in many dimensions and .44 in one dimension.

    Args:
      scale: standard deviation of the proposed step; a number, or an array that broadcasts to the event.

    Raises:
      TypeError, ValueError: if `scale` is not a positive number or an array of positive numbers.

    >>> kernel = RandomWalk(scale=0.5)
    >>> type(kernel(lambda x: -0.5 * x**2)).__name__
    'RandomWalkMetropolis'
    """

    scale: Any
    step_size_field: ClassVar[str | None] = "scale"
    moves_chains_alone: ClassVar[bool] = True
    optimal_accept_prob: ClassVar[float | None] = 0.234

    def __post_init__(self) -> None:
        self._normalize(scale=_positive("scale", self.scale))

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""

        # `tfp.mcmc.random_walk_normal_fn` draws with a generator that is slow on a CPU under XLA
        def propose(parts: list[tf.Tensor], seed: tf.Tensor) -> list[tf.Tensor]:
            steps = [random.normal(tf.shape(x), random.fold_in(seed, i), x.dtype) for i, x in enumerate(parts)]
            return [x + tf.cast(step_size, x.dtype) * step for x, step in zip(parts, steps, strict=True)]

        return tfp.mcmc.RandomWalkMetropolis(target_log_prob_fn, new_state_fn=propose)

    @property
    def uses_gradient(self) -> bool:
        """Whether the gradient is used: False."""
        return False
