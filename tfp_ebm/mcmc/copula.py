"""A density fitted to draws: a Gaussian copula with smoothed margins, as a base from which better draws come.

Let Fⱼ be the distribution function of coordinate j, from a kernel density estimate. zⱼ = Φ⁻¹(Fⱼ(xⱼ)) is normal then.
The joint density of these is taken as N(0, R), with the correlations of the draws shrunk towards zero (Ledoit & Wolf
2004): of few draws in many coordinates they are uncertain. The density of x is N(z; 0, R) ∏ⱼ fⱼ(xⱼ)/φ(zⱼ). It has the
modes of each coordinate, which no mixture of a moderate number of Gaussians has in many coordinates, and drawing is
direct.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.special

# Cells of a margin; the width of its kernel, of which Silverman's rule has .9; the share of a wider normal in it, and
# the width of that one.
_NUM_CELLS, _WIDTH, _WIDE_SHARE, _WIDE = 512, 0.55, 0.03, 1.5
# Added to the variances of z, so that equal coordinates have a density.
_SMALLEST = 1e-6
# Limit of z, so that Φ(z) is below 1.
_MAX_Z = 7.0


class Copula(NamedTuple):
    """The fitted density; margins have constant density on cells of equal width.

    Attributes:
      low, width: the lower ends of the margins, and the widths of their cells, `[d]`.
      cumulative: Fⱼ at the ends of the cells, `[d, cells + 1]`.
      factor: lower factor of R, `[d, d]`.
    """

    low: np.ndarray
    width: np.ndarray
    cumulative: np.ndarray
    factor: np.ndarray

    def draw(self, z: np.ndarray) -> np.ndarray:
        """Returns the draws that standard normal numbers `[n, d]` become."""
        u = scipy.special.ndtr(np.clip(z @ self.factor.T, -_MAX_Z, _MAX_Z))
        cells = self.width[:, None] * np.arange(_NUM_CELLS + 1) + self.low[:, None]
        return np.stack([np.interp(*parts) for parts in zip(u.T, self.cumulative, cells, strict=True)], 1)

    def scores(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns z and the masses of the cells, `[n, d]`, of rows `[n, d]`, and whether these are inside, `[n]`."""
        place = (x - self.low) / self.width
        is_inside = ((place >= 0) & (place < _NUM_CELLS)).all(1)
        cell = np.clip(place, 0, _NUM_CELLS - 1).astype(int)
        column = np.arange(x.shape[1])
        below = self.cumulative[column, cell]
        mass = self.cumulative[column, cell + 1] - below
        u = below + (np.clip(place, 0, _NUM_CELLS) - cell) * mass
        return scipy.special.ndtri(np.clip(u, 1e-300, 1 - 1e-16)), mass, is_inside

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Returns the log density of rows `[n, d]`; −∞ outside of the margins, and in cells without mass."""
        z, mass, is_inside = self.scores(x)
        white = scipy.linalg.solve_triangular(self.factor, z.T, lower=True)
        squares = 0.5 * (np.square(z).sum(1) - np.square(white).sum(0))
        with np.errstate(divide="ignore"):  # of cells without mass in floating point, far from all draws
            log_mass = np.log(mass / self.width).sum(1)
        log_density = log_mass + squares - np.log(np.diag(self.factor)).sum()
        return np.where(is_inside, log_density, -np.inf)


def fit_copula(x: np.ndarray) -> Copula:
    """Fits the density to draws `[n, d]`, which must vary in each coordinate.

    >>> import math
    >>> x = np.random.default_rng(0).normal(size=(2000, 2)) * [1.0, 3.0]
    >>> fitted = fit_copula(x)
    >>> exact = -0.5 * np.square(x / [1.0, 3.0]).sum(1) - math.log(2 * math.pi * 3.0)
    >>> bool(abs(np.mean(fitted.log_prob(x) - exact)) < 0.05)
    True
    """
    from sklearn.covariance import ledoit_wolf

    num, size = x.shape
    deviation = np.maximum(x.std(0), 1e-300)
    quartiles = np.subtract(*np.percentile(x, [75, 25], axis=0)) / 1.34
    spread = np.where(quartiles > 0, np.minimum(deviation, quartiles), deviation)
    kernel = _WIDTH * spread * num**-0.2
    low = x.min(0) - 4 * kernel - deviation
    width = (x.max(0) + 4 * kernel + deviation - low) / _NUM_CELLS
    cumulative = np.zeros([size, _NUM_CELLS + 1])
    cell = ((x - low) / width).astype(int)
    for j in range(size):
        counts = np.bincount(cell[:, j], minlength=_NUM_CELLS).astype(np.float64)
        smooth = scipy.ndimage.gaussian_filter1d(counts, kernel[j] / width[j], mode="constant")
        ends = low[j] + width[j] * np.arange(_NUM_CELLS + 1)
        wide = np.diff(scipy.special.ndtr((ends - x[:, j].mean()) / (_WIDE * deviation[j])))
        mass = (1 - _WIDE_SHARE) * smooth / smooth.sum() + _WIDE_SHARE * wide / wide.sum()
        # rounding may lead above 1, and then the last cell would have a mass below 0
        cumulative[j, 1:] = np.minimum(np.cumsum(mass), 1.0)
    cumulative[:, -1] = 1.0
    fitted = Copula(low, width, cumulative, np.eye(size))
    if size == 1:
        return fitted
    scores, _, _ = fitted.scores(x)
    shrunk, _ = ledoit_wolf(scores / scores.std(0))
    shrunk += _SMALLEST * np.eye(size)
    deviations = np.sqrt(np.diag(shrunk))
    return fitted._replace(factor=np.linalg.cholesky(shrunk / np.outer(deviations, deviations)))
