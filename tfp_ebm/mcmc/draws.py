"""Draws with the information whether they can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.mcmc.clusters import Shares, find_clusters
from tfp_ebm.mcmc.modes import Missed
from tfp_ebm.types import Estimate

# Limits of the verdict.
MIN_SHARE_ESS = 100.0
MIN_ANCESTORS = 0.2
# Share of distinct draws from the base from which these need no moves to be independent.
_ENOUGH_ANCESTORS = 0.7
# Rates of acceptance, of few moves each, vary: a low rate counts at the target, or at so many of the temperatures.
MIN_ACCEPT, _MAX_LOW_RATES = 0.4, 0.2
MAX_NESTED_R_HAT = 1.03
# Effective share of the groups by the estimates of Z from each: .8 is a spread of log Z of ½ between groups.
MIN_GROUP_ESS = 0.8
# Exact draws from which clusters are found, at least.
_MIN_EXACT = 1024
# The largest violation of an identity, and how many standard errors make it significant: of eight groups, six have a
# probability of 5·10⁻⁴.
_MAX_IMBALANCE, _MIN_SIGNIFICANCE = 0.15, 6.0


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws from a density, with an estimate of its log Z and a verdict on both.

    Attributes:
      states: the draws, all of the same weight and in random order, `[num_samples, *event]`.
      log_normalizer: estimate of log Z, Z = ∫ exp(target_log_prob_fn(x)) dx. Its standard error is the
        larger of the jackknife's over groups and of that from the descent of the particles (Lee & Whiteley 2018); for
        draws that were resampled by their weights alone, the jackknife's over these. Its `ess` is the effective number
        of weighted draws; its `log_weights` are the estimates of log Z from each group, `[num_groups]`.
      inverse_temperatures: from 0 (the base) to 1 (the target), `[K + 1]`; `[1]` for a network that draws exactly.
      acceptance_rate: mean acceptance of the trajectories at each temperature after the first, `[K]`.
      num_particles: number of particles, from which the draws are taken.
      num_ancestors: number of distinct draws from the base, or from a density fitted to a pilot's particles, from which
        the particles descend.
      shares: the shares of clusters of particles, over all and in each group, with their errors and effective numbers
        of draws.
      rhat: the largest nested R̂ of the target's log density and of the coordinates (Margossian et al. 2024):
        √(1 + variance between groups / variance within groups).
      trouble: sentences that describe what is wrong; empty if nothing was found.

    >>> import tensorflow_probability as tfp
    >>> from tfp_ebm import mcmc
    >>> base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])
    >>> draws = mcmc.sequential_monte_carlo(lambda x: -tf.reduce_sum(x**2, -1), base, num_samples=100, seed=0)
    >>> draws.states.shape, draws.trouble
    (TensorShape([100, 2]), ())
    >>> bool(abs(draws.log_normalizer.value - np.log(np.pi)) < 4 * draws.log_normalizer.standard_error)
    True
    """

    states: tf.Tensor
    log_normalizer: Estimate
    inverse_temperatures: np.ndarray
    acceptance_rate: np.ndarray
    num_particles: int
    num_ancestors: int
    shares: Shares
    rhat: float
    trouble: tuple[str, ...]


def nested_r_hat(values: np.ndarray, groups: np.ndarray, num_groups: int) -> float:
    """Computes the largest nested R̂ of columns `[n, columns]`; 1 for a column that does not vary.

    Each group is a superchain, and each of its particles a chain with one draw (Margossian et al. 2024,
    arXiv:2110.13017).

    >>> x = np.random.default_rng(0).normal(size=(800, 1))
    >>> groups = np.arange(800) % 8
    >>> round(nested_r_hat(x, groups, 8), 2), round(nested_r_hat(x + groups[:, None], groups, 8), 1)
    (1.0, 2.6)
    """
    counts = np.bincount(groups, minlength=num_groups).astype(np.float64)
    sums = np.zeros([num_groups, values.shape[1]])
    np.add.at(sums, groups, values)
    parts = (counts / counts.sum())[:, None]
    means = sums / np.maximum(counts, 1.0)[:, None]
    residuals = np.square(values - means[groups])
    within = residuals.sum(0) / max(len(values) - int((counts > 0).sum()), 1)
    center = (parts * means).sum(0)
    between = num_groups / (num_groups - 1) * (parts * np.square(means - center)).sum(0)
    varies = within > 0
    if not varies.any():
        return 1.0 if not (between > 0).any() else float("inf")
    return float(np.sqrt(1 + np.max(between[varies] / within[varies])))


