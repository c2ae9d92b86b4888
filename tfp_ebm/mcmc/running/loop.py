"""The compiled loop that runs a chain, and the store where compiled loops are found again.

The loop is flat: step t of all T steps writes its state into the slot of the result that it belongs to, and the last
writer of a slot is the step to be kept. Burn-in and thinning so need no loop of their own, the kernel appears once in
the compiled program, and any stretch of steps is run by the same program. Where draws are not kept, the same loop
carries their moments instead of the slots.

Neither a `Chain` nor the store keeps a target alive: both refer to it weakly. They could not otherwise be found again
through a bound method, which is a new object at each look at it, without keeping the whole model of a user for ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.mcmc.results import is_accepted
from tfp_ebm.mcmc.running.moments import Moments, no_moments, with_step
from tfp_ebm.random import chain_key


class Rows(NamedTuple):
    """The kept steps of a stretch of a chain, each `[num_results, *chains, ...]`; slots that no step wrote hold zeros.

    `log_prob` is () where the kernel's results may speak of another density than the target.
    """

    states: tf.Tensor
    log_prob: Any
    is_accepted: tf.Tensor
    step_size: Any

    def first(self, number: int) -> Rows:
        """The first `number` of the results."""
        if number == self.states.shape[0]:
            return self
        kept = tf.nest.map_structure(lambda row: row[:number], self._replace(step_size=()))
        return kept._replace(step_size=self.step_size)

    @staticmethod
    def join(stretches: list[Rows]) -> Rows:
        """The rows of consecutive stretches as one; the step size is the last one's."""
        if len(stretches) == 1:
            return stretches[0]
        bare = [rows._replace(step_size=()) for rows in stretches]
        joined = tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *bare)
        return joined._replace(step_size=stretches[-1].step_size)


class _Visit(NamedTuple):
    """Where a step led; `log_prob` is None where the kernel's results may speak of another density."""

    state: tf.Tensor
    is_accepted: tf.Tensor
    log_prob: Any

    def parts(self) -> tuple[tf.Tensor, ...]:
        """What is there."""
        return self if self.log_prob is not None else self[:2]


