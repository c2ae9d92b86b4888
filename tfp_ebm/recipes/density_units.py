"""The units in which the density of a table is fitted, and its columns of a few values."""

from __future__ import annotations

import types
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfp_ebm.energy.moments import TAIL_SHARES, has_heavy_tails
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.normalized import AffineEnergy, NormalizedEnergy, WarpedEnergy
from tfp_ebm.recipes.density_rows import resampled

# Columns that the draw of a missing cell depends on, at most, and rows from which the regressions are learned.
_MAX_NEIGHBOURS, _MAX_REGRESSION_ROWS = 20, 5000


class Units(NamedTuple):
    """The units y = (x − loc)/scale, and asinh of it in columns with heavy tails.

    Columns of a few values stay as they are. NaN marks a missing cell, and stays NaN.

    Attributes:
      loc, scale: float64 `[columns]`.
      heavy: whether a column has heavy tails, `[columns]`.
      has_missing: whether cells are missing.
    """

    loc: np.ndarray
    scale: np.ndarray
    heavy: np.ndarray
    has_missing: bool

    @classmethod
    def of(
        cls,
        x: np.ndarray,
        supports: Mapping[int, np.ndarray] = types.MappingProxyType({}),
        weights: np.ndarray | None = None,
    ) -> Units:
        """Returns the units of a table: moments, or median and quartiles of columns with heavy tails."""
        x = np.where(np.isnan(x).all(0), 0.0, x)  # an empty column has unit scale
        with np.errstate(over="ignore"):
            if weights is None:
                quantiles = np.nanquantile(x, TAIL_SHARES, axis=0)
                mean, deviation = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
            else:
                quantiles = np.stack([_weighted_quantiles(column, TAIL_SHARES, weights) for column in x.T], 1)
                own = np.where(np.isnan(x), 0.0, weights[:, None])
                own /= own.sum(0)
                mean = np.nansum(own * x, axis=0)
                deviation = np.sqrt(np.nansum(own * np.square(x - mean), axis=0))
        heavy, (_, q25, median, q75, _) = has_heavy_tails(x, quantiles), quantiles
        has_values = np.isin(np.arange(x.shape[1]), list(supports))
        heavy &= ~has_values
        loc = np.where(has_values, 0.0, np.where(heavy, median, mean))
        plain = np.where(deviation > 1e-12 * np.abs(mean), deviation, 1.0)
        scale = np.where(has_values, 1.0, np.where(heavy, (q75 - q25) / 1.349, plain))
        return cls(loc, scale, heavy, bool(np.isnan(x).any()))

    def to_y(self, x: np.ndarray) -> np.ndarray:
        """Returns the rows in these units."""
        z = (x - self.loc) / self.scale
        return np.where(self.heavy, np.arcsinh(z), z)

    def log_slopes(self, x: np.ndarray) -> np.ndarray:
        """Returns log |dy/dx| of each cell, `[rows, columns]`; 0 where it is missing."""
        slopes = -np.log(self.scale) - np.where(self.heavy, np.log(np.hypot(1.0, (x - self.loc) / self.scale)), 0.0)
        return np.where(np.isnan(x), 0.0, slopes)

    def model(self, network: NormalizedEnergy, seed: int = 0) -> EnergyModel:
        """Returns a network of y as a model of x."""
        if self.heavy.any():
            network = WarpedEnergy(network, self.heavy)
        if self.has_missing:  # the units of a model count for all cells, those of a network for the given ones
            return EnergyModel(AffineEnergy(network, -self.loc / self.scale, 1.0 / self.scale), seed=seed)
        model = EnergyModel(network, seed=seed)
        model.standardization.loc.assign(self.loc)
        model.standardization.scale.assign(self.scale)
        return model


def _weighted_quantiles(values: np.ndarray, shares: Sequence[float], weights: np.ndarray) -> np.ndarray:
    """Returns quantiles of the given values, interpolated between the middles of their weights.

    >>> _weighted_quantiles(np.array([3.0, 1.0, np.nan]), [0.0, 0.5, 1.0], np.array([1.0, 1.0, 7.0])).tolist()
    [1.0, 2.0, 3.0]
    """
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN is last
    own = weights[order]
    return np.interp(shares, (np.cumsum(own) - 0.5 * own) / own.sum(), values[order])


