"""Tempered transitions: a global move that anneals a draw of the base to the target (Neal 1996).

A draw of the base is accepted as a move of the chain only if base and target overlap, which is rare in many dimensions.
The draw can first be moved towards the target through the densities

    p_β ∝ b^(1−β) p^β,    1 = β₀ > β₁ > … > β_K = 0,

by one step T_k at each density. To make the move reversible, the current state is moved to the base in the same way:

    x = x̂₀ → T₁ → x̂₁ → … → x̂_{K−1},    y ~ b = x̌_{K−1} → T_{K−1} → … → T₁ → x̌₀ = x*,

and x* is accepted with probability min(1, exp Σ_k (β_k − β_{k+1}) (h(x̌_k) − h(x̂_k))), h = log p − log b. K = 1 is the
independence sampler; the more densities, the closer the ratio is to one. Any T_k that is reversible for p_{β_k} is
valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import check_count
from tfp_ebm.energy.base import check_base, draw
from tfp_ebm.mcmc.kernels.bridge import bridge_step
from tfp_ebm.mcmc.kernels.kernel import Kernel, LateKernel, TargetLogProbFn, Wrapper, is_calibrated
from tfp_ebm.mcmc.kernels.metropolis import base_in_coordinates
from tfp_ebm.mcmc.running.loop import iterate
from tfp_ebm.random import fold_in


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class TemperedTransition(Wrapper):
    """A global move for many dimensions: a draw of the base, annealed to the target in `num_temperatures` steps.

    The implementation is `tfp.mcmc.MetropolisHastings` around the annealed proposal. One move costs 4 evaluations per
    temperature; for gradient kernels, half of them include the gradient.

    Args:
      kernel: the kernel that moves at each temperature, with the same step size at all of them. It must be calibrated
        and reversible, such as `MALA` or `HMC`.
      base: one `tfd.Distribution` over states. In an `EnergyDistribution` of a model it is over the model's x.
      num_temperatures: K, the number of steps in β from the target to the base.
      standardization: set by `in_coordinates`.

    Raises:
      TypeError: if `kernel` is not a kernel of ebm.mcmc, or `base` is not a distribution.
      ValueError: if the kernel is not calibrated, or the count is below 1.

    Reference: R. M. Neal, Sampling from multimodal distributions using tempered transitions, Statistics and Computing
    6, 1996.

    >>> from tfp_ebm.mcmc.kernels import MALA
    >>> base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [3.0, 3.0])
    >>> TemperedTransition(MALA(0.5), base, num_temperatures=4)(base.log_prob).is_calibrated
    True
    """

    kernel: Kernel
    base: tfp.distributions.Distribution = dataclasses.field(compare=False)
    num_temperatures: int = 10
    standardization: Any = dataclasses.field(default=None, repr=False)
    _key: Hashable = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise TypeError(f"`kernel` must be a kernel of ebm.mcmc, got {self.kernel!r}.")
        if not is_calibrated(self.kernel):
            raise ValueError(f"`kernel` must leave each density exactly invariant, got {self.kernel!r}.")
        check_base("base", self.base)
        self._normalize(
            num_temperatures=check_count("num_temperatures", self.num_temperatures),
            _key=serialization.fingerprint(self.base),
        )

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return tfp.mcmc.MetropolisHastings(_UncalibratedTransition(self, target_log_prob_fn, step_size))

    @property
    def evaluations_per_step(self) -> int:
        """The number of evaluations: in both directions, a bootstrap and a step at each temperature."""
        return 4 * self.num_temperatures * self.kernel.evaluations_per_step

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            "kernel": keras.saving.serialize_keras_object(self.kernel),
            "base": serialization.encode(self.base, "base"),
            "num_temperatures": self.num_temperatures,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TemperedTransition:
        """Creates the kernel that returned `config` from `get_config`."""
        return cls(
            keras.saving.deserialize_keras_object(config["kernel"]),
            serialization.decode(config["base"]),
            config["num_temperatures"],
        )


class _Results(NamedTuple):
    log_acceptance_correction: Any
    target_log_prob: Any
    seed: Any


class _UncalibratedTransition(LateKernel):
    @property
    def is_calibrated(self) -> bool:
        return False

    def bootstrap_results(self, init_state: tf.Tensor) -> _Results:
        log_prob = self._parameters["target_log_prob_fn"](init_state)
        return _Results(tf.zeros_like(log_prob), log_prob, tf.zeros([2], tf.int32))

    def one_step(
        self, current_state: tf.Tensor, previous_kernel_results: _Results, seed: Any = None
    ) -> tuple[tf.Tensor, _Results]:
        seed = tfp.random.sanitize_seed(seed)
        recipe, target = self._parameters["kernel"], self._parameters["target_log_prob_fn"]
        base = base_in_coordinates(recipe)
        last = recipe.num_temperatures - 1
        rank = current_state.shape.rank - base.event_shape.rank
        # from the target to the last temperature before the base
        _, weight_up = self._anneal(current_state, tf.range(1, last + 1), fold_in(seed, 0))
        proposed = draw(base, tf.shape(current_state)[:rank], fold_in(seed, 1))
        proposed = tf.ensure_shape(tf.cast(proposed, current_state.dtype), current_state.shape)
        # from a draw of the base back to the target
        proposed, weight_down = self._anneal(proposed, tf.range(last, 0, -1), fold_in(seed, 2))
        log_prob = target(proposed)
        log_ratio = weight_down - weight_up
        correction = log_ratio - (log_prob - previous_kernel_results.target_log_prob)
        return proposed, _Results(correction, log_prob, seed)

    def _anneal(self, state: tf.Tensor, levels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes a step at each inverse temperature 1 − level/K.

        Returns:
          The last state, and Σ h/K over all states, including the first and the last.
        """
        recipe, target = self._parameters["kernel"], self._parameters["target_log_prob_fn"]
        base_log_prob, step_size = base_in_coordinates(recipe).log_prob, self._parameters["step_size"]
        share = 1.0 / recipe.num_temperatures

        def log_weight(x: tf.Tensor) -> tf.Tensor:
            return share * (target(x) - base_log_prob(x))

        def step(i: tf.Tensor, state: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            beta = 1.0 - share * tf.cast(tf.gather(levels, i), state.dtype)
            seed_here = fold_in(seed, i)
            state, _ = bridge_step(recipe.kernel, target, base_log_prob, beta, step_size, state, seed_here)
            return state, total + log_weight(state)

        state, total = iterate(step, (0, tf.size(levels)), state, log_weight(state))
        return state, total
