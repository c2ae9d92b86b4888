"""Sampling: Markov chains whose states are kept.

Step t of a run draws its noise from the seed (h(seed), t), a hash of the user's seed and the number of the step. The
loop can therefore stop and continue at any step without changing the draws. The progress bar and interrupts rely on
this (`running/stretches.py`).

Result i is the state after step `num_burnin_steps` + i·(`num_steps_between_results` + 1), counted from 0, as in
`tfp.mcmc.sample_chain`. Each run computes log density and gradient at the start, so if the weights of an energy have
changed since the last run, the new weights are used.

Compiled loops are cached (`running/compiled.py`). A loop depends on the target, the kernel without the values of its
step sizes, `num_results` (if it is small), and the shape of the state. Seed, state, step sizes, burn-in and thinning
are arguments of the loop.
"""

from __future__ import annotations

import inspect
import os
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm.energy.signs import check_target
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running.backup import RunBackup
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.running.recorders import Visit, join_stretches
from tfp_ebm.mcmc.running.stretches import Run
from tfp_ebm.mcmc.running.trouble import never_moved
from tfp_ebm.memory import check_memory, naming_memory


class Samples(NamedTuple):
    """The result of `sample`.

    Attributes:
      states: `[num_results, *chains, *event]`.
      unnormalized_log_prob: the target's values at those states, `[num_results, *chains]`.
      is_accepted: whether the step that led to the state was accepted, `[num_results, *chains]`. All True for kernels
        that accept everything; whether the chain moved, for a kernel whose results do not record acceptance.
      step_size: the kernel's step size (the scale of a random walk) after the last step, including any adaptation; a
        tuple for a `Sequential` with several step sizes; None for a kernel without a step size or from another package.
      num_nonfinite: int32, the number of chains with a NaN or an infinity in any kept state or log density.
        Metropolis kernels never leave a point of log density −inf or NaN once there.
      num_stuck: int32, the number of chains that never moved from their initial state, neither in the burn-in nor
        later.
      num_bad_gradients: int32, the number of chains with a NaN or infinite gradient at a point of finite log density,
        where every proposal is rejected; None for a kernel that does not record it.
      evaluations_per_result: number of target evaluations of each chain, with gradient if the kernel needs it, from one
        result to the next; an upper bound for a kernel such as NUTS whose steps differ. None if unknown.
    """

    states: tf.Tensor
    unnormalized_log_prob: tf.Tensor
    is_accepted: tf.Tensor
    step_size: Any
    num_nonfinite: tf.Tensor
    evaluations_per_result: int | None = None
    num_stuck: tf.Tensor | None = None
    num_bad_gradients: tf.Tensor | None = None

    def to_arviz(self) -> Any:
        """Converts the draws to ArviZ's `InferenceData`, or with ArviZ 1 or later to `xarray.DataTree`.

        The group `posterior` holds `x` `[chain, draw, *event]`, with all chain axes joined; `sample_stats` holds `lp`,
        the unnormalised log density, and `accepted`, both `[chain, draw]`. `arviz.summary` of the result gives the
        values of `diagnose`: `sd`, `mcse_mean`, `ess_bulk`, and `rhat_rank` as `r_hat`.

        Raises:
          ImportError: if ArviZ is not installed (`pip install "tfp_ebm[arviz]"`).
        """
        try:
            import arviz
        except ImportError as error:
            raise ImportError('to_arviz needs ArviZ: pip install "tfp_ebm[arviz]".') from error

        rank = np.ndim(self.is_accepted)

        def by_chain(values: Any) -> np.ndarray:
            """Reshapes `[draw, *chains, ...]` to `[chain, draw, ...]`."""
            array = np.asarray(values)
            return np.moveaxis(array.reshape(len(array), -1, *array.shape[rank:]), 0, 1)

        groups = {
            "posterior": {"x": by_chain(self.states)},
            "sample_stats": {"lp": by_chain(self.unnormalized_log_prob), "accepted": by_chain(self.is_accepted)},
        }
        with warnings.catch_warnings():
            # ArviZ warns about swapped axes if there are more chains than draws, which is usual here.
            for message in ("More chains .* than draws", "Found chain dimension to be longer than draw dimension"):
                warnings.filterwarnings("ignore", message)
            from_dict: Any = arviz.from_dict
            if "posterior" in inspect.signature(from_dict).parameters:
                return from_dict(**groups)
            return from_dict(groups)  # ArviZ 1: all groups in one dictionary


