"""The one place where a chain is run.

A chain of T steps is one compiled loop whose step t draws its noise from the seed (h(seed), t): a hash of the user's
seed beside the step's number. The noise of a step so depends on nothing but the seed and t, and the loop can be left
and entered again at any step without changing a bit, which is what the progress bar does.

Result i is the state after step `num_burnin_steps` + i·(`num_steps_between_results` + 1), counted from 0, as in
`tfp.mcmc.sample_chain`. The first part of each run, log density and gradient at the start, is computed anew, so that an
energy whose weights have changed since the last run is sampled with its new ones.

`driver.py` keeps compiled chains: what is compiled depends on the target, the kernel without the values of its
step sizes, `num_results`, and the shape of the state. Seed, state, step sizes, burn-in and thinning are arguments.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import arguments
from tfp_ebm.mcmc.driver import Chain, Rows, chain_key, find_chain
from tfp_ebm.mcmc.kernels import Kernel, TargetLogProbFn

__all__ = ["Samples", "count_nonfinite", "sample"]

# Where XLA pays: it saves about half a millisecond per evaluation of a small target, and costs 1-3 s of compiling;
# above this many coordinates matrix products and noise take the time, and XLA makes neither faster.
_XLA_MIN_EVALUATIONS = 2000
_XLA_MAX_EVENT_SIZE = 512

# What TensorFlow raises where XLA meets an operation that it cannot compile.
_XLA_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError)

_NUM_SEGMENTS = 50


class Samples(NamedTuple):
    """What `sample` returns.

    Attributes:
      states: `[num_results, *chains, *event]`.
      unnormalized_log_prob: the target at those states, `[num_results, *chains]`.
      is_accepted: whether the step that led to the state was accepted, `[num_results, *chains]`. All True for kernels
        that accept everything; for a kernel whose results do not tell, whether the chain moved.
      step_size: the kernel's step size (the scale of a random walk) after the last step, adapted if the kernel adapts;
        None for a kernel that is not one of this package's.
      num_nonfinite: int32, the number of chains with a NaN or an infinity in any kept state, or with a kept log density
        that is NaN or infinite. Metropolis kernels never leave a point of log density −inf or NaN once there.
    """

    states: tf.Tensor
    unnormalized_log_prob: tf.Tensor
    is_accepted: tf.Tensor
    step_size: tf.Tensor | None
    num_nonfinite: tf.Tensor


def sample(
    target_log_prob_fn: TargetLogProbFn,
    initial_state: Any,
    kernel: Any,
    *,
    num_results: int,
    num_burnin_steps: int = 0,
    num_steps_between_results: int = 0,
    seed: Any,
    jit_compile: bool | str = "auto",
    progress: bool = False,
) -> Samples:
    """Runs Markov chains from `initial_state` and returns their states.

    A second call with an equal target, kernel and shapes runs at once: nothing is traced or compiled again, whatever
    the seed, the states, the step size, the burn-in or the current weights of the target. Bound methods
    (`model.unnormalized_log_prob`) are equal if they belong to one object; a lambda written into the call is new at
    each call and compiled each time. The compiled chain does not keep the target's owner alive.

    Called while a `tf.function` is being traced, the chain becomes part of that function, which decides whether it is
    compiled by XLA; nothing is cached, shown or warned of then. No gradient flows through a chain.

    Args:
      target_log_prob_fn: log p up to a constant, `[*chains, *event] -> [*chains]`.
      initial_state: where the chains start, floating-point `[*chains, *event]`. The target's rank says how many axes
        are chains.
      kernel: a kernel of `ebm.mcmc`, or any callable `target_log_prob_fn -> tfp.mcmc.TransitionKernel`.
      num_results: number of states to keep per chain.
      num_burnin_steps: steps before the first kept one.
      num_steps_between_results: steps dropped between two kept ones.
      seed: int, or int32[2]. The same seed gives the same samples.
      jit_compile: True: XLA. False: graph mode. "auto": XLA if the run evaluates the target at least 2000 times
        (steps × evaluations per step; the longest trajectory for NUTS) and the event has at most 512 coordinates, which
        is where what XLA saves exceeds the seconds of compiling on a CPU; graph mode, with a warning that gives
        the reason, where XLA cannot compile the target. Graph mode and XLA differ in rounding, and TFP's kernels also
        in their random numbers.
      progress: whether to show a progress bar. The samples are the same to the last bit.

    Returns:
      A `Samples`.

    Raises:
      TypeError: if the seed is None, the state not floating-point, or of another dtype than the target's values.
      ValueError: if a count is out of range, the target's shape is not `[*chains]`, or it has no gradient and the
        kernel needs one.

    >>> from tfp_ebm.mcmc import MALA
    >>> normal = lambda x: -0.5 * tf.reduce_sum(x**2, -1)
    >>> samples = sample(normal, tf.zeros([4, 2]), MALA(1.0), num_results=10, num_burnin_steps=5, seed=0)
    >>> samples.states.shape, samples.unnormalized_log_prob.shape, int(samples.num_nonfinite)
    (TensorShape([10, 4, 2]), TensorShape([10, 4]), 0)
    """
    num_results = arguments.check_count("num_results", num_results)
    num_burnin_steps = arguments.check_count("num_burnin_steps", num_burnin_steps, minimum=0)
    between = arguments.check_count("num_steps_between_results", num_steps_between_results, minimum=0)
    seed = arguments.stateless_seed(seed)
    if jit_compile not in (True, False, "auto"):
        raise ValueError(f"`jit_compile` must be True, False or 'auto', got {jit_compile!r}.")
    if not callable(target_log_prob_fn):
        raise TypeError(f"`target_log_prob_fn` must be callable, got {target_log_prob_fn!r}.")
    if not (callable(kernel) and isinstance(kernel, Hashable)):
        raise TypeError(f"`kernel` must map a target to a tfp.mcmc.TransitionKernel, and have a hash, got {kernel!r}.")
    state = check_state(initial_state)
    step_size: Any = ()
    if isinstance(kernel, Kernel):
        kernel = kernel.with_burnin(num_burnin_steps)
        step_size = tf.nest.map_structure(lambda step: tf.constant(step, state.dtype), kernel.step)
        kernel = kernel.structure
    stride = between + 1
    num_steps = num_burnin_steps + 1 + (num_results - 1) * stride
    arrangement = (step_size, chain_key(seed), tf.constant(num_burnin_steps), tf.constant(stride))

    if tf.inside_function():
        chain = Chain(lambda: target_log_prob_fn, kernel, num_results)
        results, log_prob = chain.start(state, step_size)
        whole = (tf.constant(0), tf.constant(num_steps))
        return _samples(chain, chain.advance(state, results, log_prob, whole, *arrangement)[2])

    find = functools.partial(find_chain, target_log_prob_fn, kernel, num_results)
    chain = find_loop(find, jit_compile, xla_pays(kernel, num_steps, state))
    results, log_prob = chain.start(state, step_size)
    num_chains = log_prob.shape.num_elements()
    num_bad_starts = count_nonfinite(state[None], log_prob.shape.rank + 1, log_prob[None])
    if num_bad_starts > 0:
        warnings.warn(
            f"{num_bad_starts} of {num_chains} chains start at a state where the state or its log density is NaN or "
            "infinite; Metropolis kernels never leave it.",
            stacklevel=2,
        )
    bar = keras.utils.Progbar(num_steps, unit_name="step") if progress else None
    bounds = np.unique(np.linspace(0, num_steps, _NUM_SEGMENTS + 1 if progress else 2).astype(int)).tolist()
    segments: list[Rows] = []
    for first, last in itertools.pairwise(bounds):
        stretch = (tf.constant(first), tf.constant(last))
        advance = operator.methodcaller("advance", state, results, log_prob, stretch, *arrangement)
        chain, (state, results, rows) = run_or_fall_back(advance, chain, find, jit_compile)
        # The results whose last step lies in this segment.
        low, high = (max(0, math.ceil((step - num_burnin_steps) / stride)) for step in (first, last))
        segments.append(rows.between(low, high))
        if bar is not None:
            bar.update(last)
    samples = _samples(chain, Rows.join(segments))
    if samples.num_nonfinite > num_bad_starts:
        warnings.warn(
            f"{samples.num_nonfinite} of {num_chains} chains went to a NaN or an infinity; a smaller step size, or a "
            "Metropolis kernel, keeps chains finite.",
            stacklevel=2,
        )
    return samples


def check_state(initial_state: Any) -> tf.Tensor:
    """`initial_state` as one floating-point tensor."""
    if isinstance(initial_state, list | tuple) and any(
        np.ndim(part) > 0 and not isinstance(part, list | tuple) for part in initial_state
    ):
        raise TypeError(
            "`initial_state` must be one tensor [*chains, *event], got a list of tensors; join the parts of the state, "
            "and split them in the target."
        )
    state = tf.convert_to_tensor(initial_state)
    if not state.dtype.is_floating:
        raise TypeError(f"`initial_state` must be floating-point, got dtype {state.dtype.name}.")
    if state.shape.num_elements() == 0:
        raise ValueError(f"`initial_state` must hold at least one chain, got shape {tuple(state.shape)}.")
    return state


def find_loop(find: Callable[[bool], Any], jit_compile: bool | str, pays: bool) -> Any:
    """The loop to run: compiled by XLA if that is asked for, or if it pays, is not refused, and has not failed before.

    Args:
      find: returns the loop, by XLA or in graph mode.
      jit_compile: True, False or "auto".
      pays: whether XLA pays.
    """
    automatic = jit_compile == "auto"
    loop = find(pays if automatic else bool(jit_compile))
    return find(False) if automatic and loop.xla_failed else loop


def run_or_fall_back(
    run: Callable[[Any], Any], loop: Any, find: Callable[[bool], Any], jit_compile: bool | str
) -> tuple[Any, Any]:
    """`(loop, run(loop))`; where XLA fails that nobody asked for, that of the loop in graph mode, and a warning."""
    try:
        return loop, run(loop)
    except _XLA_ERRORS as error:
        if not (jit_compile == "auto" and loop.is_xla):
            raise
        loop.xla_failed = True
        loop = find(False)
        result = run(loop)
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"The chain runs in graph mode, because XLA failed on it: {reason}", stacklevel=3)
        return loop, result


def xla_pays(kernel: Any, num_steps: int, state: tf.Tensor) -> bool:
    """The rule of `jit_compile="auto"`."""
    evaluations = num_steps * (kernel.evaluations_per_step if isinstance(kernel, Kernel) else 1)
    event_size = state.shape[1:].num_elements()
    return evaluations >= _XLA_MIN_EVALUATIONS and event_size <= _XLA_MAX_EVENT_SIZE


def count_nonfinite(states: tf.Tensor, num_leading: int, log_prob: tf.Tensor | None = None) -> tf.Tensor:
    """How many chains hold a NaN or an infinity anywhere.

    Args:
      states: `[num_results, *chains, *event]`.
      num_leading: number of axes before the event.
      log_prob: `[num_results, *chains]`, looked at too if given.

    Returns:
      int32 scalar.
    """
    finite = tf.reduce_all(tf.math.is_finite(states), axis=list(range(num_leading, states.shape.rank)))
    if log_prob is not None:
        finite &= tf.math.is_finite(log_prob)
    return tf.reduce_sum(tf.cast(~tf.reduce_all(finite, axis=0), tf.int32))


def _samples(chain: Chain, rows: Rows) -> Samples:
    """What the user sees of the kept rows."""
    states = tf.stop_gradient(rows.states)
    log_prob = tf.stop_gradient(rows.log_prob if tf.is_tensor(rows.log_prob) else chain.log_prob(states))
    return Samples(
        states, log_prob, rows.is_accepted, rows.step_size, count_nonfinite(states, log_prob.shape.rank, log_prob)
    )
