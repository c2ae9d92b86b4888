"""A kernel that runs several kernels one after the other.

If each of K₁, …, Kₙ leaves p invariant, so does their product: p K₁ ⋯ Kₙ = p (Tierney 1994, §2.4). A move between modes
and a move within a mode can therefore be combined into a kernel that makes both in each step.

Each part passes the values computed at its last state, log p and possibly ∇log p, to the next part. If that part also
needs the gradient, which the previous part may not compute, it evaluates the target again, once per step.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.mcmc.kernels.kernel import Kernel, LateKernel, TargetLogProbFn
from tfp_ebm.mcmc.kernels.replica_exchange import ReplicaExchange
from tfp_ebm.mcmc.results import POINT, find, is_accepted, refreshed, replaced
from tfp_ebm.random import fold_in


class SequentialResults(NamedTuple):
    """The kernel results of a step of a `Sequential`.

    Attributes:
      part_results: the results of each part.
      part_is_accepted: for each part, whether its move was accepted, bool `[*chains]`; True for parts that accept
        everything.
      is_accepted: whether the move of any part was accepted, bool `[*chains]`.
    """

    part_results: Any
    part_is_accepted: Any
    is_accepted: Any


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class Sequential(Kernel):
    """A kernel that makes one step of each of its kernels, in order; it is calibrated if all of them are.

    A nested `Sequential` is replaced by its parts. The field `part_is_accepted` of the results holds the acceptance of
    each part. The step size is that of the part that has one, or a tuple if several parts have one. An `Adaptive` part
    adapts to its own acceptance.

    Args:
      kernels: kernels of `ebm.mcmc`, at least one. `ReplicaExchange` is not allowed: another part would move the state
        without its replicas.

    Raises:
      TypeError: if an entry is not such a kernel.
      ValueError: if the list is empty.

    >>> from tfp_ebm import mcmc
    >>> base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
    >>> kernel = Sequential([mcmc.IndependenceMetropolis(base), mcmc.Adaptive(mcmc.MALA(0.1))])
    >>> float(kernel.initial_step_size), kernel.evaluations_per_step
    (0.1, 4)
    """

    kernels: tuple[Kernel, ...]
    step_size_field: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if isinstance(self.kernels, Kernel) or not isinstance(self.kernels, list | tuple):
            raise TypeError(f"`kernels` must be a list of kernels of ebm.mcmc, got {self.kernels!r}.")
        for i, kernel in enumerate(self.kernels):
            if not isinstance(kernel, Kernel) or isinstance(kernel, ReplicaExchange):
                raise TypeError(
                    f"`kernels[{i}]` must be a kernel of ebm.mcmc other than ReplicaExchange, got {kernel!r}."
                )
        if not self.kernels:
            raise ValueError("`kernels` must hold at least one kernel, got none.")
        flat = [kernel.kernels if isinstance(kernel, Sequential) else (kernel,) for kernel in self.kernels]
        self._normalize(kernels=tuple(itertools.chain.from_iterable(flat)))

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return _SequenceKernel(self, target_log_prob_fn, step_size)

    @property
    def initial_step_size(self) -> Any:
        """The step size of the part that has one; a tuple if several parts have one."""
        return _packed([kernel.initial_step_size for kernel in self.kernels])

    def steps(self, step_size: Any) -> list[Any]:
        """Splits the step size of the sequence into one per part; () for a part without a step size."""
        has_step = [bool(tf.nest.flatten(kernel.initial_step_size)) for kernel in self.kernels]
        given = iter((step_size,) if sum(has_step) == 1 else step_size)
        return [next(given) if has else () for has in has_step]

    @property
    def without_step_size(self) -> Sequential:
        """See `Kernel.without_step_size`."""
        return Sequential(tuple(kernel.without_step_size for kernel in self.kernels))

    @property
    def is_adaptive(self) -> bool:
        """Whether any part is adaptive."""
        return any(kernel.is_adaptive for kernel in self.kernels)

    @property
    def unadapted(self) -> Sequential:
        """See `Kernel.unadapted`."""
        return Sequential(tuple(kernel.unadapted for kernel in self.kernels))

    @property
    def uses_gradient(self) -> bool:
        """Whether any part uses the gradient."""
        return any(kernel.uses_gradient for kernel in self.kernels)

    @property
    def evaluations_per_step(self) -> int:
        """The evaluations of all parts, and one more for each part that may have to evaluate its starting point."""
        return sum(kernel.evaluations_per_step + 1 for kernel in self.kernels)

    def with_burnin(self, num_burnin_steps: int) -> Sequential:
        """See `Kernel.with_burnin`."""
        return Sequential(tuple(kernel.with_burnin(num_burnin_steps) for kernel in self.kernels))

    def in_coordinates(self, standardization: Any) -> Sequential:
        """See `Kernel.in_coordinates`."""
        return Sequential(tuple(kernel.in_coordinates(standardization) for kernel in self.kernels))

    def step_size_after(self, results: SequentialResults, step_size: Any) -> Any:
        """See `Kernel.step_size_after`."""
        parts = zip(self.kernels, results.part_results, self.steps(step_size), strict=True)
        return _packed([kernel.step_size_after(part_results, step) for kernel, part_results, step in parts])

    def log_prob_after(self, results: SequentialResults) -> tf.Tensor | None:
        """See `Kernel.log_prob_after`."""
        return self.kernels[-1].log_prob_after(results.part_results[-1])

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """See `Kernel.check_event`."""
        for kernel in self.kernels:
            kernel.check_event(event_shape)

    def check_start(self, state: tf.Tensor) -> None:
        """See `Kernel.check_start`."""
        for kernel in self.kernels:
            kernel.check_start(state)

    def get_config(self) -> dict[str, Any]:
        """Returns the kernels, for Keras."""
        return {"kernels": [keras.saving.serialize_keras_object(kernel) for kernel in self.kernels]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sequential:
        """Creates the object from the result of `get_config`."""
        return cls(tuple(keras.saving.deserialize_keras_object(kernel) for kernel in config["kernels"]))


def _packed(steps: list[Any]) -> Any:
    """Returns the step sizes of the parts that have one: a tuple, or the step size itself if there is only one."""
    present = tuple(step for step in steps if tf.nest.flatten(step))
    return present[0] if len(present) == 1 else present


class _SequenceKernel(LateKernel):
    @property
    def is_calibrated(self) -> bool:
        return all(part.is_calibrated for part in self._build())

    def _build(self) -> list[tfp.mcmc.TransitionKernel]:
        recipe, target = self._parameters["kernel"], self._parameters["target_log_prob_fn"]
        steps = recipe.steps(self._parameters["step_size"])
        return [kernel.build(target, step) for kernel, step in zip(recipe.kernels, steps, strict=True)]

    def bootstrap_results(self, init_state: tf.Tensor) -> SequentialResults:
        part_results = tuple(part.bootstrap_results(init_state) for part in self._build())
        known = [find(results, "target_log_prob") for results in part_results]
        known = [log_prob for log_prob in known if log_prob is not None]
        log_prob = known[0] if known else self._parameters["target_log_prob_fn"](init_state)
        accepted = tf.ones_like(log_prob, tf.bool)
        return SequentialResults(part_results, (accepted,) * len(part_results), accepted)

    def one_step(
        self, current_state: tf.Tensor, previous_kernel_results: SequentialResults, seed: Any = None
    ) -> tuple[tf.Tensor, SequentialResults]:
        seed = tfp.random.sanitize_seed(seed)
        state, last = current_state, previous_kernel_results.part_results[-1]
        part_results, accepted = [], []
        for i, (part, before) in enumerate(zip(self._build(), previous_kernel_results.part_results, strict=True)):
            before = _moved(part, before, state, last)
            moved, last = part.one_step(state, before, seed=fold_in(seed, i))
            accepted.append(is_accepted(part, last, state, moved, previous_kernel_results.is_accepted))
            part_results.append(last)
            state = moved
        return state, SequentialResults(tuple(part_results), tuple(accepted), tf.reduce_any(accepted, 0))


def _moved(part: tfp.mcmc.TransitionKernel, results: Any, state: tf.Tensor, last: Any) -> Any:
    """Updates a part's kernel results to `state`, the state produced by the previous part, whose results are `last`.

    Other fields, such as an adapted step size, are kept.
    """
    point = {name: find(last, name) for name in POINT if find(results, name) is not None}
    # The log density in a transformed kernel's results is that of z, not of x.
    transformed = find(results, "transformed_state") is not None or find(last, "transformed_state") is not None
    if point and not transformed and all(value is not None for value in point.values()):
        return replaced(results, **point)
    return refreshed(results, part.bootstrap_results(state))
