"""The one place where a chain is run.

A chain of T steps is one compiled loop whose step t draws its noise from the seed (h(seed), t): a hash of the user's
seed beside the step's number. The noise of a step so depends on nothing but the seed and t, and the loop can be left
and entered again at any step without changing a bit, which is what progress bar and interrupts live on (`run.py`).

Result i is the state after step `num_burnin_steps` + i·(`num_steps_between_results` + 1), counted from 0, as in
`tfp.mcmc.sample_chain`. The first part of each run, log density and gradient at the start, is computed anew, so that an
energy whose weights have changed since the last run is sampled with its new ones.

`driver.py` keeps compiled chains: what is compiled depends on the target, the kernel without the values of its
step sizes, `num_results` (if it is small), and the shape of the state. Seed, state, step sizes, burn-in and thinning
are arguments.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm.energy.signs import check_target
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.running.loop import Chain, Rows
from tfp_ebm.mcmc.running.stretches import Run


class Samples(NamedTuple):
    """What `sample` returns.

    Attributes:
      states: `[num_results, *chains, *event]`.
      unnormalized_log_prob: the target at those states, `[num_results, *chains]`.
      is_accepted: whether the step that led to the state was accepted, `[num_results, *chains]`. All True for kernels
        that accept everything; for a kernel whose results do not tell, whether the chain moved.
      step_size: the kernel's step size (the scale of a random walk) after the last step, adapted if the kernel adapts;
        a tuple for a `Sequential` with several; None for a kernel that has none, or is not one of this package's.
      num_nonfinite: int32, the number of chains with a NaN or an infinity in any kept state, or with a kept log density
        that is NaN or infinite. Metropolis kernels never leave a point of log density −inf or NaN once there.
      evaluations_per_result: how often each chain evaluates the target, with its gradient if the kernel needs it, from
        one result to the next; at most, for a kernel such as NUTS whose steps differ. None where it is not known.
    """

    states: tf.Tensor
    unnormalized_log_prob: tf.Tensor
    is_accepted: tf.Tensor
    step_size: Any
    num_nonfinite: tf.Tensor
    evaluations_per_result: int | None = None

    def to_arviz(self) -> Any:
        """Converts the draws to ArviZ's `InferenceData`, or to `xarray.DataTree` from ArviZ 1 on.

        The group `posterior` holds `x` `[chain, draw, *event]`, with all chain axes joined; `sample_stats` holds `lp`,
        the unnormalised log density, and `accepted`, both `[chain, draw]`. `arviz.summary` of it gives the figures of
        `diagnose`: `sd`, `mcse_mean`, `ess_bulk`, and as `r_hat` its `rhat_rank`.

        Raises:
          ImportError: if ArviZ is not installed (`pip install "tfp_ebm[arviz]"`).
        """
        try:
            import arviz
        except ImportError as error:
            raise ImportError('to_arviz needs ArviZ: pip install "tfp_ebm[arviz]".') from error

        rank = np.ndim(self.is_accepted)

        def by_chain(values: Any) -> np.ndarray:
            """`[draw, *chains, ...]` as `[chain, draw, ...]`."""
            array = np.asarray(values)
            return np.moveaxis(array.reshape(len(array), -1, *array.shape[rank:]), 0, 1)

        groups = {
            "posterior": {"x": by_chain(self.states)},
            "sample_stats": {"lp": by_chain(self.unnormalized_log_prob), "accepted": by_chain(self.is_accepted)},
        }
        with warnings.catch_warnings():
            # ArviZ suspects swapped axes where there are more chains than draws; here that is usual.
            for message in ("More chains .* than draws", "Found chain dimension to be longer than draw dimension"):
                warnings.filterwarnings("ignore", message)
            from_dict: Any = arviz.from_dict
            if "posterior" in inspect.signature(from_dict).parameters:
                return from_dict(**groups)
            return from_dict(groups)  # from release 1 on: all groups in one dictionary


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
    """Runs Markov chains from `initial_state` and returns their states; `summarize` is for draws too many to keep.

    A second call with an equal target, kernel and shapes runs at once: nothing is traced or compiled again, whatever
    the seed, the states, the step size, the burn-in or the current weights of the target. Bound methods
    (`model.unnormalized_log_prob`) are equal if they belong to one object; a lambda written into the call is new at
    each call and compiled each time. The compiled chain does not keep the target's owner alive.

    128 chains or more are run as two halves at the same time, each with noise of its own, where the kernel moves every
    chain by itself and the target's values at the halves are those at the whole (`halves.py`); which of them is faster
    does not change a bit.

    Called while a `tf.function` is being traced, the chain becomes part of that function, which decides whether it is
    compiled by XLA; nothing is cached, shown or warned of then. No gradient flows through a chain.

    An interrupt (Ctrl-C) takes effect within a second or so, between two calls of the compiled loop: the results drawn
    so far are returned, with a warning that says how many they are. They are the first ones of the whole run, to the
    last bit.

    Args:
      target_log_prob_fn: log p up to a constant, `[*chains, *event] -> [*chains]`; or a `tfd.Distribution`, by its
        `unnormalized_log_prob`. An energy, whose sign is the opposite one, is refused where it shows: pass
        `model.unnormalized_log_prob`, not the model.
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
      TypeError: if the target is an energy, the seed is None, the state not floating-point, or of another dtype than
        the target's values.
      ValueError: if a count is out of range, the target's shape is not `[*chains]`, or it has no gradient and the
        kernel needs one.
      KeyboardInterrupt: at an interrupt before the first result.

    >>> from tfp_ebm.mcmc import MALA
    >>> normal = lambda x: -0.5 * tf.reduce_sum(x**2, -1)
    >>> samples = sample(normal, tf.zeros([4, 2]), MALA(1.0), num_results=10, num_burnin_steps=5, seed=0)
    >>> samples.states.shape, samples.unnormalized_log_prob.shape, int(samples.num_nonfinite)
    (TensorShape([10, 4, 2]), TensorShape([10, 4]), 0)
    """
    run = Run(
        check_target(target_log_prob_fn),
        initial_state,
        kernel,
        num_results=num_results,
        num_burnin_steps=num_burnin_steps,
        num_steps_between_results=num_steps_between_results,
        seed=seed,
        jit_compile=jit_compile,
        progress=progress,
        keeps=True,
    )
    stretches: list[Rows] = []
    num_kept = 0
    try:
        for number, _, rows in run.stretches(lambda chain, *given: chain.advance(*given), 0, run.num_steps):
            stretches.append(rows.first(number - num_kept))
            num_kept = number
    except KeyboardInterrupt:
        num_kept = sum(rows.states.shape[0] for rows in stretches)
        if num_kept == 0:
            raise
        run.warn_of_interrupt(num_kept)
    samples = _samples(run.chain, Rows.join(stretches))._replace(evaluations_per_result=run.evaluations_per_result)
    run.warn_of_nonfinite(samples.num_nonfinite)
    return samples


def _samples(chain: Chain, rows: Rows) -> Samples:
    """What the user sees of the kept rows."""
    states = tf.stop_gradient(rows.states)
    log_prob = tf.stop_gradient(rows.log_prob if tf.is_tensor(rows.log_prob) else chain.log_prob(states))
    step_size = rows.step_size if tf.nest.flatten(rows.step_size) else None
    num_nonfinite = count_nonfinite(states, log_prob.shape.rank, log_prob)
    return Samples(states, log_prob, rows.is_accepted, step_size, num_nonfinite)
