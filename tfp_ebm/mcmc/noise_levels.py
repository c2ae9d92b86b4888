"""Draws from a density of noisy data at a small noise level, by particles that start at the largest level.

At the largest level the density is a known Gaussian. Each level is the density of the level below plus noise, so the
path keeps the mass of every region, unlike powers of a density. The particles of an energy at all levels therefore end
in separate modes in the right shares, and the product of their weights estimates log Z, independently of the log Z that
the energy has by its training. `running/noise_levels.py` describes a pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random, serialization
from tfp_ebm.arguments import check_count, check_jit_compile, check_positive
from tfp_ebm.energy.base import check_base
from tfp_ebm.energy.signs import check_target
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.mcmc.clusters import MAX_POINTS, find_clusters
from tfp_ebm.mcmc.draws import Draws, judged_draws
from tfp_ebm.mcmc.frozen import FrozenDraws, OnePass, draws_of_passes
from tfp_ebm.mcmc.running.compiled import Compiled, XlaOrGraph, compile_once
from tfp_ebm.mcmc.running.noise_levels import Descended, LevelSettings, descend, value_and_gradient
from tfp_ebm.mcmc.weights import jackknife_of_log_mean
from tfp_ebm.networks.noise_levels import NoiseLevelEnergy
from tfp_ebm.types import Estimate, Seed

_MIN_PARTICLES = 1024
# Levels per factor of e in σ, for each √d.
_LEVELS_PER_E = 8.0
_NUM_LEAPFROG_STEPS = (2, 6)
# Moves at each level of the adaptive pass and of the pass that follows it.
_ADAPTIVE_MOVES, _MOVES = 3, 1
# Purposes of random numbers, folded into the seed.
_FIRST, _SECOND, _ORDER, _CLUSTERS = range(4)


def anneal_noise_levels(
    target_log_prob_fn: Any,
    base: tfp.distributions.Distribution | None = None,
    *,
    sigma_min: float,
    sigma_max: float | None = None,
    num_samples: int,
    seed: Seed,
    num_levels: int | None = None,
    num_groups: int = 8,
    num_last_moves: int = 20,
    jit_compile: bool | str = "auto",
) -> Draws:
    """Draws from a density of noisy data at the scale `sigma_min`, and estimates its log Z, from the scale `sigma_max`.

    A first pass through the levels adapts the step sizes of the moves; a second, with other random numbers, gives the
    draws and log Z, whose estimate Ẑ has exactly the mean Z. A region that has mass at the smallest level but none at
    the levels above is missed, as by any method that starts at the largest level.

    Args:
      target_log_prob_fn: log p(x; σ) up to a constant, `(x [n, *event], sigma [n]) -> [n]`, differentiable; or an
        `EnergyModel` of such a network. With a model, the draws are in x, and scales are in standardised units, as in
        its loss.
      base: a distribution near p(·; σ_max), with normalised `log_prob`, in the coordinates of the target (standardised
        for a model). Not needed for a model of a `networks.NoiseLevelEnergy`, which has it.
      sigma_min: the noise scale of the draws.
      sigma_max: the noise scale at which particles start; default: that of the `NoiseLevelEnergy`.
      num_samples: number of draws. At least 1024 particles run in any case.
      seed: int, or int32[2]. The same seed gives the same draws.
      num_levels: number of noise scales, in geometric sequence; None means 8√d for each factor of e.
      num_groups: number of groups of particles that never interact; their agreement is the basis of `Draws.trouble`.
      num_last_moves: number of moves after the last resampling.
      jit_compile: True: XLA, which takes a minute to compile two passes. False or "auto": graph mode.

    Returns:
      A `Draws`; its `inverse_temperatures` are the shares of the way from σ_max to σ_min, in log σ.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    Reference: A. Doucet, W. Grathwohl, A. Matthews, H. Strathmann, Score-based diffusion meets annealed importance
    sampling, 2022, arXiv:2208.07698.

    >>> blurred = lambda x, sigma: -0.5 * tf.reduce_sum(x**2, -1) / (1 + sigma**2)  # N(0, I) blurred by sigma
    >>> base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [5.0, 5.0])
    >>> draws = anneal_noise_levels(blurred, base, sigma_min=0.1, sigma_max=5.0, num_samples=100, seed=0)
    >>> draws.states.shape, abs(draws.log_normalizer.value - math.log(2 * math.pi * 1.01)) < 0.1
    (TensorShape([100, 2]), True)
    """
    energy_function = getattr(target_log_prob_fn, "energy_function", None)
    coordinates, to_z = Coordinates.of(energy_function), tf.identity
    if energy_function is None:
        target = check_target(target_log_prob_fn)
    else:
        if not energy_function.is_conditional:
            raise ValueError("`target_log_prob_fn` must be a model of (x, sigma), got one whose network takes x alone.")
        target = energy_function.unnormalized_log_prob
        network = energy_function.network
        if isinstance(network, NoiseLevelEnergy) and energy_function.tilt is None:
            target = network.unnormalized_log_prob  # as for a model at one level, so that compiled passes are shared
            to_z = network.to_state
            sigma_max = network.sigma_max if sigma_max is None else sigma_max
            base = network.reference(check_positive("sigma_max", sigma_max)) if base is None else base
    if base is None or sigma_max is None:
        raise ValueError("`base` and `sigma_max` must be given, unless the network is a NoiseLevelEnergy.")
    check_base("base", base)
    low, high = check_positive("sigma_min", sigma_min), check_positive("sigma_max", sigma_max)
    if not low < high:
        raise ValueError(f"`sigma_min` must be below `sigma_max`, got {sigma_min} and {sigma_max}.")
    num_samples, num_groups = check_count("num_samples", num_samples), check_count("num_groups", num_groups, 2)
    if num_levels is None:
        num_levels = _number_of_levels(base, low, high)
    run = _Run(
        target,
        base,
        np.geomspace(high, low, check_count("num_levels", num_levels, 2)),
        LevelSettings(num_groups * -(-max(_MIN_PARTICLES, num_samples) // num_groups), num_groups, _NUM_LEAPFROG_STEPS),
        check_count("num_last_moves", num_last_moves),
        random.stateless_seed(seed),
        check_jit_compile(jit_compile),
    )
    return run.draws(num_samples, lambda y: coordinates.from_chain(to_z(y)))


class FrozenDescent(NamedTuple):
    """Passes down the noise levels with known step sizes, inside a graph that depends on TensorFlow alone.

    Attributes:
      base: the distribution from which particles start.
      settings: the settings.
      sigmas: the noise scales, in decreasing order.
      log_step_sizes: log ε at each of them.
      num_last_moves: number of moves after the last resampling.
    """

    base: tfp.distributions.Distribution
    settings: LevelSettings
    sigmas: np.ndarray
    log_step_sizes: np.ndarray
    num_last_moves: int

    def draw(self, target: Any, num_samples: tf.Tensor, seed: tf.Tensor) -> FrozenDraws:
        """Draws flat states at the smallest level of log f(x, σ); `num_samples` is an int32 scalar, `seed` int32[2]."""
        shape = (self.settings.num, math.prod(self.base.event_shape))
        groups = self.settings.num_groups
        return draws_of_passes(lambda seed: self._pass(target, seed), shape, groups, self.base.dtype, num_samples, seed)

    def _pass(self, target: Any, seed: tf.Tensor) -> OnePass:
        found = descend(
            lambda: target,
            self.base,
            self.settings,
            tf.constant(self.sigmas, self.base.dtype),
            tf.constant(self.log_step_sizes, tf.float64),
            (tf.constant(_MOVES), tf.constant(self.num_last_moves)),
            tf.constant(True),
            tf.constant(0),
            seed,
        )
        return OnePass(found.x, found.groups, found.ancestors, found.log_normalizers, tf.zeros([], tf.float64))


def frozen_descent(network: NoiseLevelEnergy, sigma: float) -> tuple[FrozenDescent, Draws]:
    """Runs the particles of a network once down to `sigma`; returns the plan of later passes in graphs, and draws."""
    base, (groups, last_moves) = network.reference(network.sigma_max), (8, 20)
    num_levels = _number_of_levels(base, sigma, network.sigma_max)
    sigmas = np.geomspace(network.sigma_max, sigma, num_levels)
    settings = LevelSettings(_MIN_PARTICLES, groups, _NUM_LEAPFROG_STEPS)
    run = _Run(network.unnormalized_log_prob, base, sigmas, settings, last_moves, random.stateless_seed(0), "auto")
    draws = run.draws(_MIN_PARTICLES, lambda y: y)
    return FrozenDescent(base, settings, sigmas, run.log_step_sizes, last_moves), draws


def _number_of_levels(base: tfp.distributions.Distribution, low: float, high: float) -> int:
    return 2 + math.ceil(_LEVELS_PER_E * math.sqrt(math.prod(base.event_shape)) * math.log(high / low))


class _Run:
    """One run; the arguments are those of `anneal_noise_levels`, checked."""

    def __init__(
        self,
        target: Any,
        base: tfp.distributions.Distribution,
        sigmas: np.ndarray,
        settings: LevelSettings,
        num_last_moves: int,
        seed: tf.Tensor,
        jit_compile: bool | str,
    ) -> None:
        self._target, self._base, self._settings, self._seed = target, base, settings, seed
        self._sigmas, self._num_last_moves, self._jit_compile = sigmas, num_last_moves, jit_compile
        self.log_step_sizes = np.zeros(0)
        self._event_shape, self._key = tuple(base.event_shape), serialization.fingerprint(base)

    def draws(self, num_samples: int, to_x: Callable[[tf.Tensor], tf.Tensor]) -> Draws:
        """Returns draws in x, the function `to_x` of particles."""
        settings, levels = self._settings, len(self._sigmas)
        drawn = self._base.sample(256, seed=self._seed)
        total = float(np.mean(np.var(drawn.numpy().reshape(256, -1), 0)))
        size = math.prod(self._event_shape)
        first = math.log(0.8 * math.sqrt(total) * size**-0.25)
        # noise that hides the data also hides from which particle another one descends
        of_data = max(total - self._sigmas[0] ** 2, 1e-3 * total)
        refreshed = int(np.sum(self._sigmas**2 > of_data)) - 1
        pilot = settings._replace(num=min(settings.num, settings.num_groups * (_MIN_PARTICLES // settings.num_groups)))
        plan = self._pass(pilot, tf.fill([levels], tf.constant(first, tf.float64)), False, refreshed, _FIRST)
        self.log_step_sizes = plan.log_step_sizes.numpy()
        passed = self._pass(settings, plan.log_step_sizes, True, refreshed, _SECOND)
        x, groups = passed.x.numpy().astype(np.float64), passed.groups.numpy()
        log_normalizers = passed.log_normalizers.numpy()
        value, error = jackknife_of_log_mean(log_normalizers)
        clusters_seed = int(random.fold_in(self._seed, _CLUSTERS).numpy()[0]) % 2**31
        max_ess, num_groups = float(passed.ess), settings.num_groups
        shares, share_ess = find_clusters(x, groups, num_groups, self._log_density, clusters_seed, max_ess)
        log_density, gradient = self._at(passed.x)
        draws = judged_draws(
            passed.x,
            groups,
            passed.ancestors.numpy(),
            num_samples=num_samples,
            event_shape=self._event_shape,
            order_seed=random.fold_in(self._seed, _ORDER),
            shares=shares,
            share_ess=share_ess,
            log_density=log_density,
            gradient=gradient,
            num_groups=num_groups,
            log_normalizer=Estimate(value, error, max_ess, log_normalizers),
            inverse_temperatures=np.linspace(0.0, 1.0, levels),
            acceptance_rate=passed.accept.numpy()[1:],
            max_temperatures=levels,
            num_faults=int(passed.num_faults),
        )
        centers = tf.constant(draws.shares.centers, self._base.dtype)
        return dataclasses.replace(
            draws,
            states=to_x(draws.states),
            shares=draws.shares._replace(centers=to_x(centers).numpy()),
        )

    def _pass(
        self, settings: LevelSettings, log_step_sizes: tf.Tensor, is_planned: bool, refreshed: int, purpose: int
    ) -> Descended:
        """Runs a compiled pass."""
        base = self._base
        moves = (_MOVES, self._num_last_moves) if is_planned else (_ADAPTIVE_MOVES, 1)

        def find(is_xla: bool) -> Compiled:
            key = (self._key, settings, len(self._sigmas))
            return compile_once(self._target, descend, base, settings, key=key, jit_compile=is_xla)

        return XlaOrGraph(find, self._jit_compile, False).run(
            Compiled.__call__,
            tf.constant(self._sigmas, base.dtype),
            log_step_sizes,
            tuple(tf.constant(number) for number in moves),
            tf.constant(is_planned),
            tf.constant(refreshed),
            random.fold_in(self._seed, purpose),
        )

    def _at(self, x: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns log f at the smallest level and its gradient."""
        function = compile_once(self._target, value_and_gradient, self._event_shape, key=(self._event_shape,))
        log_density, gradient = function(x, tf.constant(self._sigmas[-1], x.dtype))
        return log_density.numpy(), gradient.numpy()

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        """Returns log f at the smallest level of at most `MAX_POINTS` points."""
        filled = np.concatenate([x, np.repeat(x[:1], MAX_POINTS - len(x), 0)])  # one shape for all calls
        return self._at(tf.constant(filled, self._base.dtype))[0][: len(x)]
