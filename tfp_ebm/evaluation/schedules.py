"""The schedule of annealed importance sampling: inverse temperatures β from base to target, and the step size at each.

The variance of the log weights is about Σ (Δβ)² Var_β h. For a given number of temperatures it is least if every step
Δβ·sd_β(h) has the same length (thermodynamic length: Gelman & Meng 1998; Crooks 2007). The *adaptive* schedule does
this, with sd_β(h) from a pilot run. The *sigmoid* schedule needs no pilot run and is dense at both ends, as most
targets require (Wu et al. 2017).

The pilot run has separate chains, with other seeds, and its own temperatures. Its step size adapts to the acceptance,
log ε ← log ε + g (mean acceptance − target acceptance). Its result is a function of β, fixed before the weighted run
begins, so the weights are unbiased.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_choice, check_kernel
from tfp_ebm.evaluation.bridges import Bridge, Moves
from tfp_ebm.mcmc.kernels.adaptive import Adaptive
from tfp_ebm.mcmc.kernels.kernel import Kernel, is_calibrated
from tfp_ebm.mcmc.kernels.replica_exchange import ReplicaExchange
from tfp_ebm.random import fold_in

SCHEDULES = ("sigmoid", "linear", "adaptive")

# The sigmoid from −4 to 4, as usual.
_RADIUS = 4.0
_PILOT_CHAINS, _PILOT_TEMPERATURES, _PILOT_MOVES = 64, 100, 2
# Moves at the first temperature, where the step size may be wrong by orders of magnitude, and the gains there and
# later.
_NUM_FIRST_MOVES, _FIRST_GAIN, _GAIN = 40, 0.6, 0.2


class Schedule(NamedTuple):
    """Inverse temperatures 0 = β₀ < … < β_K = 1, and the step size at each of β₁ … β_{K−1}.

    Attributes:
      betas: `[K + 1]`.
      step_sizes: the kernel's `initial_step_size` with one axis `[K − 1]` in front.
    """

    betas: np.ndarray
    step_sizes: Any


def inverse_temperatures(schedule: str, num_temperatures: int) -> np.ndarray:
    """Returns 0 = β₀ < … < β_K = 1 for the schedules that need no pilot run.

    >>> inverse_temperatures("linear", 4).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> inverse_temperatures("sigmoid", 4).round(2).tolist()
    [0.0, 0.1, 0.5, 0.9, 1.0]
    """
    u = np.linspace(0.0, 1.0, num_temperatures + 1)
    if schedule == "linear":
        return u
    sigmoid = 1 / (1 + np.exp(-_RADIUS * (2 * u - 1)))
    betas = (sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])
    betas[[0, -1]] = 0.0, 1.0
    return betas


def check_schedule(schedule: Any) -> str | np.ndarray:
    """Returns `schedule` if it is a name, or β₀ … β_K as an array."""
    if isinstance(schedule, str):
        return check_choice("schedule", schedule, SCHEDULES)
    try:
        betas = np.asarray(schedule, np.float64)
    except (TypeError, ValueError):  # strings, or rows of different lengths
        betas = np.empty(0)
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not (np.diff(betas) > 0).all():
        raise ValueError(
            f"`schedule` must be one of {SCHEDULES}, or numbers that increase from 0 to 1, got {schedule!r}."
        )
    return betas


def check_annealed_kernel(kernel: Any) -> tuple[Any, bool]:
    """Returns the kernel without its adaptation, and whether its step size is to be adapted.

    Raises:
      TypeError: if `kernel` is not a kernel.
      ValueError: if the kernel would bias the weights: if it is not calibrated, adapts while it runs, or has replicas,
        whose distribution is unknown when a temperature begins.
    """
    check_kernel(kernel)
    adapts = isinstance(kernel, Adaptive)
    inner = kernel.kernel if isinstance(kernel, Adaptive) else kernel
    if isinstance(inner, Kernel) and inner.is_adaptive:
        raise ValueError(f"`kernel` must be an Adaptive kernel or have fixed step sizes, got {kernel!r}.")
    if isinstance(inner, ReplicaExchange):
        raise ValueError("`kernel` must not be ReplicaExchange: its replicas would restart at each temperature.")
    if not is_calibrated(inner):
        raise ValueError(f"`kernel` must leave each density invariant, or weights are biased, got {kernel!r}.")
    return inner, adapts


def _scaled(step_size: Any, factors: np.ndarray) -> Any:
    """Returns a kernel's step size times each factor, with one axis in front."""
    return tf.nest.map_structure(lambda step: np.multiply.outer(factors, np.asarray(step, np.float64)), step_size)


