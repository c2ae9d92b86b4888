"""Units of a table in which columns that end at two edges, such as shares and angles, have no edges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.bounded import BoundedEnergy, EdgeMap
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.recipes.density_rows import effective_number
from tfp_ebm.recipes.density_units import Units

# A column ends at an edge if the mean density in this part of its range, at that side, is within these multiples of the
# mean density of the column. A smaller one falls towards the edge, a larger one has a peak there. In a tenth of the
# part it may be twice as high: more is a lump of rows at the edge itself.
_PART, _LEAST, _MOST = 0.02, 0.3, 3.0
# The rows from which on this part has enough of them.
_MIN_ROWS = 1000
# The share of a column's variance that a linear regression on the others may explain, since the map bends linear
# relations. With up to .62, the map halved KL in ten columns; with .69 in two columns of `segment`, .4 nat were lost.
_MAX_EXPLAINED = 0.65


class EdgeUnits(NamedTuple):
    """Units in which also the columns with two edges are mapped, by a `BoundedEnergy`.

    Attributes:
      units: the units of all columns.
      map: the map of y, the columns in these units; None if no column has edges.
    """

    units: Units
    map: EdgeMap | None

    @classmethod
    def of(
        cls, units: Units, x: np.ndarray, supports: Mapping[int, np.ndarray], weights: np.ndarray | None = None
    ) -> EdgeUnits:
        """Returns the units of a table, `[rows, columns]`, with the map of its columns with two edges.

        Args:
          units: of all columns.
          x: the rows, in which NaN marks a missing cell.
          supports: the values of columns that take a few.
          weights: of the rows, or None.
        """
        number = effective_number(weights, len(x))
        if number < _MIN_ROWS:
            return cls(units, None)
        y = units.to_y(x)
        has_edges = _has_edges(y, weights) & ~units.heavy & ~np.isin(np.arange(y.shape[1]), list(supports))
        if not has_edges.any():
            return cls(units, None)
        edges: list[tuple[float, float] | None] = [
            (np.nanmin(column), np.nanmax(column)) if found else None
            for column, found in zip(y.T, has_edges, strict=True)
        ]
        return cls(units, EdgeMap(edges, 1.0 / number))

    @property
    def has_missing(self) -> bool:
        """Whether cells are missing."""
        return self.units.has_missing

    def to_y(self, x: np.ndarray) -> np.ndarray:
        """Returns the rows in these units."""
        return self._mapped(x)[0]

    def log_slopes(self, x: np.ndarray) -> np.ndarray:
        """Returns log |dy/dx| of each cell, `[rows, columns]`; 0 where it is missing."""
        return self.units.log_slopes(x) + self._mapped(x)[1]

    def _mapped(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = self.units.to_y(x)
        if self.map is None:
            return y, np.zeros_like(y)
        mapped, log_slopes = self.map.forward(tf.constant(y, tf.float64))
        return mapped.numpy(), log_slopes.numpy()

    def model(self, network: NormalizedEnergy, seed: int = 0) -> EnergyModel:
        """Returns a network of y as a model of x."""
        bounded = network if self.map is None else BoundedEnergy(network, self.map.edges, self.map.margin)
        return self.units.model(bounded, seed)


def _has_edges(y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Returns whether each column ends at two edges and is no linear function of the others, `[columns]`."""
    is_given = ~np.isnan(y)
    own = np.where(is_given, 1.0 if weights is None else weights[:, None], 0.0)
    own /= np.maximum(own.sum(0), 1e-300)
    has_rows = np.square(own).sum(0) * _MIN_ROWS <= 1.0
    low, high = np.where(is_given, y, np.inf).min(0), np.where(is_given, y, -np.inf).max(0)
    place = (y - low) / np.where(high > low, high - low, 1.0)

    def ends(distance: np.ndarray) -> np.ndarray:
        density, at_edge = (np.where(distance < part, own, 0.0).sum(0) / part for part in (_PART, 0.1 * _PART))
        return (density >= _LEAST) & (density <= _MOST) & (at_edge <= 2.0 * _MOST)

    centred = np.where(is_given, y - np.nansum(own * y, axis=0), 0.0)
    covariance = np.atleast_2d(np.cov(centred.T, aweights=weights))
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    correlation = covariance / np.outer(deviation, deviation) + 1e-6 * np.eye(len(covariance))
    explained = 1.0 - 1.0 / np.diag(np.linalg.inv(correlation))
    return has_rows & ends(place) & ends(1.0 - place) & (explained <= _MAX_EXPLAINED)
