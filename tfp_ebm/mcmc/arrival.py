"""Have the chains arrived? Judging last states, of which there is one per chain, by the way there.

The last states of n chains are draws from the target if each chain has forgotten where it started. Looked at are two
windows of an eighth of the burn-in each, half the burn-in apart: the fourth eighth and the last. With a_c and b_c the
means of chain c over them, V the variance of all that was visited there, coordinate by coordinate and for −E, the share

    s = (max(0, Cov_c(a, b)) + ¼(ā − b̄)²) / V,    R̂ = 1/(1 − s)

of the variance is tied to *which* chain it is (chains that stay in their mode, or hardly move) or to *when* it is (a
drift that the chains share). R̂ is total over remaining variance, and what the square of Gelman & Rubin's (`diagnose`)
tends to for long windows: 1.05 here is 1.025 there.
At finite length theirs also counts what the mean of a window scatters by itself, 2τ/L of V for chains of
autocorrelation time τ and windows of length L: it exceeds 1.05 unless a window holds some 40 independent draws. For
averages over the chain that is as it should be; last states need no more than that the start is forgotten. Such scatter
is independent in two windows far apart, so their covariance leaves it out; what is left of it is the correlation over
half the burn-in, e^(−B/2τ), and exceeds 1.05 where the burn-in B is shorter than 6τ.

Chains that have all missed the same mode do not show it, here or in any R̂: the base must cover the target.
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

MAX_RHAT = 1.05
# With fewer chains a covariance over them says little.
MIN_CHAINS = 16
# Chance that chains which have arrived are said not to have, over all coordinates, if means over windows are normal.
_FALSE_ALARM = 1e-3


class Arrival(NamedTuple):
    """What `judge` returns.

    Attributes:
      rhat: the largest R̂ of the coordinates and of −E.
      at_least: its lower confidence bound, the largest of them. Above `MAX_RHAT` the chains have not arrived.
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
    """What `sample` returns of one result after a burn-in, and how far its chains can be trusted.

    Args:
      target_log_prob_fn, initial_state, kernel, seed, jit_compile: as in `ebm.mcmc.sample`.
      num_burnin_steps: at least 1.

    Returns:
      The last states `[*chains, *event]`, and an `Arrival`.
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
    return tf.stop_gradient(run.state), judge(windows[0], windows[last])


def judge(first: Moments, second: Moments, false_alarm: float = _FALSE_ALARM) -> Arrival:
    """R̂ of last states, and a bound that it exceeds with confidence 1 − `false_alarm` (Bonferroni).

    The bound takes the correlation of a and b, which Fisher's transform makes normal with error 1/√(n − 3), and the
    drift, of error sd(a − b)/√n, each at its lower end. Chains with a NaN or an infinity are left out, since they are
    warned of by themselves.

    Args:
      first, second: moments of two windows of equal length.
      false_alarm: for the bound.
    """
    kept = (first.is_finite & second.is_finite).numpy().reshape(-1)
    if kept.sum() < MIN_CHAINS:
        return Arrival(np.nan, np.nan)

    def columns(entries: tuple[tf.Tensor, ...]) -> np.ndarray:
        """`[chains, coordinates and −E]`."""
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
            # a coordinate of no variance has nothing to forget
            share = np.where(variance > 0, np.minimum(between / variance, 1), 0)
            return float(np.max(1 / (1 - share)))

        return Arrival(largest(covariance, drift), largest(bound * product, np.maximum(drift - z * drift_error, 0)))
