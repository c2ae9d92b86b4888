"""Chains whose draws nobody keeps: mean, covariance and R̂ in one pass, in memory that the length does not change.

Mean, standard deviation and R̂ are those that `diagnose` would give for the draws. The standard error is another: the
means of m chains are independent, so their own scatter tells the error of the mean over all of them,

    MCSE² = Σ_c (m_c − m)² / (m(m − 1)),    ESS = sd²/MCSE²,

with no autocorrelation to be estimated, for which the draws would have to be kept. Its relative error is 1/√(2(m − 1)):
2 % for a thousand chains, 24 % for ten.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfp_ebm.energy.signs import check_target
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running import moments as moments_of
from tfp_ebm.mcmc.running.moments import Moments
from tfp_ebm.mcmc.running.stretches import Run

# R̂ needs a variance in each half of a chain.
_MIN_RESULTS = 4


class Summary(NamedTuple):
    """What `summarize` returns; statistics are in float64.

    Attributes:
      mean: over all draws of all chains, `[*event]`.
      sd: standard deviation over all draws of all chains, `[*event]`.
      covariance: of the coordinates over all draws of all chains, `[*event, *event]`; None if it was not asked for.
      mcse: standard error of `mean`, `[*event]`; NaN for a single chain.
      ess: sd²/mcse², the number of independent draws that would estimate `mean` as well, `[*event]`.
      rhat: split R̂ of Gelman & Rubin, `[*event]`; NaN for fewer than 4 results per chain, or a coordinate that never
        changes.
      rhat_log_prob: split R̂ of the target's log density; None for a kernel that is not one of this package's.
      acceptance_rate: share of the steps to a result that were accepted.
      num_stuck: int32, the number of chains whose results are all equal.
      num_nonfinite: int32, the number of chains with a NaN or an infinity in a result or, for a kernel of this
        package's, its log density. They are not left out: where it is not 0, expect NaN above.
      num_results: int32, results per chain; fewer than asked for after an interrupt.
      last_state: `[*chains, *event]`, after the last step.
      step_size: as in `Samples`.
    """

    mean: tf.Tensor
    sd: tf.Tensor
    covariance: tf.Tensor | None
    mcse: tf.Tensor
    ess: tf.Tensor
    rhat: tf.Tensor
    rhat_log_prob: tf.Tensor | None
    acceptance_rate: tf.Tensor
    num_stuck: tf.Tensor
    num_nonfinite: tf.Tensor
    num_results: tf.Tensor
    last_state: tf.Tensor
    step_size: tf.Tensor | None


def summarize(
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
    covariance: bool = False,
) -> Summary:
    """Runs the chains that `ebm.mcmc.sample` would run, and keeps their statistics instead of their states.

    Memory is that of a few copies of the state, in float64, for any number of results; with `covariance` twice the
    square of the event's size besides, and a matrix product per step. `num_results` is an argument of the compiled
    chain: another one is not compiled anew.

    An interrupt (Ctrl-C) returns the statistics of the results so far, with a warning that says how many they are. R̂
    is then that of whole chains, since their halves were not known: a drift that all chains share does not show in it.

    Args:
      target_log_prob_fn, initial_state, kernel, num_results, num_burnin_steps, num_steps_between_results, seed,
        jit_compile, progress: as in `ebm.mcmc.sample`. Thinning saves nothing here but the sums.
      covariance: whether to follow the covariance of the coordinates too.

    Returns:
      A `Summary`.

    Raises:
      TypeError, ValueError: as `ebm.mcmc.sample`.
      KeyboardInterrupt: at an interrupt before the first result.

    >>> from tfp_ebm.mcmc import MALA
    >>> normal = lambda x: -0.5 * tf.reduce_sum(x**2, -1)
    >>> summary = summarize(normal, tf.zeros([500, 2]), MALA(1.0), num_results=40, num_burnin_steps=20, seed=0)
    >>> bool(tf.reduce_all(abs(summary.mean) < 4 * summary.mcse)), bool(tf.reduce_all(summary.mcse < 0.03))
    (True, True)
    >>> summary.rhat.shape, int(summary.num_results), int(summary.num_stuck)
    (TensorShape([2]), 40, 0)
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
        keeps=False,
    )
    half = run.num_results // 2
    ends = [0, *(run.steps_until(number) for number in (half, 2 * half)), run.num_steps]
    parts: list[tuple[Moments, Any]] = []  # of both halves of the results and, for an odd number, of the last one
    is_whole = True
    try:
        for first, last in itertools.pairwise(ends):
            if first < last:
                reduce(run, parts, first, last, covariance)
    except KeyboardInterrupt:
        number = int(sum(moments.number for moments, _ in parts))
        if number == 0:
            raise
        is_whole = False
        run.warn_of_interrupt(number)
    summary = _summary([moments for moments, _ in parts], run.state, parts[-1][1], is_whole)
    run.warn_of_nonfinite(summary.num_nonfinite)
    return summary


