"""Simple densities of small tables, chosen by cross-validation.

On a few hundred rows, a tenth of them cannot choose the form of a density: their mean log-likelihood has a standard
error of half a nat and more. Here each form is fitted to the rows outside of each fold and judged on the fold, so that
all rows judge. Plug-in estimates are too narrow on few rows; so covariances are shrunk and made wider, and a mixture of
Gaussians with one centre and several widths takes the place of Student's t, the predictive density of a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.stats
import threadpoolctl

from tfp_ebm.energy.gaussian_mixture import (
    MixtureParameters,
    fit_components,
    squared_distances,
    with_ridge,
)
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.recipes.density_rows import effective_number, equal_rows, joined, part_of_weights

# Shares of the unit matrix in covariances of standardised rows, and factors of these covariances.
_SHRINKAGES = (0.0, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
_WIDTHS = (0.6, 0.8, 1.0, 1.15, 1.35, 1.7)
# Degrees of freedom of Student's t, and the Gaussians that stand for it.
_FREEDOMS, _NUM_SCALES = (3.0, 6.0, 15.0), 8
# Components of a mixture whose conditionals are proposals, at most.
_MAX_PROPOSAL_COMPONENTS = 8
# Components that are tried, and how often a larger number may fail to be better; rows for each component at least.
_SIZES, _PATIENCE, _ROWS_PER_COMPONENT = (2, 3, 4, 6, 8, 12, 16, 24), 2, 6
# Starts of each fit: of six Gaussians in eight columns, two starts missed one in a fold, which chose eight instead.
_NUM_STARTS = 4
# Fits with further starts, if one looks bad.
_MAX_REFITS = 5
_RIDGES = (0.0, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.6)
_BANDWIDTHS = np.geomspace(0.05, 2.0, 24)
_KERNEL_SHRINKAGES = (1.0, 0.1, 0.5)

# The fits of one form to rows in standardised units, by what distinguishes them.
Variants = dict[tuple[float, ...], MixtureParameters]


class Chosen(NamedTuple):
    """A density whose form cross-validation chose.

    Attributes:
      log_probs: log density of each row that is in a fold by the fit without its fold, `[rows]`.
      num_components: number of Gaussians.
      fit: fits a density of this form to rows and their weights, None for equal ones.
      score: weighted mean of the log densities.
    """

    log_probs: np.ndarray
    num_components: int
    fit: Callable[..., MixtureParameters]
    score: float


def folds_of(
    x: np.ndarray, number: int, seed: int, labels: np.ndarray | None = None, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the number of the fold of each row; equal rows are in one fold, and the folds are of about equal size.

    Args:
      x: rows `[rows, columns]`; NaN is a missing cell.
      number: of folds; there are fewer if there are fewer groups of rows.
      seed: of the folds.
      labels: numbers of groups, whose rows are in one fold, `[rows]`.
      weights: of the rows, by which the sizes of folds are measured.

    >>> fold = folds_of(np.array([[0.0], [1.0], [1.0], [2.0], [3.0], [4.0]]), 2, seed=0)
    >>> bool(fold[1] == fold[2]), np.bincount(fold).tolist()
    (True, [3, 3])
    """
    _, group = np.unique(np.ascontiguousarray(x) + 0.0, axis=0, return_inverse=True)
    # NumPy takes rows with missing cells for different ones
    group = joined(group.reshape(-1), equal_rows(x) if np.isnan(x).any() else None, labels)
    sizes = np.bincount(group, weights)
    order = np.random.default_rng([seed, 13]).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    fold: np.ndarray = np.empty(len(sizes), int)
    fold[order] = np.minimum(before * number // len(x), number - 1)
    if labels is not None or weights is not None or (fold == fold[0]).all():
        fold = _balanced(sizes, order, number)  # groups may be large
    _, dense = np.unique(fold[group], return_inverse=True)
    return dense.reshape(-1)


def _balanced(sizes: np.ndarray, order: np.ndarray, number: int) -> np.ndarray:
    """Returns the folds of groups, dealt from the largest on to the fold that is smallest so far.

    >>> _balanced(np.array([1, 5, 2, 2]), np.arange(4), 2).tolist()
    [1, 0, 1, 1]
    """
    fold: np.ndarray = np.empty(len(sizes), int)
    loads = np.zeros(number)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold[group] = np.argmin(loads)
        loads[fold[group]] += sizes[group]
    return fold


def _gaussians(z: np.ndarray, seed: int, weights: np.ndarray | None = None) -> Variants:
    del seed
    covariance = np.cov(z.T, bias=True, aweights=weights).reshape(z.shape[1], -1) + 1e-6 * np.eye(z.shape[1])
    found: Variants = {}
    for share in _SHRINKAGES:
        factor = np.linalg.cholesky((1.0 - share) * covariance + share * np.eye(z.shape[1]))
        for width in _WIDTHS:
            found[share, width] = MixtureParameters(
                np.ones(1), np.average(z, 0, weights)[None], math.sqrt(width) * factor[None]
            )
    return found


def scales_of_t(freedom: float, number: int) -> np.ndarray:
    """Returns standard deviations of `number` Gaussians of equal weight whose mixture is about Student's t.

    >>> bool(abs(np.square(scales_of_t(6.0, 200)).mean() - 1.5) < 0.02)  # the variance of t is 6/4
    True
    """
    middle = (np.arange(number) + 0.5) / number
    return 1.0 / np.sqrt(scipy.stats.gamma.ppf(middle, 0.5 * freedom, scale=2.0 / freedom))


def _scale_mixtures(z: np.ndarray, seed: int, weights: np.ndarray | None = None) -> Variants:
    found: Variants = {}
    for freedom in _FREEDOMS:
        scales = scales_of_t(freedom, _NUM_SCALES)
        for key, one in _gaussians(z, seed, weights).items():
            factor = scales[:, None, None] * one.scale_tril
            found[(freedom, *key)] = MixtureParameters(
                np.full(_NUM_SCALES, 1.0 / _NUM_SCALES), np.repeat(one.loc, _NUM_SCALES, 0), factor
            )
    return found


def _mixtures(number: int, kind: str) -> Callable[..., Variants]:
    def fit(z: np.ndarray, seed: int, weights: np.ndarray | None = None) -> Variants:
        fitted = fit_components(z, min(number, len(z)), kind, seed, _NUM_STARTS, weights=weights)
        return {(ridge,): with_ridge(fitted, ridge) for ridge in _RIDGES}

    return fit


def _kernels(z: np.ndarray, seed: int, weights: np.ndarray | None = None) -> Variants:
    del seed
    size = z.shape[1]
    covariance = np.cov(z.T, bias=True, aweights=weights).reshape(size, size)
    probs = np.full(len(z), 1.0 / len(z)) if weights is None else weights / weights.sum()
    found: Variants = {}
    for share in _KERNEL_SHRINKAGES:
        factor = np.linalg.cholesky((1.0 - share) * covariance + share * np.eye(size))
        for bandwidth in _BANDWIDTHS:
            found[share, bandwidth] = MixtureParameters(probs, z, bandwidth * factor)
    return found


def _scores_of_scaled(variants: Variants, rows: np.ndarray) -> dict[tuple[float, ...], np.ndarray]:
    """Returns the log densities of variants whose covariances are multiples of a few matrices.

    The last two numbers of a key are the share of the unit matrix and the multiple. Those of one share have the same
    distances, up to a factor.
    """
    scores: dict[tuple[float, ...], np.ndarray] = {}
    known: dict[float, tuple[float, np.ndarray]] = {}
    for key, one in variants.items():
        factors = one.scale_tril if one.scale_tril.ndim == 3 else one.scale_tril[None]
        if key[-2] not in known:
            inverse = np.linalg.inv(factors[0])
            centres = one.loc if one.scale_tril.ndim == 2 else one.loc[:1]
            known[key[-2]] = float(factors[0, 0, 0]), squared_distances(rows @ inverse.T, centres @ inverse.T)
        first, distances = known[key[-2]]
        exponents = one.log_weights - 0.5 * distances * (first / factors[:, 0, 0]) ** 2
        largest = exponents.max(1, keepdims=True)
        scores[key] = np.log(np.exp(exponents - largest).sum(1)) + largest[:, 0]
    return scores


def _scores(variants: Variants, rows: np.ndarray) -> dict[tuple[float, ...], np.ndarray]:
    return {key: one.log_prob(rows) for key, one in variants.items()}


def _given_inputs(
    scores: Callable[[Variants, np.ndarray], dict[tuple[float, ...], np.ndarray]],
    variants: Variants,
    rows: np.ndarray,
    num_inputs: int,
) -> dict[tuple[float, ...], np.ndarray]:
    """Returns the log densities of all columns given the first `num_inputs` ones."""
    judged = scores(variants, rows)
    if not num_inputs:
        return judged
    of_inputs = scores({key: one.of_first(num_inputs) for key, one in variants.items()}, rows[:, :num_inputs])
    return {key: values - of_inputs[key] for key, values in judged.items()}


def _judge(
    fit: Callable[..., Variants],
    x: np.ndarray,
    fold: np.ndarray,
    seed: int,
    scores: Callable[[Variants, np.ndarray], dict[tuple[float, ...], np.ndarray]] = _scores,
    num_inputs: int = 0,
    weights: np.ndarray | None = None,
) -> Chosen:
    """Returns the variant of a form whose log-likelihood of the rows, each by the fit without its fold, is largest.

    It is that of all columns given the first `num_inputs` ones. Rows in the fold −1 judge nothing.
    """
    log_probs: dict[tuple[float, ...], np.ndarray] = {}
    number = 0
    for one in range(fold.max() + 1):
        held_out = fold == one
        kept = part_of_weights(weights, ~held_out)
        moments = DataMoments.of_rows(x[~held_out], kept)
        variants = fit((x[~held_out] - moments.mean) / moments.scale, seed, kept)
        judged = _given_inputs(scores, variants, (x[held_out] - moments.mean) / moments.scale, num_inputs)
        for key, values in judged.items():
            own = log_probs.setdefault(key, np.empty(len(x)))
            own[held_out] = values - np.log(moments.scale[num_inputs:]).sum()
            number = len(variants[key].probs)
    log_probs = {key: values[fold >= 0] for key, values in log_probs.items()}
    judges = part_of_weights(weights, fold >= 0)
    means = {key: float(np.average(values, weights=judges)) for key, values in log_probs.items()}
    best = max(means, key=lambda key: means[key])

    def again(rows: np.ndarray, own: np.ndarray | None = None) -> MixtureParameters:
        moments = DataMoments.of_rows(rows, own)
        fits: list[tuple[float, MixtureParameters]] = []
        with threadpoolctl.threadpool_limits(1):
            for start in range(_MAX_REFITS):
                one = fit((rows - moments.mean) / moments.scale, seed + start, own)[best]
                one = one.in_units(moments.mean, moments.scale)
                of_rows = _given_inputs(_scores, {best: one}, rows, num_inputs)[best]
                fits.append((float(np.average(of_rows, weights=own)), one))
                # a fit that is less likely on its own rows than others were on theirs has a bad optimum
                if fits[-1][0] >= means[best]:
                    break
        return max(fits, key=lambda fit: fit[0])[1]

    return Chosen(log_probs[best], number, again, means[best])


def cross_validated(
    x: np.ndarray,
    fold: np.ndarray,
    *,
    seed: int,
    with_kernels: bool,
    with_mixtures: bool = True,
    num_inputs: int = 0,
    weights: np.ndarray | None = None,
) -> tuple[dict[str, Chosen], Chosen]:
    """Fits a Gaussian, Gaussians of several widths, a mixture and a kernel density; all rows choose their forms.

    Also returns the best of those with few components, whose conditionals may be proposals of a network.

    Args:
      x: rows `[rows, columns]`, without missing cells.
      fold: number of the fold of each row; −1 for rows that are in all fits and judge none.
      seed: of the starts of expectation maximisation.
      with_kernels: whether a kernel density is fitted.
      with_mixtures: whether mixtures of several centres are fitted.
      num_inputs: number of the first columns that are given: the density judged is that of all others.
      weights: of the rows, `[rows]`.

    >>> x = np.random.default_rng(0).normal(size=(60, 2))
    >>> list(cross_validated(x, folds_of(x, 5, seed=0), seed=0, with_kernels=False)[0])
    ['gaussian', 'gaussian_scales', 'gaussian_mixture']
    """
    with threadpoolctl.threadpool_limits(1):  # the matrices are small: more threads wait for each other
        found = {
            "gaussian": _judge(_gaussians, x, fold, seed, _scores_of_scaled, num_inputs, weights),
            "gaussian_scales": _judge(_scale_mixtures, x, fold, seed, _scores_of_scaled, num_inputs, weights),
        }
        mixtures = list(_searched(x, fold, seed, num_inputs, weights)) if with_mixtures else []
        kernels = _judge(_kernels, x, fold, seed, _scores_of_scaled, num_inputs, weights) if with_kernels else None
    if mixtures:
        found["gaussian_mixture"] = max(mixtures, key=lambda one: one.score)
    few = [one for one in (*found.values(), *mixtures) if one.num_components <= _MAX_PROPOSAL_COMPONENTS]
    proposal = max(few, key=lambda one: one.score)
    if kernels is not None:
        found["kernel_density"] = kernels
    return found, proposal


def _searched(
    x: np.ndarray, fold: np.ndarray, seed: int, num_inputs: int, weights: np.ndarray | None
) -> Iterator[Chosen]:
    """Yields mixtures of more and more components, until more are no better."""
    for kind in ("full", "tied", "diag"):
        best, waited = -np.inf, 0
        for number in _SIZES:
            if number * _ROWS_PER_COMPONENT > effective_number(weights, len(x)):
                break
            one = _judge(_mixtures(number, kind), x, fold, seed, num_inputs=num_inputs, weights=weights)
            yield one
            best, waited = (one.score, 0) if one.score > best else (best, waited + 1)
            if waited == _PATIENCE:
                break
