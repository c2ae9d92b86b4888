"""Gaussian mixtures of rows with weights, by expectation maximisation; scikit-learn's takes no weights.

With responsibilities rᵢₖ of the components and weights wᵢ of the rows, a step sets the weight, mean and covariance of
component k to the sum and the moments of the rows with weights wᵢ rᵢₖ, so that Σᵢ wᵢ log p(xᵢ) does not decrease.
"""

from __future__ import annotations

import numpy as np

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
    start: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    rng = np.random.RandomState(seed)
    best, found = -np.inf, None
    for _ in range(num_starts if start is None else 1):
        if start is None:
            centres, _ = kmeans_plusplus(z, number, sample_weight=shares, random_state=rng)
            nearest = np.square(z[:, None] - centres).sum(-1).argmin(1)
            parameters = _moments(z, shares, np.eye(number)[nearest], kind, floor)
        else:
            parameters = start
        before = -np.inf
        for _ in range(_MAX_STEPS):
            log_joint = _log_joint(z, *parameters)
            log_probs = np.logaddexp.reduce(log_joint, axis=1)
            score = float(shares @ log_probs)
            if score - before < _TOLERANCE:
                break
            before = score
            parameters = _moments(z, shares, np.exp(log_joint - log_probs[:, None]), kind, floor)
        if score > best or found is None:
            best, found = score, parameters
    assert found is not None
    return found


def _moments(
    z: np.ndarray, shares: np.ndarray, responsibilities: np.ndarray, kind: str, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
