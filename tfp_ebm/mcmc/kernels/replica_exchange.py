"""Replica exchange: chains at several temperatures that swap their states.

In addition to the target p, replicas run on p^β₁, p^β₂, … with 1 > β₁ > β₂ > … > 0. For small β the modes of p^β
overlap, so hot replicas move between them. Neighbours i, j propose to swap their states and accept with probability

    min(1, exp((βᵢ − βⱼ)(log p(xⱼ) − log p(xᵢ)))),

which leaves Π p^βᵢ invariant, and with it p in the cold replica (Swendsen & Wang 1986; Earl & Deem 2005). Even and odd
pairs of neighbours alternate (Syed et al. 2019, arXiv:1905.02939).

The implementation is `tfp.mcmc.ReplicaExchangeMC`. The step size of the replica at β is that of the kernel divided by
√β, since p^β of a Gaussian p is wider by a factor 1/√β.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments, serialization
from tfp_ebm.energy.base import check_base
from tfp_ebm.mcmc.kernels.adaptive import Adaptive
from tfp_ebm.mcmc.kernels.exchange_with_reference import ExchangeWithReference
from tfp_ebm.mcmc.kernels.hamiltonian import HMC
from tfp_ebm.mcmc.kernels.kernel import Kernel, LateKernel, TargetLogProbFn, Wrapper
from tfp_ebm.mcmc.kernels.langevin import MALA
from tfp_ebm.mcmc.kernels.metropolis import IndependenceMetropolis, MetropolisHastings
from tfp_ebm.mcmc.kernels.random_walk import RandomWalk
from tfp_ebm.mcmc.results import find

_TEMPERABLE = (RandomWalk, HMC, MALA, MetropolisHastings, IndependenceMetropolis)
# Number of temperatures from a base by default, and the share of the burn-in in which the ladder changes.
_NUM_REPLICAS, _ADAPTED_SHARE = 10, 0.8


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class ReplicaExchange(Wrapper):
    """Replica exchange (parallel tempering) for targets of several modes: `tfp.mcmc.ReplicaExchangeMC`.

    The chain's state is that of the cold replica, `[*chains, *event]`. The other replicas are stored in the kernel's
    results and start at the same state. They do not start in equilibrium, so chains need a burn-in even if the initial
    states are exact draws. The target is called with `[replica, *chains, *event]`. Each step moves every replica by
    `kernel`, with its step size divided by √β, and proposes a swap for every other pair of neighbours. If the kernel is
    `Adaptive`, each replica adapts its own step size; the reported step size is that of the cold replica.

    The fields `is_swap_proposed_adjacent` and `is_swap_accepted_adjacent` of the results, bool `[replicas − 1,
    *chains]`, hold whether a swap of replicas k and k + 1 was proposed and accepted. Temperatures are well chosen if a
    share of .2 to .6 of the swaps is accepted.

    With a `base` b, replicas run on b^(1−β) p^β, all with the same step size, and the last one, at β = 0, is an
    exact draw from b in each step. In the burn-in the ladder becomes one of equal rejections. The results, which
    `tfp.mcmc.sample_chain(..., return_final_kernel_results=True)` returns, then have the fields `inverse_temperatures`,
    `rejection` of each pair, `barrier` (their sum Λ; about 2Λ replicas are best), `num_round_trips` (the number of
    draws from the base that reached the target, `[*chains]`) and `log_normalizer` (log Z by stepping stones; with
    `log_prob` of the base normalised). Fewer than ten round trips per chain are not enough for right shares.

    Args:
      kernel: `RandomWalk`, `HMC`, `MALA`, `MetropolisHastings` or `IndependenceMetropolis`, or `Adaptive` of one.
      inverse_temperatures: β, at least two positive, decreasing numbers, the first of them 1. A geometric sequence is a
        good first choice. With a base, the last is 0, and None means ten temperatures.
      base: a `tfd.Distribution` over states. In an `EnergyDistribution` of a model it is over the model's x.
      num_adaptation_steps: number of steps in which the ladder changes; None means .8 of the burn-in.
      standardization: set by `in_coordinates`.

    Raises:
      TypeError: if `kernel` is any other kernel, or `base` is not a distribution.
      ValueError: if `inverse_temperatures` are not such numbers.

    >>> from tfp_ebm import mcmc, targets
    >>> kernel = ReplicaExchange(MALA(0.2), inverse_temperatures=[1.0, 0.3, 0.1])
    >>> samples = mcmc.sample(targets.two_gaussians().log_prob, tf.zeros([4, 2]), kernel, num_results=5, seed=0)
    >>> samples.states.shape, samples.step_size.shape
    (TensorShape([5, 4, 2]), TensorShape([]))
    """

    kernel: Kernel
    inverse_temperatures: tuple[float, ...] | None = None
    base: tfp.distributions.Distribution | None = dataclasses.field(default=None, compare=False)
    num_adaptation_steps: int | None = None
    standardization: Any = dataclasses.field(default=None, repr=False)
    _key: Hashable = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        inner = self.kernel.kernel if isinstance(self.kernel, Adaptive) else self.kernel
        if not isinstance(inner, _TEMPERABLE):
            names = ", ".join(kernel.__name__ for kernel in _TEMPERABLE)
            raise TypeError(f"`kernel` must be one of {names}, or Adaptive of one, got {self.kernel!r}.")
        steps = self.num_adaptation_steps
        steps = None if steps is None else arguments.check_count("num_adaptation_steps", steps, 0)
        self._normalize(_key=serialization.fingerprint(self.base), num_adaptation_steps=steps)
        if self.base is not None:
            check_base("base", self.base)
            self._normalize(inverse_temperatures=_ladder_to_zero(self.inverse_temperatures))
            return
        if self.inverse_temperatures is None:
            raise ValueError("`inverse_temperatures` must be given unless there is a `base`.")
        betas = arguments.check_sigmas("inverse_temperatures", self.inverse_temperatures)
        if len(betas) < 2 or betas[0] != 1 or sorted(set(betas), reverse=True) != list(betas):
            raise ValueError(
                "`inverse_temperatures` must be at least two positive numbers that decrease from 1, got "
                f"{self.inverse_temperatures!r}."
            )
        self._normalize(inverse_temperatures=betas)

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        if self.base is not None:
            return ExchangeWithReference(self, target_log_prob_fn, step_size)
        return _ReplicaExchangeKernel(self, target_log_prob_fn, step_size)

    @property
    def evaluations_per_step(self) -> int:
        """Number of evaluations: for each replica those of the kernel, and one after the swap."""
        return len(self.inverse_temperatures or ()) * (self.kernel.evaluations_per_step + 1)

    def step_size_after(self, results: Any, step_size: Any) -> Any:
        """Returns the step size of the cold replica."""
        if not self.kernel.is_adaptive:
            return step_size
        if self.base is not None:
            steps = self.kernel.step_size_after(results.replica_results, step_size)
            return tf.reshape(steps[0], tf.shape(step_size))
        steps = self.kernel.step_size_after(results.post_swap_replica_results, step_size)
        return tf.reshape(steps[0], tf.shape(step_size))

    def log_prob_after(self, results: Any) -> tf.Tensor | None:
        """Returns the log density of the cold replica, whose temperature is 1."""
        if self.base is not None:
            return results.target_log_prob
        return find(results.post_swap_replica_results, "target_log_prob")[0]

    def with_burnin(self, num_burnin_steps: int) -> ReplicaExchange:
        """Returns this kernel with a fixed number of steps in which the ladder and the step sizes change."""
        steps = self.num_adaptation_steps
        if self.base is not None and steps is None:
            steps = int(_ADAPTED_SHARE * num_burnin_steps)
        kernel = self.kernel.with_burnin(num_burnin_steps)
        return dataclasses.replace(self, kernel=kernel, num_adaptation_steps=steps)

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """Raises ValueError if the base, or a parameter of the kernel, has another event shape."""
        super().check_event(event_shape)
        if self.base is not None:
            check_base("base", self.base, None, tuple(event_shape))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            "kernel": keras.saving.serialize_keras_object(self.kernel),
            "inverse_temperatures": self.inverse_temperatures,
            "base": serialization.encode(self.base, "base"),
            "num_adaptation_steps": self.num_adaptation_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ReplicaExchange:
        """Creates the kernel that returned `config` from `get_config`."""
        kernel = keras.saving.deserialize_keras_object(config["kernel"])
        base = serialization.decode(config.get("base"))
        return cls(kernel, config["inverse_temperatures"], base, config.get("num_adaptation_steps"))


def _ladder_to_zero(betas: Any) -> tuple[float, ...]:
    """Returns a ladder from 1 to 0; ten temperatures if it is None."""
    if betas is None:
        return tuple((1.0 - k / (_NUM_REPLICAS - 1)) ** 3 for k in range(_NUM_REPLICAS))
    given = [float(beta) for beta in np.ravel(betas)]
    falls = all(first > second for first, second in itertools.pairwise(given))
    if len(given) < 2 or given[0] != 1 or given[-1] != 0 or not falls:
        raise ValueError(f"`inverse_temperatures` must decrease from 1 to 0 with a `base`, got {betas!r}.")
    return tuple(given)


class _ReplicaExchangeKernel(LateKernel):
    """`tfp.mcmc.ReplicaExchangeMC`, built once dtype and rank of the state are known."""

    def _build(self, state: tf.Tensor) -> tfp.mcmc.ReplicaExchangeMC:
        recipe = self._parameters["kernel"]
        betas = tf.constant(recipe.inverse_temperatures, state.dtype)
        widths = tf.reshape(tf.math.rsqrt(betas), [-1] + [1] * state.shape.rank)
        steps = tf.nest.map_structure(
            lambda step: widths * tf.convert_to_tensor(step, state.dtype), self._parameters["step_size"]
        )
        return tfp.mcmc.ReplicaExchangeMC(
            self._parameters["target_log_prob_fn"],
            inverse_temperatures=betas,
            make_kernel_fn=lambda target: recipe.kernel.build(target, steps),
            swap_proposal_fn=tfp.mcmc.even_odd_swap_proposal_fn(1.0),
        )

    def bootstrap_results(self, init_state: Any) -> Any:
        state = tf.convert_to_tensor(init_state)
        return self._build(state).bootstrap_results(state)

    def one_step(self, current_state: Any, previous_kernel_results: Any, seed: Any = None) -> tuple[tf.Tensor, Any]:
        state = tf.convert_to_tensor(current_state)
        return self._build(state).one_step(state, previous_kernel_results, seed=seed)
