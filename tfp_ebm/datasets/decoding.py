"""Creates the columns of a data frame from numbers and codes, in the dtypes of the training table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.datasets.kinds import Column

if TYPE_CHECKING:
    import pandas


def decoded_series(column: Column, values: np.ndarray) -> pandas.Series:
    """Returns a column of a data frame.

    Args:
      column: its description.
      values: its numbers, or the codes of its labels; NaN for missing cells.
    """
    import pandas

    missing = np.isnan(values)
    if column.levels is None:
        return _numbers(column, values, missing)
    codes = np.where(missing, -1, values).astype(int)
    if column.dtype == "category":
        levels = pandas.Index(list(column.levels), dtype=column.level_dtype)
        dtype = pandas.CategoricalDtype(levels, ordered=column.ordered)
        return pandas.Series(pandas.Categorical.from_codes(codes, dtype=dtype), name=column.name)
    if _is_number(column.dtype):  # numbers as categories
        numbers = np.array([*map(float, column.levels), np.nan])
        return _numbers(column, numbers[codes], missing)
    labels = np.array([*column.levels, None], object)
    dtype = "boolean" if column.dtype == "bool" and missing.any() else column.dtype
    cells = labels[codes]
    if dtype == "object":
        cells[missing] = np.nan
    return pandas.Series(cells, name=column.name, dtype=dtype)


def _is_number(dtype: str) -> bool:
    from pandas.api import types

    return types.is_numeric_dtype(dtype) and not types.is_bool_dtype(dtype)


def _numbers(column: Column, values: np.ndarray, missing: np.ndarray) -> pandas.Series:
    """Returns a column of numbers; an integer dtype with missing cells becomes Int64."""
    import pandas
    from pandas.api import types

    dtype: Any = types.pandas_dtype(column.dtype)
    if types.is_integer_dtype(dtype):
        values = _clipped(np.rint(values), np.dtype(getattr(dtype, "numpy_dtype", dtype)))
        if isinstance(dtype, np.dtype) and not missing.any():
            return pandas.Series(values.astype(dtype), name=column.name)
        whole = np.where(missing, 0, values).astype(np.uint64 if values.max(initial=0) >= 2.0**63 else np.int64)
        cells = pandas.array(whole, dtype="UInt64" if whole.dtype == np.uint64 else "Int64")
        cells[missing] = pandas.NA
        return pandas.Series(cells, name=column.name, dtype="Int64" if isinstance(dtype, np.dtype) else dtype)
    if isinstance(dtype, np.dtype):
        with np.errstate(over="ignore"):
            return pandas.Series(values.astype(dtype), name=column.name)
    cells = pandas.array(values, dtype="Float64")  # NaN becomes NA
    cells[missing] = pandas.NA
    return pandas.Series(cells, name=column.name).astype(dtype)


def _clipped(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns values within the range of an integer dtype."""
    bounds = np.iinfo(dtype)
    # the largest int64 is not a float64; 2⁵³ is the largest number that a column can hold
    return np.clip(values, max(float(bounds.min), -(2.0**53)), min(float(bounds.max), 2.0**53))
