"""Densities made of densities: mixtures, mixtures whose weights fit held-out rows (stacking), and products.

A mixture Σₖ wₖ pₖ(x) of densities with log Z = 0 has log Z = 0 itself: its log density and its samples are exact.
Stacked on held-out rows it is hardly ever worse than its best part (Smyth & Wolpert 1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_data, numbers_of
from tfp_ebm.energy.base import check_base
from tfp_ebm.model.conditional_mixture import (
    ConditionalMixtureEnergy,
    draws_exactly_given,
    in_units,
    is_conditional_model,
)
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.exact_draws import draws_exactly
from tfp_ebm.model.product import product_energy
from tfp_ebm.networks.cumulative import cumulative
from tfp_ebm.networks.normalized import DistributionEnergy, MixtureEnergy

__all__ = ["cdf", "mixture", "product", "stack"]

# Parts with smaller weights are left out of a stack.
_LEAST_WEIGHT = 0.01
# Of the cross-validation of weights, and rows above which none is needed.
_NUM_FOLDS, _MAX_CROSS_VALIDATED = 10, 2000


def mixture(parts: Sequence[Any], probs: Any) -> Any:
    """Makes the mixture Σₖ wₖ pₖ(x) of densities whose log Z is known.

    Args:
      parts: densities over x of one event shape: each an `EnergyModel` with log Z = 0, such as one of
        `networks.autoregressive`, an `EnergyDistribution` whose log Z is known, or a `tfd.Distribution` with `log_prob`
        and `sample`. They are not copied: training one trains it in the mixture too. Conditional models that are
        normalised, such as those of `recipes.regression`, must take one kind of condition.
      probs: weights wₖ, not negative, with sum 1.

    Returns:
      An `EnergyDistribution` with exact `log_prob` and, if the parts have them, exact samples. Its `energy_model` is in
      the units of the first model, and is saved and exported as any other. If a part is conditional, the result is a
      conditional `EnergyModel`, whose `given(c)` gives c to all such parts.

    Raises:
      TypeError, ValueError: if a part is no such density, the event shapes differ, or the weights are none.

    >>> normals = [tfp.distributions.MultivariateNormalDiag([m, 0.0]) for m in (-2.0, 2.0)]
    >>> p = mixture(normals, [0.3, 0.7])
    >>> p.sample(4, seed=0).shape, float(p.log_normalizer)
    (TensorShape([4, 2]), 0.0)
    """
    model = mixture_model(parts, probs)
    return model if model.is_conditional else EnergyDistribution(model)


def mixture_model(parts: Sequence[Any], probs: Any) -> EnergyModel:
    """Returns the `EnergyModel` of a mixture; the arguments are those of `mixture`."""
    parts = list(parts)
    if not parts:
        raise ValueError("`parts` must hold at least one density, got none.")
    parts = [_checked_part(f"parts[{i}]", part) for i, part in enumerate(parts)]
    shapes = {tuple(part.event_shape) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"`parts` must have one event shape, got {sorted(shapes)}.")
    (event_shape,) = shapes
    units = next((part.standardization for part in parts if isinstance(part, EnergyModel)), None)
    loc = np.zeros(event_shape) if units is None else np.asarray(units.loc)
    scale = np.ones(event_shape) if units is None else np.asarray(units.scale)
    if any(map(is_conditional_model, parts)):
        models = [part if isinstance(part, EnergyModel) else DistributionEnergy(part) for part in parts]
        network: Any = ConditionalMixtureEnergy(models, probs, loc, scale)
    else:
        networks = [in_units(part, loc, scale) for part in parts]
        network = MixtureEnergy(networks, probs, dtype=np.result_type(*(one.dtype for one in networks)).name)
    model = EnergyModel(network)
    model.standardization.loc.assign(loc)
    model.standardization.scale.assign(scale)
    return model


def product(parts: Sequence[Any], exponents: Any = None) -> Any:
    """Makes the density proportional to Π pᵢ(x)^aᵢ, whose energy is Σ aᵢ Eᵢ(x); its log Z is unknown.

    One part with an exponent below 1 is tempered. `p * q` and `p ** a` of `EnergyDistribution`s make the same.

    Args:
      parts: densities over x of one event shape: each an `EnergyModel`, an `EnergyDistribution` or a
        `tfd.Distribution`. Each counts with its own units and with its base measure, as the density that it is. They
        are not copied: training one trains it in the product too. Conditional models must take one kind of condition.
      exponents: the numbers aᵢ; default: 1. A negative one is possible if the others outweigh it.

    Returns:
      An `EnergyDistribution`, whose draws start from the product of the parts' bases, broadened. Its `energy_model` is
      saved and exported as any other, unless a part has a callable energy. If a part is a conditional model, the result
      is a conditional `EnergyModel`, whose `given(c)` gives c to all such parts.

    Raises:
      TypeError, ValueError: if a part is no such density, has no base, or the event shapes differ; if the exponents are
        no finite numbers, or make a product that cannot be normalised.

    Reference: Y. Du, S. Li, I. Mordatch, Compositional visual generation with energy based models, 2020,
    arXiv:2004.06030.

    >>> left, right = (tfp.distributions.MultivariateNormalDiag([m]) for m in (-1.0, 1.0))
    >>> p = product([left, right])  # N(0, ½)
    >>> bool(np.isclose(p.unnormalized_log_prob([0.0]) - p.unnormalized_log_prob([1.0]), 1.0))
    True
    """
    energy, arguments = product_energy(parts, exponents)
    if is_conditional_model(energy):
        return energy
    return EnergyDistribution(energy, **arguments)


def _checked_part(name: str, part: Any) -> Any:
    """Returns a part of a mixture; of an `EnergyDistribution` with log Z = 0, its `EnergyModel`."""
    if isinstance(part, EnergyDistribution):
        if part.log_normalizer is None:
            raise ValueError(f"`{name}` must have a known log Z: estimate it, and pass p.with_log_normalizer(value).")
        if draws_exactly(part._energy) and not np.any(part.log_normalizer):
            return part._energy
    if isinstance(part, EnergyModel):
        if not (draws_exactly(part) or draws_exactly_given(part)):
            raise ValueError(
                f"`{name}` must have a known log Z: a network such as `networks.autoregressive` and no base measure, "
                f"got an EnergyModel of {type(part.network).__name__}."
            )
    elif isinstance(part, tfp.distributions.Distribution):
        check_base(name, part)
    else:
        raise TypeError(f"`{name}` must be an EnergyModel or a tfd.Distribution, got {part!r}.")
    return part


def log_prob_of(part: Any, x: np.ndarray) -> np.ndarray:
    """Returns log densities of rows in float64; −inf where they are not finite."""
    dtype = part.dtype if isinstance(part, EnergyModel) else part.dtype.name
    rows = tf.constant(x, dtype)
    values = -part.energy(rows) if isinstance(part, EnergyModel) else part.log_prob(rows)
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values, -np.inf)


def stack(parts: Sequence[Any], x_held_out: Any) -> EnergyDistribution:
    """Makes the mixture of densities that is most likely on rows that none of them was fitted to.

    Args:
      parts: as in `mixture`, none of them conditional. A part whose weight is below .01 is left out.
      x_held_out: array `[rows, *event]`, or a `pandas.DataFrame`.

    Returns:
      An `EnergyDistribution`, as `mixture` makes it; its weights are `energy_model.network.probs`.

    Raises:
      TypeError, ValueError: as `mixture`; or if no part has a positive density at some row.

    >>> normals = [tfp.distributions.MultivariateNormalDiag([m]) for m in (-2.0, 2.0, 90.0)]
    >>> x = np.concatenate([np.full((30, 1), -2.0), np.full((10, 1), 2.0)])
    >>> [round(float(weight), 1) for weight in stack(normals, x).energy_model.network.probs.numpy()]
    [0.7, 0.3]
    """
    parts = [_checked_part(f"parts[{i}]", part) for i, part in enumerate(parts)]
    if not parts:
        raise ValueError("`parts` must hold at least one density, got none.")
    for i, part in enumerate(parts):
        if is_conditional_model(part):
            raise ValueError(f"`parts[{i}]` must be a density of x alone, got a conditional model.")
    x = check_data("x_held_out", x_held_out, tuple(parts[0].event_shape))
    kept, probs = stacked_parts(np.stack([log_prob_of(part, x) for part in parts], 1))
    return EnergyDistribution(mixture_model([parts[i] for i in kept], probs))


def cdf(density: Any, x: Any, coordinate: int | str) -> np.ndarray:
    """Computes the distribution function P(Xᵢ ≤ xᵢ | the other given coordinates) of one coordinate of a density.

    With all other coordinates NaN it is that of the marginal. Gaussian mixtures and kernel densities take any cells as
    given. Autoregressive energies need exactly the coordinates that come before i in their `order`. A mixture, such as
    a stack, needs what its parts need, and weighs them by their density of the given cells.

    Args:
      density: an `EnergyModel` with log Z = 0, such as one of `networks.autoregressive` or `fit_density`, or the
        `EnergyDistribution` of one, such as a `mixture`.
      x: array `[rows, size]`. NaN marks the coordinates that are not given. Coordinate i holds the point xᵢ.
      coordinate: i, the number of the coordinate, or its name in `density.columns`.

    Returns:
      float64 `[rows]`, from 0 to 1.

    Raises:
      TypeError, ValueError: if the density is none of these, the shapes differ, xᵢ is NaN, or other coordinates are
        given than an autoregressive energy needs.

    >>> import tfp_ebm as ebm
    >>> normal = tfp.distributions.MultivariateNormalTriL([0.0, 0.0], [[1.0, 0.0], [0.6, 0.8]])
    >>> model = ebm.EnergyModel(ebm.networks.autoregressive([2], units=[8], proposal=normal))
    >>> cdf(model, [[0.0, np.nan]], 0).round(3), cdf(model, [[1.0, 0.6]], 1).round(3)
    (array([0.5]), array([0.5]))
    """
    density = density._energy if isinstance(density, EnergyDistribution) else density
    if not draws_exactly(density):
        raise TypeError(f"`density` must be an EnergyModel with a known log Z, got {density!r}.")
    (size,) = density.event_shape if len(density.event_shape) == 1 else (-1,)
    names = list(density.columns or [])
    i = names.index(coordinate) if coordinate in names else coordinate
    if not isinstance(i, int | np.integer) or not 0 <= i < size:
        raise ValueError(
            f"`coordinate` must be a number from 0 to {size - 1} or a name in {names}, got {coordinate!r}."
        )
    rows: np.ndarray = np.asarray(numbers_of("x", x), np.float64)
    if rows.shape[1:] != (size,) or np.isinf(rows).any():
        raise ValueError(f"`x` must hold finite numbers or NaN, of shape [rows, {size}], got {rows.shape}.")
    if np.isnan(rows[:, i]).any():
        raise ValueError(
            f"`x` must have a point in column {i}, but it is NaN in {int(np.isnan(rows[:, i]).sum())} rows."
        )
    z = (rows - np.asarray(density.standardization.loc)) / np.asarray(density.standardization.scale)
    values = np.empty(len(rows))
    patterns, group = np.unique(np.isnan(rows), axis=0, return_inverse=True)
    for number in range(len(patterns)):
        chosen = group.reshape(-1) == number
        values[chosen] = cumulative(density.network, z[chosen], int(i)).cdf
    return values


def stacked_parts(log_probs: np.ndarray, row_weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns which parts a stack keeps, by number, and their weights; arguments as in `stacking_weights`.

    On few rows the best weights fit these rows and no others. If a mixture is not better than its best part on rows
    that its weights were not fitted to (cross-validation), that part is all that is kept.

    >>> rows = np.log([[1.0, 0.9], [0.9, 1.0], [1.0, 0.9]])
    >>> stacked_parts(rows)[0].tolist()
    [0]
    """
    fitted = fitted_parts(log_probs, row_weights)
    best = int(np.average(log_probs, 0, row_weights).argmax())
    of_best = np.average(log_probs[:, best], weights=row_weights)
    if len(log_probs) <= _MAX_CROSS_VALIDATED and _cross_validated(log_probs, row_weights) <= of_best:
        return np.array([best]), np.ones(1)
    return fitted


