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
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments
from tfp_ebm.mcmc.kernels.adaptive import Adaptive
from tfp_ebm.mcmc.kernels.hamiltonian import HMC
from tfp_ebm.mcmc.kernels.kernel import Kernel, LateKernel, TargetLogProbFn, Wrapper
from tfp_ebm.mcmc.kernels.langevin import MALA
from tfp_ebm.mcmc.kernels.metropolis import IndependenceMetropolis, MetropolisHastings, RandomWalk
from tfp_ebm.mcmc.results import find

_TEMPERABLE = (RandomWalk, HMC, MALA, MetropolisHastings, IndependenceMetropolis)


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

    Args:
      kernel: `RandomWalk`, `HMC`, `MALA`, `MetropolisHastings` or `IndependenceMetropolis`, or `Adaptive` of one.
      inverse_temperatures: β, at least two positive, decreasing numbers, the first of them 1. A geometric sequence is a
        good first choice.

    Raises:
      TypeError: if `kernel` is any other kernel.
      ValueError: if `inverse_temperatures` are not such numbers.

    >>> from tfp_ebm import mcmc, targets
    >>> kernel = ReplicaExchange(MALA(0.2), inverse_temperatures=[1.0, 0.3, 0.1])
    >>> samples = mcmc.sample(targets.two_gaussians().log_prob, tf.zeros([4, 2]), kernel, num_results=5, seed=0)
    >>> samples.states.shape, samples.step_size.shape
    (TensorShape([5, 4, 2]), TensorShape([]))
    """

    kernel: Kernel
    inverse_temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        inner = self.kernel.kernel if isinstance(self.kernel, Adaptive) else self.kernel
        if not isinstance(inner, _TEMPERABLE):
            names = ", ".join(kernel.__name__ for kernel in _TEMPERABLE)
            raise TypeError(f"`kernel` must be one of {names}, or Adaptive of one, got {self.kernel!r}.")
        betas = arguments.check_sigmas("inverse_temperatures", self.inverse_temperatures)
        if len(betas) < 2 or betas[0] != 1 or sorted(set(betas), reverse=True) != list(betas):
            raise ValueError(
                "`inverse_temperatures` must be at least two positive numbers that decrease from 1, got "
                f"{self.inverse_temperatures!r}."
            )
        self._normalize(inverse_temperatures=betas)

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return _ReplicaExchangeKernel(self, target_log_prob_fn, step_size)

    @property
    def evaluations_per_step(self) -> int:
        """Number of evaluations: for each replica those of the kernel, and one after the swap."""
        return len(self.inverse_temperatures) * (self.kernel.evaluations_per_step + 1)

    def step_size_after(self, results: Any, step_size: Any) -> Any:
        """Returns the step size of the cold replica."""
        if not self.kernel.is_adaptive:
            return step_size
        steps = self.kernel.step_size_after(results.post_swap_replica_results, step_size)
        return tf.reshape(steps[0], tf.shape(step_size))

    def log_prob_after(self, results: Any) -> tf.Tensor | None:
        """Returns the log density of the cold replica, whose temperature is 1."""
        return find(results.post_swap_replica_results, "target_log_prob")[0]


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
