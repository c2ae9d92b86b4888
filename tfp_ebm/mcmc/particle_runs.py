"""Runs of a sequential Monte Carlo sampler until no mode and no narrow part is known to be missed."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.mcmc.draws import Draws
from tfp_ebm.mcmc.drift import base_of_draws
from tfp_ebm.mcmc.modes import with_modes
from tfp_ebm.mcmc.particle_sampler import Sampler
from tfp_ebm.mcmc.running.particle_state import Settings
from tfp_ebm.types import TargetLogProbFn

# Runs from bases fitted to draws, at most.
_MAX_REFITS = 3
# Purposes of random numbers, folded into the seed; those of a run are less.
_AGAIN, _REFIT = 100, 101


def run_sampler(
    target: TargetLogProbFn,
    base: tfp.distributions.Distribution,
    settings: Settings,
    group_size: int,
    seed: tf.Tensor,
    jit_compile: bool | str,
    num_samples: int,
    anneals: bool = False,
    progress: bool = False,
) -> tuple[Draws, Sampler]:
    """Returns draws and the sampler that made them.

    Its base has Gaussians at modes if a first run missed some. As long as draws drift, or have another trouble and an
    uneven scale, and once if they seem to drift, it has Gaussians fitted to them.

    Args:
      target, base, settings, group_size, seed, jit_compile, anneals, progress: as for `Sampler`.
      num_samples: number of draws.
    """
    options = (jit_compile, anneals, progress)

    def make(base: tfp.distributions.Distribution, seed: tf.Tensor) -> Sampler:
        return Sampler(target, base, settings, group_size, seed, *options)

    draws, sampler = _run_with_modes(make, base, seed, num_samples)
    for number in range(_MAX_REFITS):
        is_odd = sampler.is_uneven and bool(draws.trouble)
        if not (sampler.drift or is_odd or (number == 0 and sampler.may_drift)):
            break
        seed = random.fold_in(seed, _REFIT)
        again = make(base_of_draws(sampler.settled(), base, int(seed.numpy()[0]) % 2**31), seed)
        drawn = again.run(num_samples)
        if not (sampler.drift or sampler.may_drift) and len(drawn.trouble) >= len(draws.trouble):
            break
        draws, sampler = drawn, again
    return draws, sampler


def _run_with_modes(
    make: Callable[[tfp.distributions.Distribution, tf.Tensor], Sampler],
    base: tfp.distributions.Distribution,
    seed: tf.Tensor,
    num_samples: int,
) -> tuple[Draws, Sampler]:
    """Returns draws and their sampler, whose base has Gaussians at modes if a first run missed some."""
    first = make(base, seed)
    draws = first.run(num_samples)
    if not first.missed and not first.modes_may_help:
        return draws, first
    second = make(with_modes(base, first.regions), random.fold_in(seed, _AGAIN))
    again = second.run(num_samples)
    return (again, second) if first.missed or len(again.trouble) <= len(draws.trouble) else (draws, first)
