"""Codes of columns in the training table: labels to codes, values to the nearest allowed one, duplicates to sources."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.datasets.cells import quoted, shown_list
from tfp_ebm.datasets.kinds import Column, Content


def nearest(support: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the value of a sorted support that is nearest to each number; NaN stays NaN.

    >>> nearest(np.array([0.0, 1.0, 4.0]), np.array([-3.0, 0.75, 2.6, np.nan])).tolist()
    [0.0, 1.0, 4.0, nan]
    """
    middle = (support[1:] + support[:-1]) / 2
    found = support[np.searchsorted(middle, values)]
    return np.where(np.isnan(values), np.nan, found)


def spread_whole(values: np.ndarray, key: tf.Tensor) -> np.ndarray:
    """Returns whole numbers with noise from U(−½, ½) of a seed int32[2]; NaN stays NaN.

    >>> spread = spread_whole(np.array([3.0, 4.0]), random.stateless_seed(0))
    >>> np.rint(spread).tolist(), bool((spread != [3.0, 4.0]).all())
    ([3.0, 4.0], True)
    """
    noisy = values + (random.uniform([len(values)], key, tf.float64).numpy() - 0.5)
    # noise must not reach the border of a cell by rounding
    return np.where(np.rint(noisy) == values, noisy, values)


def recoded(column: Column, content: Content, strict: bool = True) -> np.ndarray:
    """Returns the cells of a column in the codes of the training table, NaN for missing ones.

    Args:
      column: the description of the column.
      content: its cells.
      strict: whether an unknown label is an error; else its code is −1.
    """
    values = content.values
    present = ~np.isnan(values)
    if column.levels is None:
        if content.group in ("text", "category"):
            label = next(iter(content.labels()))
            raise TypeError(
                f"`frame`: column {quoted(column.name)} must hold numbers, as in the training table, "
                f"got {quoted(label)}."
            )
        bad = np.flatnonzero(present & (values != np.rint(values)))
        if column.kind == "whole" and len(bad) and strict:
            raise ValueError(
                f"`frame`: column {quoted(column.name)} holds {values[bad[0]]:g} in row {bad[0] + 1}, and the "
                "training table had whole numbers only."
            )
        return np.array(values)
    result = np.full(len(values), np.nan)
    if present.any():
        _, first, inverse = np.unique(values[present], return_index=True, return_inverse=True)
        known = {label: code for code, label in enumerate(column.levels)}
        labels = content.labels()
        unknown = next((i for i, label in enumerate(labels) if label not in known), None)
        if unknown is not None and strict:
            row = np.flatnonzero(present)[first[unknown]] + 1
            raise ValueError(
                f"`frame`: column {quoted(column.name)} holds {quoted(labels[unknown])}, which was not in the "
                f"training table (row {row}); its labels are {shown_list(list(column.levels))}."
            )
        result[present] = np.array([known.get(label, -1) for label in labels], float)[inverse]
    return result


def rounded(column: Column, values: np.ndarray) -> np.ndarray:
    """Returns values rounded to those that a column can hold."""
    if column.support is not None:
        return nearest(np.array(column.support), values)
    if column.kind == "whole" or (column.kind == "duplicate" and column.is_whole):
        return np.rint(values) if column.low is None else np.maximum(np.rint(values), column.low)
    return values


def _code_map(target: Column, source: Column) -> np.ndarray:
    """Returns the code in `target` of each level of `source`; NaN for none."""
    known = {label: code for code, label in enumerate(target.levels or ())}
    return np.array([known.get(label, np.nan) for label in source.levels or ()], float)


def _are_labels(column: Column, source: Column) -> bool:
    """Returns whether a column is a copy of labels, not of numbers."""
    return column.levels is not None and source.levels is not None and column.support is not None


def _mapped(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    known = codes >= 0
    return np.where(known, table[np.where(known, codes, 0).astype(int)], np.nan)


def computed(column: Column, values: dict[str, np.ndarray], columns: dict[str, Column]) -> np.ndarray:
    """Returns a duplicate, computed from the columns that determine it."""
    if len(column.sources) == 1 and column.sources[0][1] == 1.0 and not column.intercept:
        source = columns[column.sources[0][0]]
        if _are_labels(column, source):
            return _mapped(values[source.name], _code_map(column, source))
    total = column.intercept + sum(weight * values[name] for name, weight in column.sources)
    return rounded(column, np.asarray(total))


def fill(column: Column, values: dict[str, np.ndarray], columns: dict[str, Column]) -> None:
    """Fills the missing cells of a duplicate's sources where the duplicate is present and only one source is not."""
    own = values[column.name]
    names = [name for name, _ in column.sources]
    missing = np.stack([np.isnan(values[name]) for name in names], axis=1)
    rows = ~np.isnan(own) & (missing.sum(axis=1) == 1)
    for i, (name, weight) in enumerate(column.sources):
        at = np.flatnonzero(rows & missing[:, i])
        source = columns[name]
        if not len(at):
            continue
        if len(names) == 1 and _are_labels(column, source) and weight == 1.0 and not column.intercept:
            values[name][at] = _mapped(own[at], _code_map(source, column))
            continue
        rest = column.intercept + sum(w * values[other][at] for other, w in column.sources if other != name)
        values[name][at] = rounded(source, (own[at] - rest) / weight)
