"""One run of chains, divided into stretches of steps between which it can be interrupted.

A compiled loop cannot be interrupted, and reports nothing until it ends. A run is therefore several calls of one loop,
each over a stretch of steps that takes about half a second. This is long enough that the cost of the calls is
negligible, and short enough for a progress bar and for Ctrl-C. The division does not change the draws, since the noise
of a step depends on the step's number alone. The time of a step is measured in the previous stretch and in earlier
runs. The first call of a new loop, which compiles it, makes one step. Each stretch has at most eight times as many
steps as the previous one.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import arguments
from tfp_ebm.caller import warn
from tfp_ebm.mcmc.kernels.acceptance import gradient_failed
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn, is_calibrated
from tfp_ebm.mcmc.running.chain import Chain, Plan
from tfp_ebm.mcmc.running.compiled import XlaOrGraph, check_state, find_compiled, xla_pays
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.running.halves import at_once, can_halve, halves_of
from tfp_ebm.mcmc.running.recorders import KeepDraws, Recorder
from tfp_ebm.mcmc.running.trouble import warn_of_gradients, warn_of_rounding, warn_of_stuck
from tfp_ebm.random import chain_key, stateless_seed

# Intended seconds per stretch, and the largest ratio of the lengths of a stretch and the previous one.
_SECONDS, _GROWTH = 0.5, 8
# Bounds on the results that one call keeps: each call first clears its slots, and stores them in addition to earlier
# ones.
_MAX_SLOTS, _MAX_BYTES = 4096, 2**24


class Run:
    """The chains of one call of `sample` or `summarize`, at their current position. The arguments are checked.

    Args:
      target_log_prob_fn, initial_state, kernel, num_results, num_burnin_steps, num_steps_between_results, seed,
        jit_compile, progress: see `ebm.mcmc.sample`.
      recorder: the recorder of the steps; default: one that keeps the results.
      num_adaptive_steps: the burn-in that an adaptive kernel is configured for; default: `num_burnin_steps`.

    Attributes:
      is_traced: whether the run becomes part of a function that is being traced.
      start: the initial states.
      start_log_prob: the target's log density at the initial states, `[*chains]`.
      num_results: the number of results to keep.
      num_steps: the number of steps.
      step: the number of steps done.
      positions: the positions of the groups of chains.
      evaluations_per_result: number of target evaluations from one result to the next; None for a kernel from another
        package.
    """

    def __init__(
        self,
        target_log_prob_fn: TargetLogProbFn,
        initial_state: Any,
        kernel: Any,
        *,
        num_results: int,
        num_burnin_steps: int,
        num_steps_between_results: int = 0,
        seed: Any,
        jit_compile: bool | str,
        progress: bool = False,
        recorder: Recorder | None = None,
        num_adaptive_steps: int | None = None,
    ) -> None:
        self.num_results = arguments.check_count("num_results", num_results)
        self._burnin = arguments.check_count("num_burnin_steps", num_burnin_steps, minimum=0)
        self._stride = 1 + arguments.check_count("num_steps_between_results", num_steps_between_results, minimum=0)
        seed = stateless_seed(seed)
        arguments.check_jit_compile(jit_compile)
        if not callable(target_log_prob_fn):
            raise TypeError(f"`target_log_prob_fn` must be callable, got {target_log_prob_fn!r}.")
        arguments.check_kernel(kernel, hashable=True)
        self.start = state = check_state(initial_state)
        self.is_traced = not tf.executing_eagerly()
        self._target = target_log_prob_fn
        step_size: Any = ()
        self.evaluations_per_result = None
        if isinstance(kernel, Kernel):
            kernel = kernel.with_burnin(self._burnin if num_adaptive_steps is None else num_adaptive_steps)
            if not self.is_traced:
                kernel.check_start(state)
            step_size = tf.nest.map_structure(lambda step: tf.constant(step, state.dtype), kernel.initial_step_size)
            kernel = kernel.without_step_size
            self.evaluations_per_result = self._stride * kernel.evaluations_per_step
        self.num_steps = self.steps_until(self.num_results)
        self.step = 0
        self._kernel = kernel
        self._recorder = KeepDraws(self._count_slots()) if recorder is None else recorder
        key = chain_key(seed)
        keys, groups = [key], [state]
        if self.is_traced:
            find, pays = _always(Chain(lambda: target_log_prob_fn, kernel, self._recorder)), False
        else:
            shape = (tuple(state.shape), state.dtype)
            find = functools.partial(find_chain, target_log_prob_fn, kernel, self._recorder, shape)
            pays = xla_pays(kernel, self.num_steps, state)
            if can_halve(target_log_prob_fn, kernel, state):
                keys, groups = [chain_key(tf.stack([key, tf.constant(i)])) for i in range(2)], halves_of(state)
        self._chains = XlaOrGraph(find, jit_compile, pays)
        self._plans = [Plan(step_size, key, tf.constant(self._burnin), tf.constant(self._stride)) for key in keys]
        self.positions = [self.chain.start(group, step_size) for group in groups]
        self.start_log_prob = _concat([position.start_log_prob for position in self.positions])
        self._num_bad_starts = 0 if self.is_traced else self._check_start(state)
        self._bar = keras.utils.Progbar(self.num_steps, unit_name="step") if progress and not self.is_traced else None

    def _count_slots(self) -> int:
        """Returns the number of results that a stretch can keep."""
        if self.is_traced:  # the run is a single stretch
            return self.num_results
        return min(self.num_results, _MAX_SLOTS, max(1, _MAX_BYTES // self.bytes_per_result))

    def _check_start(self, state: tf.Tensor) -> int:
        rank = self.start_log_prob.shape.rank
        num_bad = int(count_nonfinite(state[None], rank + 1, self.start_log_prob[None]))
        if num_bad > 0:
            warn(
                f"{num_bad} of {self.start_log_prob.shape.num_elements()} chains start at a state where the state or "
                "its log density is NaN or infinite; Metropolis kernels never leave it.",
            )
        return num_bad

    @property
    def bytes_per_result(self) -> int:
        """The memory of the states of one result; of known shapes."""
        return self.start.shape.num_elements() * self.start.dtype.size

    @property
    def chain(self) -> Chain:
        """The chain in use."""
        return self._chains.loop

    @property
    def num_groups(self) -> int:
        """The number of groups of chains: 2 if the halves run at the same time, else 1."""
        return len(self.positions)

    @property
    def state(self) -> tf.Tensor:
        """The current states of all chains, `[*chains, *event]`."""
        return _concat([position.state for position in self.positions])

    @property
    def step_size(self) -> Any:
        """The current step size, as in `Samples`."""
        if not isinstance(self._kernel, Kernel):
            return None
        step_size = self._kernel.step_size_after(self.positions[0].results, self._plans[0].step_size)
        return step_size if tf.nest.flatten(step_size) else None

    def digest(self) -> str:
        """Returns a digest of all that decides the results: starts, the target there, kernel, seed and counts."""
        settings = repr((self._kernel, self.num_results, self.chain.is_xla))
        digest = hashlib.sha256(re.sub(r" at 0x\w+", "", settings).encode())  # addresses differ between processes
        for value in tf.nest.flatten((self.start, self.start_log_prob, self._plans)):
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def warn_of_nonfinite(self, num_nonfinite: Any) -> None:
        """Warns if chains became non-finite after the start."""
        if not self.is_traced and num_nonfinite > self._num_bad_starts:
            warn(
                f"{num_nonfinite} of {self.start_log_prob.shape.num_elements()} chains became NaN or infinite; a "
                "smaller step size, or a Metropolis kernel, keeps chains finite.",
            )

    @property
    def num_bad_gradients(self) -> tf.Tensor | None:
        """The number of chains that had a non-finite gradient; None if the kernel does not record it."""
        failed = [gradient_failed(position.results) for position in self.positions]
        if failed[0] is None:
            return None
        return tf.add_n([tf.reduce_sum(tf.cast(flags, tf.int32)) for flags in failed])

    def warn_of_trouble(self, stuck: tf.Tensor, acceptance_rate: tf.Tensor) -> bool:
        """Warns about chains that never moved, and about gradients that are not finite.

        Args:
          stuck: whether each chain never moved, bool `[*chains]`.
          acceptance_rate: acceptance rate of each chain, `[*chains]`.

        Returns:
          Whether more chains never moved than chance explains.
        """
        if self.is_traced:
            return False
        num_bad_gradients = self.num_bad_gradients
        if num_bad_gradients is not None:
            warn_of_gradients(int(num_bad_gradients), stuck.shape.num_elements())
        if isinstance(self._kernel, Kernel) and is_calibrated(self._kernel):
            found = [self._kernel.log_prob_after(position.results) for position in self.positions]
            if all(tf.is_tensor(part) for part in found):
                warn_of_rounding(_concat(found))
        known = self._num_bad_starts
        is_xla = self.chain.is_xla
        return warn_of_stuck(stuck, acceptance_rate, self.num_steps, known, self._target, self.start, is_xla)

    def warn_of_interrupt(self, num_results: int) -> None:
        """Warns that there are fewer results than requested."""
        warn(f"Interrupted: {num_results} of {self.num_results} results were drawn and are returned.")

    def steps_until(self, number: int) -> int:
        """Returns the number of steps needed for the given number of results."""
        return self._burnin + (number - 1) * self._stride + 1 if number else 0

    def results_after(self, step: int) -> int:
        """Returns the number of results after the given number of steps."""
        return len(range(self._burnin, step, self._stride))

    def stretches(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Runs the steps `first` to `last - 1`.

        Yields:
          After each stretch, the number of results since the start of the run, and the record: the results of the
          stretch, or the moments of the results since step `first`.
        """
        records = [self.chain.init(position) for position in self.positions]
        while first < last:
            stop = last
            if isinstance(self._recorder, KeepDraws):  # one call may fill its slots, but must not start another slot
                stop = min(last, self.steps_until(self.results_after(first) + self._recorder.num_slots))
            if not self.is_traced:
                pace = self.chain.seconds_per_step
                planned = 1 if pace is None else max(1, int(_SECONDS / pace))
                stop = min(stop, first + planned)
            start = time.perf_counter()
            positions, records = self._advance(records, first, stop)
            if not self.is_traced:
                tf.reshape(positions[0].state, [-1])[0].numpy()  # waits until an accelerator has finished
                seconds = 0.0 if pace is None else time.perf_counter() - start
                if stop - first == planned or seconds > _SECONDS:
                    pace = max(seconds / (stop - first), _SECONDS / (_GROWTH * planned))
                    self.chain.seconds_per_step = pace
            self.positions, self.step = positions, stop
            if self._bar is not None:
                self._bar.update(stop)
            yield self.results_after(stop), self._recorder.join_chains(records)
            first = stop

    def windows(self, ends: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Runs the steps from each of `ends` to the next.

        Yields:
          After each stretch, the first step of its window, and the record of the window so far.
        """
        for first, last in itertools.pairwise(ends):
            for _, record in self.stretches(first, last):
                yield first, record

    def _advance(self, records: list[Any], first: int, last: int) -> tuple[list[Any], list[Any]]:
        """Runs the steps `first` to `last - 1` of each group of chains, and returns positions and records."""
        steps = (tf.constant(first), tf.constant(last))

        def call(chain: Chain) -> list[Any]:
            groups = zip(self.positions, self._plans, records, strict=True)
            calls = [
                functools.partial(chain.advance, position, plan, steps, record) for position, plan, record in groups
            ]
            # The first stretch of a new loop is one step. It must be traced in the caller's thread, since Keras has
            # settings per thread.
            if last - first == 1:
                return [call() for call in calls]
            return at_once(calls, self.positions[0].state.device)

        groups = self._chains.run(call)
        return [position for position, _ in groups], [record for _, record in groups]


def find_chain(target: TargetLogProbFn, kernel: Any, recorder: Recorder, shape: Hashable, jit_compile: bool) -> Chain:
    """Returns the cached chain for an equal target, kernel, recorder and shape, or a new one.

    Args:
      target: see `find_compiled`.
      kernel, recorder, jit_compile: see `Chain`.
      shape: shape and dtype of the state. One chain could serve several shapes, but TensorFlow would warn at the fifth.
    """
    key = (kernel, recorder, shape, jit_compile)
    return find_compiled(target, key, lambda resolve: Chain(resolve, kernel, recorder, jit_compile))


def _always(chain: Chain) -> Callable[[bool], Chain]:
    return lambda by_xla: chain


def _concat(groups: list[tf.Tensor]) -> tf.Tensor:
    return groups[0] if len(groups) == 1 else tf.concat(groups, 0)
