"""A convergence check for draws that are the last state of each of many chains.

The last states of n chains are draws from the target if each chain has forgotten its start. The check compares two
windows of an eighth of the burn-in each, half the burn-in apart: the fourth eighth and the last. With a_c and b_c the
means of chain c over the windows and V the variance of all states in them, for each coordinate and for −E, the share

    s = (max(0, Cov_c(a, b)) + ¼(ā − b̄)²) / V,    R̂ = 1/√(1 − s)

of the variance depends on the chain (chains that stay in their mode, or hardly move) or on the window (a drift common
to the chains). R̂² is the total variance over the remaining variance, and the limit of Gelman & Rubin's R̂²
(`diagnose`) for long windows. At finite length, theirs also contains the variance of a window's mean, 2τ/L of V for
chains of autocorrelation time τ and windows of length L: it exceeds 1.02 unless L is at least 50τ. This is right for
averages over a chain, but last states only require that the start is forgotten. The means of distant windows vary
independently, so this part cancels in their covariance. The remaining part is the correlation over half the burn-in,
e^(−B/2τ), which exceeds the limit if the burn-in B is shorter than 6.5τ.

If all chains miss the same mode, no R̂ shows it: the base must cover the target.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.running import moments as moments_of
from tfp_ebm.mcmc.running.moments import Moments
from tfp_ebm.mcmc.running.recorders import KeepMoments
from tfp_ebm.mcmc.running.stretches import Run
from tfp_ebm.mcmc.running.trouble import never_moved

# With fewer chains a covariance over them is too uncertain.
MIN_CHAINS = 16
# Probability of a warning about chains that have converged, over all coordinates, if means over windows are normal.
_FALSE_ALARM = 1e-3


class Arrival(NamedTuple):
    """The result of `judge`.

    Attributes:
      rhat: the largest R̂ of the coordinates and of −E.
      at_least: the largest of their lower confidence bounds. Above `diagnostics.MAX_RHAT` the chains have not
        converged.
    """

    rhat: float
    at_least: float


def last_states(
    target_log_prob_fn: TargetLogProbFn,
    initial_state: Any,
    kernel: Any,
    *,
    num_burnin_steps: int,
    seed: Any,
    jit_compile: bool | str = "auto",
) -> tuple[tf.Tensor, Arrival]:
    """Runs chains for a burn-in and one more step, and returns their last states and whether they have converged.

    Args:
      target_log_prob_fn, initial_state, kernel, seed, jit_compile: as in `ebm.mcmc.sample`.
      num_burnin_steps: number of burn-in steps, at least 1.

    Returns:
      The last states `[*chains, *event]`, equal to those of `sample` with `num_results=1`, and an `Arrival`.
    """
    num_steps = num_burnin_steps + 1
    window = max(1, num_steps // 8)
    last = num_steps - window
    first = last - num_steps // 2
    run = Run(
        target_log_prob_fn,
        initial_state,
        kernel,
        num_results=num_steps - first,
        num_burnin_steps=first,
        seed=seed,
        jit_compile=jit_compile,
        recorder=KeepMoments(),
        num_adaptive_steps=num_burnin_steps,
    )
    windows = dict(run.windows((0, first + window, last, num_steps)))
    every = moments_of.join_stretches(list(windows.values()))
    run.warn_of_nonfinite(int(tf.reduce_sum(tf.cast(~every.is_finite, tf.int32))))
    stuck = never_moved(run.start, run.state[None], every.num_accepted[None] > 0)
    if run.warn_of_trouble(stuck, every.num_accepted / every.number):  # R-hat is about the others
        windows = {begin: moments._replace(is_finite=moments.is_finite & ~stuck) for begin, moments in windows.items()}
    return tf.stop_gradient(run.state), judge(windows[0], windows[last])


def judge(first: Moments, second: Moments, false_alarm: float = _FALSE_ALARM) -> Arrival:
    """Computes R̂ of last states, and a bound that it exceeds with confidence 1 − `false_alarm` (Bonferroni).

    The bound uses the lower ends of the correlation of a and b, which Fisher's transform makes normal with error
    1/√(n − 3), and of the drift, whose error is sd(a − b)/√n. Chains with a NaN or an infinity are excluded; another
    warning reports them.

    Args:
      first, second: moments of two windows of equal length.
      false_alarm: probability that the bound exceeds the R̂ of the distribution.
    """
    kept = (first.is_finite & second.is_finite).numpy().reshape(-1)
    if kept.sum() < MIN_CHAINS:
        return Arrival(np.nan, np.nan)

    def columns(entries: tuple[tf.Tensor, ...]) -> np.ndarray:
        """Reshapes the entries to one array `[chains, coordinates and −E]`."""
        return np.concatenate([entry.numpy().reshape(len(kept), -1)[kept] for entry in entries], 1)

    a, b = columns(first.mean), columns(second.mean)
    num_chains, num_columns = a.shape
    every = moments_of.join_stretches([first, second])
    means = columns(every.mean)
    variance = means.var(0) + columns(every.squares).mean(0) / every.number.numpy()
    product = a.std(0) * b.std(0)
    covariance = ((a - a.mean(0)) * (b - b.mean(0))).mean(0)
    drift, drift_error = np.abs((a - b).mean(0)), (a - b).std(0, ddof=1) / np.sqrt(num_chains)
    z = float(tf.math.ndtri(tf.constant(1 - false_alarm / (3 * num_columns), tf.float64)))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.clip(np.nan_to_num(covariance / product), -1, 1)
        bound = np.tanh(np.arctanh(correlation) - z / np.sqrt(num_chains - 3))

        def largest(tied: np.ndarray, moved: np.ndarray) -> float:
            between = np.maximum(tied, 0) + 0.25 * moved**2
            share = np.where(variance > 0, np.minimum(between / variance, 1), 0)  # a constant coordinate counts as 0
            return float(np.max(1 / np.sqrt(1 - share)))

        return Arrival(largest(covariance, drift), largest(bound * product, np.maximum(drift - z * drift_error, 0)))
