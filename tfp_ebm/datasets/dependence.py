"""Finds columns that other columns determine: equal ones, and exact linear combinations.

Such columns have no density beside the others. They are kept aside and computed from the others afterwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.datasets.kinds import Column, Content

# The residual of a linear combination must be below this number of standard deviations of the column.
_TOLERANCE = 1e-6
# A first look at so many rows finds the candidates, which are then checked in all rows.
_MAX_ROWS = 4096
# Pairs of columns with missing cells are compared if they share so many rows, and this share of all rows.
_MIN_ROWS, _MIN_SHARE = 8, 0.1
# Tables with more columns are searched for equal columns only.
_MAX_COLUMNS = 512


class Dependence(NamedTuple):
    """A column as an intercept plus coefficients times other columns."""

    sources: tuple[tuple[str, float], ...]
    intercept: float = 0.0

    def treatment(self) -> str:
        """Returns one sentence on how the column is treated.

        >>> Dependence((("a", 2.0), ("b", -1.0)), 3.0).treatment()
        "kept aside: equal to 2 'a' - 'b' + 3"
        """
        text = ""
        for name, weight in self.sources:
            sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
            text += sign + ("" if abs(weight) == 1 else f"{abs(weight):.6g} ") + repr(name)
        if self.intercept:
            text += f" {'-' if self.intercept < 0 else '+'} {abs(self.intercept):.6g}"
        is_copy = len(self.sources) == 1 and self.sources[0][1] == 1 and not self.intercept
        return f"kept aside: equal to {'column ' if is_copy else ''}{text}"


def find_equal(columns: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the first equal column of each column that is equal to an earlier one.

    Two columns are equal if they agree in every row in which neither is missing, and these rows are not few.

    Args:
      columns: numbers, or codes of labels that are common to all columns, with NaN for missing cells.

    >>> find_equal({"a": np.array([1.0, 2.0]), "b": np.array([2.0, 1.0]), "c": np.array([1.0, 2.0])})
    {'c': 'a'}
    """
    kept: list[str] = []
    found: dict[str, str] = {}
    heads = {name: values[:_MAX_ROWS] for name, values in columns.items()}
    for name, values in columns.items():
        for other in kept:
            head = heads[name], heads[other]
            if _differ(*head) or _differ(values, columns[other]):
                continue
            both = ~(np.isnan(values) | np.isnan(columns[other]))
            if both.all() or _is_enough(both):
                found[name] = other
                break
        else:
            kept.append(name)
    return found


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a != b) & ~(np.isnan(a) | np.isnan(b))).any())


def _is_enough(both: np.ndarray) -> bool:
    return int(both.sum()) >= max(_MIN_ROWS, _MIN_SHARE * len(both))


