"""Quadrature on a grid, for one or two coordinates.

The trapezoid rule on a box converges faster than any power of the spacing if the density is smooth and negligible at
the edges. Its error is estimated by comparison with the grids of every second and every third node, for all offsets. If
the density is symmetric about a point between two nodes, the grids of even and of odd nodes agree, but those of every
third node do not. At an edge or a kink the error decreases at least in proportion to the spacing, so one third of the
difference for every third node counts. The mass outside the box is extrapolated from two frames at its edge: if the
mass m of the outer frame is r < 1 times that of the inner one, the mass further out is taken as m r/(1 − r), which is
too large for a tail like a Gaussian's. The rounding error of the energies is added.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_count
from tfp_ebm.evaluation import densities
from tfp_ebm.evaluation.estimate import value_and_error
from tfp_ebm.types import ArrayLike, EnergyLike, Estimate

# The largest share of mass outside the box without a warning; the width of a frame, as a share of the box.
_MAX_OUTSIDE, _FRAME = 1e-3, 1 / 32
_MIN_CELLS = 16


class _Grid(NamedTuple):
    nodes: np.ndarray  # [nodes, d]
    shape: tuple[int, ...]
    cell: float  # volume

    def integral(self, values: np.ndarray) -> tuple[float, float]:
        """Returns ∫ values computed with all nodes, and an error bound from grids of part of the nodes."""
        weighted = self._weighted(values.reshape(self.shape))
        whole, error = self.cell * np.sum(weighted), 0.0
        for stride, share in ((2, 1.0), (3, 1 / 3)):
            for starts in itertools.product(range(stride), repeat=len(self.shape)):
                part = weighted[tuple(slice(start, None, stride) for start in starts)]
                with np.errstate(invalid="ignore"):  # ∞ − ∞, if the integral is infinite
                    difference = abs(stride ** len(self.shape) * self.cell * np.sum(part) - whole)
                error = max(error, share * difference)
        return float(whole), float(error)

    @staticmethod
    def _weighted(values: np.ndarray) -> np.ndarray:
        """Multiplies the values at the edge nodes by ½."""
        for axis, size in enumerate(values.shape):
            weights = np.ones(size)
            weights[[0, -1]] = 0.5
            values = values * weights.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        return values

    def outside(self, density: np.ndarray) -> float:
        """Estimates the mass outside the box, as a share of the mass inside, from two frames at the edge."""
        density = density.reshape(self.shape)
        width = max(1, round(_FRAME * (self.shape[0] - 1)))
        inside = density[tuple(slice(width, -width) for _ in self.shape)]
        core = inside[tuple(slice(width, -width) for _ in self.shape)]
        total, within = float(density.sum()), float(inside.sum())
        outer, inner = max(total - within, 0.0), max(within - float(core.sum()), 0.0)
        if outer <= 1e-14 * total:
            return 0.0
        ratio = min(outer / inner, 0.95) if inner > 0 else 0.95
        return outer * ratio / (1 - ratio) / total


def _make_grid(
    energy_fn: EnergyLike, low: ArrayLike, high: ArrayLike, num: Any, event_shape: tuple[int, ...] | None
) -> _Grid:
    known = densities.event_shape_of(energy_fn)
    if event_shape is not None and known not in (None, event_shape):
        raise ValueError(f"`energy_fn` must have the reference's event shape {event_shape}, got {known}.")
    known = known if event_shape is None else event_shape
    try:
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`low` and `high` must be numbers or vectors, got {low!r} and {high!r}.") from error
    if low.ndim > 1 or high.ndim > 1:
        raise ValueError(f"`low` and `high` must be numbers or vectors, got shapes {low.shape} and {high.shape}.")
    size = known[0] if known is not None and len(known) == 1 else max(low.size, high.size)
    if (known is not None and len(known) != 1) or not 1 <= size <= 2:
        raise ValueError(
            f"a grid is for events of shape [1] or [2], got {list(known) if known is not None else [size]}: "
            "annealed_importance_sampling has no such bound."
        )
    if not (low.ndim == 0 or low.size == size) or not (high.ndim == 0 or high.size == size):
        raise ValueError(f"`low` and `high` must have {size} numbers each, got {low.tolist()} and {high.tolist()}.")
    low, high = np.broadcast_to(low, size), np.broadcast_to(high, size)
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise ValueError(f"`low` must be below `high`, both finite, got {low.tolist()} and {high.tolist()}.")
    num = check_count("num", num, minimum=_MIN_CELLS)
    num += num % 2
    axes = [np.linspace(a, b, num + 1) for a, b in zip(low, high, strict=True)]
    nodes = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], -1)
    return _Grid(nodes, (num + 1,) * size, float(np.prod((high - low) / num)))


class _OnGrid(NamedTuple):
    grid: _Grid
    energies: np.ndarray
    log_normalizer: Estimate


def _on_grid(
    energy_fn: EnergyLike,
    low: ArrayLike,
    high: ArrayLike,
    num: Any,
    dtype: Any,
    event_shape: tuple[int, ...] | None = None,
) -> _OnGrid:
    grid = _make_grid(energy_fn, low, high, num, event_shape)
    try:
        dtype = tf.as_dtype(dtype)
    except TypeError as unknown:
        raise TypeError(f"`dtype` must be a floating type, got {dtype!r}.") from unknown
    if not dtype.is_floating:
        raise TypeError(f"`dtype` must be a floating type, got {dtype.name}.")
    nodes = grid.nodes.astype(dtype.as_numpy_dtype)
    values = densities.energies(energy_fn, nodes)
    if np.isnan(values).any() or (values == -np.inf).any() or (values == np.inf).all():
        raise ValueError(
            f"the energy must be finite, or +∞ in places, on the grid: {int(np.isnan(values).sum())} of {len(values)} "
            f"are NaN, {int((values == -np.inf).sum())} −∞, {int((values == np.inf).sum())} +∞."
        )
    lowest = float(np.min(values))
    density = np.exp(lowest - values)
    whole, difference = grid.integral(density)
    outside = grid.outside(density)
    if outside > _MAX_OUTSIDE:
        warnings.warn(
            f"some {min(outside, 1.0):.1%} of the mass may lie outside the box: widen `low` and `high`.", stacklevel=3
        )
    if difference > 0.1 * whole:
        warnings.warn(
            f"the integral with part of the nodes differs by {difference / whole:.0%}: `num` = {num} is too small.",
            stacklevel=3,
        )
    # the rounding error of each energy, in the worst case of equal signs
    seen = density > 0
    rounding = np.finfo(densities.dtype_of(energy_fn, nodes)).eps * np.average(
        np.abs(values[seen]), weights=density[seen]
    )
    error = np.hypot(np.log1p(difference / whole), np.log1p(outside)) + rounding
    return _OnGrid(grid, values, Estimate(float(np.log(whole) - lowest), float(error)))


def grid_log_normalizer(
    energy_fn: EnergyLike, low: ArrayLike, high: ArrayLike, num: int = 512, dtype: Any = tf.float32
) -> Estimate:
    """Returns log Z = log ∫ exp(−E(x)) dx (eq. 2) over a box, for one or two coordinates.

    Args:
      energy_fn: an `EnergyModel`, an `EnergyDistribution`, any `tfd.Distribution` (by its unnormalized_log_prob), a
        Keras network, or a callable `[batch, d] -> [batch]`.
      low, high: corners of the box, `[d]`, or numbers if the event shape is known or 1. The box should be wider than
        the data, because a network may have mass far from them.
      num: number of cells per axis; an odd number is rounded up to the next even one.
      dtype: the dtype in which a plain callable is called; other energies are called in their own dtype.

    Returns:
      An `Estimate`. Its `standard_error` is the change of log Z for grids of part of the nodes, and by the estimated
      mass outside the box. It is a bound for smooth energies rather than a standard deviation.

    Warns:
      UserWarning: if more than .1 % of the mass may lie outside the box, or the results for part of the nodes differ.

    Raises:
      ValueError: for more than two coordinates, an invalid box, or energies that are NaN or −∞.

    >>> estimate = grid_log_normalizer(lambda x: 0.5 * tf.reduce_sum(x**2, -1), [-9, -9], [9, 9], num=64)
    >>> round(estimate.value, 4), estimate.standard_error < 1e-3  # log 2π
    (1.8379, True)
    """
    return _on_grid(energy_fn, low, high, num, dtype).log_normalizer


def _model_log_prob(on_grid: _OnGrid, log_normalizer: Estimate | float | None) -> tuple[np.ndarray, float]:
    known = on_grid.log_normalizer if log_normalizer is None else log_normalizer
    value, error = value_and_error(known)
    return -on_grid.energies - value, error


def _compared(
    energy_fn: EnergyLike,
    reference: tfp.distributions.Distribution,
    box: tuple[Any, Any, Any],
    log_normalizer: Estimate | float | None,
    terms: Callable[[np.ndarray, np.ndarray], np.ndarray],
    factor: float,
) -> tuple[Estimate, float]:
    """Returns ∫ terms(log p, log q), its error, and the mass of p that the grid misses."""
    densities.check_reference(reference)
    on_grid = _on_grid(energy_fn, *box, reference.dtype, tuple(reference.event_shape))
    log_p = densities.known_log_prob(reference, on_grid.grid.nodes)
    log_q, error = _model_log_prob(on_grid, log_normalizer)
    value, difference = on_grid.grid.integral(terms(log_p, log_q))
    mass, _ = on_grid.grid.integral(np.exp(log_p))
    missed = 1.0 - mass
    if abs(missed) > 1e-2:
        warnings.warn(
            f"the grid covers {mass:.4g} of the reference's mass 1: the box or `num` is too small.", stacklevel=4
        )
    return Estimate(value, float(np.hypot(difference, factor * error) + max(missed, 0.0))), missed


def grid_kl_divergence(
    energy_fn: EnergyLike,
    reference: tfp.distributions.Distribution,
    low: ArrayLike,
    high: ArrayLike,
    num: int = 512,
    log_normalizer: Estimate | float | None = None,
) -> Estimate:
    """Returns KL(reference ‖ model) = ∫ p(x) (log p(x) + E(x) + log Z) dx over a box, in nats.

    Args:
      energy_fn, low, high, num: see `grid_log_normalizer`.
      reference: the true distribution p, a `tfd.Distribution` of one or two coordinates with an exact `log_prob`.
      log_normalizer: log Z, a number or an `Estimate`; default: computed on the same grid. If the box does not cover
        the model's mass, the result is then too small, and there is a warning.

    Raises:
      TypeError, ValueError: as `grid_log_normalizer`.

    >>> from tfp_ebm import targets
    >>> p = targets.two_gaussians()
    >>> abs(grid_kl_divergence(lambda x: -p.log_prob(x), p, [-6, -6], [6, 6], num=128).value) < 1e-4
    True
    """

    def terms(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(np.exp(log_p) > 0, np.exp(log_p) * (log_p - log_q), 0.0)  # 0 log 0, or nearly

    return _compared(energy_fn, reference, (low, high, num), log_normalizer, terms, 1.0)[0]


def grid_total_variation(
    energy_fn: EnergyLike,
    reference: tfp.distributions.Distribution,
    low: ArrayLike,
    high: ArrayLike,
    num: int = 512,
    log_normalizer: Estimate | float | None = None,
) -> Estimate:
    """Returns the total variation ½ ∫ |p(x) − exp(−E(x))/Z| dx, the share of mass in the wrong place, from 0 to 1.

    Args:
      energy_fn, reference, low, high, num, log_normalizer: as for `grid_kl_divergence`.

    Raises:
      TypeError, ValueError: as `grid_log_normalizer`.

    >>> from tfp_ebm import targets
    >>> p = targets.two_gaussians()
    >>> grid_total_variation(lambda x: -p.log_prob(x), p, [-6, -6], [6, 6], num=128).value < 1e-4
    True
    """

    def terms(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        return 0.5 * np.abs(np.exp(log_p) - np.exp(log_q))

    return _compared(energy_fn, reference, (low, high, num), log_normalizer, terms, 0.5)[0]
