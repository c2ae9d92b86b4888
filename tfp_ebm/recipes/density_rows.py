"""The rows of a table as `fit_density` counts them: weights, groups that stay together, and means over rows.

A row of weight w counts as w rows. Weights are scaled so that their sum is the effective number of rows,
(Σw)²/Σw² (Kish 1965), by which the sizes of candidates are chosen.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_ebm.arguments import check_weights


def check_row_weights(weights: Any, num_rows: int) -> np.ndarray:
    """Returns the weights of rows as float64 `[rows]`, the largest 1; raises if they are none.

    >>> check_row_weights([2, 0, 4], 3).tolist()
    [0.5, 0.0, 1.0]
    """
    array: np.ndarray = check_weights("sample_weight", weights, num_rows).reshape(-1).astype(np.float64)
    if not array.any():
        raise ValueError("`sample_weight` must hold a positive number, but all are zero.")
    return array / array.max()


def effective_weights(weights: np.ndarray) -> np.ndarray | None:
    """Returns positive weights with their effective number as sum; None if all are equal.

    >>> effective_weights(np.array([1.0, 1.0, 2.0])).sum().round(4), effective_weights(np.ones(3))
    (np.float64(2.6667), None)
    """
    if (weights == weights[0]).all():
        return None
    return weights * (weights.sum() / np.square(weights).sum())


def effective_number(weights: np.ndarray | None, num_rows: int) -> int:
    """Returns the effective number of rows, at most their number, which it is if they have no weights."""
    return num_rows if weights is None else min(num_rows, max(1, round(float(weights.sum()))))


def part_of_weights(weights: np.ndarray | None, part: np.ndarray) -> np.ndarray | None:
    """Returns the weights of a part of the rows, None if there are none."""
    return None if weights is None else weights[part]


def resampled(weights: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns row numbers, drawn in proportion to weights, in random order.

    Each row comes as often as its share of `number`, rounded up or down (systematic resampling).

    >>> np.bincount(resampled(np.array([1.0, 2.0, 1.0]), 8, np.random.default_rng(0))).tolist()
    [2, 4, 2]
    """
    totals = np.cumsum(weights)
    places = (rng.random() + np.arange(number)) * (totals[-1] / number)
    return rng.permutation(np.minimum(np.searchsorted(totals, places, side="right"), len(weights) - 1))


def mean_and_error(
    values: np.ndarray, weights: np.ndarray | None = None, labels: np.ndarray | None = None
) -> tuple[float, float]:
    """Returns the mean of numbers and its standard error, NaN of fewer than two numbers.

    Args:
      values: numbers `[rows]`.
      weights: of the numbers; default: equal. Weights do not change how many observations there are.
      labels: numbers of groups, whose sums are independent of each other; default: each row is.

    >>> mean_and_error(np.array([0.0, 0.0, 3.0]), np.array([1.0, 1.0, 2.0]))[0]
    1.5
    """
    if len(values) < 2:
        return (float(values[0]) if len(values) else math.nan), math.nan
    with np.errstate(invalid="ignore", over="ignore"):
        if weights is None and labels is None:
            return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
        w = np.ones(len(values)) if weights is None else weights
        mean = float((w * values).sum() / w.sum())
        terms = w * (values - mean)
        if labels is not None:
            terms = np.bincount(np.unique(labels, return_inverse=True)[1], terms)
        if len(terms) < 2:
            return mean, math.nan
        return mean, float(np.sqrt(np.square(terms).sum() * len(terms) / (len(terms) - 1)) / w.sum())