@naming_memory("start fewer chains, or keep fewer results")
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
    backup_dir: str | os.PathLike[str] | None = None,
) -> Samples:
    """Runs Markov chains from `initial_state` and returns their states.

    For draws that do not fit in memory, see `summarize`.

    A second call with an equal target, kernel and shapes traces and compiles nothing, whatever the seed, the states,
    the step size, the burn-in or the current weights of the target are. Bound methods (`model.unnormalized_log_prob`)
    are equal if they belong to one object. A lambda in the call is a new object at each call, so it is compiled each
    time. The compiled loop does not keep the target's owner alive.

    128 or more chains run as two halves at the same time, each with its own noise, if the kernel moves each chain
    independently and the target's values at the halves equal those at all chains (`running/halves.py`). The draws do
    not depend on which half finishes first.

    While a `tf.function` is traced, the chains become part of that function, which determines whether XLA compiles
    them. Caching, progress bar and warnings are then disabled. No gradient flows through a chain.

    An interrupt (Ctrl-C) takes effect within about a second, between two calls of the compiled loop. The results drawn
    so far are returned, with a warning that states their number. They equal the first results of the full run to the
    last bit.

    Args:
      target_log_prob_fn: log p up to a constant, `[*chains, *event] -> [*chains]`; or a `tfd.Distribution`, by its
        `unnormalized_log_prob`. An energy, which has the opposite sign, raises an error if it can be recognised: pass
        `model.unnormalized_log_prob`, not the model.
      initial_state: the initial states, floating-point `[*chains, *event]`. The number of chain axes is the rank of the
        target's values.
      kernel: a kernel of `ebm.mcmc`, or any callable `target_log_prob_fn -> tfp.mcmc.TransitionKernel`.
      num_results: number of states to keep per chain.
      num_burnin_steps: number of steps before the first kept one.
      num_steps_between_results: number of steps dropped between two kept ones.
      seed: int, or int32[2]. The same seed gives the same samples.
      jit_compile: True: XLA. False: graph mode. "auto": XLA if the run evaluates the target at least 2000 times (steps
        × evaluations per step; the longest trajectory for NUTS) and the event has at most 512 coordinates, since XLA
        then saves more time than it takes to compile on a CPU. If XLA cannot compile the target, "auto" runs in graph
        mode, with a warning that states the reason. Graph mode and XLA differ in rounding, and for TFP's kernels also
        in the random numbers.
      progress: whether to show a progress bar. The samples are the same to the last bit.
      backup_dir: directory, for this call alone, in which position and results are kept about once a minute and at an
        interrupt. The same call made again continues there, with the same results to the last bit. It is removed at
        the end of the run.

    Returns:
      A `Samples`.

    Raises:
      TypeError: if the target is an energy, the seed is None, or the state is not floating-point or has another dtype
        than the target's values.
      ValueError: if a count is out of range, the target's shape is not `[*chains]`, or the target has no gradient and
        the kernel needs one.
      tf.errors.ResourceExhaustedError: if results or steps need more memory than is left; no step has run then.
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
    )
    if not run.is_traced:
        check_memory(run.num_results * run.bytes_per_result)
    backup = RunBackup(backup_dir, run)
    first, stretches = backup.restore()
    num_kept = run.results_after(first)
    try:
        for num_results, draws in run.stretches(first, run.num_steps):
            stretches.append(_first(num_results - num_kept, draws))
            num_kept = num_results
            backup.reach(stretches)
        backup.remove()
    except KeyboardInterrupt:
        backup.save()
        num_kept = sum(draws.state.shape[0] for draws in stretches)
        if num_kept == 0:
            raise
        run.warn_of_interrupt(num_kept)
    except BaseException:  # the process is asked to end
        backup.save()
        raise
    draws = join_stretches(stretches)
    states = tf.stop_gradient(draws.state)
    log_prob = tf.stop_gradient(draws.log_prob if tf.is_tensor(draws.log_prob) else run.chain.log_prob(states))
    num_nonfinite = count_nonfinite(states, log_prob.shape.rank, log_prob)
    run.warn_of_nonfinite(num_nonfinite)
    stuck = never_moved(run.start, states, draws.is_accepted)
    run.warn_of_trouble(stuck, tf.reduce_mean(tf.cast(draws.is_accepted, tf.float64), 0))
    return Samples(
        states,
        log_prob,
        draws.is_accepted,
        run.step_size,
        num_nonfinite,
        run.evaluations_per_result,
        tf.reduce_sum(tf.cast(stuck, tf.int32)),
        run.num_bad_gradients,
    )


def _first(number: int, draws: Visit) -> Visit:
    """Returns the first `number` of the draws."""
    return draws if number == draws.state.shape[0] else tf.nest.map_structure(lambda part: part[:number], draws)