def make_schedule(
    bridge: Bridge,
    kernel: Any,
    adapts: bool,
    schedule: str | np.ndarray,
    num_temperatures: int,
    seed: tf.Tensor,
    jit_compile: bool | str,
) -> Schedule:
    """Determines temperatures and step sizes, by a pilot run if they depend on one."""
    step_size = kernel.initial_step_size if isinstance(kernel, Kernel) else ()
    is_adaptive = isinstance(schedule, str) and schedule == "adaptive"
    betas = inverse_temperatures(schedule, num_temperatures) if isinstance(schedule, str) else schedule
    if not (adapts or is_adaptive) or len(betas) == 2:
        return Schedule(betas, _scaled(step_size, np.ones(len(betas) - 2)))
    grid = inverse_temperatures(
        "sigmoid", min(max(num_temperatures, _PILOT_TEMPERATURES // 2), 2 * _PILOT_TEMPERATURES)
    )
    num = len(grid) - 1
    # the first pilot run determines the temperatures of the second, at equal lengths
    for round_seed in (fold_in(seed, 0), fold_in(seed, 1))[: 1 + is_adaptive]:
        moves = np.concatenate([np.repeat(grid[1], _NUM_FIRST_MOVES), np.repeat(grid[1:], _PILOT_MOVES)])
        gains = np.full(len(moves), _GAIN)
        gains[:_NUM_FIRST_MOVES] = np.linspace(_FIRST_GAIN, _GAIN, _NUM_FIRST_MOVES)
        pilot = Moves(moves, np.zeros(len(moves)), _scaled(step_size, np.ones(len(moves))), gains * float(adapts))
        states = bridge.draw_base(_PILOT_CHAINS, fold_in(round_seed, 0))
        _, _, notes = bridge.run(kernel, states, pilot, fold_in(round_seed, 1), jit_compile)
        log_factors, _, variances = notes[_NUM_FIRST_MOVES:].reshape(num, _PILOT_MOVES, 3).mean(1).T
        explored = grid
        if is_adaptive:
            sd = np.sqrt(np.concatenate([notes[:1, 2], variances]))  # the first move starts at the base
            betas, grid = (_equally_long(explored, sd, number) for number in (num_temperatures, num))
    factors = np.exp(np.interp(betas[1:-1], explored[1:], log_factors))
    return Schedule(betas, _scaled(step_size, factors))


def _equally_long(grid: np.ndarray, sd: np.ndarray, num_temperatures: int) -> np.ndarray:
    """Returns β at equal lengths ∫ sd_β(h) dβ, evenly spaced if h does not vary."""
    pieces = 0.5 * (sd[1:] + sd[:-1]) * np.diff(grid)
    total = float(np.sum(pieces))
    if not np.isfinite(total) or total <= 0:
        return inverse_temperatures("linear", num_temperatures)
    # a hundredth of the length is spread evenly, so that no range of β is without temperatures
    length = np.concatenate([[0.0], np.cumsum(pieces / total + 0.01 * np.diff(grid))])
    betas = np.interp(np.linspace(0.0, length[-1], num_temperatures + 1), length, grid)
    betas[[0, -1]] = 0.0, 1.0
    return betas
