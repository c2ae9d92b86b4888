"""Gaussian mixtures of rows with weights, by expectation maximisation; scikit-learn's takes no weights.

With responsibilities rᵢₖ of the components and weights wᵢ of the rows, a step sets the weight, mean and covariance of
component k to the sum and the moments of the rows with weights wᵢ rᵢₖ, so that Σᵢ wᵢ log p(xᵢ) does not decrease.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

Parameters: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
# Steps at most, and the gain of the mean log-likelihood, in nats, below which they end: scikit-learn's.
_MAX_STEPS, _TOLERANCE = 100, 1e-3


def fit_weighted(
    z: np.ndarray,
    weights: np.ndarray,
    number: int,
    kind: str,
    *,
    seed: int,
    num_starts: int,
    floor: float,
    start: Parameters | None = None,
) -> Parameters:
    """Fits a mixture to standardised rows.

    Args:
      z: rows `[rows, d]`.
      weights: of the rows, positive, `[rows]`.
      number: number of components.
      kind: "full", "diag" or "tied" covariances; the last are one for all components.
      seed: of the starts.
      num_starts: number of starts, of which the most likely result is kept.
      floor: added to the variances.
      start: weights, means and covariances where the steps start instead.

    Returns:
      Weights `[number]`, means `[number, d]` and covariances `[number, d, d]`.

    >>> z = np.array([[-1.0], [1.0]])
    >>> probs, loc, covariance = fit_weighted(z, np.array([3.0, 1.0]), 1, "full", seed=0, num_starts=1, floor=0.0)
    >>> loc.round(6).tolist(), covariance.round(6).tolist()
    ([[-0.5]], [[[0.75]]])
    """
    from sklearn.cluster import kmeans_plusplus

    shares = weights / weights.sum()
    if start is not None:
        return _climbed(z, shares, start, kind, floor)[1]
    rng, climbed = np.random.RandomState(seed), []
    for _ in range(num_starts):
        centres, _ = kmeans_plusplus(z, number, sample_weight=shares, random_state=rng)
        nearest = np.square(z[:, None] - centres).sum(-1).argmin(1)
        begin = _moments(z, shares, np.eye(number)[nearest], kind, floor)
        climbed.append(_climbed(z, shares, begin, kind, floor))
    return max(climbed, key=lambda one: one[0])[1]


def _climbed(
    z: np.ndarray, shares: np.ndarray, parameters: Parameters, kind: str, floor: float
) -> tuple[float, Parameters]:
    """Makes steps from weights, means and covariances until they gain little; returns the mean log-likelihood too."""
    score = -np.inf
    for _ in range(_MAX_STEPS):
        log_joint = _log_joint(z, *parameters)
        log_probs = np.logaddexp.reduce(log_joint, axis=1)
        before, score = score, float(shares @ log_probs)
        if score - before < _TOLERANCE:
            break
        parameters = _moments(z, shares, np.exp(log_joint - log_probs[:, None]), kind, floor)
    return score, parameters


def _moments(z: np.ndarray, shares: np.ndarray, responsibilities: np.ndarray, kind: str, floor: float) -> Parameters:
    """Returns weights, means and covariances of the components."""
    parts = shares[:, None] * responsibilities
    # an empty component stays a number, at the origin, and its weight is next to none
    counts = parts.sum(0) + 1e-15
    loc = parts.T @ z / counts[:, None]
    size = z.shape[1]
    if kind == "tied":
        squares = (shares[:, None] * z).T @ z - (counts[:, None] * loc).T @ loc
        covariance = np.repeat(squares[None] / counts.sum(), len(loc), 0)
    elif kind == "diag":
        variances = np.stack([own @ np.square(z - mean) for own, mean in zip(parts.T, loc, strict=True)])
        covariance = (variances / counts[:, None])[:, None] * np.eye(size)
    else:
        centred = (z - mean for mean in loc)
        squares = np.stack([(own[:, None] * gap).T @ gap for own, gap in zip(parts.T, centred, strict=True)])
        covariance = squares / counts[:, None, None]
    return counts / counts.sum(), loc, covariance + floor * np.eye(size)


def _log_joint(z: np.ndarray, probs: np.ndarray, loc: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Returns log wₖ + log N(z; μₖ, Σₖ), `[rows, components]`."""
    factor = np.linalg.cholesky(covariance)
    inverse = np.linalg.inv(factor)
    squares = np.stack([np.square((z - mean) @ one.T).sum(1) for mean, one in zip(loc, inverse, strict=True)], 1)
    volume = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(-1) + 0.5 * z.shape[1] * np.log(2.0 * np.pi)
    return np.log(probs) - volume - 0.5 * squares
