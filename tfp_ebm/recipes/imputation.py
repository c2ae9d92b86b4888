"""Fills the missing cells of a table by draws from a density whose log Z is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.arguments import check_count, is_frame, numbers_of
from tfp_ebm.datasets.columns import TableEncoder
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.completion import complete
from tfp_ebm.networks.normalized import is_normalized
from tfp_ebm.random import fold_in, stateless_seed

if TYPE_CHECKING:
    import pandas


def impute(model: EnergyModel, x: Any, num_draws: int = 1, seed: Any = 0, *, num_particles: int = 256) -> Any:
    """Draws the missing cells of rows given all their other cells (multiple imputation; Rubin 1987).

    The cells are draws of p(x_missing | x_given), whatever the order of the coordinates in the energy. In Gaussian
    mixtures they are exact. In autoregressive energies they come from a particle filter, which is exact for many
    particles.

    Args:
      model: an `EnergyModel` with log Z = 0, as `fit_density` returns it.
      x: array `[rows, columns]` with NaN in the missing cells; or a `pandas.DataFrame`, of the columns of the training
        table if the model has an `encoder`. All cells of a column that is absent are missing.
      num_draws: completed rows for each row.
      seed: int or int32[2].
      num_particles: particles for each row and autoregressive energy.

    Returns:
      Of an array, float64 `[rows, num_draws, columns]`, in which given cells are as they were. Of a table of a model
      with an `encoder`, a list of `num_draws` tables without missing cells, in the form of the training table.

    Raises:
      TypeError, ValueError: if the model is not of that kind, or `x` has another number of columns or infinite cells.

    >>> import tensorflow_probability as tfp, tfp_ebm as ebm
    >>> x = np.random.default_rng(0).normal(size=(300, 1)) + [[0.0, 5.0]]
    >>> model = ebm.fit_density(x + 0.1 * np.random.default_rng(1).normal(size=x.shape), minutes=0.02, verbose=0)
    >>> filled = ebm.impute(model, [[1.0, np.nan]], num_draws=50)
    >>> filled.shape, bool(abs(np.median(filled[0, :, 1]) - 6.0) < 0.5)
    ((1, 50, 2), True)
    """
    if not isinstance(model, EnergyModel) or not is_normalized(model):
        raise TypeError(f"`model` must be an EnergyModel with log Z = 0, as `fit_density` returns it, got {model!r}.")
    if is_frame(x) and model.encoder is not None:
        return _imputed_tables(model, x, check_count("num_draws", num_draws), seed, num_particles)
    rows: np.ndarray = np.asarray(numbers_of("x", x), np.float64)
    if rows.shape[1:] != tuple(model.event_shape):
        raise ValueError(f"`x` must have shape [rows, {model.event_shape[0]}], got {rows.shape}.")
    if np.isinf(rows).any():
        raise ValueError(f"`x` must be finite or NaN, but {int(np.isinf(rows).sum())} of its cells are infinite.")
    loc, scale = (
        np.asarray(value, np.float64).reshape(-1) for value in (model.standardization.loc, model.standardization.scale)
    )
    number = check_count("num_draws", num_draws)
    completion = complete(
        model.network, (rows - loc) / scale, number, check_count("num_particles", num_particles), stateless_seed(seed)
    )
    return np.where(np.isnan(rows)[:, None], loc + scale * completion.states, rows[:, None])


def _imputed_tables(
    model: EnergyModel, frame: pandas.DataFrame, num_draws: int, seed: Any, num_particles: int
) -> list[pandas.DataFrame]:
    """Returns completed tables, with the index of `frame`."""
    words = stateless_seed(seed)
    encoder, x = with_gaps(model.encoder, frame, fold_in(words, 0))
    filled = impute(model, x, num_draws, fold_in(words, 1), num_particles=num_particles)
    return [encoder.decode(filled[:, i]).set_axis(frame.index, axis=0) for i in range(num_draws)]


def with_gaps(encoder: TableEncoder, frame: pandas.DataFrame, seed: Any) -> tuple[TableEncoder, np.ndarray]:
    """Returns the numbers of a table, NaN in cells and columns that are missing, and an encoder that allows them."""
    encoder = encoder.with_missing()
    absent = [name for name in encoder.names if name not in map(str, frame.columns)]
    return encoder, encoder.encode(frame.assign(**dict.fromkeys(absent)), seed)