def frequencies(values: np.ndarray, support: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the shares of the values of a column in its cells, each with half a cell more than it has.

    Cells count by the weights of their rows, if there are any.

    >>> frequencies(np.array([0.0, 1.0, 1.0, np.nan]), np.array([0.0, 1.0])).tolist()
    [0.375, 0.625]
    """
    is_given = ~np.isnan(values)
    given, own = values[is_given], None if weights is None else weights[is_given]
    counts = np.bincount(np.abs(given[:, None] - support).argmin(1), own, minlength=len(support)) + 0.5
    return counts / counts.sum()


def dequantized(x: np.ndarray, supports: Mapping[int, np.ndarray], seed: int) -> np.ndarray:
    """Returns rows whose columns of a few values are spread evenly over the cells around their values.

    The cell of a value reaches half the way to its neighbours.

    >>> x = dequantized(np.array([[0.0], [1.0]]), {0: np.array([0.0, 1.0])}, seed=0)
    >>> bool(np.abs(x - [[0.0], [1.0]]).max() < 0.5)
    True
    """
    rng = np.random.default_rng([seed, 11])
    x = np.array(x, np.float64)
    for column, support in sorted(supports.items()):
        before, after = _gaps_at(x[:, column], support)
        u = rng.random(len(x)) - 0.5
        x[:, column] += u * np.where(u > 0, after, before)
    return x


def log_cell_volumes(x: np.ndarray, supports: Mapping[int, np.ndarray]) -> np.ndarray:
    """Returns the log volume of the cell of each row, `[rows]`, over the columns of a few values.

    The probability of the values is about the density of the rows that `dequantized` returns, times this volume.

    >>> log_cell_volumes(np.array([[7.0, 0.5], [7.0, 0.0]]), {1: np.array([0.0, 0.5])}) / np.log(0.5)
    array([1., 1.])
    """
    volumes = np.zeros(len(x))
    for column, support in supports.items():
        widths = np.mean(_gaps_at(x[:, column], support), axis=0)
        volumes += np.where(np.isnan(x[:, column]), 0.0, np.log(widths))
    return volumes


def _gaps_at(values: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gaps to the values before and after each of the values of a column."""
    gaps: np.ndarray = np.diff(support)
    value = np.abs(values[:, None] - support).argmin(1)
    return np.append(gaps[:1], gaps)[value], np.append(gaps, gaps[-1:])[value]


def filled(*tables: np.ndarray, seed: int, weights: np.ndarray | None = None) -> list[np.ndarray]:
    """Returns tables whose missing cells are drawn from regressions on the other columns, learned from the first.

    With weights, the regressions are learned from rows of the first table that are drawn in proportion to them.

    >>> [table.tolist() for table in filled(np.array([[1.0], [np.nan], [1.0]]), np.array([[np.nan]]), seed=0)]
    [[[1.0], [1.0], [1.0]], [[1.0]]]
    """
    y = tables[0]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401, it makes the next import possible
    from sklearn.impute import IterativeImputer

    if weights is not None:
        y = y[resampled(weights, len(y), np.random.default_rng([seed, 19]))]
    if y.shape[1] == 1:  # there is nothing to regress on
        given = y[~np.isnan(y)] if (~np.isnan(y)).any() else np.zeros(1)
        rng = np.random.default_rng(seed)
        return [np.where(np.isnan(rows), rng.choice(given, rows.shape), rows) for rows in tables]
    imputer = IterativeImputer(
        sample_posterior=True,
        max_iter=5,
        n_nearest_features=min(y.shape[1] - 1, _MAX_NEIGHBOURS),
        keep_empty_features=True,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # draws do not converge to a point
        imputer.fit(y[np.random.default_rng(seed).permutation(len(y))[:_MAX_REGRESSION_ROWS]])
        return [imputer.transform(rows) for rows in tables]
