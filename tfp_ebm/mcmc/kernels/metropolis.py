"""Metropolis-Hastings with any proposal (§2.1.2 of the note).

A state x* ~ q(x*|x) is proposed and accepted with

    α(x, x*) = min(1, p(x*)q(x|x*) / (p(x)q(x*|x))),

so that P(x)·q(x*|x)·α(x, x*) = P(x*)·q(x|x*)·α(x*, x), which is detailed balance (eq. 15), for any q. Only ratios of p
occur, so Z is not needed. A symmetric q cancels. For an asymmetric q the ratio is required: without it, the chain does
not converge to p.

The independence sampler proposes from one fixed distribution, q(x*) = b(x*), whatever the current state. Its moves are
global: they move chains between modes that local moves do not connect. Its acceptance is high if b is close to p, and
decreases with the dimension. A rejected move costs one evaluation and leaves the chain unchanged.

Both are `tfp.mcmc.MetropolisHastings` around `UncalibratedProposal`, which TFP lacks. In contrast to TFP, a proposal of
positive density is accepted if the density at the current state is zero or NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import check_count
from tfp_ebm.energy.base import check_base, draw
from tfp_ebm.mcmc.kernels.acceptance import RescuingMetropolis
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.mcmc.running.loop import iterate
from tfp_ebm.random import fold_in

Propose = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


LogRatio = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class UncalibratedProposalResults(NamedTuple):
    """The fields that `tfp.mcmc.MetropolisHastings` reads.

    Attributes:
      log_acceptance_correction: log q(x|x*) − log q(x*|x), shape `[*chains]`.
      target_log_prob: log p at the proposed state, `[*chains]`.
      seed: the seed of the step.
    """

    log_acceptance_correction: Any
    target_log_prob: Any
    seed: Any


class UncalibratedProposal(tfp.mcmc.TransitionKernel):
    """A kernel that moves to x* = propose(x, seed), without an acceptance step.

    Args:
      target_log_prob_fn: log p up to a constant, `[*chains, *event] -> [*chains]`.
      propose: maps a state and a seed, int32[2], to a state of the same shape and dtype.
      log_proposal_ratio: maps (x, x*) to log q(x|x*) − log q(x*|x), `[*chains]`; None is zero.

    >>> kernel = UncalibratedProposal(lambda x: -(x**2), lambda x, seed: x + 1.0)
    >>> x = tf.zeros([3])
    >>> kernel.one_step(x, kernel.bootstrap_results(x), seed=tf.constant([0, 1]))[0].numpy().tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self, target_log_prob_fn: TargetLogProbFn, propose: Propose, log_proposal_ratio: LogRatio | None = None
    ) -> None:
        self._parameters: dict[str, Any] = {
            "target_log_prob_fn": target_log_prob_fn,
            "propose": propose,
            "log_proposal_ratio": log_proposal_ratio,
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments of `__init__`, as TFP's wrappers expect."""
        return self._parameters

    @property
    def is_calibrated(self) -> bool:
        """Whether the kernel is calibrated: False, since nothing is rejected."""
        return False

    def bootstrap_results(self, init_state: Any) -> UncalibratedProposalResults:
        """Returns results with the log density at `init_state`."""
        log_prob = self._parameters["target_log_prob_fn"](_only_part(init_state))
        return UncalibratedProposalResults(tf.zeros_like(log_prob), log_prob, tf.zeros([2], tf.int32))

    def one_step(
        self, current_state: Any, previous_kernel_results: UncalibratedProposalResults, seed: Any = None
    ) -> tuple[Any, UncalibratedProposalResults]:
        """Makes one proposal.

        Raises:
          TypeError, ValueError: if `propose` changes the dtype or shape, the ratio is not one number per chain, or the
            state has several parts.
        """
        seed = tfp.random.sanitize_seed(seed)
        x = _only_part(current_state)
        proposed = _checked(
            "propose(x, seed)", self._parameters["propose"](x, seed), x.dtype, x.shape, "like the state"
        )
        log_prob = self._parameters["target_log_prob_fn"](proposed)
        correction = tf.zeros_like(log_prob)
        if self._parameters["log_proposal_ratio"] is not None:
            ratio = self._parameters["log_proposal_ratio"](x, proposed)
            correction = _checked("log_proposal_ratio(x, x*)", ratio, x.dtype, log_prob.shape, "one number per chain")
        next_state = [proposed] if isinstance(current_state, list | tuple) else proposed
        return next_state, UncalibratedProposalResults(correction, log_prob, seed)


def _only_part(state: Any) -> tf.Tensor:
    """Returns the state as one tensor; TFP's replica exchange passes a list of one tensor."""
    if isinstance(state, list | tuple):
        if len(state) != 1:
            raise ValueError(f"`current_state` must be one tensor [*chains, *event], got {len(state)} parts.")
        state = state[0]
    return tf.convert_to_tensor(state)


def _checked(name: str, value: Any, dtype: tf.DType, shape: tf.TensorShape, what: str) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    if value.dtype != dtype:
        raise TypeError(f"`{name}` must have the state's dtype {dtype.name}, got {value.dtype.name}.")
    if value.shape.rank != shape.rank or not value.shape.is_compatible_with(shape):
        raise ValueError(f"`{name}` must have shape {tuple(shape)}, {what}, got {value.shape}.")
    return tf.ensure_shape(value, shape)


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class MetropolisHastings(Kernel):
    """Metropolis-Hastings with a user-defined proposal (§2.1.2).

    It accepts x* with probability min(1, p(x*)q(x|x*)/(p(x)q(x*|x))) (Metropolis et al. 1953; Hastings 1970). Two
    kernels are equal if their functions are equal. Keras can save a kernel if its functions are registered with
    `keras.saving.register_keras_serializable`.

    Args:
      propose: maps the state `[*chains, *event]` and a seed, int32[2], to x* of the same shape and dtype. In an
        `EnergyDistribution` or a loss of an adapted model, states are standardised.
      log_proposal_ratio: maps (x, x*) to log q(x|x*) − log q(x*|x), `[*chains]`. None for a symmetric q, q(x*|x) =
        q(x|x*).

    Raises:
      TypeError: if an argument is not callable; when a chain runs, if the dtype of a function's values is not that of
        the state.
      ValueError: when a chain runs, if a function's values have the wrong shape.

    >>> from tfp_ebm import mcmc, random
    >>> def stretch(x, seed):  # x* = x·exp(.5 Z) on the half line: q(x|x*)/q(x*|x) = x*/x
    ...     return x * tf.exp(0.5 * random.normal(tf.shape(x), seed, x.dtype))
    >>> kernel = MetropolisHastings(stretch, lambda x, x_new: tf.math.log(x_new / x))
    >>> samples = mcmc.sample(lambda x: -x, tf.ones([100]), kernel, num_results=5, seed=0)
    >>> samples.states.shape
    TensorShape([5, 100])
    """

    propose: Propose
    log_proposal_ratio: LogRatio | None = None
    step_size_field: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if not callable(self.propose):
            raise TypeError(f"`propose` must be callable, propose(x, seed) -> x*, got {self.propose!r}.")
        if not (self.log_proposal_ratio is None or callable(self.log_proposal_ratio)):
            raise TypeError(
                f"`log_proposal_ratio` must be callable, log_proposal_ratio(x, x*), or None for a symmetric proposal, "
                f"got {self.log_proposal_ratio!r}."
            )

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`; there is no step size."""
        del step_size
        return RescuingMetropolis(UncalibratedProposal(target_log_prob_fn, self.propose, self.log_proposal_ratio))

    @property
    def uses_gradient(self) -> bool:
        """Whether the gradient is used: False."""
        return False

    def get_config(self) -> dict[str, Any]:
        """Returns the registered names of the functions.

        Raises:
          TypeError: if a function is not registered with Keras.
        """
        return {name: _registered(name, function) for name, function in super().get_config().items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MetropolisHastings:
        """Creates the object from the result of `get_config`."""
        functions: dict[str, Any] = {
            name: None if registered is None else keras.saving.get_registered_object(registered)
            for name, registered in config.items()
        }
        return cls(**functions)


def _registered(name: str, function: Any) -> str | None:
    if function is None:
        return None
    registered = keras.saving.get_registered_name(function)
    if keras.saving.get_registered_object(registered) is not function:
        raise TypeError(
            f"`{name}` cannot be saved: {function!r} is not registered; decorate it with "
            "keras.saving.register_keras_serializable()."
        )
    return registered


def base_in_coordinates(kernel: Any) -> tfp.distributions.Distribution:
    """Returns the base of a kernel as a distribution over the chain's states, which may be x or standardised."""
    return kernel.base if kernel.standardization is None else kernel.standardization.standardized(kernel.base)


def _log_density(base: tfp.distributions.Distribution, x: tf.Tensor) -> tf.Tensor:
    """Returns log b(x), up to a constant if the base has no `log_prob`."""
    try:
        return base.log_prob(x)
    except NotImplementedError:
        return base.unnormalized_log_prob(x)


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class IndependenceMetropolis(Kernel):
    """The independence sampler, a global move (§2.1.2, with q(x*|x) = b(x*)).

    It proposes y ~ b and accepts with probability min(1, p(y)b(x)/(p(x)b(y))). Combined with a local kernel by
    `Sequential`, it lets chains move between modes, and the target remains invariant (Tierney 1994). Each proposal
    evaluates the target once, without gradient, and the base at two points.

    Two kernels are equal if their bases have the same classes, equal constants and the same variables (as objects). If
    a base reads variables, as `EnergyModel.base` does, the kernel uses their current values.

    Args:
      base: b, one `tfd.Distribution` over states, with `sample` and `log_prob` (or `unnormalized_log_prob`). In an
        `EnergyDistribution` or a loss of a model it is over x, like the model's own base. A chain outside the base's
        support never moves.
      num_proposals: number of proposals in each step, made one after the other. A step counts as accepted if any of
        them is accepted.
      standardization: set by `in_coordinates`.

    Raises:
      TypeError: if `base` is not a distribution.
      ValueError: if `base` is a batch of distributions, if `num_proposals` is below 1, or, when a chain runs, if the
        base and the state have different event shapes.

    >>> base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
    >>> kernel = IndependenceMetropolis(base)
    >>> kernel.uses_gradient, kernel(base.log_prob).is_calibrated
    (False, True)
    """

    base: tfp.distributions.Distribution = dataclasses.field(compare=False)
    num_proposals: int = 1
    standardization: Any = dataclasses.field(default=None, repr=False)
    _key: Hashable = dataclasses.field(init=False, repr=False)
    step_size_field: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_base("base", self.base)
        self._normalize(
            num_proposals=check_count("num_proposals", self.num_proposals), _key=serialization.fingerprint(self.base)
        )

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`; there is no step size."""
        del step_size
        base = base_in_coordinates(self)

        def propose(x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            return draw(base, tf.shape(x)[: x.shape.rank - base.event_shape.rank], seed)

        def log_proposal_ratio(x: tf.Tensor, proposed: tf.Tensor) -> tf.Tensor:
            return _log_density(base, x) - _log_density(base, proposed)

        single = RescuingMetropolis(UncalibratedProposal(target_log_prob_fn, propose, log_proposal_ratio))
        return single if self.num_proposals == 1 else _Repeated(single, self.num_proposals)

    @property
    def uses_gradient(self) -> bool:
        """Whether the gradient is used: False."""
        return False

    @property
    def evaluations_per_step(self) -> int:
        """The number of proposals."""
        return self.num_proposals

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """Raises ValueError if the base has another event shape."""
        if tuple(self.base.event_shape) != tuple(event_shape):
            raise ValueError(
                f"`base` must have the event shape {tuple(event_shape)} of the chain, got "
                f"{tuple(self.base.event_shape)}."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the base, encoded by `serialization`, and the number of proposals."""
        return {"base": serialization.encode(self.base, "base"), "num_proposals": self.num_proposals}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> IndependenceMetropolis:
        """Creates the object from the result of `get_config`."""
        return cls(serialization.decode(config["base"]), config["num_proposals"])


class RepeatedResults(NamedTuple):
    """The kernel results of several steps of one kernel that count as one step.

    Attributes:
      inner_results: the results of the last step.
      is_accepted: whether any of the steps was accepted, bool `[*chains]`.
    """

    inner_results: Any
    is_accepted: Any


class _Repeated(tfp.mcmc.TransitionKernel):
    """A kernel that makes several steps of a Metropolis kernel, in a loop, so that XLA compiles the kernel once."""

    def __init__(self, inner_kernel: tfp.mcmc.TransitionKernel, num_steps: int) -> None:
        self._parameters = {"inner_kernel": inner_kernel, "num_steps": num_steps}

    @property
    def parameters(self) -> dict[str, Any]:
        return self._parameters

    @property
    def is_calibrated(self) -> bool:
        return bool(self._parameters["inner_kernel"].is_calibrated)

    def bootstrap_results(self, init_state: Any) -> RepeatedResults:
        results = self._parameters["inner_kernel"].bootstrap_results(init_state)
        return RepeatedResults(results, results.is_accepted)

    def one_step(
        self, current_state: Any, previous_kernel_results: RepeatedResults, seed: Any = None
    ) -> tuple[Any, RepeatedResults]:
        seed = tfp.random.sanitize_seed(seed)
        inner = self._parameters["inner_kernel"]

        def step(i: tf.Tensor, state: Any, results: Any, accepted: tf.Tensor) -> tuple[Any, Any, tf.Tensor]:
            state, results = inner.one_step(state, results, seed=fold_in(seed, i))
            return state, results, accepted | results.is_accepted

        results = previous_kernel_results.inner_results
        state, results, accepted = iterate(
            step, (0, self._parameters["num_steps"]), current_state, results, tf.zeros_like(results.is_accepted)
        )
        return state, RepeatedResults(results, accepted)
