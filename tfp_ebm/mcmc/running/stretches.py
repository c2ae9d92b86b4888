"""One run of a chain from its checked arguments to its last step, in stretches that an interrupt can come between.

A compiled loop cannot be interrupted, and tells nothing until it ends. So a run is a number of calls of one loop, each
over a stretch of steps that takes about half a second: long enough that the calls cost nothing, short enough for a
progress bar and for Ctrl-C. Where a run is cut does not change a bit of it, since the noise of a step depends on the
step's number alone. How long a step takes is learned from the stretch before, and from runs before; the first call of
a new loop, which compiles it, is one step, and each stretch at most eight times as long as the one before it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm import arguments
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.mcmc.running.compiled import (
    check_state,
    find_chain,
    find_loop,
    run_or_fall_back,
    xla_pays,
)
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.running.halves import Halves, can_halve
from tfp_ebm.mcmc.running.loop import Chain
from tfp_ebm.random import chain_key, stateless_seed

# Seconds that a stretch should take, and by how much one may be longer than the one before it.
_SECONDS, _GROWTH = 0.5, 8


# Bounds of what one call keeps: each call clears its slots first, and holds them beside those of the calls before.
_MAX_SLOTS, _MAX_BYTES = 4096, 2**24


class Run:
    """The arguments of `sample` and `summarize`, checked, and the compiled chain that they ask for, at its start.

    Args:
      target_log_prob_fn, initial_state, kernel, num_results, num_burnin_steps, num_steps_between_results, seed,
        jit_compile, progress: see `ebm.mcmc.sample`.
      keeps: whether the draws are kept.
      num_settling_steps: how long the chain burns in as its kernel is told; None is `num_burnin_steps`.

    Attributes:
      chain, state, results, log_prob: the chain, where it is, its kernel's results, and the log density of its start.
      is_traced: whether it becomes part of a function that is being traced.
      num_results, num_steps: kept, and in all.
      evaluations_per_result: of the target, from one result to the next; None for a foreign kernel.
    """

    def __init__(
        self,
        target_log_prob_fn: TargetLogProbFn,
        initial_state: Any,
        kernel: Any,
        *,
        num_results: int,
        num_burnin_steps: int,
        num_steps_between_results: int,
        seed: Any,
        jit_compile: bool | str,
        progress: bool,
        keeps: bool,
        num_settling_steps: int | None = None,
    ) -> None:
        self.num_results = arguments.check_count("num_results", num_results)
        self._burnin = arguments.check_count("num_burnin_steps", num_burnin_steps, minimum=0)
        self._stride = 1 + arguments.check_count("num_steps_between_results", num_steps_between_results, minimum=0)
        seed = stateless_seed(seed)
        arguments.check_jit_compile(jit_compile)
        if not callable(target_log_prob_fn):
            raise TypeError(f"`target_log_prob_fn` must be callable, got {target_log_prob_fn!r}.")
        arguments.check_kernel(kernel, hashable=True)
        self.state = check_state(initial_state)
        step_size: Any = ()
        if isinstance(kernel, Kernel):
            kernel = kernel.with_burnin(self._burnin if num_settling_steps is None else num_settling_steps)
            if not tf.inside_function():
                kernel.check_start(self.state)
            step_size = tf.nest.map_structure(
                lambda step: tf.constant(step, self.state.dtype), kernel.initial_step_size
            )
            kernel = kernel.without_step_size
        self._target, self._kernel = target_log_prob_fn, kernel
        self.evaluations_per_result = self._stride * kernel.evaluations_per_step if isinstance(kernel, Kernel) else None
        self.num_steps = self.steps_until(self.num_results)
        self._arrangement = (step_size, chain_key(seed), tf.constant(self._burnin), tf.constant(self._stride))
        self.is_traced = tf.inside_function()
        self._capacity = 0
        if keeps and self.is_traced:
            self._capacity = self.num_results
        elif keeps:
            row = self.state.shape.num_elements() * self.state.dtype.size
            self._capacity = min(self.num_results, _MAX_SLOTS, max(1, _MAX_BYTES // row))
        self._jit_compile = jit_compile
        self.chain: Any  # a `Chain`, or its `Halves`
        if self.is_traced:
            self.chain = Chain(lambda: target_log_prob_fn, kernel, self._capacity)
        else:
            self._is_halved = can_halve(target_log_prob_fn, kernel, self.state)
            self.chain = find_loop(self._find, jit_compile, xla_pays(kernel, self.num_steps, self.state))
        self.results, self.log_prob = self.chain.start(self.state, step_size)
        self._num_bad_starts = 0
        if not self.is_traced:
            self._num_bad_starts = self._check_start()
        self._bar = keras.utils.Progbar(self.num_steps, unit_name="step") if progress and not self.is_traced else None

    def _find(self, jit_compile: Any) -> Chain | Halves:
        shape = tuple(self.state.shape)
        chain = find_chain(self._target, self._kernel, self._capacity, bool(jit_compile), shape)
        return Halves(chain) if self._is_halved else chain

    def _check_start(self) -> int:
        rank = self.log_prob.shape.rank
        num_bad = int(count_nonfinite(self.state[None], rank + 1, self.log_prob[None]))
        if num_bad > 0:
            warnings.warn(
                f"{num_bad} of {self.log_prob.shape.num_elements()} chains start at a state where the state or its log "
                "density is NaN or infinite; Metropolis kernels never leave it.",
                stacklevel=4,
            )
        return num_bad

    def warn_of_nonfinite(self, num_nonfinite: Any) -> None:
        """Says how many chains went wrong on the way, if any did."""
        if not self.is_traced and num_nonfinite > self._num_bad_starts:
            warnings.warn(
                f"{num_nonfinite} of {self.log_prob.shape.num_elements()} chains went to a NaN or an infinity; a "
                "smaller step size, or a Metropolis kernel, keeps chains finite.",
                stacklevel=3,
            )

    def warn_of_interrupt(self, num_results: int) -> None:
        """Says how many results there are instead of all."""
        warnings.warn(
            f"Interrupted: {num_results} of {self.num_results} results were drawn, and are returned.", stacklevel=3
        )

    def steps_until(self, number: int) -> int:
        """How many steps it takes to have so many results."""
        return self._burnin + (number - 1) * self._stride + 1 if number else 0

    def results_after(self, step: int) -> int:
        """How many results there are after so many steps."""
        return max(0, math.ceil((step - self._burnin) / self._stride))

    def stretches(self, call: Callable[..., Any], first: int, last: int) -> Iterator[tuple[int, tf.Tensor, Any]]:
        """Runs the steps `first` to `last - 1`.

        Args:
          call: the compiled function, given the chain, and then what `Chain.advance` takes.
          first, last: steps.

        Yields:
          Of each stretch: how many results are whole after it, the state, and the third thing that `call` returned.
        """
        key = (self._capacity > 0, self.state.shape, self.state.dtype)
        while first < last:
            # One call may write all its slots, but not begin another.
            full = self.steps_until(self.results_after(first) + self._capacity) if self._capacity else last
            stop = min(last, full)
            if not self.is_traced:
                pace = self.chain.seconds_per_step.get(key)
                planned = 1 if pace is None else max(1, int(_SECONDS / pace))
                stop = min(stop, first + planned)
            start = time.perf_counter()
            state, results, out = self._advance(call, (tf.constant(first), tf.constant(stop)))
            self.state, self.results = state, results
            if not self.is_traced:
                tf.reshape(state, [-1])[0].numpy()  # waits for an accelerator
                seconds = 0.0 if pace is None else time.perf_counter() - start
                if stop - first == planned or seconds > _SECONDS:
                    pace = max(seconds / (stop - first), _SECONDS / (_GROWTH * planned))
                    self.chain.seconds_per_step[key] = pace
            if self._bar is not None:
                self._bar.update(stop)
            yield self.results_after(stop), state, out
            first = stop

    def _advance(self, call: Callable[..., Any], steps: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, Any, Any]:
        given = (self.state, self.results, self.log_prob, steps, *self._arrangement)
        if self.is_traced:
            return call(self.chain, *given)
        self.chain, out = run_or_fall_back(lambda chain: call(chain, *given), self.chain, self._find, self._jit_compile)
        return out
