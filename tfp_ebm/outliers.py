"""Outliers: p-values of rows and a threshold for their log densities, valid whatever the model (split conformal).

The statistic of a row is s(x) = −E(x), log p(x) up to a constant. Its rank among the statistics of n calibration rows,
which the model was not trained on, gives a p-value (Bates et al. 2023):

    p(x) = (1 + #{i: s(cᵢ) ≤ s(x)}) / (n + 1).

If x and the calibration rows are exchangeable, such as independent rows of one distribution, P(p(x) ≤ α) ≤ α for each
α, however wrong the model is: a better model only finds more of the outliers. The probability is over the calibration
rows too. For one set of them the rate of false alarms at level α varies around α, with a standard deviation of about
√(α(1 − α)/(n + 2)). The p-values of several rows share the calibration rows, so they are dependent, but in such a way
that the method of Benjamini & Hochberg remains valid for them (the same paper).

Reference: S. Bates, E. Candès, L. Lei, Y. Romano, M. Sesia, Testing for outliers with conformal p-values, Annals of
Statistics 2023, arXiv:2104.08279.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.arguments import check_data, check_share, is_frame, numbers_of
from tfp_ebm.datasets.columns import TableEncoder
from tfp_ebm.evaluation import densities
from tfp_ebm.evaluation.out_of_distribution import ood_statistic
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.types import EnergyLike, Seed

__all__ = ["p_values", "threshold"]


def p_values(model: EnergyLike, calibration: Any, x: Any, *, kind: str = "log_prob", seed: Seed = 0) -> np.ndarray:
    """Computes conformal p-values of rows, which are small for outliers.

    p(x) = (1 + #{i: s(cᵢ) ≤ s(x)}) / (n + 1), from 1/(n + 1) to 1, where s(x) = −E(x). For rows like the n calibration
    rows, P(p ≤ α) ≤ α, with equality for continuous s if α(n + 1) is a whole number.

    Args:
      model: an `EnergyModel`, an `EnergyDistribution`, a Keras network, or a callable energy
        `[batch, *event] -> [batch]`.
      calibration: rows of the data distribution that the model was not trained on, `[rows, *event]`. The statistics of
        training rows are too high, so that other rows of the same distribution would have p-values that are too small.
      x: the rows to test, `[rows, *event]`. Both may be data frames if the model has an `encoder`, as those of
        `fit_density` have: a row that contradicts a constant or a duplicate column of the training table, or holds a
        label that was not in it, has s = −∞. NaN marks a missing cell, for models that have missing cells.
      kind: the statistic, as for `evaluation.ood_statistic`.
      seed: of the noise that spreads the whole numbers of data frames; it differs for the two tables.

    Returns:
      float64 `[rows]`.

    Raises:
      TypeError, ValueError: if a table is empty, of another event shape or not finite; if a statistic is NaN; if rows
        have missing cells and the model has none. s = −∞ is allowed.

    Reference: S. Bates et al., Testing for outliers with conformal p-values, 2023, arXiv:2104.08279.

    >>> square = lambda x: 0.5 * tf.reduce_sum(x**2, -1)
    >>> calibration = np.random.default_rng(0).normal(size=(99, 2))
    >>> p_values(square, calibration, np.array([[0.0, 0.0], [9.0, 0.0]])).tolist()
    [1.0, 0.01]
    """
    of_calibration = calibration_statistics(model, calibration, kind, seed)
    event_shape = None if is_frame(calibration) else np.shape(calibration)[1:]
    return conformal_p_values(of_calibration, row_statistics(model, x, kind, seed, event_shape=event_shape))


def threshold(
    model: EnergyLike, calibration: Any, false_alarm_rate: float, *, kind: str = "log_prob", seed: Seed = 0
) -> float:
    """Computes the statistic below which a row is called an outlier, for a given rate of false alarms.

    A row is an outlier if s(x) < t, strictly, where t is the k-th smallest of the n calibration statistics and
    k = ⌊α(n + 1)⌋. These are the rows with p(x) ≤ α. For rows like the calibration rows the expected rate is
    k/(n + 1) ≤ α, or less if statistics are equal.

    Args:
      model, calibration, kind, seed: as for `p_values`.
      false_alarm_rate: α, the largest expected share of rows like the calibration rows that are called outliers,
        between 0 and 1.

    Returns:
      t, −∞ if so many calibration rows have s = −∞ that no row is called an outlier.

    Raises:
      TypeError, ValueError: as for `p_values`; and if there are too few calibration rows for the rate: (n + 1)α must be
        at least 1.

    Reference: S. Bates et al., Testing for outliers with conformal p-values, 2023, arXiv:2104.08279.

    >>> square = lambda x: 0.5 * tf.reduce_sum(x**2, -1)
    >>> calibration = np.random.default_rng(0).normal(size=(9999, 2))
    >>> t = threshold(square, calibration, 0.05)
    >>> bool(abs(t - np.log(0.05)) < 0.2)  # for this energy, P(s < t) = exp(t)
    True
    """
    rate = check_share("false_alarm_rate", false_alarm_rate)
    return threshold_of(calibration_statistics(model, calibration, kind, seed), rate)


def conformal_p_values(calibration: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """Returns (1 + #{calibration statistics ≤ s}) / (n + 1) for each statistic s.

    >>> conformal_p_values(np.array([1.0, 2.0, 2.0]), np.array([-np.inf, 1.5, 2.0])).tolist()
    [0.25, 0.5, 1.0]
    """
    not_above = np.asarray(np.searchsorted(np.sort(calibration), statistics, "right"))
    return (1.0 + not_above) / (len(calibration) + 1.0)


def threshold_of(calibration: np.ndarray, rate: float) -> float:
    """Returns the statistic t such that s < t for the same s as have p ≤ rate.

    >>> threshold_of(np.array([5.0, 1.0, 3.0]), 0.5)
    3.0
    """
    n = len(calibration)
    # largest k with k / (n + 1) ≤ rate in the arithmetic of the p-values: 0.29 · 100 is below 29
    k = math.floor(rate * (n + 1)) + 1
    while k / (n + 1.0) > rate:
        k -= 1
    if k < 1:
        least = math.ceil(1 / rate) - 1
        raise ValueError(
            f"`calibration` must have at least {least} rows for a false alarm rate of {rate:g}, since no p-value is "
            f"below 1/(rows + 1), got {n}."
        )
    return float(np.sort(calibration)[k - 1])


def calibration_statistics(model: EnergyLike, calibration: Any, kind: str, seed: Seed) -> np.ndarray:
    """Returns the statistics of calibration rows; their noise differs from that of the rows to test."""
    key = random.fold_in(random.stateless_seed(seed), 1)
    return row_statistics(model, calibration, kind, key, name="calibration")


def row_statistics(
    model: EnergyLike,
    x: Any,
    kind: str = "log_prob",
    seed: Seed = 0,
    *,
    name: str = "x",
    event_shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Returns the statistic of each row of an array or a data frame, −inf for rows that the encoder rules out.

    Args:
      model, x, kind, seed: as for `p_values`.
      name: of `x`, for errors.
      event_shape: of a row, if the model does not determine it.

    >>> row_statistics(lambda x: x[:, 0] ** 2, [[2.0]]).tolist()
    [-4.0]
    """
    try:
        return _statistics(model, x, kind, seed, name, event_shape)
    except (TypeError, ValueError) as error:  # with the names of arguments elsewhere
        message = str(error).replace("`frame`", f"`{name}`").replace("`energy_fn`", "`model`")
        if type(error) not in (TypeError, ValueError) or message == str(error):
            raise
        raise type(error)(message) from error


def _statistics(
    model: EnergyLike, x: Any, kind: str, seed: Seed, name: str, event_shape: tuple[int, ...] | None
) -> np.ndarray:
    owner = _model_of(model)
    encoder = None if owner is None else owner.encoder
    if encoder is None or not is_frame(x):
        columns = None if owner is None else owner.columns
        array = numbers_of(name, _selected(x, columns, name) if is_frame(x) else x)
        shape = densities.event_shape_of(model)
        return _of_numbers(model, array, kind, name, event_shape if shape is None else shape)
    if not len(x):
        raise ValueError(f"`{name}` must have at least one row, got a data frame of none.")
    encoded, possible = _encoded(encoder, x, seed)
    statistics: np.ndarray = np.full(len(x), -np.inf)
    if possible.any():
        statistics[possible] = _of_numbers(model, encoded, kind, name, None)
    return statistics


def _model_of(model: EnergyLike) -> EnergyModel | None:
    """Returns the model of an energy, which knows the columns and their encoder; None if there is none."""
    if isinstance(model, EnergyDistribution):
        try:
            return model.energy_model
        except ValueError:  # its energy is a callable
            return None
    return model if isinstance(model, EnergyModel) else None


def _selected(frame: Any, columns: tuple[str, ...] | None, name: str) -> Any:
    """Returns the columns of a data frame that a model was trained on, in its order."""
    if columns is None:
        return frame
    labels = {str(label): label for label in frame.columns}
    absent = [column for column in columns if column not in labels]
    if absent:
        raise ValueError(f"`{name}` must have the columns of the training table; missing: {', '.join(absent)}.")
    return frame[[labels[column] for column in columns]]


def _encoded(encoder: TableEncoder, frame: Any, seed: Seed) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the rows that the training table does not rule out, and which rows these are."""
    frame = frame.reset_index(drop=True)
    possible = ~(encoder.violations(frame) | encoder.unknown_rows(frame))
    frame = frame[possible]
    if not len(frame):
        return np.empty((0, len(encoder.names))), possible
    if encoder.missing == "drop" and (count := int(encoder.missing_rows(frame).sum())):
        raise ValueError(f"`frame` must have no missing cells, since the model has none, but {count} rows have some.")
    return encoder.encode(frame, seed), possible


def _of_numbers(
    model: EnergyLike, x: np.ndarray, kind: str, name: str, event_shape: tuple[int, ...] | None
) -> np.ndarray:
    is_missing = np.isnan(x)
    owner = _model_of(model)
    allows_missing = owner is not None and bool(getattr(owner.network, "allows_missing", False))
    with np.errstate(over="ignore"):  # a number beyond the model's precision is infinitely far
        if kind == "log_prob" and allows_missing and owner is not None and is_missing.any():
            check_data(name, np.where(is_missing, 0.0, x), event_shape)
            statistics: np.ndarray = -owner.energy(tf.constant(x, owner.dtype)).numpy().astype(np.float64)
        else:
            statistics = ood_statistic(model, check_data(name, x, event_shape), kind)
    bad = np.flatnonzero(np.isnan(statistics))
    if len(bad):
        raise ValueError(
            f"`{name}`: the statistics must be numbers or infinite, but {len(bad)} of {len(statistics)} are NaN, the "
            f"first that of row {bad[0] + 1}."
        )
    return statistics