def fitted_parts(log_probs: np.ndarray, row_weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns which parts have weights that count, by number, and these weights; arguments as in `stacking_weights`.

    >>> rows = np.log([[1.0, 0.1, 0.1], [0.1, 1.0, 0.1]])
    >>> fitted_parts(np.repeat(rows, 100, 0))[0].tolist()
    [0, 1]
    """
    weights = stacking_weights(log_probs, row_weights=row_weights)
    kept = np.flatnonzero(weights > _LEAST_WEIGHT)
    return kept, weights[kept] / weights[kept].sum()


def _cross_validated(log_probs: np.ndarray, row_weights: np.ndarray | None) -> float:
    """Returns the mean log density of a stack, of each row with the weights of the other folds; −∞ of one row."""
    fold: np.ndarray = np.arange(len(log_probs)) % min(_NUM_FOLDS, len(log_probs))
    values = np.full(len(log_probs), -np.inf)
    for number in range(fold.max() + 1 if len(log_probs) > 1 else 0):
        others = None if row_weights is None else row_weights[fold != number]
        weights = stacking_weights(log_probs[fold != number], row_weights=others)
        values[fold == number] = np.logaddexp.reduce(log_probs[fold == number] + np.log(weights), axis=1)
    return float(np.average(values, weights=row_weights))


def stacking_weights(log_probs: np.ndarray, num_steps: int = 500, row_weights: np.ndarray | None = None) -> np.ndarray:
    """Finds the weights of a mixture by expectation maximisation.

    Args:
      log_probs: log densities of held-out rows `[rows, parts]`.
      num_steps: of expectation maximisation.
      row_weights: how many rows each counts as, `[rows]`; default: 1.

    Returns:
      Weights `[parts]` with sum 1 that maximise Σ log Σₖ wₖ pₖ(x), with half a row of prior weight for all parts
      together.

    Raises:
      ValueError: if all parts have density zero at some row.

    >>> stacking_weights(np.log([[1.0, 0.1], [1.0, 0.1], [0.1, 1.0]])).round(1).tolist()
    [0.7, 0.3]
    """
    num_parts = log_probs.shape[1]
    num_rows = len(log_probs) if row_weights is None else float(row_weights.sum())
    largest = log_probs.max(1, keepdims=True)
    if not np.isfinite(largest).all():
        row = int(np.flatnonzero(~np.isfinite(largest))[0])
        raise ValueError(f"`x_held_out` must have a positive density in one of the parts, but row {row} has none.")
    densities = np.exp(log_probs - largest)
    weights = np.full(num_parts, 1.0 / num_parts)
    for _ in range(num_steps):
        shares = densities * weights
        shares /= shares.sum(1, keepdims=True)
        counts = shares.sum(0) if row_weights is None else row_weights @ shares
        weights = (counts + 0.5 / num_parts) / (num_rows + 0.5)
    return weights
