"""Regression by energies: the density p(y | x) of targets given inputs, for any shape of noise and several modes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_count, check_data, check_positive, check_share
from tfp_ebm.losses import NegativeLogLikelihood
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.target_maps import TargetMap, kinds_of
from tfp_ebm.networks.targets import RegressionEnergy
from tfp_ebm.recipes.density_rows import mean_and_error
from tfp_ebm.recipes.regression_candidates import FEW_ROWS, fit_candidates

_MIN_ROWS = 20
# Networks that are averaged, and those of few rows, each with other rows held out.
_NUM_NETWORKS, _NUM_NETWORKS_OF_FEW = 4, 10


def regression(
    x: Any,
    y: Any,
    *,
    bounds: Any = None,
    minutes: float | None = None,
    num_networks: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
) -> EnergyModel:
    """Fits the density p(y | x) of targets y in few dimensions, given inputs x; its log Z is 0 for every x.

    In networks each target has an energy on the line with an exact normaliser, given x and the targets before it. Some
    start at the linear regression, some at random weights. Each network has rows that are held out and, of several
    targets, an order of its own; those of a kind are kept where the likelihood of the rows held out is best. Beside
    them are the conditionals of Gaussians, which are linear regressions, and, for at most 2000 rows, of Gaussian
    mixtures. The model is the mixture of all whose weights are most likely on the rows held out: on few rows it may be
    a linear regression alone.

    Args:
      x: inputs `[rows, inputs]`, or `[rows]`.
      y: targets `[rows, targets]`, or `[rows]`.
      bounds: (low, high), numbers or arrays `[targets]` that may be infinite, if targets are known to lie between
        them, such as (0, np.inf) for positive ones. The density is zero outside.
      minutes: time for the trainings, about; default: as many steps as the number of rows needs.
      num_networks: number of networks that are averaged; default: 10 for at most 2000 rows, else 4. Of 4 or more,
        half, rounded down, start at the linear regression, and as many at random weights.
      validation: share of the rows that a network holds out, about: less with many networks, more of few rows.
      seed: of the splits, all weights and all batches.

    Returns:
      A conditional `EnergyModel` of y, `[rows, targets]`, with the condition x. Its `candidates`, `histories` and
      `cut_by_clock` are as those of `fit_density`, for log p(y | x) of the rows held out.

      `model.energy(y, x)` is −log p(y | x). `model.given(x)` of one x is an ordinary model of y with log Z = 0. Of a
      batch, `[batch, inputs]`, it is a distribution of batch shape `[batch]` with `log_prob`, `sample`, `mean`,
      `stddev`, `mode`, `quantile`, `cdf` (of one target) and `interval`.

    Raises:
      TypeError, ValueError: if x and y are no finite numbers, differ in their rows, have fewer than 20, or y is outside
        of the bounds.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(300, 1))
    >>> model = regression(x, x + 0.3 * rng.normal(size=(300, 1)), minutes=0.02, num_networks=1)
    >>> p = model.given([[0.0], [2.0]])
    >>> p.mean().shape, p.sample(5, seed=0).shape, p.quantile(0.9).shape
    (TensorShape([2, 1]), TensorShape([5, 2, 1]), TensorShape([2, 1]))
    """
    inputs, targets = (columns_of(name, value) for name, value in (("x", x), ("y", y)))
    low, high = check_bounds("bounds", bounds, targets.shape[1])
    return fit_targets(
        inputs,
        targets,
        low,
        high,
        names=("x", "y"),
        minutes=minutes,
        num_networks=num_networks,
        validation=validation,
        seed=seed,
    )


def fit_targets(
    inputs: np.ndarray,
    targets: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    names: tuple[str, str],
    minutes: float | None,
    num_networks: int | None,
    validation: float,
    seed: int,
) -> EnergyModel:
    """Returns a fitted model of targets given inputs; see `regression`.

    Args:
      inputs, targets: `[rows, columns]` each.
      low, high: bounds of the targets, `[targets]`, may be infinite.
      names: of the arguments that inputs and targets come from, for the errors.
      minutes, num_networks, validation, seed: as for `regression`.
    """
    _check_rows(inputs, targets, low, high, names)
    check_share("validation", validation)
    number = _NUM_NETWORKS_OF_FEW if len(inputs) <= FEW_ROWS else _NUM_NETWORKS
    number = number if num_networks is None else check_count("num_networks", num_networks)
    seed = check_count("seed", seed, minimum=0)
    seconds = math.inf if minutes is None else 60.0 * check_positive("minutes", minutes)

    target_map, loc, scale = _units_of(targets, low, high)
    y = (targets - loc) / scale
    if target_map is not None:
        y = target_map.forward(tf.constant(y, tf.float32))[0].numpy()
    x_loc, x_scale = inputs.mean(0), inputs.std(0)
    x_scale = np.where(x_scale > 0.0, x_scale, 1.0)
    z: np.ndarray = np.concatenate([(inputs - x_loc) / x_scale, y], 1).astype(np.float32)
    found = fit_candidates(z, inputs.shape[1], number, validation, seconds, seed)
    energy = RegressionEnergy(found.networks, x_loc, x_scale, found.orders, target_map, found.probs)
    model = EnergyModel(energy, seed=seed)
    model.standardization.loc.assign(loc)
    model.standardization.scale.assign(scale)
    model.compile(loss=NegativeLogLikelihood())  # for `evaluate(y, x)`
    model.optimizer.build(model.trainable_variables)  # Keras cannot load a file whose optimizer was never built
    slopes = np.full(len(targets), -np.log(scale).sum())
    if target_map is not None:
        slopes += target_map.forward(tf.constant((targets - loc) / scale, tf.float32))[1].numpy()
    model.candidates = {}
    for name, log_probs in found.log_probs.items():
        model.candidates[name] = mean_and_error(log_probs + slopes[found.judges])
    model.histories, model.cut_by_clock = found.histories, found.is_cut
    return model


def columns_of(name: str, value: Any) -> np.ndarray:
    """Returns a table as float64 `[rows, columns]`; one of shape `[rows]` has one column."""
    array = np.asarray(value) if not hasattr(value, "columns") else value
    array = array[:, None] if getattr(array, "ndim", 2) == 1 else array
    rows: np.ndarray = np.asarray(check_data(name, array, min_rows=_MIN_ROWS), np.float64)
    if rows.ndim != 2:
        raise ValueError(f"`{name}` must have shape [rows, columns] or [rows], got {rows.shape}.")
    return rows


def check_bounds(name: str, bounds: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bounds (low, high) of each of `size` coordinates, float64; None for no bounds.

    >>> check_bounds("bounds", (0.0, [1.0, np.inf]), 2)
    (array([0., 0.]), array([ 1., inf]))
    """
    if bounds is None:
        return np.full(size, -np.inf), np.full(size, np.inf)
    try:
        low, high = (np.broadcast_to(np.asarray(part, np.float64), (size,)).copy() for part in bounds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be (low, high), numbers or arrays of {size}, got {bounds!r}.") from error
    if not (low < high).all():
        raise ValueError(f"`{name}` must have low < high in each coordinate, got {low.tolist()}, {high.tolist()}.")
    return low, high


def _check_rows(
    inputs: np.ndarray, targets: np.ndarray, low: np.ndarray, high: np.ndarray, names: tuple[str, str]
) -> None:
    of_inputs, of_targets = names
    if len(inputs) != len(targets):
        raise ValueError(f"`{of_targets}` must have as many rows as {of_inputs}, {len(inputs)}, got {len(targets)}.")
    constant = np.flatnonzero(np.ptp(targets, axis=0) == 0.0)
    if len(constant):
        raise ValueError(f"`{of_targets}` must not be constant, but columns {constant.tolist()} are.")
    outside = ((targets < low) | (targets > high)).sum(0)
    if outside.any():
        raise ValueError(
            f"`{of_targets}` must lie within its bounds, but {outside.tolist()} rows of its columns do not."
        )


def _units_of(
    targets: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[TargetMap | None, np.ndarray, np.ndarray]:
    """Returns the map of targets with bounds in the model's units, or None, and these units."""
    loc, scale = targets.mean(0), targets.std(0)
    is_low, is_high = np.isfinite(low), np.isfinite(high)
    if not (is_low | is_high).any():
        return None, loc, scale
    loc = np.where(is_low, low, np.where(is_high, high, loc))
    scale = np.where(is_low & is_high, high - low, scale)
    kinds = kinds_of(low, high)
    u = TargetMap(kinds).forward(tf.constant((targets - loc) / scale, tf.float32))[0].numpy()
    is_line = np.array([kind == "line" for kind in kinds])
    u_scale = np.where(u.std(0) > 0.0, u.std(0), 1.0)
    return TargetMap(kinds, np.where(is_line, 0.0, u.mean(0)), np.where(is_line, 1.0, u_scale)), loc, scale
