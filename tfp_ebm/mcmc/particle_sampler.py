"""A run of a sequential Monte Carlo sampler: passes, draws, and their verdict.

If draws from the base do not suffice, few particles are annealed in few steps. A density that is fitted to them, with a
tenth of the base, is often near enough that its draws can be resampled by their importance weights; then they are the
result. Else as many particles are annealed with all steps, as a pilot. If the density fitted to these does not suffice
either, all particles are annealed, along the plan of the pilot.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random, serialization
from tfp_ebm.mcmc.adaptive_importance import Proposals, covers, effective_number, fit_by_weights, suffices
from tfp_ebm.mcmc.clusters import find_clusters
from tfp_ebm.mcmc.copula import Copula
from tfp_ebm.mcmc.draws import MIN_SHARE_ESS, Draws, judged_draws
from tfp_ebm.mcmc.drift import NUM_ERRORS_OF_DOUBT, is_uneven, shift
from tfp_ebm.mcmc.modes import NUM_STARTS, Missed, Region, find_missed, find_regions, spread_starts
from tfp_ebm.mcmc.running.climb import climb
from tfp_ebm.mcmc.running.compiled import Compiled, XlaOrGraph, compile_once
from tfp_ebm.mcmc.running.particle_moves import least_accept
from tfp_ebm.mcmc.running.particle_state import (
    Effort,
    Particles,
    Passed,
    Plan,
    Settings,
    begun_pass,
    empty_plan,
    full_effort,
    initial_particles,
)
from tfp_ebm.mcmc.running.particles import continue_pass, draw_and_weigh, log_density_and_gradient, move_at_target
from tfp_ebm.mcmc.running.settling import settle
from tfp_ebm.mcmc.weights import jackknife_of_log_mean, resample
from tfp_ebm.types import Estimate, TargetLogProbFn

# Particles at most in the pass that chooses the plan, of which no draws are returned.
_MAX_PILOT = 1024
# Draws from the base, or from a fitted density, per particle.
_DRAWS_PER_PARTICLE = 4
# Of the pass before the pilot: its effort, the least number of ancestors of its particles, and the largest number of
# coordinates in which a density is fitted to so few.
_QUICK, _MIN_QUICK_ANCESTORS, _MAX_QUICK = (0.8, 5, 2), 100, 128
# Moves after importance resampling, at most; and those if the effective share of the weights is larger than
# `_EVEN_SHARE`: few of such draws are equal, and moves need only separate these.
_MAX_MOVES_AFTER_BASE, _MAX_MOVES_IF_EVEN, _EVEN_SHARE = 8, 3, 0.5
# Largest number of coordinates for which XLA is faster, as in `running/compiled.py`.
_XLA_MAX_EVENT_SIZE = 512
# The blocks in which the particles are judged: the least number of points in one, and the largest number of blocks.
_MIN_BLOCK, _NUM_BLOCKS = 512, 8
# Intended seconds of a call, and what a progress bar counts to.
_SECONDS, _PERCENT = 0.5, 100
# Largest number of coordinates in which modes are searched.
_MAX_SEARCH = 50
# The least part of the mass that modes have if they are added to a base because the shares are not known. It is
# measured by an estimate of Z that may be too large.
_MIN_MASS = 0.2
# Share of draws from the base at density zero above which the density may end at a boundary. The identities of the
# gradient then do not hold.
_MAX_ZEROS = 0.01
# Moves that show whether draws drift; how often they are made, at least, and where this is in doubt; and after how many
# times the draws are those to which a base is fitted. Narrow parts have few draws at any one time.
_NUM_SETTLING, _NUM_CHECKS, _NUM_DOUBTFUL, _FIT_TO = 20, 2, 4, (15, 20, 25, 30)
# Purposes of random numbers, folded into the seed.
_PILOT, _BASE, _RESAMPLING, _FIRST_DRAWS, _FIRST, _SECOND_DRAWS, _SECOND, _ORDER, _CLUSTERS, _SEARCH = range(10)
_SETTLING, _JUDGED, _FITTED = 11, 13, 14
# By how many standard errors the log Z of a pilot's particles and of a density fitted to them may differ, and the
# leniency towards the pilot: weights correct the shares of modes that it has.
_MAX_ERRORS, _LENIENCY = 4.0, 5.0


class Sampler:
    """One run.

    Args:
      target: log f.
      base: b.
      settings: the settings.
      group_size: number of particles per group.
      seed: int32[2].
      jit_compile: as for `sequential_monte_carlo`.
      anneals: whether particles are annealed even if importance resampling suffices.
      progress: whether to show a progress bar.

    Attributes:
      base, settings: as given.
      regions: the regions around modes that a search from the base has found after the run.
      missed: those that the draws have missed.
      modes_may_help: whether the shares are not known, but the regions have a good part of the mass.
      is_uneven: whether the scale of the density varies strongly between draws.
      may_drift: whether further moves seem to shift such draws.
      drift: the shift; 0 if it is not significant.
    """

    def __init__(
        self,
        target: TargetLogProbFn,
        base: tfp.distributions.Distribution,
        settings: Settings,
        group_size: int,
        seed: tf.Tensor,
        jit_compile: bool | str,
        anneals: bool = False,
        progress: bool = False,
    ) -> None:
        self._target, self.base, self.settings, self._seed = target, base, settings, seed
        self._anneals = anneals
        self._bar = keras.utils.Progbar(_PERCENT, unit_name="percent") if progress else None
        self._plan: Plan | None = None
        self._num, self._jit_compile = group_size * settings.num_groups, jit_compile
        self._size = int(np.prod(base.event_shape))
        # for a Gaussian in units of its standard deviations; a kernel that was given has a step size of its own
        self._first_log_step_size = float(np.log(0.8 * self._size**-0.25)) if settings.kernel is None else 0.0
        self._key = serialization.fingerprint(base)
        self._num_faults = 0
        self._has_boundary = False
        self.regions: list[Region] = []
        self.missed: list[Missed] = []
        self.modes_may_help, self.is_uneven, self.may_drift, self.drift = False, False, False, 0.0

    def run(self, num_samples: int) -> Draws:
        """Returns the draws."""
        number = _DRAWS_PER_PARTICLE * self._num
        _, log_ratio = self._from_base(number, _PILOT)
        if not np.isfinite(log_ratio).any():
            raise ValueError(
                f"`target_log_prob_fn` must be finite where `base` has its mass, but the density is zero or not a "
                f"number at all of {number} draws."
            )
        self._has_boundary = bool(np.mean(~np.isfinite(log_ratio)) > _MAX_ZEROS)
        if suffices(log_ratio) and not self._anneals:
            x, log_ratio = self._from_base(number, _BASE)  # not those by which the base was judged
            return self._resampled(x, log_ratio, log_ratio, self._first_log_step_size, num_samples)
        return self._annealed(num_samples)

    def annealing_plan(self) -> Plan:
        """Returns the plan that the particles followed in the run, of as many stages as it had."""
        if self._plan is None:
            raise ValueError("the particles were not annealed.")
        return self._plan

    def _resampled(
        self, x: tf.Tensor, log_weights: np.ndarray, log_ratio: np.ndarray, log_step_size: float, num_samples: int
    ) -> Draws:
        """Draws by importance resampling of proposals, whose h is `log_ratio`, moved from that step size on."""
        number, num_groups = len(log_weights), self.settings.num_groups
        value, error = jackknife_of_log_mean(log_weights)
        grouped = np.logaddexp.reduce(log_weights.reshape(num_groups, -1), 1) - np.log(number // num_groups)
        u = random.uniform([1], self._fold(_RESAMPLING), tf.float64)
        index = resample(tf.constant(log_weights)[None], u, self._num)[0]
        particles = self._start(tf.gather(x, index), log_ratio[index.numpy()], beta=1.0)
        particles = particles._replace(groups=index // (number // num_groups), ancestors=index)
        ess = effective_number(log_weights)
        most = _MAX_MOVES_IF_EVEN if ess > _EVEN_SHARE * number else _MAX_MOVES_AFTER_BASE
        passed = self._moved(particles, log_step_size, min(self.settings.num_last_moves, most))
        return self._draws(passed, Estimate(value, error, ess, grouped), num_samples)

    def _annealed(self, num_samples: int) -> Draws:
        """Draws by a pass from base to target, and by a density fitted to its particles or by a second pass."""
        groups = self.settings.num_groups
        pilot = min(self._num, -(-_MAX_PILOT // groups) * groups)
        full = full_effort(self.settings)
        quick = Effort(*map(tf.minimum, _QUICK, full))
        for effort in (quick, None)[self._anneals or self._size > _MAX_QUICK :]:
            particles = self._start(*self._from_base(pilot, _FIRST_DRAWS), beta=0.0)
            first = self._pass(particles, None, self._first_log_step_size, _FIRST, effort=effort)
            draws = None if self._anneals else self._from_fitted(first, num_samples, is_quick=effort is quick)
            if draws is not None:
                return draws
        particles = self._start(*self._from_base(self._num, _SECOND_DRAWS), beta=0.0)
        passed = self._pass(particles, first.plan, 0.0, _SECOND)
        self._plan = Plan(*(part[: passed.num_stages] for part in first.plan))
        return self._draws(passed, _estimate_of(passed), num_samples)

    def _from_fitted(self, pilot: Passed, num_samples: int, is_quick: bool) -> Draws | None:
        """Draws by a density fitted to the particles of a pass; None if they or it are not good enough."""
        estimate = _estimate_of(pilot)
        x = pilot.particles.x.numpy().astype(np.float64)
        if is_quick:
            is_sound = len(np.unique(pilot.particles.ancestors)) >= _MIN_QUICK_ANCESTORS
        else:
            is_sound = not self._draws(pilot, estimate, 1, is_pilot=True).trouble
        if not is_sound or not (np.ptp(x, 0) > 0).all():
            return None

        def weigh(fitted: Copula, number_of_fit: int) -> tuple[np.ndarray, np.ndarray]:
            draws = proposals.draw(fitted, random.fold_in(self._fold(_JUDGED), number_of_fit))
            return draws.numpy().astype(np.float64), proposals.weigh(fitted, draws)[0]

        groups = self.settings.num_groups
        proposals = Proposals(self._target, self.base, groups, _DRAWS_PER_PARTICLE * self._num // groups)
        fitted, log_weights = fit_by_weights(x, weigh)
        value, error = jackknife_of_log_mean(log_weights)
        agrees = abs(value - estimate.value) <= _MAX_ERRORS * np.hypot(error, estimate.standard_error)
        covered = covers(log_weights, proposals.weigh(fitted, pilot.particles.x)[0])
        # what is decided by these draws does not bias log Z of others
        if not (suffices(log_weights) and agrees and covered):
            return None
        draws = proposals.draw(fitted, self._fold(_FITTED))
        weighed = proposals.weigh(fitted, draws)
        self._num_faults += proposals.num_faults
        return self._resampled(draws, *weighed, float(pilot.log_step_size), num_samples)

    def _draws(self, passed: Passed, log_normalizer: Estimate, num_samples: int, is_pilot: bool = False) -> Draws:
        """Returns the draws of a pass, and judges them; with those of a pilot, nothing is searched for."""
        particles, num_groups = passed.particles, self.settings.num_groups
        x, groups = particles.x.numpy().astype(np.float64), particles.groups.numpy()
        clusters_seed = int(random.fold_in(self._seed, _CLUSTERS).numpy()[0]) % 2**31
        max_ess = np.inf if log_normalizer.ess is None else log_normalizer.ess
        shares, share_ess = find_clusters(x, groups, num_groups, self._log_density, clusters_seed, max_ess)
        log_density, gradient = self._at_any(x)
        stages = int(passed.num_stages)
        betas, rates, moves = (
            part.numpy()[:stages] for part in (passed.plan.betas, passed.accept, passed.plan.num_moves)
        )
        if stages > 1:  # the last two stages are both at β = 1
            both = np.average(rates[-2:], weights=moves[-2:])
            betas, rates = betas[:-1], np.append(rates[:-2], both)
        inverse_temperatures: np.ndarray = np.append(0.0, betas)
        if not is_pilot:
            self._search(x, log_normalizer, share_ess)
            self._find_drift(particles, gradient, passed.plan.scales[stages - 1], passed.log_step_size)
        return judged_draws(
            particles.x,
            groups,
            particles.ancestors.numpy(),
            num_samples=num_samples,
            event_shape=tuple(self.base.event_shape),
            order_seed=self._fold(_ORDER),
            shares=shares,
            share_ess=share_ess,
            log_density=log_density,
            gradient=gradient,
            num_groups=num_groups,
            log_normalizer=log_normalizer,
            inverse_temperatures=inverse_temperatures,
            acceptance_rate=rates,
            max_temperatures=self.settings.max_temperatures,
            min_accept=least_accept(self.settings.kernel),
            num_faults=self._num_faults + int(passed.num_faults),
            has_boundary=self._has_boundary,
            missed=self.missed,
            drift=self.drift,
            leniency=_LENIENCY if is_pilot else 1.0,
        )

    def _find_drift(
        self, particles: Particles, gradient: np.ndarray, scale: tf.Tensor, log_step_size: tf.Tensor
    ) -> None:
        """Finds out whether further moves shift the draws."""
        x, groups = particles.x.numpy().astype(np.float64), particles.groups.numpy()
        self.is_uneven = self._size <= _MAX_SEARCH and is_uneven(x, gradient)
        if not self.is_uneven:
            return
        self._settling, self._num_settled = (particles.x, scale, log_step_size), 0
        self.may_drift = True
        while (self._num_settled < _NUM_CHECKS or self.may_drift) and not self.drift:
            if self._num_settled == _NUM_DOUBTFUL:
                break
            after = self._settle()
            shift_of = functools.partial(shift, x, after.astype(np.float64), groups, self.settings.num_groups)
            self.drift, self.may_drift = shift_of(), shift_of(NUM_ERRORS_OF_DOUBT) > 0

    def _settle(self) -> np.ndarray:
        """Moves the draws further, and returns them."""
        x, scale, log_step_size = self._settling
        seed = random.fold_in(self._fold(_SETTLING), self._num_settled)
        x, log_step_size = self._compiled(settle, _NUM_SETTLING)(x, scale, log_step_size, seed)
        self._settling, self._num_settled = (x, scale, log_step_size), self._num_settled + 1
        return x.numpy()

    def settled(self) -> np.ndarray:
        """Returns the draws after further moves, at several times, `[n, d]`; their scale must be uneven."""
        found = {}
        while self._num_settled < _FIT_TO[-1]:
            after = self._settle()
            found[self._num_settled] = after
        return np.concatenate([found[number] for number in _FIT_TO])

    def _search(self, x: np.ndarray, log_normalizer: Estimate, share_ess: float) -> None:
        """Finds modes that draws `[n, d]` have missed, as far as climbs from the base reach them."""
        if self._size > _MAX_SEARCH or not np.isfinite(log_normalizer.value):
            return
        start = self._from_base(NUM_STARTS, _SEARCH)[0]
        spread = self._from_base(_DRAWS_PER_PARTICLE * self._num, _PILOT)[0].numpy().astype(np.float64)
        unit = spread.std(0)
        unit[~(unit > 0)] = 1.0
        start = tf.constant(spread_starts(start.numpy(), spread.mean(0), x.mean(0)), self.base.dtype)
        rng = np.random.default_rng(self._fold(_SEARCH).numpy().astype(np.uint32))
        ends, values, inverses = (part.numpy() for part in self._compiled(climb)(start, unit))
        value, error = log_normalizer.value, log_normalizer.standard_error
        self.regions = find_regions(ends, values, inverses, unit, value, self._at_any, rng)
        self.missed = find_missed(self.regions, x, value, error, max(share_ess, MIN_SHARE_ESS))
        mass = np.exp(np.logaddexp.reduce([region.log_mass for region in self.regions], initial=-np.inf) - value)
        self.modes_may_help = bool(share_ess < MIN_SHARE_ESS and mass > _MIN_MASS)

    def _fold(self, purpose: int) -> tf.Tensor:
        return random.fold_in(self._seed, purpose)

    def _start(self, x: tf.Tensor, log_ratio: Any, beta: float) -> Particles:
        return initial_particles(x, tf.constant(log_ratio, tf.float64), self.settings.num_groups, beta)

    def _from_base(self, num: int, purpose: int) -> tuple[tf.Tensor, np.ndarray]:
        """Returns draws from the base, and their h."""
        x, log_ratio, num_faults = self._compiled(draw_and_weigh, num)(self._fold(purpose))
        self._num_faults += int(num_faults)
        return x, log_ratio.numpy()

    def _at(self, x: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns log f and its gradient."""
        log_density, gradient = self._compiled(log_density_and_gradient)(x)
        return log_density.numpy(), gradient.numpy()

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        """Returns log f of points."""
        return self._at_any(x)[0]

    def _at_any(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns log f and its gradient at any number of points, in blocks for which one function is compiled."""
        block = max(_MIN_BLOCK, -(-self._num // _NUM_BLOCKS))
        count, parts = -(-len(x) // block), []
        filled = np.concatenate([x, np.repeat(x[:1], count * block - len(x), 0)])
        for part in np.split(filled, count):
            parts.append(self._at(tf.constant(part, self.base.dtype)))
        log_density, gradient = (np.concatenate(each)[: len(x)] for each in zip(*parts, strict=True))
        return log_density, gradient

    def _pass(
        self,
        particles: Particles,
        plan: Plan | None,
        log_step_size: float,
        purpose: int,
        effort: Effort | None = None,
    ) -> Passed:
        """Runs a compiled pass."""
        given = plan or empty_plan(self.settings, self._size, self.base.dtype)
        loop = XlaOrGraph(self._find_pass, self._jit_compile, self._size <= _XLA_MAX_EVENT_SIZE)
        passed = begun_pass(self.settings, particles, given, tf.constant(log_step_size, tf.float64))
        args = (given, tf.constant(plan is not None), self._fold(purpose), effort or full_effort(self.settings))
        bar = self._bar if effort is None else None  # not for what comes before a pass with all effort
        stop, num = 1, 1
        while True:  # a call runs for about half a second, so that an interrupt takes effect between calls
            started = time.perf_counter()
            passed = loop.run(Compiled.__call__, passed, *args, tf.constant(stop))
            if bar is not None:
                bar.update(int(_PERCENT * (float(passed.particles.beta) + (plan is not None)) / 2))
            if passed.is_done:
                break
            num = max(1, min(8 * num, int(num * _SECONDS / (time.perf_counter() - started))))
            stop += num
        if self._jit_compile != "auto" or not loop.loop.is_xla or passed.accept.numpy().any():
            return passed
        # XLA's gradient may be NaN where that of graph mode is not, as that of tf.norm at 0; then nothing moves
        loop.give_up_xla()
        return self._pass(particles, plan, log_step_size, purpose, effort)

    def _moved(self, particles: Particles, log_step_size: float, most: int) -> Passed:
        """Moves resampled draws."""
        # XLA saves less time than its compilation takes
        move = self._compiled(move_at_target, self.settings, jit_compile=self._jit_compile is True)
        passed: Passed = move(particles, tf.constant(log_step_size, tf.float64), tf.constant(most), self._fold(_SECOND))
        if self._bar is not None:
            self._bar.update(_PERCENT)
        return passed

    def _find_pass(self, is_xla: bool) -> Compiled:
        # To compile the pass takes XLA three times as long as to compile its moves, where most of its time goes.
        jit_moves, jit_compile = is_xla and self._jit_compile == "auto", is_xla and self._jit_compile != "auto"
        found = self._compiled(continue_pass, self.settings._replace(jit_moves=jit_moves), jit_compile=jit_compile)
        found.is_xla = is_xla
        return found

    def _compiled(self, function: Callable[..., Any], *first: Hashable, jit_compile: bool = False) -> Compiled:
        key = (self._key, *first)
        return compile_once(self._target, function, self.base, *first, key=key, jit_compile=jit_compile)


def _estimate_of(passed: Passed) -> Estimate:
    """Returns log Z of a pass, with the larger of two standard errors."""
    log_normalizers = passed.particles.log_normalizers.numpy()
    value, error = jackknife_of_log_mean(log_normalizers)
    error = float(np.maximum(error, np.sqrt(passed.relative_variance.numpy())))
    return Estimate(value, error, float(passed.ess), log_normalizers)
