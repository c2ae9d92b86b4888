"""Finds the kind of each column of a data frame: numbers, ratings, truth values, categories, constants.

A kind decides how a column enters a model. Text and categories are represented by codes 0, 1, …, K − 1, the indices of
their levels; missing cells are NaN.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfp_ebm.datasets import cells
from tfp_ebm.datasets.cells import quoted

if TYPE_CHECKING:
    import pandas

KINDS = ("continuous", "whole", "rating", "boolean", "category", "constant", "duplicate")
DISCRETE = ("rating", "boolean", "category")

MAX_LEVELS = 1000
# Numbers are ratings if they have at most so many distinct values, each in so many rows on average. The third number
# is the limit for numbers that are not all whole.
_MAX_RATINGS, _MIN_REPEATS, _MAX_FRACTIONS = 64, 5, 12
# Numbers with digits after the point that repeat so often were rounded: they have no density either.
_MAX_ROUNDED, _MIN_ROUNDED_REPEATS = 128, 50
# float64 holds all whole numbers up to 2⁵³; noise of width 1 needs some more digits.
_MAX_EXACT, _MAX_WHOLE = 2.0**53, 2.0**45
# Words for "no" and "yes".
_TRUTH = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"))
_NUM_DATES = 1000  # number of texts in which dates are searched


@dataclasses.dataclass(frozen=True)
class Column:
    """Describes one column of a table: its kind, its values, and how it is treated.

    Attributes:
      name: its name.
      kind: one of `KINDS`.
      dtype: the dtype in which decoded values are returned, as pandas writes it.
      treatment: one sentence on how the column is treated.
      levels: the labels of codes 0, 1, …, for booleans, categories and their constants; else None.
      support: the values that encoded cells can have, sorted, for ratings, booleans and categories; else None.
      num_missing: number of missing cells in the training table.
      ordered: whether a pandas categorical dtype has an order.
      level_dtype: the dtype of the levels of a pandas categorical dtype, else "".
      is_whole: whether all numbers are whole.
      low: a bound that decoded whole numbers are clipped to, or None.
      value: the encoded value that all rows of a constant column hold.
      sources: for a duplicate, the columns that determine it, with their coefficients.
      intercept: for a duplicate, the constant term.
      tolerance: for a duplicate, the largest difference that counts as rounding.
    """

    name: str
    kind: str
    dtype: str
    treatment: str = ""
    levels: tuple[Any, ...] | None = None
    support: tuple[float, ...] | None = None
    num_missing: int = 0
    ordered: bool = False
    level_dtype: str = ""
    is_whole: bool = False
    low: float | None = None
    value: float | None = None
    sources: tuple[tuple[str, float], ...] = ()
    intercept: float = 0.0
    tolerance: float = 0.0


class Content(NamedTuple):
    """The cells of a column: numbers, or codes of labels, as float64 with NaN for missing cells."""

    group: str  # "number", "boolean", "text" or "category"
    values: np.ndarray
    levels: tuple[Any, ...] | None  # the label of each code; None for numbers
    dtype: str
    ordered: bool = False
    level_dtype: str = ""

    def labels(self) -> tuple[Any, ...]:
        """Returns the labels that occur, or the distinct numbers."""
        present = np.unique(self.values[~np.isnan(self.values)])
        if self.levels is None:
            return tuple(int(v) if v == np.rint(v) and abs(v) < _MAX_EXACT else float(v) for v in present)
        return tuple(self.levels[int(code)] for code in present)


def read_column(name: str, series: pandas.Series) -> Content:
    """Returns the cells of a column as numbers or codes.

    Raises:
      TypeError: if they are complex numbers, or objects of several types.
      ValueError: if they are dates, infinite, or whole numbers that float64 cannot represent.
    """
    import pandas
    from pandas.api import types

    start, dtype = f"`frame`: column {quoted(name)} holds", series.dtype
    missing = series.isna().to_numpy(bool)
    if missing.all():
        return Content("number", np.full(len(series), np.nan), None, "float64")
    if types.is_complex_dtype(dtype):
        raise TypeError(f"{start} complex numbers; write their real and imaginary parts as two columns.")
    if types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pandas.PeriodDtype):
        raise _dates(start, series)
    if types.is_timedelta64_dtype(dtype):
        raise ValueError(f"{start} durations; write them as numbers, such as seconds.")
    if isinstance(dtype, pandas.CategoricalDtype):
        levels = tuple(_plain(level) for level in dtype.categories)
        if not all(isinstance(level, str | int | float | bool) for level in levels):
            kind = type(dtype.categories[0]).__name__
            raise TypeError(
                f"{start} categories of type {kind}; write them as text: frame[{quoted(name, 400)}].astype(str)."
            )
        codes = series.cat.codes.to_numpy().astype(np.float64)
        codes[missing] = np.nan
        return Content("category", codes, levels, "category", bool(dtype.ordered), str(dtype.categories.dtype))
    inferred = types.infer_dtype(series, skipna=True) if _is_object(dtype) else ""
    if inferred in ("date", "datetime", "datetime64", "time", "period"):
        raise _dates(start, series)
    if types.is_bool_dtype(dtype) or inferred == "boolean":
        return Content("boolean", series.to_numpy(np.float64, na_value=np.nan), (False, True), str(dtype))
    if types.is_string_dtype(dtype) and inferred in ("", "string"):
        codes, texts = pandas.factorize(series)
        values = codes.astype(np.float64)
        values[missing] = np.nan
        return Content("text", values, tuple(map(str, texts)), str(dtype))
    if inferred and inferred not in ("integer", "floating", "mixed-integer-float", "decimal"):
        found = sorted({type(value).__name__ for value in series[~missing]})
        raise TypeError(
            f"{start} values of the types {', '.join(found)}; write all as numbers, or all as text: "
            f"frame[{quoted(name, 400)}].astype(str)."
        )
    if not inferred and not types.is_numeric_dtype(dtype):
        raise TypeError(f"{start} values of dtype {dtype}; write them as numbers or text, or leave the column out.")
    numbers = np.array(series.to_numpy(np.float64, na_value=np.nan))  # a copy
    _check_numbers(start, numbers, types.is_integer_dtype(dtype) or inferred == "integer")
    if inferred == "integer":
        return Content("number", numbers, None, "Int64" if missing.any() else "int64")
    return Content("number", numbers, None, "float64" if inferred else str(dtype))


def _is_object(dtype: Any) -> bool:
    return getattr(dtype, "kind", "") == "O" and isinstance(dtype, np.dtype)


def _plain(level: Any) -> Any:
    return level.item() if isinstance(level, np.generic) else level


def _dates(start: str, series: pandas.Series) -> ValueError:
    first = next(str(value) for value in series.dropna())
    return ValueError(
        f"{start} dates or times, such as {quoted(first)}; write them as numbers, such as days or seconds from the "
        "first, or leave the column out."
    )


def _check_numbers(start: str, numbers: np.ndarray, is_integer: bool) -> None:
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        raise ValueError(f"{start} {len(infinite)} infinite number(s), the first in row {infinite[0] + 1}.")
    large = np.flatnonzero(np.abs(numbers) > _MAX_EXACT) if is_integer else np.array([], int)
    if len(large):
        raise ValueError(
            f"{start} whole numbers above 2⁵³, the first in row {large[0] + 1} ({numbers[large[0]]:.17g}), which "
            "float64 cannot represent; subtract an offset, or leave the column out if it identifies the rows."
        )


def no_value(name: str, rows: int) -> ValueError:
    """Returns the error for a column without any value."""
    return ValueError(f"`frame`: column {quoted(name)} holds no value: all {rows} cells are missing; leave it out.")


def describe(name: str, content: Content, kind: str | None, missing: str) -> Column:
    """Returns the description of a column, its kind found or as given.

    Args:
      name: the column's name.
      content: its cells.
      kind: one of `KINDS`, or None to find it.
      missing: how missing cells are treated, see `TableEncoder.fit`.

    Raises:
      ValueError: if the column cannot be of the given kind, or if it holds dates, or a different text in every row.
    """
    present = content.values[~np.isnan(content.values)]
    num_missing = len(content.values) - len(present)
    if not len(present):
        raise no_value(name, len(content.values))
    distinct = np.unique(present)
    is_whole = content.group == "number" and bool((present == np.rint(present)).all())
    column = Column(
        name,
        "",
        content.dtype,
        num_missing=num_missing,
        is_whole=is_whole,
        levels=content.levels,
        ordered=content.ordered,
        level_dtype=content.level_dtype,
    )
    truth = _truth(content)
    found = _found_kind(content, distinct, len(present), is_whole, truth is not None)
    if kind is not None:
        _check_kind(name, kind, found, content, distinct, is_whole, truth)
    elif content.group == "text":
        _check_text(name, content, distinct, len(present), found)
    return _as_kind(column, kind or found, content, distinct, truth, "" if missing == "refuse" else missing)


def _truth(content: Content) -> tuple[Any, Any] | None:
    """Returns the labels for False and True of a column that can hold booleans, in this order; else None."""
    if content.group == "boolean":
        return False, True
    labels = content.labels()
    if content.group == "number":
        return (0, 1) if set(labels) == {0, 1} else None
    for pair in _TRUTH:
        for no, yes in itertools.permutations(labels, 2) if len(labels) == 2 else ():
            if (str(no).lower(), str(yes).lower()) == pair:
                return no, yes
    return None


def _found_kind(content: Content, distinct: np.ndarray, rows: int, is_whole: bool, is_truth: bool) -> str:
    if len(distinct) == 1:
        return "constant"
    if content.group == "boolean" or (content.group == "text" and is_truth):
        return "boolean"
    if content.group != "number":
        return "category"
    is_rounded = len(distinct) <= _MAX_ROUNDED and rows >= _MIN_ROUNDED_REPEATS * len(distinct)
    is_rating = len(distinct) <= (_MAX_RATINGS if is_whole else _MAX_FRACTIONS)
    if is_rounded or (is_rating and rows >= _MIN_REPEATS * len(distinct)):
        return "rating"
    return "whole" if is_whole and np.abs(distinct).max() <= _MAX_WHOLE else "continuous"


def _check_text(name: str, content: Content, distinct: np.ndarray, rows: int, found: str) -> None:
    """Raises ValueError for text that holds dates, or identifies the rows."""
    start, levels = f"`frame`: column {quoted(name)}", content.labels()
    if all(map(cells.is_date, levels[:_NUM_DATES])):
        raise ValueError(
            f"{start} holds dates or times, such as {quoted(levels[0])}; write them as numbers, such as days or "
            "seconds from the first, or leave the column out."
        )
    if found == "category" and len(distinct) == rows:
        raise ValueError(
            f"{start} holds a different text in each row, such as {quoted(levels[0])}, so that it identifies the "
            f"rows; leave it out, or set kinds={{{quoted(name, 400)}: 'category'}}."
        )


def _check_kind(
    name: str,
    kind: str,
    found: str,
    content: Content,
    distinct: np.ndarray,
    is_whole: bool,
    truth: tuple[Any, Any] | None,
) -> None:
    """Raises ValueError if a column cannot be of the kind that the user gave."""
    is_number = content.group == "number"
    reason = ""
    if kind == "constant" or found == "constant":
        if kind != found:
            reason = f"it holds {len(distinct)} different values" if kind == "constant" else "all its rows are equal"
    elif kind == "boolean" and truth is None:
        reason = "it does not hold two truth values, such as 0 and 1, or yes and no"
    elif kind in ("continuous", "whole", "rating") and not is_number:
        reason = f"it holds {'truth values' if content.group == 'boolean' else 'labels'}, not numbers"
    elif kind == "whole" and not is_whole:
        reason = f"it holds {next(v for v in distinct if v != np.rint(v)):g}"
    elif kind == "whole" and np.abs(distinct).max() > _MAX_WHOLE:
        reason = "it holds numbers above 2⁴⁵"
    if reason:
        raise ValueError(f"`kinds`: column {quoted(name)} cannot be of kind {kind!r}, because {reason}.")


def _as_kind(
    column: Column, kind: str, content: Content, distinct: np.ndarray, truth: tuple[Any, Any] | None, missing: str
) -> Column:
    """Returns the description completed for its kind."""
    levels, support, low, value = column.levels, None, None, None
    if kind == "constant":
        value, label = float(distinct[0]), content.labels()[0]
        treatment = f"kept aside: all rows hold {label if content.levels is None else repr(label)}"
    elif kind == "continuous":
        treatment = "modelled as it is"
    elif kind == "whole":
        low = 0.0 if distinct[0] >= 0 else None
        treatment = "rounded to whole numbers after sampling"
    elif kind == "rating":
        support = distinct
        treatment = f"{len(distinct)} values, modelled as probabilities"
    elif kind == "boolean":
        levels, support = truth, np.array([0.0, 1.0])
        treatment = "2 values, modelled as probabilities"
    else:
        levels = content.labels() if content.levels is None else content.levels
        support = np.arange(len(levels), dtype=np.float64)
        treatment = f"{len(levels)} levels, modelled as probabilities"
    if support is not None and len(support) > MAX_LEVELS:
        cure = "merge rare ones, or leave the column out"
        if content.group == "category":
            cure += (
                f"; frame[{quoted(column.name, 400)}].cat.remove_unused_categories() removes those that no row holds"
            )
        what = "levels" if kind == "category" else "values"
        raise ValueError(
            f"`frame`: column {quoted(column.name)} has {len(support)} {what} as a {kind}, and at most {MAX_LEVELS} "
            f"are allowed; {cure}."
        )
    if column.num_missing and missing == "model" and kind != "constant":
        treatment += f"; {column.num_missing} missing cells"
    return dataclasses.replace(
        column,
        kind=kind,
        treatment=treatment,
        levels=levels,
        support=None if support is None else tuple(support.tolist()),
        low=low,
        value=value,
    )