def find_combinations(columns: dict[str, np.ndarray], fixed: frozenset[str] = frozenset()) -> dict[str, Dependence]:
    """Returns the columns that are linear combinations of earlier ones.

    Args:
      columns: numbers with NaN for missing cells; each column holds at least two different numbers.
      fixed: names of columns that are not kept aside, although others may be computed from them.

    >>> x = np.arange(10.0)
    >>> find_combinations({"a": x, "b": x**2, "c": 3 - 2 * x + x**2})["c"].sources
    (('a', -2.0), ('b', 1.0))
    """
    names = list(columns)
    if not 1 < len(names) <= _MAX_COLUMNS:
        return {}
    scaled = np.stack([_scaled(columns[name]) for name in names], axis=1)
    found = _of_one(columns, names, scaled, fixed)
    left = [i for i, name in enumerate(names) if name not in found]
    complete = np.flatnonzero(~np.isnan(scaled[:, left]).any(axis=1))
    if len(left) < 3 or len(complete) < 2 * (len(left) + 1):
        return found
    head = scaled[np.ix_(complete[:: max(1, len(complete) // max(_MAX_ROWS, 8 * len(left)))], left)]
    # |R[j, j]| is the norm of the part of column j that is orthogonal to the constant and to all earlier columns
    triangle = np.linalg.qr(np.concatenate([np.ones([len(head), 1]), head], axis=1), mode="r")
    residual = np.abs(np.diagonal(triangle))[1:] / np.sqrt(len(head))
    for j in np.flatnonzero(residual < 10 * _TOLERANCE * np.maximum(head.std(axis=0), 1e-300)):
        name = names[left[j]]
        sources = [names[i] for i in left[:j] if names[i] not in found]
        if name not in fixed and sources and (dependence := _fitted(columns, name, sources, complete)) is not None:
            found[name] = dependence
    return found


def _scaled(values: np.ndarray) -> np.ndarray:
    """Returns values with mean 0 and standard deviation 1, without overflow."""
    values = values / max(float(np.nanmax(np.abs(values))), np.finfo(np.float64).tiny)
    values = values - np.nanmean(values)
    spread = float(np.nanstd(values))
    return values / spread if spread > 0 else values


def _of_one(
    columns: dict[str, np.ndarray], names: list[str], scaled: np.ndarray, fixed: frozenset[str]
) -> dict[str, Dependence]:
    """Returns the columns that are linear functions of one earlier column, in the rows that hold both."""
    head = scaled[:: max(1, len(scaled) // _MAX_ROWS)]
    here = ~np.isnan(head)
    filled, ones = np.where(here, head, 0.0), here.astype(np.float64)
    count = np.maximum(ones.T @ ones, 1.0)
    mean = (filled.T @ ones) / count  # [i, j]: of column i, in the rows that hold i and j
    square = ((filled**2).T @ ones) / count - mean**2
    product = (filled.T @ filled) / count - mean * mean.T
    bound = np.sqrt(np.maximum(square * square.T, 0.0))
    likely = (bound - np.abs(product) < 1e-6 * bound) & (bound > 0)
    found: dict[str, Dependence] = {}
    for j, name in enumerate(names):
        for i in np.flatnonzero(likely[:j, j]):
            if names[i] in found or name in found or name in fixed:
                continue
            both = ~(np.isnan(columns[name]) | np.isnan(columns[names[i]]))
            if not _is_enough(both):
                continue
            dependence = _fitted(columns, name, [names[i]], np.flatnonzero(both))
            if dependence is not None:
                found[name] = dependence
    return found


def _fitted(columns: dict[str, np.ndarray], name: str, sources: list[str], rows: np.ndarray) -> Dependence | None:
    """Returns the exact linear combination of `sources` that gives a column; None if there is none."""
    if len(rows) < 2 * (len(sources) + 1):
        return None
    y = columns[name][rows]
    x = np.stack([columns[source][rows] for source in sources], axis=1)
    solved = _least_squares(x, y)
    if solved is None:
        return None
    kept = np.flatnonzero(np.abs(solved[0]) * x.std(axis=0) > _TOLERANCE * y.std())
    if not len(kept):
        return None
    sources, x = [sources[i] for i in kept], x[:, kept]
    solved = _least_squares(x, y)
    if solved is None:
        return None
    weights, intercept = _simple(x, y, *solved)
    return Dependence(tuple(zip(sources, weights.tolist(), strict=True)), intercept)


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Returns the weights and the intercept of a linear function that is exact; None if it is not."""
    scale, size = np.abs(x).max(axis=0), float(np.abs(y).max())
    if not (scale > 0).all() or size == 0:
        return None
    u, v = x / scale, y / size
    spread = u.std(axis=0)
    if not (spread > 0).all():
        return None
    z = (u - u.mean(axis=0)) / spread
    weights = np.linalg.lstsq(z, v - v.mean(), rcond=1e-12)[0] / spread
    intercept = float(v.mean() - u.mean(axis=0) @ weights)
    if not _is_exact(u, v, weights, intercept):
        return None
    return weights * size / scale, intercept * size


def _is_exact(x: np.ndarray, y: np.ndarray, weights: np.ndarray, intercept: float) -> bool:
    """Returns whether the residual is small, beside the standard deviation and the interquartile range.

    The latter counts where a few numbers are so large that the standard deviation is theirs alone.
    """
    residual = np.abs(y - x @ weights - intercept)
    low, high = np.quantile(y, [0.25, 0.75])
    middle = float(high - low) or float(y.std())
    return bool(residual.std() < _TOLERANCE * y.std() and np.median(residual) < _TOLERANCE * middle)


def _simple(x: np.ndarray, y: np.ndarray, weights: np.ndarray, intercept: float) -> tuple[np.ndarray, float]:
    """Returns weights without the noise of rounding in their last digits, if they fit as well."""
    error = float(np.abs(y - x @ weights - intercept).max())
    short = np.array([float(f"{weight:.9g}") for weight in weights])
    constant = float(f"{float(np.mean(y - x @ short)):.9g}")
    if abs(constant) < 1e-9 * float(np.abs(y).max()):
        constant = 0.0
    largest = float(np.abs(y).max())
    if float(np.abs(y - x @ short - constant).max()) <= max(2 * error, 1e-13 * largest):
        return short, constant
    return weights, intercept


def dependences(
    columns: dict[str, Column], contents: dict[str, Content], fixed: frozenset[str]
) -> dict[str, Dependence]:
    """Returns the columns that earlier ones determine, in the order of the table."""
    codes: dict[Any, int] = {}
    numbers, labelled = {}, {}
    for name, column in columns.items():
        content = contents[name]
        if column.kind == "constant":
            continue
        if content.group in ("number", "boolean") and column.kind != "category":
            numbers[name] = content.values
        elif content.group in ("text", "category"):
            common = [codes.setdefault((type(label), label), len(codes)) for label in content.levels or ()]
            own = np.where(np.isnan(content.values), 0, content.values).astype(int)
            labelled[name] = np.where(np.isnan(content.values), np.nan, np.array(common, float)[own])
    equal = {**find_equal(numbers), **find_equal(labelled)}
    found = {name: Dependence(((other, 1.0),)) for name, other in equal.items() if name not in fixed}
    rest = {name: values for name, values in numbers.items() if name not in found}
    found |= find_combinations(rest, fixed)
    return {name: found[name] for name in columns if name in found}
