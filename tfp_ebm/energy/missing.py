"""A Gaussian fitted to rows with missing cells, by expectation maximisation (Dempster, Laird & Rubin 1977)."""

from __future__ import annotations

import numpy as np

# Rows that are used at most, and steps: means and covariances change by less than their standard errors after a few.
_MAX_ROWS, _NUM_STEPS = 5000, 30


def fit_gaussian(y: np.ndarray, *, seed: int = 0, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Fits mean and covariance to rows `[rows, d]` in which NaN marks a missing cell.

    Let P be the inverse covariance of the given cells of a row, and zero elsewhere. Its missing cells have the
    conditional mean μ + ΣP(y − μ) and the conditional covariance Σ − ΣPΣ. A step replaces the cells by the means, and
    adds the covariances to that of the completed rows.

    Args:
      y: rows of numbers, of a scale near 1.
      seed: of the choice of rows, where there are more than 5000.
      weights: of the rows, `[rows]`; default: equal.

    Returns:
      The mean `[d]` and the covariance `[d, d]`.

    >>> mean, covariance = fit_gaussian(np.array([[0.0, 1.0], [2.0, 3.0], [1.0, np.nan]]))
    >>> mean.round(2).tolist()  # the missing cell is 1 + the cell beside it
    [1.0, 2.0]
    """
    chosen = np.random.default_rng(seed).permutation(len(y))[:_MAX_ROWS]
    y = np.asarray(y, np.float64)[chosen]
    given = ~np.isnan(y)
    w = None if weights is None else (weights[chosen] / weights[chosen].mean())[given.any(1)]
    y, given = np.nan_to_num(y)[given.any(1)], given[given.any(1)]  # empty rows hold no information
    m: np.ndarray = given.astype(np.float64)
    weighted = m if w is None else m * w[:, None]
    # an empty column has no count
    counts = np.maximum(weighted.sum(0), 1.0) if w is None else np.where(given.any(0), weighted.sum(0), 1.0)
    mean = (weighted * y).sum(0) / counts
    variance = (weighted * np.square(y - mean)).sum(0) / counts + 1e-6
    covariance = np.diag(variance)
    both = m[:, :, None] * m[:, None, :]
    for _ in range(_NUM_STEPS):
        precision = both * np.linalg.inv(both * covariance + np.eye(len(mean)) * (1.0 - m)[:, None, :])
        gain = covariance @ precision
        completed = np.where(given, y, mean + np.einsum("nij,nj->ni", gain, m * (y - mean)))
        # zero in the rows and columns of given cells, up to rounding
        rest = np.average(covariance - gain @ covariance, 0, w)
        mean = np.average(completed, 0, w)
        centred = completed - mean
        products = centred.T @ centred / len(y) if w is None else (w[:, None] * centred).T @ centred / w.sum()
        covariance = products + 0.5 * (rest + rest.T) + 1e-6 * np.eye(len(mean))
    return mean, covariance
