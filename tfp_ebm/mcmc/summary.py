"""Summaries of chains without their draws: mean, covariance and R̂ in one pass, in a fixed amount of memory.

Mean, standard deviation and R̂ equal those that `diagnose` computes from the draws. The standard error differs. The
means of m chains are independent, so their variance gives the error of the mean over all chains,

    MCSE² = Σ_c (m_c − m)² / (m(m − 1)),    ESS = sd²/MCSE²,

without an autocorrelation, which would require the draws. The relative error of MCSE is 1/√(2(m − 1)): 2 % for a
thousand chains, 24 % for ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfp_ebm.energy.signs import check_target
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running import moments as moments_of
from tfp_ebm.mcmc.running.moments import Moments
from tfp_ebm.mcmc.running.recorders import KeepMoments
from tfp_ebm.mcmc.running.stretches import Run
from tfp_ebm.mcmc.running.trouble import never_moved
from tfp_ebm.memory import naming_memory

# R̂ needs a variance in each half of a chain.
_MIN_RESULTS = 4


class Summary(NamedTuple):
    """The result of `summarize`; statistics are in float64.

    Attributes:
      mean: mean over all draws of all chains, `[*event]`.
      sd: standard deviation over all draws of all chains, `[*event]`.
      covariance: covariance of the coordinates over all draws of all chains, `[*event, *event]`; None unless
        `covariance=True`.
      mcse: standard error of `mean`, `[*event]`; NaN for a single chain.
      ess: sd²/mcse², the number of independent draws that would estimate `mean` equally well, `[*event]`.
      rhat: split R̂ of Gelman & Rubin, `[*event]`; NaN for fewer than 4 results per chain, and for a coordinate that
        never changes.
      rhat_log_prob: split R̂ of the target's log density; None for a kernel from another package.
      acceptance_rate: share of accepted steps, among the steps that led to a result.
      num_stuck: int32, the number of chains whose results are all equal; with one result per chain, the number of
        chains that never moved. `summarize` warns about chains that never moved and about NaN gradients.
      num_nonfinite: int32, the number of chains with a NaN or an infinity in a result or, for a kernel of this package,
        in its log density. These chains are included in all statistics, which may therefore be NaN.
      num_results: int32, number of results per chain; less than requested after an interrupt.
      last_state: states after the last step, `[*chains, *event]`.
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


@naming_memory("start fewer chains")
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
    """Runs the chains that `ebm.mcmc.sample` would run, and returns their statistics instead of their states.

    The memory needed is that of a few copies of the state in float64, for any number of results. With `covariance`, two
    matrices `[size, size]` of the event's size are stored too, and each step computes a matrix product. A different
    `num_results` needs no new compilation.

    After an interrupt (Ctrl-C), the function returns the statistics of the results so far, with a warning that states
    their number. R̂ is then not split, since the middle of the chains was not known in advance, and so cannot show a
    drift common to all chains.

    Args:
      target_log_prob_fn, initial_state, kernel, num_results, num_burnin_steps, num_steps_between_results, seed,
        jit_compile, progress: as in `ebm.mcmc.sample`. Thinning only saves the updates of the statistics.
      covariance: whether to compute the covariance of the coordinates as well.

    Returns:
      A `Summary`.

    Raises:
      TypeError, ValueError, tf.errors.ResourceExhaustedError: as for `ebm.mcmc.sample`.
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
        recorder=KeepMoments(covariance),
    )
    half = run.num_results // 2
    ends = [0, *(run.steps_until(number) for number in (half, 2 * half)), run.num_steps]
    windows: dict[int, Moments] = {}  # both halves of the results and, for an odd number, the last one
    is_complete = True
    try:
        for first, moments in run.windows(ends):
            windows[first] = moments
    except KeyboardInterrupt:
        number = int(sum(moments.number for moments in windows.values()))
        if number == 0:
            raise
        is_complete = False
        run.warn_of_interrupt(number)
    every = moments_of.join_stretches(list(windows.values()))
    stuck = never_moved(run.start, run.state[None], every.num_accepted[None] > 0)
    summary = _summary(list(windows.values()), is_complete, stuck, run.state, run.step_size)
    run.warn_of_nonfinite(summary.num_nonfinite)
    run.warn_of_trouble(stuck, every.num_accepted / every.number)
    return summary


def _summary(
    windows: Sequence[Moments], is_complete: bool, stuck: tf.Tensor, state: tf.Tensor, step_size: Any
) -> Summary:
    every = moments_of.join_stretches(windows)
    rank = every.is_finite.shape.rank
    means, squares = (moments_of.over_chains(value[0], rank) for value in (every.mean, every.squares))
    num_chains = tf.cast(tf.shape(means)[0], tf.float64)
    number, event_shape = every.number, means.shape[1:]
    total = number * num_chains
    mean = tf.reduce_mean(means, 0)
    between = tf.reduce_sum((means - mean) ** 2, 0)
    sd = tf.sqrt((tf.reduce_sum(squares, 0) + number * between) / (total - 1))
    mcse = tf.sqrt(between / (num_chains * (num_chains - 1)))
    # R̂ compares the two halves; it omits the last of an odd number of results.
    compared = windows[:2] if is_complete and len(windows) > 1 else [every]
    rhats = [moments_of.rhat(compared, entry) for entry in range(len(every.mean))]
    enough = number >= _MIN_RESULTS
    rhats = [tf.where(enough, value, tf.constant(float("nan"), tf.float64)) for value in rhats]
    scatter = every.scatter
    still = tf.reduce_all(squares == 0, axis=list(range(1, squares.shape.rank)))
    return Summary(
        mean=mean,
        sd=sd,
        covariance=tf.reshape(scatter / (total - 1), [*event_shape, *event_shape]) if tf.is_tensor(scatter) else None,
        mcse=mcse,
        # Stan's upper bound on the effective sample size of anticorrelated draws, as in `diagnose`.
        ess=tf.minimum((sd / mcse) ** 2, total * tf.math.log(total) / tf.math.log(tf.constant(10.0, tf.float64))),
        rhat=rhats[0],
        rhat_log_prob=rhats[1] if len(rhats) > 1 else None,
        acceptance_rate=tf.reduce_mean(every.num_accepted) / number,
        num_stuck=tf.where(number > 1, _count(still), _count(stuck)),
        num_nonfinite=_count(~every.is_finite),
        num_results=tf.cast(number, tf.int32),
        last_state=tf.stop_gradient(state),
        step_size=step_size,
    )


def _count(flags: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(flags, tf.int32))
