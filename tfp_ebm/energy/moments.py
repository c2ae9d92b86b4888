"""Mean and covariance of data, in float64, in one pass that merges blocks (Chan, Golub & LeVeque 1979)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow_probability as tfp

from tfp_ebm.caller import warn

tfb, tfd = tfp.bijectors, tfp.distributions


# Above this number of coordinates the covariance is diagonal: a full factor would be larger than the network.
FULL_COVARIANCE_LIMIT = 512


# Smallest eigenvalue of a correlation matrix without shrinkage: down to it, float32 is precise enough for solves.
SMALLEST_EIGENVALUE = 1e-4


# A column whose range between its outer thousandths is more than this many times that of its quartiles, about 4.6 for a
# normal, has heavy tails; the shares are those of the quantiles by which this is judged.
_HEAVY_TAILS, TAIL_SHARES = 12.0, (0.001, 0.25, 0.5, 0.75, 0.999)


class DataMoments(NamedTuple):
    """Mean and centred sums of squares of rows, in float64; `comoment` is `[d, d]`, or its diagonal `[d]`."""

    num_rows: float
    mean: np.ndarray
    comoment: np.ndarray

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray]) -> DataMoments:
        """Computes the moments of all rows of `blocks`, arrays `[rows, *event]`."""
        total: DataMoments | None = None
        for block in blocks:
            rows = np.asarray(block, np.float64).reshape(len(block), -1)
            mean = rows.mean(0)
            centred = rows - mean
            full = rows.shape[1] <= FULL_COVARIANCE_LIMIT
            part = cls(len(rows), mean, centred.T @ centred if full else np.square(centred).sum(0))
            total = part if total is None else total.merged(part)
        if total is None:
            raise ValueError("`x` must not be empty, got no rows.")
        return total

    @classmethod
    def of_rows(cls, x: np.ndarray, weights: np.ndarray | None = None) -> DataMoments:
        """Computes the moments of rows `[rows, d]`, each of which counts as often as its weight says, `[rows]`."""
        if weights is None:
            return cls.of([x])
        total = float(weights.sum())
        mean = weights @ x / total
        centred = x - mean
        full = x.shape[1] <= FULL_COVARIANCE_LIMIT
        comoment = (weights[:, None] * centred).T @ centred if full else weights @ np.square(centred)
        return cls(total, mean, comoment)

    def merged(self, other: DataMoments) -> DataMoments:
        """Returns the moments of the rows of both."""
        num_rows = self.num_rows + other.num_rows
        shift = other.mean - self.mean
        squares = np.outer(shift, shift) if self.comoment.ndim == 2 else np.square(shift)
        comoment = self.comoment + other.comoment + (self.num_rows * other.num_rows / num_rows) * squares
        return DataMoments(num_rows, self.mean + (other.num_rows / num_rows) * shift, comoment)

    @property
    def is_constant(self) -> np.ndarray:
        """Whether each coordinate varies by no more than the rounding error of its mean, `[d]`."""
        return np.sqrt(self._variance) <= 1e-12 * np.abs(self.mean)

    @property
    def scale(self) -> np.ndarray:
        """Standard deviations (1/n) `[d]`, with 1 for constant coordinates."""
        return np.where(self.is_constant, 1.0, np.sqrt(self._variance))

    @property
    def _variance(self) -> np.ndarray:
        return (np.diag(self.comoment) if self.comoment.ndim == 2 else self.comoment) / self.num_rows

    def check_varies(self) -> None:
        """Raises ValueError if every coordinate is constant."""
        if self.is_constant.all():
            raise ValueError(f"`x` must vary, but all its {len(self.mean)} coordinates are constant.")

    def cholesky(self) -> np.ndarray:
        """Returns the lower factor `[d, d]` of the covariance (1/n), or standard deviations `[d]` if it is diagonal.

        A singular covariance is shrunk towards its diagonal until every eigenvalue of the correlations is at least
        `SMALLEST_EIGENVALUE`, with a warning that states the amount. A constant coordinate gets standard deviation 1.
        """
        if self.comoment.ndim == 1:
            return self.scale
        correlation = self.comoment / self.num_rows / np.outer(self.scale, self.scale)
        correlation[self.is_constant, :] = correlation[:, self.is_constant] = 0.0
        np.fill_diagonal(correlation, 1.0)
        smallest = np.linalg.eigvalsh(correlation)[0]
        if smallest < SMALLEST_EIGENVALUE:
            amount = (SMALLEST_EIGENVALUE - smallest) / (1.0 - smallest)
            warn(
                "the covariance is singular to working precision (smallest eigenvalue of the correlations "
                f"{smallest:.1e}): shrunk by {amount:.1e} towards its diagonal."
            )
            correlation = (1.0 - amount) * correlation + amount * np.eye(len(correlation))
        return self.scale[:, None] * np.linalg.cholesky(correlation)


def has_heavy_tails(x: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Returns whether each column of rows has tails so heavy that its deviation says little of its middle, `[columns]`.

    Args:
      x: rows, `[rows, columns]`; NaN marks a missing cell.
      quantiles: the columns' quantiles at the shares `TAIL_SHARES`, `[5, columns]`.

    >>> rng = np.random.default_rng(0)
    >>> x = np.stack([rng.normal(size=1000), rng.standard_t(2.0, size=1000)], 1)
    >>> has_heavy_tails(x, np.quantile(x, TAIL_SHARES, axis=0)).tolist()
    [False, True]
    """
    low, q25, median, q75, high = quantiles
    spread = np.maximum(high - median, median - low) * 2.0
    return (q75 > q25) & (np.maximum(np.nanmax(np.abs(x - median), 0), spread) > _HEAVY_TAILS * (q75 - q25))