def imbalance(x: np.ndarray, gradient: np.ndarray, groups: np.ndarray, num_groups: int) -> float:
    """Returns the largest significant violation of two identities that hold for draws from a density.

    Integration by parts gives, with g = ∇ log f, E gᵢ = 0 and E (xᵢ − m)gᵢ = −1. If the draws cover only a part of the
    density, as where the step size is too large for the rest, the edge of this part adds to both. The first is
    multiplied by the standard deviation of xᵢ. Violations are significant if they are more than six times their
    standard error, from the groups. A density without gradient, such as a uniform one, has no such identity.

    Args:
      x, gradient: draws and g, `[n, d]`.
      groups, num_groups: the group of each draw, and how many there are.

    >>> x = np.random.default_rng(0).normal(size=(4000, 1))
    >>> groups, half = np.arange(4000) % 8, x[:, 0] > 0
    >>> imbalance(x, -x, groups, 8), round(imbalance(x[half], -x[half], groups[half], 8), 1)
    (0.0, 0.6)
    """
    finite = np.isfinite(gradient).all(1)
    x, gradient, groups = x[finite], gradient[finite], groups[finite]
    counts = np.bincount(groups, minlength=num_groups).astype(np.float64)
    if counts.min() < 2 or not gradient.any():
        return 0.0
    centred = x - x.mean(0)
    terms = np.concatenate([gradient * x.std(0), centred * gradient + 1.0], 1)
    sums = np.zeros([num_groups, terms.shape[1]])
    np.add.at(sums, groups, terms)
    parts = (counts / counts.sum())[:, None]
    means = sums / counts[:, None]
    mean = (parts * means).sum(0)
    variance = num_groups / (num_groups - 1) * (np.square(parts) * np.square(means - mean)).sum(0)
    # eight groups may agree by chance, but draws are at most as good as independent ones
    variance = np.maximum(variance, terms.var(0) / len(terms))
    significant = np.abs(mean) > _MIN_SIGNIFICANCE * np.sqrt(variance)
    return float(np.max(np.abs(mean) * significant, initial=0.0))


