"""Simple densities of a table, beside which a model's held-out log-likelihood is judged.

They are a Gaussian, a Gaussian mixture with the number of components that held-out rows find most likely, and a kernel
density. They are fitted in the units of `fit_density`, z = (x − loc)/scale, and asinh z in columns with heavy tails;
log p(x) = log p(y) + log |dy/dx|, so that log-likelihoods are in the user's units.

A missing cell (NaN) has no likelihood: a row is judged by the marginal density of the cells that are present, which for
a Gaussian N(μ, Σ) is that of their part of μ and of Σ. To fit, missing cells are drawn from a regression on the other
columns (scikit-learn's `IterativeImputer`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_count
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, draw_of_gaussians, fit_kernel_density, fit_mixture
from tfp_ebm.random import stateless_seed
from tfp_ebm.recipes.density_rows import mean_and_error, split_rows
from tfp_ebm.recipes.density_units import Units, filled

# Rows to fit to, at least, and at most rows whose missing cells are drawn.
_MIN_ROWS, _MAX_IMPUTED_ROWS = 4, 20_000
# Share of the rows that choose the bandwidth of a kernel density.
_VALIDATION = 0.1
# Kernels, without missing cells and with: then each pattern of missing cells takes distances of its own.
_MAX_KERNELS, _MAX_KERNELS_IF_MISSING = 10_000, 2000
# Rows whose densities are computed at once.
_BLOCK_ROWS = 1000


class References(NamedTuple):
    """The fitted densities of a table.

    Attributes:
      units: the units in which they are fitted.
      densities: mixtures by name: "gaussian", "gaussian_mixture" and "kernel_density".
    """

    units: Units
    densities: dict[str, MixtureParameters]

    def log_probs(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Returns each density's log density of rows, `[rows]`, in the user's units; NaN is a missing cell."""
        x = _table("x", x, self.units.loc.shape[0])
        y, jacobian = self.units.to_y(x), self.units.log_slopes(x).sum(1)
        return {name: marginal_log_prob(density, y) + jacobian for name, density in self.densities.items()}

    def sample(self, name: str, num_samples: int, *, seed: int = 0) -> np.ndarray:
        """Draws complete rows `[num_samples, columns]` from one of the densities, in the user's units."""
        density = self.densities[name]
        shares = np.cumsum(density.probs)
        draws = draw_of_gaussians(
            shares[:-1] / shares[-1], density.loc, density.scale_tril, num_samples, stateless_seed(seed)
        )
        y = draws.numpy()
        return self.units.loc + self.units.scale * np.where(self.units.heavy, np.sinh(y), y)


def fit_references(x: np.ndarray, *, seed: int = 0) -> References:
    """Fits the densities to rows `[rows, columns]`, in which NaN is a missing cell."""
    import threadpoolctl

    x = _table("train", x)
    check_count("seed", seed, minimum=0)
    if len(x) < _MIN_ROWS:
        raise ValueError(f"`train` must have at least {_MIN_ROWS} rows, got {len(x)}.")
    has_missing = bool(np.isnan(x).any())
    units = Units.of(x)
    with threadpoolctl.threadpool_limits(1):  # the matrices are small, and threads wait for each other on busy cores
        return References(units, _fitted(units.to_y(x), has_missing, seed))


def _fitted(y: np.ndarray, has_missing: bool, seed: int) -> dict[str, MixtureParameters]:
    if has_missing:
        y = filled(y[np.random.default_rng(seed).permutation(len(y))[:_MAX_IMPUTED_ROWS]], seed=seed)[0]
    densities = {"gaussian": fit_mixture(y, 1, seed=seed), "gaussian_mixture": fit_mixture(y, None, seed=seed)}
    if (y == y[0]).all():
        kept, judged = np.arange(1, len(y)), np.arange(1)
    else:
        kept, judged = split_rows(y, _VALIDATION, seed)  # a copy of a row would make the bandwidth too small
    most = _MAX_KERNELS_IF_MISSING if has_missing else _MAX_KERNELS
    densities["kernel_density"] = fit_kernel_density(y[kept], y[judged], max_centers=most, seed=seed)
    return densities


def reference_log_likelihoods(
    train: np.ndarray, held_out: np.ndarray, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Computes held-out log-likelihoods per row of simple densities fitted to a table, in nats.

    A model of the table should be better. Columns of whole numbers or labels have a density only after uniform noise
    was added to them, for the model and here.

    Args:
      train: rows to fit to, `[rows, columns]`, at least 4. NaN is a missing cell.
      held_out: rows to judge by, `[rows, columns]`.
      seed: of starts, of splits and of what is drawn for missing cells.

    Returns:
      The mean and its standard error for "gaussian", "gaussian_mixture" and "kernel_density".

    Raises:
      TypeError, ValueError: if a table is no matrix of numbers, or has infinite cells, too few rows, or other columns.

    >>> x = np.random.default_rng(0).normal(size=(1000, 1))
    >>> mean, standard_error = reference_log_likelihoods(x[:800], x[800:])["gaussian"]
    >>> abs(mean + 0.5 * np.log(2 * np.pi * np.e)) < 4 * standard_error < 0.3
    True
    """
    held_out = _table("held_out", held_out, np.shape(train)[-1])
    return {
        name: mean_and_error(values) for name, values in fit_references(train, seed=seed).log_probs(held_out).items()
    }


def _table(name: str, value: Any, size: int | None = None) -> np.ndarray:
    table = np.asarray(value, np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"`{name}` must be a table of shape [rows, columns], got {table.shape}.")
    if size is not None and table.shape[1] != size:
        raise ValueError(f"`{name}` must have {size} columns, got {table.shape[1]}.")
    if np.isinf(table).any():
        raise ValueError(f"`{name}` must not hold infinite cells, got {np.isinf(table).sum()}.")
    return table


def marginal_log_prob(density: MixtureParameters, y: np.ndarray) -> np.ndarray:
    """Returns the log density of the cells that are present in each row, `[rows]`; a row without any has 0."""
    result = np.empty(len(y))
    patterns, pattern = np.unique(~np.isnan(y), axis=0, return_inverse=True)
    order = np.argsort(pattern.reshape(-1), kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(pattern.reshape(-1)))[:-1])
    covariance = None
    for present, rows in zip(patterns, parts, strict=True):
        part = density
        if not present.all():
            if covariance is None:
                covariance = density.scale_tril @ np.swapaxes(density.scale_tril, -1, -2)
            kept = np.flatnonzero(present)
            scale_tril = np.linalg.cholesky(covariance[..., kept[:, None], kept])
            part = MixtureParameters(density.probs, density.loc[:, kept], scale_tril)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            result[block] = part.log_prob(y[np.ix_(block, present)])
    return result
