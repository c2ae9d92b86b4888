"""Modes that draws may have missed: a search from the base, with an estimate of the mass at each mode.

Points climb from draws of the base to maxima of log f. Around each maximum m, with A = −∇² log f there, lies the
ellipsoid R = {(x − m)ᵀ A (x − m) ≤ r²}. Its mass is estimated by importance sampling from a Gaussian q around m:

    Z_R = ∫_R f dx = E_q [f(x)/q(x); x ∈ R].

By Markov's inequality, such an estimate exceeds c times the mass with probability at most 1/c, whatever the shape of f
(heavy tails, ridges, many small maxima): what is found is there. Draws from f/Z lie in R with probability Z_R/Z. Where
their share is much smaller, they have missed a mode. This is a test of the draws that does not use the path from the
base to the target; but it finds only modes from whose basins the base draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf
import tensorflow_probability as tfp

# Points that climb; for some of them by which factors their distance from the mean of the base changes, in one
# coordinate and in all others; how many of them are on a diagonal, and on a line beyond the mean.
NUM_STARTS, _STRETCH, _CONTRACTION, _NUM_DIAGONAL, _NUM_BEYOND = 256, 1.5, 0.1, 8, 16
# Ends of that line, in terms of the distance between the means of draws and base.
_NEAREST, _FARTHEST = 0.2, 10.0
# Largest numbers of maxima whose Hessian is computed, and around which the mass is estimated.
_MAX_MAXIMA, _MAX_REGIONS = 64, 24
# Maxima nearer than this, in standard deviations of the base per coordinate, are one.
_MIN_DISTANCE = 0.02
# Step of the differences that give the Hessian, in standard deviations of the mode.
_STEP = 0.1
# Largest standard deviation of a mode, in those of the base.
_MAX_DEVIATION = 3.0
# Probability of R and draws from q in each region, whose standard deviations are those of the mode times a factor.
_PROBABILITY, _NUM_DRAWS, _WIDTH = 0.9, 256, 1.1
# Least share, by Laplace's formula, of a region that is examined; and least share that draws must not miss.
_MIN_LAPLACE, _MIN_SHARE = 1e-3, 0.02
# Weight of the modes in a base, and their standard deviations there in terms of those of the modes.
_MODES_WEIGHT, _MODES_WIDTH = 0.5, 1.3
# Draws miss a region if their share is smaller than the estimate by this factor, and by so many standard errors.
_FACTOR, _NUM_ERRORS = 2.0, 4.0


class Region(NamedTuple):
    """A part of space around a maximum of the density.

    Attributes:
      loc: the maximum, `[d]`.
      scale_tril: factor of A⁻¹, `[d, d]`.
      log_mass: log of the estimate of Z_R.
      error: relative standard error of the estimate.
    """

    loc: np.ndarray
    scale_tril: np.ndarray
    log_mass: float
    error: float

    def contains(self, x: np.ndarray) -> np.ndarray:
        """Returns whether points `[n, d]` lie in the region."""
        return _squared_radius(self.loc, self.scale_tril, x) <= _radius(len(self.loc)) ** 2


class Missed(NamedTuple):
    """A region that draws have missed.

    Attributes:
      region: the region.
      share: the share that the region should have, by the estimate.
      share_of_draws: the share that it has.
    """

    region: Region
    share: float
    share_of_draws: float


def spread_starts(x: np.ndarray, mean: np.ndarray, found_mean: np.ndarray) -> np.ndarray:
    """Returns points from draws of a base `[n, d]`, of which many are nearer to its mean.

    In many coordinates nearly all draws are far from the mean, where the widest mode has the highest density. Near to
    the mean, or to a line through it along a coordinate, more points are in the basins of narrow modes. Half of the
    draws is contracted in all coordinates but one, in which they lie at equal steps of its distribution, stretched. A
    quarter is contracted to the mean by factors from 0 to 1. Of the others, which stay as they are, a few lie at equal
    steps in all coordinates alike, on a diagonal, and a few on the line from the mean of what was found through that of
    the base: if the target has the base's mean μ, and draws with mean x̄ miss one mode m of share w, it is there, since
    μ = (1 − w) x̄ + w m.

    Args:
      x: draws of the base.
      mean: the mean of the base.
      found_mean: the mean of the draws that may have missed a mode.

    >>> x = np.random.default_rng(0).normal(size=(256, 20))
    >>> points = spread_starts(x, np.zeros(20), np.zeros(20))
    >>> np.array_equal(points[48:128:2], x[48:128:2]), points[1].tolist() == 20 * [0.0]
    (True, True)
    >>> bool(np.abs(points[128, 1:]).max() < 0.4), bool(abs(points[128, 0]) > 1.5)  # along the first coordinate
    (True, True)
    """
    num, size = x.shape
    half = num // 2
    points = x - mean
    contracted = points[1:half:2]
    contracted *= np.square(np.linspace(0.0, 1.0, len(contracted)))[:, None]
    along = points[half:]  # a view, as the other
    along *= _CONTRACTION
    place, coordinate = np.divmod(np.arange(len(along)), size)
    steps = np.quantile(x - mean, (np.arange(place[-1] + 1) + 0.5) / (place[-1] + 1), axis=0)
    along[np.arange(len(along)), coordinate] = _STRETCH * steps[place, coordinate]
    others = points[:half:2]
    others[:_NUM_DIAGONAL] = np.quantile(x - mean, (np.arange(_NUM_DIAGONAL) + 0.5) / _NUM_DIAGONAL, axis=0)
    distances = np.geomspace(_NEAREST, _FARTHEST, _NUM_BEYOND)
    others[_NUM_DIAGONAL : _NUM_DIAGONAL + _NUM_BEYOND] = distances[:, None] * (mean - found_mean)
    return mean + points


def find_regions(
    x: np.ndarray,
    values: np.ndarray,
    inverses: np.ndarray,
    unit: np.ndarray,
    log_normalizer: float,
    at: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
) -> list[Region]:
    """Returns the regions around the maxima that matter.

    Args:
      x, values, inverses: what `running.climb.climb` returns.
      unit: the unit of each coordinate, `[d]`.
      log_normalizer: an estimate of log Z.
      at: maps points `[n, d]` to log f and its gradient.
      rng: for draws from q.
    """
    x, values, inverses = (part[np.isfinite(values)] for part in (x, values, inverses))
    y = x / unit
    size = y.shape[1]
    kept: list[int] = []
    for i in np.argsort(-values, kind="stable"):
        near = np.square(y[kept] - y[i]).sum(1) < _MIN_DISTANCE**2 * size
        if not near.any() and len(kept) < _MAX_MAXIMA:
            kept.append(int(i))
    if not kept:
        return []
    locs, values = y[kept], values[kept]
    factors = _factors(locs, inverses[kept], lambda y: at(y * unit)[1] * unit)
    log_det_unit = float(np.log(unit).sum())
    log_masses = values + np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1) + log_det_unit
    log_masses += 0.5 * size * np.log(2 * np.pi)
    regions: list[Region] = []
    for i in np.argsort(-log_masses, kind="stable"):
        if log_masses[i] < log_normalizer + np.log(_MIN_LAPLACE) or len(regions) == _MAX_REGIONS:
            break
        if any(region.contains(unit * locs[i : i + 1])[0] for region in regions):
            continue
        loc, factor = unit * locs[i], unit[:, None] * factors[i]
        log_mass, error = _mass(loc, factor, lambda x: at(x)[0], rng)
        regions.append(Region(loc, factor, log_mass, error))
    return regions


def find_missed(
    regions: list[Region], x: np.ndarray, log_normalizer: float, error: float, share_ess: float
) -> list[Missed]:
    """Returns the regions that draws have missed, those of the largest shares first.

    Args:
      regions: the regions.
      x: draws, `[n, d]`.
      log_normalizer, error: estimate of log Z that belongs to the draws, and its standard error.
      share_ess: effective number of draws by which the error of their shares is judged.
    """
    missed = []
    for region in regions:
        mass = np.exp(min(region.log_mass - log_normalizer, 700.0))  # in units of Z
        found = float(region.contains(x).mean())
        share = mass / (1.0 + max(mass - found, 0.0))
        if not (np.isfinite(mass) and share > _MIN_SHARE and mass > _FACTOR * found):
            continue
        binomial = np.sqrt(max(found, share / _FACTOR) / max(share_ess, 1.0))
        doubt = np.hypot(mass * min(region.error, 1.0), found * (error if np.isfinite(error) else 1.0))
        if mass - found > _NUM_ERRORS * np.hypot(binomial, doubt):
            missed.append(Missed(region, float(share), found))
    return sorted(missed, key=lambda one: -one.share)


def with_modes(base: tfp.distributions.Distribution, regions: list[Region]) -> tfp.distributions.Distribution:
    """Returns the equal mixture of a base and of Gaussians in all regions, weighted by the masses of these.

    Args:
      base: a distribution over `[*event]`.
      regions: at least one region with positive mass.
    """
    tfd, tfb, dtype = tfp.distributions, tfp.bijectors, base.dtype.as_numpy_dtype
    log_masses = np.array([region.log_mass for region in regions])
    masses = np.exp(log_masses - log_masses.max())
    modes = tfd.MixtureSameFamily(
        tfd.Categorical(probs=(masses / masses.sum()).astype(dtype)),
        tfd.MultivariateNormalTriL(
            np.stack([region.loc for region in regions]).astype(dtype),
            (_MODES_WIDTH * np.stack([region.scale_tril for region in regions])).astype(dtype),
        ),
    )
    event_shape = tuple(base.event_shape)
    if len(event_shape) != 1:
        modes = tfd.TransformedDistribution(modes, tfb.Reshape(event_shape))
    weights = tf.constant([1 - _MODES_WEIGHT, _MODES_WEIGHT], base.dtype)
    return tfd.Mixture(tfd.Categorical(probs=weights), [base, modes])


def _radius(size: int) -> float:
    """Returns the radius that contains a probability of `_PROBABILITY` of a standard normal vector."""
    return float(np.sqrt(scipy.special.chdtri(size, 1.0 - _PROBABILITY)))


def _squared_radius(loc: np.ndarray, scale_tril: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.square(np.linalg.solve(scale_tril, (x - loc).T)).sum(0)


def _factors(locs: np.ndarray, inverses: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns factors of A⁻¹ at points, from differences of the gradient.

    Where A has a negative or a small eigenvalue, that of the base takes its place.
    """
    num, size = locs.shape
    steps = _STEP * np.sqrt(np.clip(np.diagonal(inverses, axis1=1, axis2=2), 1e-12, _MAX_DEVIATION**2))
    offsets = steps[:, :, None] * np.eye(size)
    both = np.stack([locs[:, None] + offsets, locs[:, None] - offsets])
    gradients = gradient(both.reshape(-1, size)).reshape(2, num, size, size)
    hessian = (gradients[1] - gradients[0]) / (2 * steps[:, :, None])
    hessian = np.where(np.isfinite(hessian), 0.5 * (hessian + np.swapaxes(hessian, 1, 2)), 0.0)
    eigenvalues, vectors = np.linalg.eigh(hessian)
    eigenvalues = np.where(eigenvalues > 0, np.clip(eigenvalues, _MAX_DEVIATION**-2, 1e12), 1.0)
    covariance = (vectors / eigenvalues[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    return np.linalg.cholesky(covariance)


def _mass(
    loc: np.ndarray, factor: np.ndarray, log_density: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> tuple[float, float]:
    """Returns log Z_R and its relative standard error; infinity for the latter if no draw has weight."""
    size = len(loc)
    z = rng.standard_normal([_NUM_DRAWS, size]) * _WIDTH
    radius = np.square(z).sum(1)
    log_q = -0.5 * radius / _WIDTH**2 - size * np.log(_WIDTH) - 0.5 * size * np.log(2 * np.pi)
    log_q -= np.log(np.diag(factor)).sum()
    values = log_density(loc + z @ factor.T)
    log_weights = np.where((radius <= _radius(size) ** 2) & ~np.isnan(values), values - log_q, -np.inf)
    largest = float(log_weights.max())
    if not np.isfinite(largest):
        return -np.inf, np.inf
    weights = np.exp(log_weights - largest)
    mean = float(weights.mean())
    return largest + float(np.log(mean)), float(weights.std(ddof=1) / np.sqrt(_NUM_DRAWS) / mean)