def verdict(
    *,
    shares: Shares,
    share_ess: float,
    num_particles: int,
    num_ancestors: int,
    acceptance_rate: np.ndarray,
    inverse_temperatures: np.ndarray,
    max_temperatures: int,
    r_hat: float,
    log_normalizers: np.ndarray,
    num_faults: int,
    num_bad_gradients: int,
    imbalance: float,
    missed: Sequence[Missed] = (),
    drift: float = 0.0,
    min_accept: float = MIN_ACCEPT,
    leniency: float = 1.0,
) -> tuple[str, ...]:
    """Returns the sentences of `Draws.trouble`.

    Args:
      shares, num_particles, num_ancestors, acceptance_rate, inverse_temperatures: as in `Draws`.
      share_ess: the smallest effective number of draws of any cluster, or part of a cluster.
      max_temperatures: the largest number of temperatures that was allowed.
      r_hat: nested R̂.
      log_normalizers: log Ẑ of each group.
      num_faults: number of evaluations of the target that gave NaN or +∞.
      num_bad_gradients: number of particles where the gradient is NaN or infinite.
      imbalance: as from the function of this name.
      missed: modes that the draws have missed, those of the largest shares first.
      drift: the shift of a coordinate's mean by further moves, in its standard deviations; 0 if it is not significant.
      min_accept: the least acceptance that is no trouble.
      leniency: how many times more the shares and means of groups may differ.
    """
    max_r_hat = float(np.sqrt(1.0 + leniency * (MAX_NESTED_R_HAT**2 - 1.0)))
    sentences: list[str] = []

    def add(condition: Any, sentence: str) -> None:
        if condition:
            sentences.append(sentence)

    cure = "a base closer to the target, such as fit_base(x, kind='gaussian_mixture', broad_share=0.1), helps"
    worst = int(np.argmin(shares.ess))
    for one in missed[:1]:
        sentences.append(
            f"The draws miss a mode, or most of it: a search from the base found a region that has a share of about "
            f"{one.share:.2g}, but {one.share_of_draws:.2g} of the draws lie there; {cure}."
        )
    add(
        not leniency * share_ess >= MIN_SHARE_ESS,
        f"The shares of the modes are not known: independent groups of particles disagree on them as if there were "
        f"{share_ess:.0f} independent draws (share of the most uncertain cluster: {shares.values[worst]:.2g} ± "
        f"{shares.standard_errors[worst]:.1g}); {cure}.",
    )
    add(
        num_ancestors < MIN_ANCESTORS * num_particles,
        f"The {num_particles} particles descend from only {num_ancestors} draws from the base, so they do not "
        f"represent the target independently; more particles, or {cure}.",
    )
    add(
        len(inverse_temperatures) - 1 >= max_temperatures,
        f"{max_temperatures} temperatures did not suffice to get from the base to the target; {cure}.",
    )
    is_low = ~(acceptance_rate >= min_accept)
    rates = acceptance_rate[is_low]
    # draws that were weighted alone are independent without moves, unless many are copies
    needs_moves = len(acceptance_rate) > 1 or num_ancestors < _ENOUGH_ANCESTORS * num_particles
    add(
        needs_moves and (is_low[-1:].any() or len(rates) > _MAX_LOW_RATES * len(acceptance_rate)),
        f"The moves of the particles were accepted at a rate of {rates.min() if len(rates) else 0:.2f} at "
        f"{len(rates)} of {len(acceptance_rate)} temperatures, less than {min_accept:.2g}: the density may have parts "
        "of very different widths, or no finite gradient in places (under XLA also where it has one in graph mode).",
    )
    add(
        not r_hat <= max_r_hat,
        f"Independent groups of particles differ: nested R-hat is {r_hat:.2f}, above {max_r_hat:.3g}; {cure}.",
    )
    weights = np.exp(log_normalizers - np.max(log_normalizers))
    group_ess = float(np.sum(weights) ** 2 / np.sum(weights**2) / len(weights))
    add(
        not group_ess >= MIN_GROUP_ESS,
        f"Estimates of Z from independent groups of particles differ so much that {len(weights)} of them count as "
        f"{group_ess * len(weights):.1f}: some groups may have missed a mode; {cure}.",
    )
    add(
        not imbalance <= _MAX_IMBALANCE,
        f"The draws do not cover the density: the identities E grad log f = 0 and E (x - m) grad log f = -1 are "
        f"violated by {imbalance:.2f}. The density may have parts that are too narrow for the moves; {cure}.",
    )
    add(
        drift > 0,
        f"The draws do not cover the density: further moves shift the mean of a coordinate by {drift:.2f} of its "
        f"standard deviation. The density has parts that are too narrow for the moves; {cure}.",
    )
    add(num_bad_gradients, f"The gradient is NaN or infinite at {num_bad_gradients} of {num_particles} particles.")
    add(
        num_faults,
        f"The target's log density was NaN or +infinity at {num_faults} states, which count as having density zero.",
    )
    return tuple(sentences)


