"""The kinds of the columns of a table that `fit_density` takes: found in data frames, given for arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm import random
from tfp_ebm.arguments import check_data, is_frame, numbers_of
from tfp_ebm.datasets.coding import spread_whole
from tfp_ebm.datasets.columns import TableEncoder
from tfp_ebm.datasets.kinds import DISCRETE, KINDS, MAX_LEVELS, Content, describe

MIN_ROWS = 10
# Kinds that columns of an array can have: those that keep their columns.
_OF_ARRAYS = tuple(kind for kind in KINDS if kind not in ("constant", "duplicate"))


class Read(NamedTuple):
    """A table as numbers.

    Attributes:
      rows: float64 `[rows, columns]`; NaN where a cell is missing. Whole numbers are spread over their unit cells.
      supports: the values of columns that take a few, by number of the column.
      cells: the same, but whole numbers of an array as they were.
      encoder: of a data frame.
    """

    rows: np.ndarray
    supports: dict[int, np.ndarray]
    cells: np.ndarray
    encoder: TableEncoder | None = None


def read_table(x: Any, kinds: Mapping[Any, Any] | None, kept: np.ndarray | None, seed: int) -> Read:
    """Returns a table as numbers; raises if it is none, or cannot have the given kinds.

    Args:
      x: array or data frame.
      kinds: of columns, as `fit_density` takes them.
      kept: whether each row is read; None reads all.
      seed: of the noise that spreads whole numbers.
    """
    if kinds is not None and not isinstance(kinds, Mapping):
        raise TypeError(f"`kinds` must be a mapping from columns to kinds, got {kinds!r}.")
    if is_frame(x):
        return _encoded(x if kept is None else x[kept], kinds, seed)
    array = numbers_of("x", x)
    cells = _checked_rows(array if kept is None else array[kept])
    supports: dict[int, np.ndarray] = {}
    rows, key = cells.copy(), random.stateless_seed(seed)
    for name, kind in (kinds or {}).items():
        column = _number_of(name, cells.shape[1])
        if not isinstance(kind, str):
            supports[column] = _support_of(column, kind)
            _check_support(cells[:, column], supports[column], column)
            continue
        found = _check_kind(cells[:, column], kind, column)
        if kind in DISCRETE:
            supports[column] = _support_of(column, found)
        elif kind == "whole":
            rows[:, column] = spread_whole(cells[:, column], random.fold_in(key, column))
    return Read(rows, supports, cells)


def _checked_rows(array: np.ndarray) -> np.ndarray:
    """Returns the table as float64; NaN is allowed, but no column may be empty."""
    is_missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    rows: np.ndarray = np.asarray(check_data("x", np.where(is_missing, 0, array), min_rows=MIN_ROWS), np.float64)
    if rows.ndim != 2:
        raise ValueError(f"`x` must be a table of shape [rows, columns], got {rows.shape}.")
    empty = np.flatnonzero(is_missing.all(0))
    if len(empty):
        raise ValueError(f"`x` must not have empty columns, but all cells of columns {empty.tolist()} are missing.")
    return np.where(is_missing, np.nan, rows)


def _encoded(frame: Any, kinds: Mapping[Any, Any] | None, seed: int) -> Read:
    """Returns the numbers of a data frame."""
    if len(frame) < MIN_ROWS:
        raise ValueError(f"`x` must have at least {MIN_ROWS} rows, got {len(frame)}.")
    for name, kind in (kinds or {}).items():
        if not isinstance(kind, str):
            raise ValueError(f"`kinds[{name!r}]` must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
    encoder = TableEncoder.fit(frame, kinds, missing="model" if frame.isna().any(axis=None) else "refuse")
    rows = _checked_rows(encoder.encode(frame, seed))
    return Read(rows, encoder.numbered_supports, rows, encoder)


def _number_of(column: Any, size: int) -> int:
    is_number = isinstance(column, int | np.integer) and not isinstance(column, bool)
    if not is_number or not 0 <= column < size:
        raise ValueError(f"`kinds` must be for columns from 0 to {size - 1} of the array, got {column!r}.")
    return int(column)


def _check_kind(values: np.ndarray, kind: str, column: int) -> np.ndarray:
    """Returns the values that a column holds; raises if it cannot be of the kind."""
    if kind not in _OF_ARRAYS:
        raise ValueError(
            f"`kinds[{column}]` must be one of {', '.join(map(repr, _OF_ARRAYS))}, or a list of values, got {kind!r}."
        )
    found = np.unique(values[~np.isnan(values)])
    if kind in DISCRETE and len(found) > MAX_LEVELS:
        raise ValueError(
            f"`kinds[{column}]` is {kind!r}, but the column holds {len(found)} values, and at most {MAX_LEVELS} are "
            "allowed."
        )
    if len(found) > 1:  # a constant column is refused as such
        describe(str(column), Content("number", values, None, "float64"), kind, "model")
    return found


def _support_of(column: int, values: Any) -> np.ndarray:
    """Returns the values that a column takes, sorted."""
    try:
        given = values if isinstance(values, np.ndarray) else list(values)
        array: np.ndarray = np.sort(np.asarray(given, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`kinds[{column}]` must be a kind or a list of numbers, got {values!r}.") from error
    with np.errstate(over="ignore"):
        single: np.ndarray = array.astype(np.float32)  # the dtype of the density
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(single).all() or not np.diff(single).all():
        raise ValueError(
            f"`kinds[{column}]` must hold at least two finite numbers that differ in float32, got {values!r}."
        )
    return array


def _check_support(values: np.ndarray, support: np.ndarray, column: int) -> None:
    far = ~np.isin(values.astype(np.float32), support.astype(np.float32)) & ~np.isnan(values)
    if far.any():
        raise ValueError(
            f"`kinds[{column}]` must hold all values of the column, but {values[far][0]:g} is not among them."
        )
