"""Chains of one target and kernel: their positions, their settings, and the functions of tensors that move them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn, build
from tfp_ebm.mcmc.results import is_accepted
from tfp_ebm.mcmc.running.compiled import Compiled
from tfp_ebm.mcmc.running.loop import run_steps, seeds_of
from tfp_ebm.mcmc.running.recorders import Recorder, Visit


class Position(NamedTuple):
    """The position of chains between two stretches of steps.

    Attributes:
      state: `[*chains, *event]`.
      results: the kernel's results at `state`.
      start_log_prob: the target's log density at the initial states, `[*chains]`.
    """

    state: tf.Tensor
    results: Any
    start_log_prob: tf.Tensor


class Plan(NamedTuple):
    """The settings of a run, which do not change from the first step to the last.

    Attributes:
      step_size: the kernel's step size, in the form of its `initial_step_size`; () for a kernel without one.
      key: scalar from which the noise of each step is derived.
      num_burnin_steps: the number of the step that is the first result, counted from 0.
      stride: the number of steps from one result to the next.
    """

    step_size: Any
    key: tf.Tensor
    num_burnin_steps: tf.Tensor
    stride: tf.Tensor

    def slot(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the number of the result to which a step belongs: its own, or that of the next result."""
        return (tf.maximum(step - self.num_burnin_steps, 0) + self.stride - 1) // self.stride

    def is_result(self, step: tf.Tensor) -> tf.Tensor:
        """Returns whether a step is a result."""
        since = step - self.num_burnin_steps
        return (since >= 0) & (tf.math.floormod(since, self.stride) == 0)


class Chain:
    """Chains of one kernel on one target, as functions of tensors.

    Args:
      resolve: returns the target; called during tracing only, so the chain does not keep the target alive.
      kernel: a kernel `without_step_size`, or any callable that builds a TFP kernel.
      recorder: determines what `advance` records.
      jit_compile: whether XLA compiles `advance`, or else graph mode is used; None leaves the compilation to an outer
        function.

    Attributes:
      is_xla: whether XLA compiles `advance`.
      xla_failed: whether XLA failed to compile it.
      seconds_per_step: the time of a step when last measured; None before the first measurement.
    """

    def __init__(
        self,
        resolve: Callable[[], TargetLogProbFn],
        kernel: Any,
        recorder: Recorder,
        jit_compile: bool | None = None,
    ) -> None:
        self._resolve = resolve
        self._kernel = kernel
        self._is_own = isinstance(kernel, Kernel)
        self._recorder = recorder
        self.is_xla = bool(jit_compile)
        self.xla_failed = False
        self.seconds_per_step: float | None = None
        self.start: Callable[..., Position] = self._start
        self.advance: Callable[..., tuple[Position, Any]] = self._advance
        self.log_prob: Callable[..., tf.Tensor] = self._log_prob
        if jit_compile is not None:
            # XLA would take longer to compile these than to run them.
            self.start, self.log_prob = Compiled(self._start), Compiled(self._log_prob)
            self.advance = Compiled(self._advance, jit_compile=jit_compile)

    def init(self, position: Position) -> Any:
        """Returns the record of zero steps."""
        return self._recorder.init(self._like(position))

    def _like(self, position: Position) -> Visit:
        """Returns a visit with the shapes of all later visits."""
        log_prob = position.start_log_prob
        return Visit(position.state, log_prob if self._is_own else (), tf.zeros_like(log_prob, tf.bool))

    def _start(self, state: tf.Tensor, step_size: Any) -> Position:
        """Returns the position of chains that start at `state`."""
        target = self._resolve()
        log_prob = value_at_start(target, self._kernel, state)
        return Position(state, build(self._kernel, target, step_size).bootstrap_results(state), log_prob)

    def _advance(
        self, position: Position, plan: Plan, steps: tuple[tf.Tensor, tf.Tensor], record: Any
    ) -> tuple[Position, Any]:
        """Runs the steps `steps[0]` to `steps[1] - 1`, and returns the position and the record after them."""
        target = self._resolve()
        kernel, first_slot = build(self._kernel, target, plan.step_size), plan.slot(steps[0])

        def add(carried: Any, t: tf.Tensor, before: tf.Tensor, after: tf.Tensor, results: Any) -> Any:
            log_prob: Any = ()
            if self._is_own:
                log_prob = self._kernel.log_prob_after(results)
                log_prob = target(after) if log_prob is None else log_prob
            accepted = is_accepted(kernel, results, before, after, position.start_log_prob)
            visit = Visit(after, log_prob, accepted)
            return self._recorder.add(carried, visit, plan.slot(t) - first_slot, plan.is_result(t))

        carried = self._recorder.begin(record, self._like(position))
        state, results, carried = run_steps(
            lambda _: kernel, position.state, position.results, steps, seeds_of(plan.key), carried, add
        )
        return position._replace(state=state, results=results), self._recorder.finish(carried)

    def _log_prob(self, states: tf.Tensor) -> tf.Tensor:
        """Returns the target's log density at states `[num_results, *chains, *event]`."""
        return tf.map_fn(self._resolve(), states, fn_output_signature=states.dtype)


def value_at_start(target: TargetLogProbFn, kernel: Any, state: tf.Tensor) -> tf.Tensor:
    """Returns the target's value at `state`; raises if target, state and kernel do not fit together."""
    state = tf.identity(state)  # TFP's bijectors cache values by tensor, without their gradient
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(state)
        value = tf.convert_to_tensor(target(state))
    if value.dtype != state.dtype:
        raise TypeError(
            f"`initial_state` and the target's values must have the same dtype, got {state.dtype.name} and "
            f"{value.dtype.name}."
        )
    rank = value.shape.rank
    if rank is None or rank > state.shape.rank or not value.shape.is_compatible_with(state.shape[:rank]):
        raise ValueError(
            f"`target_log_prob_fn` must return one number per chain, [*chains], for a state [*chains, *event]; for "
            f"`initial_state` of shape {tuple(state.shape)} it returned shape {value.shape}."
        )
    if isinstance(kernel, Kernel):
        if state.shape[rank:].is_fully_defined():
            kernel.check_event(tuple(state.shape[rank:]))
        if kernel.uses_gradient and tape.gradient(value, state) is None:
            raise ValueError(
                f"`target_log_prob_fn` must be differentiable in the state for {type(kernel).__name__}; its "
                "gradient is None. RandomWalk needs no gradient."
            )
    return value
