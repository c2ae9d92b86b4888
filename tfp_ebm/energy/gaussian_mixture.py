"""Gaussian mixtures by scikit-learn's expectation maximisation, and kernel densities; sizes by held-out likelihood.

Everything is fitted in float64 and in units in which each column has standard deviation 1. A kernel density is a
mixture with one component for each row, all of one covariance.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.arguments import check_count
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.energy.weighted_mixture import fit_weighted

# Numbers of components that are tried, as far as the rows allow, and how often a larger number may fail to be better.
_SIZES, _PATIENCE = (1, 2, 4, 6, 8, 12, 16, 24, 32), 2
# Components up to which a fit depends on its start.
_FEW_COMPONENTS = 8
# Rows for each free number of a component, and the rows that a fit uses at most.
_ROWS_PER_PARAMETER, _MAX_ROWS = 2.0, 20_000
# Rows on which numbers of components are compared: their order shows on few.
_ROWS_TO_COMPARE = 5000
# Above this many columns, mixtures of several components have diagonal covariances.
_FULL_COVARIANCE_COLUMNS = 40
# Added to the variances of all components, the best by held-out likelihood.
_RIDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3)
# Bandwidths of a kernel density that are compared, in standard deviations, and the held-out rows that judge them.
_BANDWIDTHS, _ROWS_TO_JUDGE = np.geomspace(0.02, 2.0, 24), 1000


class MixtureParameters(NamedTuple):
    """A mixture Σₖ wₖ N(μₖ, LₖLₖᵀ), in float64.

    Attributes:
      probs: weights wₖ, `[K]`.
      loc: means μₖ, `[K, d]`.
      scale_tril: lower factors Lₖ, `[K, d, d]`, or `[d, d]` of one covariance for all.
    """

    probs: np.ndarray
    loc: np.ndarray
    scale_tril: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The covariances LₖLₖᵀ, of the shape of `scale_tril`."""
        return self.scale_tril @ np.swapaxes(self.scale_tril, -1, -2)

    @property
    def log_weights(self) -> np.ndarray:
        """log wₖ − log det Lₖ − (d/2) log 2π, `[K]`: the log density of each component at its mean, weighted."""
        volume = np.log(np.diagonal(self.scale_tril, axis1=-2, axis2=-1)).sum(-1)
        with np.errstate(divide="ignore"):  # a component may be empty
            return np.log(self.probs) - volume - 0.5 * self.loc.shape[1] * math.log(2.0 * math.pi)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Returns the log density of rows, `[rows]`.

        >>> MixtureParameters(np.ones(1), np.zeros((1, 1)), np.ones((1, 1))).log_prob(np.zeros((1, 1))).round(4)
        array([-0.9189])
        """
        inverse = np.linalg.inv(self.scale_tril)
        if inverse.ndim == 2:
            squares = squared_distances(x @ inverse.T, self.loc @ inverse.T)
        else:
            parts = zip(self.loc, inverse, strict=True)
            squares = np.stack([np.square((x - loc) @ factor.T).sum(1) for loc, factor in parts], 1)
        return np.logaddexp.reduce(self.log_weights - 0.5 * squares, axis=1)

    def of_first(self, number: int) -> MixtureParameters:
        """Returns the mixture of the first coordinates alone.

        >>> MixtureParameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]).of_first(1).scale_tril
        array([[[1.]]])
        """
        return MixtureParameters(self.probs, self.loc[:, :number], self.scale_tril[..., :number, :number])

    def in_units(self, loc: np.ndarray, scale: np.ndarray) -> MixtureParameters:
        """Returns the mixture of loc + scale·z for z from this one."""
        return MixtureParameters(self.probs, loc + scale * self.loc, scale[:, None] * self.scale_tril)


def draw_of_gaussians(shares: Any, loc: Any, scale_tril: Any, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draws from a mixture of Gaussians `[num_samples, d]`, one component for each sample.

    Args:
      shares: cumulative weights of the components without the last, which is 1, `[K − 1]`.
      loc, scale_tril: as in `MixtureParameters`.
      num_samples: number of samples.
      seed: int32[2].
    """
    shares = tf.convert_to_tensor(shares)
    u = random.uniform([num_samples], random.fold_in(seed, 0), shares.dtype)
    component = tf.searchsorted(shares, u)
    z = random.normal([num_samples, loc.shape[1]], random.fold_in(seed, 1), shares.dtype)
    if len(scale_tril.shape) == 2:
        return tf.gather(loc, component) + tf.matmul(z, scale_tril, transpose_b=True)
    return tf.gather(loc, component) + tf.linalg.matvec(tf.gather(scale_tril, component), z)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns |xᵢ − yⱼ|², `[rows of x, rows of y]`."""
    return np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2.0 * x @ y.T, 0.0)


def fit_mixture(
    x: np.ndarray,
    num_components: int | None = None,
    *,
    seed: int = 0,
    x_held_out: np.ndarray | None = None,
    ridge: float | None = None,
) -> MixtureParameters:
    """Fits a Gaussian mixture to rows `[rows, d]`.

    Args:
      x: rows of numbers.
      num_components: number of Gaussians; None tries up to 32, as the rows allow, and keeps the number with the
        largest log-likelihood of held-out rows. Covariances are full, or diagonal if that is more likely.
      seed: of starts and of the rows held out.
      x_held_out: rows that choose the number, the form of the covariances and the ridge; default: a tenth of x.
      ridge: added to the variances of the standardised components; default: chosen by the held-out rows.

    Raises:
      ValueError: if there are fewer rows than components.

    >>> x = np.random.default_rng(0).normal(size=(500, 1)) + np.repeat([[-5.0], [5.0]], 250, 0)
    >>> fit_mixture(x, seed=1).probs.round(1).tolist()
    [0.5, 0.5]
    """
    return choose_mixture(x, num_components, seed=seed, x_held_out=x_held_out, ridge=ridge)[0]


class MixtureChoice(NamedTuple):
    """What held-out rows chose: the number of components, the form of their covariances, and the ridge."""

    num_components: int
    kind: str
    ridge: float


def choose_mixture(
    x: np.ndarray,
    num_components: int | None,
    *,
    seed: int,
    x_held_out: np.ndarray | None = None,
    ridge: float | None = None,
    num_starts: int = 1,
    weights: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> tuple[MixtureParameters, MixtureChoice]:
    """Fits a Gaussian mixture as `fit_mixture` does; also returns what was chosen, for `refit_mixture`.

    Of several starts the most likely result is kept: a single one may end with two components for one cluster. With
    rows held out, `weights` are those of the rows and of the rows held out, or None.
    """
    moments = DataMoments.of_rows(x, weights[0])
    z = (x - moments.mean) / moments.scale
    order = np.random.default_rng(seed).permutation(len(z))
    if x_held_out is None:
        count = max(1, len(z) // 10)
        train, held_out = z[order[count:]] if len(z) > 1 else z, z[order[:count]]
    else:
        train, held_out = z[order], (x_held_out - moments.mean) / moments.scale
    train = (z[order] if num_components is not None and ridge is not None else train)[:_MAX_ROWS]
    own = None if weights[0] is None else weights[0][order][:_MAX_ROWS]
    if num_components is None:
        compared = None if own is None else own[:_ROWS_TO_COMPARE]
        of_both = (compared, weights[1])
        number, kind = _choose(train[:_ROWS_TO_COMPARE], held_out, seed, ridge, num_starts, of_both)
    else:
        number, kind = check_count("num_components", num_components), "full"
        if number > len(x):
            raise ValueError(f"`num_components` must not exceed the {len(x)} rows, got {number}.")
    fitted = fit_components(train, number, kind, seed, num_starts, weights=own)
    fitted, _, chosen = _best_ridge(fitted, held_out, ridge, weights[1])
    return _in_units_of(moments, fitted), MixtureChoice(number, kind, chosen)


def refit_mixture(
    x: np.ndarray,
    choice: MixtureChoice,
    *,
    seed: int = 0,
    start: MixtureParameters | None = None,
    weights: np.ndarray | None = None,
) -> MixtureParameters:
    """Fits a mixture of a given form to all rows.

    Args:
      x: rows `[rows, d]`.
      choice: the form.
      seed: of the start.
      start: a mixture of this form where full covariances start, so that no worse optimum than its own is found.
      weights: of the rows, `[rows]`; default: equal.

    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> refit_mixture(x, choose_mixture(x, 1, seed=0)[1]).loc.shape
    (1, 2)
    """
    moments = DataMoments.of_rows(x, weights)
    chosen = np.random.default_rng(seed).permutation(len(x))[:_MAX_ROWS]
    z, weights = ((x - moments.mean) / moments.scale)[chosen], None if weights is None else weights[chosen]
    if start is None or choice.kind != "full":
        fitted = fit_components(z, choice.num_components, choice.kind, seed, weights=weights)
    else:
        factor = start.scale_tril / moments.scale[:, None]
        own = MixtureParameters(start.probs, (start.loc - moments.mean) / moments.scale, factor)
        fitted = fit_components(z, choice.num_components, choice.kind, seed, start=own, weights=weights)
    return _in_units_of(moments, with_ridge(fitted, choice.ridge))


def _in_units_of(moments: DataMoments, fitted: MixtureParameters) -> MixtureParameters:
    """Returns a mixture of standardised rows in the units of the rows; constant columns get variance 1."""
    constant = moments.is_constant
    fitted.scale_tril[:, constant] = np.eye(len(constant))[constant]
    return fitted.in_units(moments.mean, moments.scale)


def _choose(
    train: np.ndarray,
    held_out: np.ndarray,
    seed: int,
    ridge: float | None,
    num_starts: int,
    weights: tuple[np.ndarray | None, np.ndarray | None],
) -> tuple[int, str]:
    """Returns the number of components and the form of their covariances that held-out rows find most likely."""
    size = train.shape[1]
    num_rows = len(train) if weights[0] is None else float(weights[0].sum())
    best, chosen = -np.inf, (1, "full")
    for kind, parameters in (("full", size * (size + 3) / 2), ("diag", 2.0 * size)):
        most = max(1.0, num_rows / (_ROWS_PER_PARAMETER * parameters) + 1.0)
        if kind == "full" and size > _FULL_COVARIANCE_COLUMNS:
            most = 1
        waited = 0
        best_of_kind = -np.inf
        for number in (n for n in _SIZES if n <= min(most, num_rows)):
            if number == 1 and kind == "diag":  # a full covariance with the best ridge is at least as likely
                continue
            starts = num_starts if number <= _FEW_COMPONENTS else 1  # many components cover all clusters
            fitted = fit_components(train, number, kind, seed, starts, weights=weights[0])
            score = _best_ridge(fitted, held_out, ridge, weights[1])[1]
            if score > best_of_kind:
                best_of_kind, waited = score, 0
            else:
                waited += 1
            if score > best:
                best, chosen = score, (number, kind)
            if waited == _PATIENCE:
                break
    return chosen


def fit_components(
    z: np.ndarray,
    number: int,
    kind: str,
    seed: int,
    num_starts: int = 1,
    start: MixtureParameters | None = None,
    weights: np.ndarray | None = None,
) -> MixtureParameters:
    """Fits a mixture to standardised rows by expectation maximisation.

    Args:
      z: rows `[rows, d]`.
      number: number of components.
      kind: "full", "diag" or "tied" covariances; the last are one for all components.
      seed: of the starts.
      num_starts: number of starts, of which the most likely result is kept.
      start: a mixture with full covariances where expectation maximisation starts instead.
      weights: of the rows, `[rows]`, whose sum counts as the number of rows; default: equal.
    """
    import threadpoolctl
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    # Prior counts of a hundredth of a row keep covariances of few rows regular.
    floor = max(1e-6, 1e-2 / (len(z) if weights is None else float(weights.sum())))
    if weights is not None:
        own = None if start is None else (start.probs, start.loc, start.covariance)
        with threadpoolctl.threadpool_limits(1):
            probs, loc, covariance = fit_weighted(
                z, weights, number, kind, seed=seed, num_starts=num_starts, floor=floor, start=own
            )
        return MixtureParameters(probs, loc, np.linalg.cholesky(covariance))
    known = {}
    if start is not None:
        inverse = np.linalg.inv(start.scale_tril)
        precisions = inverse.transpose(0, 2, 1) @ inverse
        known = {"weights_init": start.probs, "means_init": start.loc, "precisions_init": precisions}
    mixture = GaussianMixture(
        number,
        covariance_type=kind,
        reg_covar=floor,
        random_state=seed,
        n_init=num_starts,
        init_params="k-means++",
        **known,
    )
    # The matrices are small: more threads wait for each other.
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Rows that are equal leave fewer clusters than components, which do no harm.
        mixture.fit(z)
    covariance = mixture.covariances_
    if kind == "diag":
        covariance = np.stack([np.diag(row) for row in covariance])
    elif kind == "tied":
        covariance = np.repeat(covariance[None], number, 0)
    return MixtureParameters(mixture.weights_, mixture.means_, np.linalg.cholesky(covariance))


def with_ridge(fitted: MixtureParameters, amount: float) -> MixtureParameters:
    """Returns a mixture with `amount` added to all variances."""
    covariance = fitted.scale_tril @ fitted.scale_tril.transpose(0, 2, 1)
    return fitted._replace(scale_tril=np.linalg.cholesky(covariance + amount * np.eye(covariance.shape[-1])))


def _best_ridge(
    fitted: MixtureParameters, held_out: np.ndarray, ridge: float | None, weights: np.ndarray | None
) -> tuple[MixtureParameters, float, float]:
    """Returns the mixture with the best ridge, its mean log-likelihood of held-out rows, and the ridge."""
    best, chosen, best_amount = -np.inf, fitted, 0.0
    for amount in _RIDGES if ridge is None else (ridge,):
        candidate = with_ridge(fitted, amount)
        score = float(np.average(candidate.log_prob(held_out), weights=weights))
        if score > best:
            best, chosen, best_amount = score, candidate, amount
    return chosen, best, best_amount


def fit_kernel_density(
    x: np.ndarray,
    x_held_out: np.ndarray,
    *,
    max_centers: int = 10_000,
    seed: int = 0,
    weights: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> MixtureParameters:
    """Fits a kernel density: one Gaussian around each row, its covariance h² times a diagonal or the full covariance.

    Args:
      x: rows of numbers, `[rows, d]`.
      x_held_out: rows whose likelihood chooses h and the form of the covariance; no row of `x` may be among them.
      max_centers: rows that are used, at most.
      seed: of the choice of rows.
      weights: of the rows, and of the rows held out; None for equal ones.

    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> fit_kernel_density(x[:250], x[250:]).loc.shape
    (250, 2)
    """
    moments = DataMoments.of_rows(x, weights[0])
    rng = np.random.default_rng(seed)
    chosen_rows = rng.permutation(len(x))[:max_centers]
    judges = rng.permutation(len(x_held_out))[:_ROWS_TO_JUDGE]
    centers = ((x - moments.mean) / moments.scale)[chosen_rows]
    judged = ((x_held_out - moments.mean) / moments.scale)[judges]
    own = None if weights[0] is None else weights[0][chosen_rows]
    of_judges = None if weights[1] is None else weights[1][judges]
    size = centers.shape[1]
    covariance = np.cov(centers.T, bias=True, aweights=own).reshape(size, size) + 1e-3 * np.eye(size)
    # equal weights, relative to their mean, change no exponent
    log_shares = 0.0 if own is None else np.log(own / own.mean())
    best, chosen = -np.inf, np.eye(size)
    for factor in (np.eye(size), np.linalg.cholesky(covariance)):
        inverse = np.linalg.inv(factor)
        squares = squared_distances(judged @ inverse.T, centers @ inverse.T)
        volume = np.log(np.diagonal(factor)).sum()
        for bandwidth in _BANDWIDTHS:
            scores = np.logaddexp.reduce(log_shares - 0.5 * squares / bandwidth**2, axis=1)
            score = float(np.average(scores, weights=of_judges)) - size * math.log(bandwidth) - volume
            if score > best:
                best, chosen = score, bandwidth * factor
    probs = np.full(len(centers), 1.0 / len(centers)) if own is None else own / own.sum()
    return MixtureParameters(probs, centers, chosen).in_units(moments.mean, moments.scale)