def reduce(run: Run, parts: list[tuple[Moments, Any]], first: int, last: int, covariance: bool = False) -> None:
    """Runs the steps `first` to `last - 1`, and appends to `parts` the moments of their results and the step size after
    them; an interrupt leaves there those of the stretches that came to their end."""
    moments = run.chain.no_moments(run.state, run.log_prob, covariance)
    parts.append((run.chain.joined(moments), None))

    def call(chain: Any, *given: Any) -> Any:
        return chain.reduce(moments, *given)

    for _, _, out in run.stretches(call, first, last):
        moments, step_size = out  # where the next stretch goes on
        parts[-1] = (run.chain.joined(moments), step_size)


def _summary(parts: Sequence[Moments], state: tf.Tensor, step_size: Any, is_whole: bool) -> Summary:
    every = moments_of.join(parts)
    rank = every.is_finite.shape.rank
    means, squares = (moments_of.over_chains(value[0], rank) for value in (every.mean, every.squares))
    num_chains = tf.cast(tf.shape(means)[0], tf.float64)
    number, event_shape = every.number, means.shape[1:]
    total = number * num_chains
    mean = tf.reduce_mean(means, 0)
    between = tf.reduce_sum((means - mean) ** 2, 0)
    sd = tf.sqrt((tf.reduce_sum(squares, 0) + number * between) / (total - 1))
    mcse = tf.sqrt(between / (num_chains * (num_chains - 1)))
    whole = [every]
    if is_whole:  # the halves; R̂ leaves out the last of an odd number of results
        whole = list(parts[:2]) if len(parts) > 1 else [every]
    rhats = [moments_of.rhat(whole, entry) for entry in range(len(every.mean))]
    enough = number >= _MIN_RESULTS
    rhats = [tf.where(enough, value, tf.constant(float("nan"), tf.float64)) for value in rhats]
    scatter = every.scatter
    return Summary(
        mean=mean,
        sd=sd,
        covariance=tf.reshape(scatter / (total - 1), [*event_shape, *event_shape]) if tf.is_tensor(scatter) else None,
        mcse=mcse,
        # Stan's bound on what anticorrelated draws may be worth, as in `diagnose`.
        ess=tf.minimum((sd / mcse) ** 2, total * tf.math.log(total) / tf.math.log(tf.constant(10.0, tf.float64))),
        rhat=rhats[0],
        rhat_log_prob=rhats[1] if len(rhats) > 1 else None,
        acceptance_rate=tf.reduce_mean(every.num_accepted) / number,
        num_stuck=_count(tf.reduce_all(squares == 0, axis=list(range(1, squares.shape.rank)))),
        num_nonfinite=_count(~every.is_finite),
        num_results=tf.cast(number, tf.int32),
        last_state=tf.stop_gradient(state),
        step_size=step_size,
    )


def _count(flags: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(flags, tf.int32))