class Chain:
    """Chains of one kernel on one target, as functions of tensors.

    Args:
      resolve: returns the target; called while tracing only.
      kernel: a kernel without step sizes, or any callable that builds a TFP kernel.
      num_results: states that one call of `advance` can keep; not used by `reduce`.
      jit_compile: True or False compile `start`, `advance`, `reduce` and `log_prob`; None leaves them to an outer
        function.

    Attributes:
      is_xla: whether `advance` and `reduce` are compiled by XLA.
      xla_failed: whether that was tried in vain.
      seconds_per_step: what a step took when last looked at, by what was called and the shape of the state.
    """

    def __init__(
        self, resolve: Callable[[], TargetLogProbFn], kernel: Any, num_results: int, jit_compile: bool | None = None
    ) -> None:
        self._resolve = resolve
        self._kernel = kernel
        self._num_results = num_results
        self.is_xla = bool(jit_compile)
        self.xla_failed = False
        self.seconds_per_step: dict[Hashable, float] = {}
        self.start: Callable[..., Any] = self._start
        self.advance: Callable[..., Any] = self._advance
        self.reduce: Callable[..., Any] = self._reduce
        self.log_prob: Callable[..., Any] = self._log_prob
        if jit_compile is not None:
            # `partial`, because TensorFlow counts traces by code object and would warn of the traces of all chains.
            # One evaluation is not worth compiling by XLA.
            self.start = tf.function(functools.partial(self._start), autograph=False)
            self.log_prob = tf.function(functools.partial(self._log_prob), autograph=False)
            self.advance = tf.function(functools.partial(self._advance), autograph=False, jit_compile=jit_compile)
            self.reduce = tf.function(functools.partial(self._reduce), autograph=False, jit_compile=jit_compile)

    def _build(self, step_size: Any) -> Any:
        target = self._resolve()
        if isinstance(self._kernel, Kernel):
            return self._kernel.build(target, step_size)
        kernel = self._kernel(target)
        if not isinstance(kernel, tfp.mcmc.TransitionKernel):
            raise TypeError(
                f"`kernel` must map a target to a tfp.mcmc.TransitionKernel, got one that returns a "
                f"{type(kernel).__name__}."
            )
        return kernel

    def _start(self, state: tf.Tensor, step_size: Any) -> tuple[Any, tf.Tensor]:
        """The kernel's results at `state`, and the target's log density there."""
        log_prob = self._check_target(state)
        return self._build(step_size).bootstrap_results(state), log_prob

    def _advance(
        self,
        state: tf.Tensor,
        results: Any,
        start_log_prob: tf.Tensor,
        steps: tuple[tf.Tensor, tf.Tensor],
        step_size: Any,
        key: tf.Tensor,
        num_burnin_steps: tf.Tensor,
        stride: tf.Tensor,
    ) -> tuple[tf.Tensor, Any, Rows]:
        """Steps `steps[0]` to `steps[1] - 1` of the chain, and their results in the first slots of the rows."""

        def result(step: tf.Tensor) -> tf.Tensor:
            return (tf.maximum(step - num_burnin_steps, 0) + stride - 1) // stride

        def write(step: tf.Tensor, visit: _Visit, arrays: tuple[tf.TensorArray, ...]) -> tuple[tf.TensorArray, ...]:
            slot = result(step) - result(steps[0])
            return tuple(array.write(slot, value) for array, value in zip(arrays, visit.parts(), strict=True))

        like = _Visit(state, tf.zeros_like(start_log_prob, tf.bool), start_log_prob if self._is_own else None)
        arrays = tuple(
            tf.TensorArray(part.dtype, self._num_results, element_shape=part.shape, clear_after_read=False)
            for part in like.parts()
        )
        state, results, arrays = self._loop(state, results, start_log_prob, steps, step_size, key, arrays, write)
        states, accepted, *log_prob = (array.stack() for array in arrays)
        rows = Rows(states, log_prob[0] if log_prob else (), accepted, self._step_after(results, step_size))
        return state, results, rows

    def _reduce(
        self,
        moments: Moments,
        state: tf.Tensor,
        results: Any,
        start_log_prob: tf.Tensor,
        steps: tuple[tf.Tensor, tf.Tensor],
        step_size: Any,
        key: tf.Tensor,
        num_burnin_steps: tf.Tensor,
        stride: tf.Tensor,
    ) -> tuple[tf.Tensor, Any, tuple[Moments, Any]]:
        """Steps `steps[0]` to `steps[1] - 1` of the chain; the moments with their results added, and the step size."""

        def add(step: tf.Tensor, visit: _Visit, moments: Moments) -> Moments:
            since = step - num_burnin_steps
            counts = (since >= 0) & (tf.math.floormod(since, stride) == 0)
            return with_step(moments, counts, visit.state, visit.log_prob, visit.is_accepted)

        state, results, moments = self._loop(state, results, start_log_prob, steps, step_size, key, moments, add)
        return state, results, (moments, self._step_after(results, step_size))

    def no_moments(self, state: tf.Tensor, start_log_prob: tf.Tensor, covariance: bool) -> Moments:
        """Where `reduce` begins."""
        return no_moments(state, start_log_prob, self._is_own, covariance)

    def joined(self, moments: Moments) -> Moments:
        """Those of all chains."""
        return moments

    @property
    def _is_own(self) -> bool:
        return isinstance(self._kernel, Kernel)

    def _step_after(self, results: Any, step_size: Any) -> Any:
        return self._kernel.step_size_after(results, step_size) if self._is_own else None

    def _loop(
        self,
        state: tf.Tensor,
        results: Any,
        start_log_prob: tf.Tensor,
        steps: tuple[tf.Tensor, tf.Tensor],
        step_size: Any,
        key: tf.Tensor,
        carried: Any,
        record: Callable[[tf.Tensor, _Visit, Any], Any],
    ) -> tuple[tf.Tensor, Any, Any]:
        """Runs the kernel, and `record` with what each step came to."""
        kernel = self._build(step_size)

        def one_step(
            step: tf.Tensor, state: tf.Tensor, results: Any, carried: Any
        ) -> tuple[tf.Tensor, tf.Tensor, Any, Any]:
            moved, results = kernel.one_step(state, results, seed=tf.stack([key, step]))
            moved = tf.ensure_shape(moved, state.shape)
            log_prob = self._kernel.log_prob_after(results) if self._is_own else None
            if self._is_own and log_prob is None:
                log_prob = self._resolve()(moved)
            accepted = is_accepted(kernel, results, state, moved, start_log_prob)
            return step + 1, moved, results, record(step, _Visit(moved, accepted, log_prob), carried)

        return tf.while_loop(
            lambda step, *_: step < steps[1], one_step, (steps[0], state, results, carried), parallel_iterations=1
        )[1:]

    def last_state(self, state: tf.Tensor, step_size: Any, seed: tf.Tensor, num_steps: tf.Tensor) -> tf.Tensor:
        """The state after `num_steps` steps, a tensor; for functions that are themselves compiled."""
        results, log_prob = self.start(state, step_size)
        steps = (tf.constant(0), num_steps)
        return self.advance(state, results, log_prob, steps, step_size, chain_key(seed), num_steps, tf.constant(1))[0]

    def _log_prob(self, states: tf.Tensor) -> tf.Tensor:
        """The target at kept states."""
        return tf.map_fn(self._resolve(), states, fn_output_signature=states.dtype)

    def _check_target(self, state: tf.Tensor) -> tf.Tensor:
        """The target's value, if target, state and kernel fit together; an error that says why if not."""
        state = tf.identity(state)  # TFP's bijectors remember values by tensor, without their gradient
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(state)
            value = tf.convert_to_tensor(self._resolve()(state))
        if value.dtype != state.dtype:
            raise TypeError(
                f"`initial_state` and the target's values must have one dtype, got {state.dtype.name} and "
                f"{value.dtype.name}."
            )
        rank = value.shape.rank
        if rank is None or rank > state.shape.rank or not value.shape.is_compatible_with(state.shape[:rank]):
            raise ValueError(
                f"`target_log_prob_fn` must return one number per chain, [*chains], for a state [*chains, *event]; for "
                f"`initial_state` of shape {tuple(state.shape)} it returned shape {value.shape}."
            )
        if isinstance(self._kernel, Kernel):
            if state.shape[rank:].is_fully_defined():
                self._kernel.check_event(tuple(state.shape[rank:]))
            if self._kernel.uses_gradient and tape.gradient(value, state) is None:
                raise ValueError(
                    f"`target_log_prob_fn` must be differentiable in the state for {type(self._kernel).__name__}; its "
                    "gradient is None. RandomWalk needs no gradient."
                )
        return value