def of_exact(
    draw: Callable[[int], tf.Tensor], log_density: Callable[[np.ndarray], np.ndarray], num_samples: int
) -> Draws:
    """Returns exact, independent draws from a density with log Z = 0.

    Args:
      draw: returns a number of draws `[num, *event]`.
      log_density: log p of states `[num, *event]`.
      num_samples: number of draws.
    """
    num = max(num_samples, _MIN_EXACT)
    states = draw(num)
    flat = states.numpy().astype(np.float64).reshape(num, -1)
    event_shape, dtype = tuple(states.shape[1:]), states.dtype.as_numpy_dtype
    shares, _ = find_clusters(
        flat, np.arange(num) % 8, 8, lambda x: log_density(x.astype(dtype).reshape(-1, *event_shape)), 0
    )
    shares = shares._replace(centers=shares.centers.reshape(-1, *event_shape))
    none: np.ndarray = np.zeros([0])
    log_normalizer = Estimate(0.0, 0.0, float(num))
    return Draws(states[:num_samples], log_normalizer, np.ones([1]), none, num, num, shares, 1.0, ())


def judged_draws(
    x: tf.Tensor,
    groups: np.ndarray,
    ancestors: np.ndarray,
    *,
    num_samples: int,
    event_shape: tuple[int, ...],
    order_seed: tf.Tensor,
    shares: Shares,
    share_ess: float,
    log_density: np.ndarray,
    gradient: np.ndarray,
    num_groups: int,
    log_normalizer: Estimate,
    inverse_temperatures: np.ndarray,
    acceptance_rate: np.ndarray,
    max_temperatures: int,
    num_faults: int,
    has_boundary: bool = False,
    missed: Sequence[Missed] = (),
    drift: float = 0.0,
    min_accept: float = MIN_ACCEPT,
    leniency: float = 1.0,
) -> Draws:
    """Returns draws from particles of equal weight, with the verdict on them.

    Args:
      x: the particles, `[n, d]`.
      groups, ancestors: group of each particle, and number of the draw from the base it descends from, `[n]`.
      num_samples: number of draws.
      event_shape: shape of one draw.
      order_seed: int32[2], of the choice and the order of the draws.
      log_density, gradient: log f at the particles, `[n]`, and its gradient, `[n, d]`.
      num_groups: number of groups.
      log_normalizer: as in `Draws`.
      has_boundary: whether the density may end at a boundary, where the identities of the gradient do not hold.
      shares, share_ess, inverse_temperatures, acceptance_rate, max_temperatures, num_faults, missed, drift,
        min_accept, leniency: as for `verdict`.
    """
    points, num = x.numpy().astype(np.float64), len(groups)
    r_hat = nested_r_hat(np.concatenate([points, log_density[:, None]], 1), groups, num_groups)
    num_ancestors = len(np.unique(ancestors))
    trouble = verdict(
        shares=shares,
        share_ess=share_ess,
        num_particles=num,
        num_ancestors=num_ancestors,
        acceptance_rate=acceptance_rate,
        inverse_temperatures=inverse_temperatures,
        max_temperatures=max_temperatures,
        r_hat=r_hat,
        log_normalizers=np.asarray(log_normalizer.log_weights),
        num_faults=num_faults,
        num_bad_gradients=int((~np.isfinite(gradient)).any(1).sum()),
        imbalance=0.0 if has_boundary else imbalance(points, gradient, groups, num_groups),
        missed=missed,
        drift=drift,
        min_accept=min_accept,
        leniency=leniency,
    )
    # particles at equal distances, in random order
    u = random.uniform([1 + num_samples], order_seed, tf.float64).numpy()
    index = np.floor((np.arange(num_samples) + u[0]) * num / num_samples).astype(np.int32)
    return Draws(
        states=tf.reshape(tf.gather(x, index[np.argsort(u[1:], kind="stable")]), [num_samples, *event_shape]),
        log_normalizer=log_normalizer,
        inverse_temperatures=inverse_temperatures,
        acceptance_rate=acceptance_rate,
        num_particles=num,
        num_ancestors=num_ancestors,
        shares=shares._replace(centers=shares.centers.reshape(-1, *event_shape)),
        rhat=r_hat,
        trouble=trouble,
    )