def check_groups(groups: Any, num_rows: int) -> np.ndarray:
    """Returns the number of the group of each row, `[rows]`; raises if `groups` holds no label for each.

    >>> check_groups(["a", 7, "a"], 3).tolist()
    [0, 1, 0]
    """
    import pandas

    if isinstance(groups, str | bytes | dict) or not hasattr(groups, "__len__"):
        raise TypeError(f"`groups` must hold a label for each row, got {type(groups).__name__}.")
    shape = getattr(groups, "shape", (len(groups),))
    if tuple(shape) != (num_rows,):
        raise ValueError(f"`groups` must hold one label per row, shape [{num_rows}], got {tuple(shape)}.")
    is_column = isinstance(groups, np.ndarray | pandas.Series | pandas.Index)
    try:
        codes, _ = pandas.factorize(groups if is_column else pandas.Series(list(groups), dtype=object))
    except TypeError as error:
        raise TypeError(f"`groups` must hold hashable labels, such as ints and strings: {error}") from error
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise ValueError(f"`groups` must hold a label for each row, but {len(missing)} are missing.")
    return codes


def equal_rows(x: np.ndarray) -> np.ndarray:
    """Returns a number for each row `[rows]`, the same for equal rows; missing cells are equal.

    >>> numbers = equal_rows(np.array([[0.0, np.nan], [1.0, 2.0], [-0.0, np.nan]]))
    >>> bool(numbers[0] == numbers[2] != numbers[1])
    True
    """
    import pandas

    rows = np.ascontiguousarray(np.where(np.isnan(x), np.nan, x)) + 0.0  # −0 becomes 0
    _, numbers = np.unique(pandas.util.hash_pandas_object(pandas.DataFrame(rows), index=False), return_inverse=True)
    return numbers


def joined(numbers: np.ndarray, *labels: np.ndarray | None) -> np.ndarray:
    """Returns group numbers of which those that share a label are one; nothing changes where none do.

    Args:
      numbers: of the group of each row, from 0 on.
      labels: further numbers of each row, each from 0 on; None is left out.

    >>> joined(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2]), np.array([0, 1, 2, 1])).tolist()
    [0, 0, 1, 0]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    given = [label for label in labels if label is not None]
    if not given:
        return numbers
    offset = int(numbers.max()) + 1
    ends: np.ndarray = np.empty(0, int)
    for label in given:
        ends = np.append(ends, offset + label)
        offset += int(label.max()) + 1
    edges = np.tile(numbers, len(given)), ends
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(offset, offset))
    component = connected_components(graph, directed=False)[1][numbers]
    first = np.full(component.max() + 1, offset)
    np.minimum.at(first, component, numbers)  # components are in the order of their first groups
    return np.unique(first[component], return_inverse=True)[1]


def split_rows(
    x: np.ndarray,
    validation: float,
    seed: int,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns row numbers to train on and to hold out; equal rows, and rows of one label, are on one side.

    Args:
      x: rows `[rows, columns]`.
      validation: share of the rows, by weight, that is held out.
      seed: of the choice.
      labels: numbers of groups, `[rows]`.
      weights: of the rows, with their effective number as sum.
    """
    group = joined(equal_rows(x), labels)
    total = len(x) if weights is None else float(weights.sum())
    goal = min(max(validation * total, min(50.0, 0.25 * total)), 20_000.0)
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    sizes = np.bincount(group, weights)
    if weights is None and labels is None:
        chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), goal)))]
    else:
        chosen = _held_out_groups(sizes, order, goal)
    held_out = np.isin(group, chosen)
    if held_out.all():
        raise ValueError("`x` must hold rows that differ, but they are all equal.")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _held_out_groups(sizes: np.ndarray, order: np.ndarray, goal: float) -> np.ndarray:
    """Returns the first groups in an order, but those larger than the goal, as many as come nearest to it.

    >>> _held_out_groups(np.array([9.0, 2.0, 3.0, 1.0]), np.arange(4), 5.0).tolist()
    [1, 2]
    """
    small = order[sizes[order] <= goal]
    if not len(small):
        return order[[np.argmin(sizes[order])]]
    totals = np.cumsum(sizes[small])[: len(sizes) - 1]  # one group is left to train on
    return small[: 1 + int(np.argmin(np.abs(totals - goal)))]
