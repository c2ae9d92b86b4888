"""Types the columns of tables that hold more than numbers: text, truth values, numbers with missing cells."""

from __future__ import annotations

import decimal
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.datasets import cells
from tfp_ebm.datasets.cells import cure, quoted
from tfp_ebm.datasets.faults import not_numbers

if TYPE_CHECKING:
    import pandas

_TRUTH = {"true": True, "false": False}
# Markers of missing cells that may also be labels.
WORDS = frozenset(("none", "nil", "missing"))


def labels_of(name: str, column: list[str], texts: list[int], lines: list[int], label: str) -> pandas.Series:
    """Returns a column of a text file that holds text: booleans for "true" and "false", else text.

    Args:
      name: the column's name.
      column: its cells.
      texts: the rows in which they are neither numbers nor missing; at least one.
      lines: the line of each row in the file.
      label: the name of the file in error messages.

    Raises:
      ValueError: if the cells are dates, or most of them are numbers.
    """
    import pandas

    missing = np.array([cells.is_missing(cell) for cell in column])
    distinct = dict.fromkeys(column[row] for row in texts)
    num_others = len(column) - len(texts) - int(missing.sum())
    if (not num_others and all(map(cells.is_date, distinct))) or num_others > len(texts):
        raise _mostly_numbers(not_numbers(name, column, texts, lines, label), name, num_others)
    codes, levels = pandas.factorize(np.array(column, object))
    return text_of(name, codes, list(levels), label)


def text_of(name: str, codes: np.ndarray, levels: list[str], label: str) -> pandas.Series:
    """Returns a column of text, or of booleans if it holds only "true" and "false".

    Args:
      name: the column's name.
      codes: the index of each cell in `levels`; −1 for missing ones.
      levels: the different cells; those that are markers of missing cells become missing.
      label: the name of the file in warnings.
    """
    import pandas

    words = [None if cells.is_missing(level) else level for level in levels]
    present = [word.lower() for word in words if word is not None]
    if set(present) <= set(_TRUTH):
        truth = np.array([None if word is None else _TRUTH[word.lower()] for word in words] + [None], object)[codes]
        has_missing = any(value is None for value in truth)
        return pandas.Series(truth, dtype="boolean" if has_missing else "bool")
    doubtful = next((level for level in levels if level.lower() in WORDS), None)
    if doubtful is not None:
        warnings.warn(
            f"{label}: column {quoted(name)}: {quoted(doubtful)} is read as a missing cell. If it is a label, "
            + cure("keep_default_na=False"),
            stacklevel=4,
        )
    return pandas.Series(np.array([*words, None], object)[codes], dtype="str")


def _mostly_numbers(error: ValueError, name: str, num_others: int) -> ValueError:
    if not num_others:
        return error
    return ValueError(
        f"{error} If the cells are labels, {cure(f'dtype={{{quoted(name, 400)}: {chr(39)}str{chr(39)}}}')}"
    )


def numbers_of(column: list[str], numbers: list[float | None]) -> Any:
    """Returns a column of numbers with missing cells: Int64 if all numbers are written as whole ones, else float64."""
    import pandas

    if all(cells.is_missing(cell) or cells.is_whole(cell) for cell in column):
        whole = [None if cells.is_missing(cell) else int(cell) for cell in column]
        present = [number for number in whole if number is not None]
        if present and -(2**63) <= min(present) and max(present) < 2**63:
            return pandas.array(whole, dtype="Int64")
    return np.array(numbers, np.float64)


def parsed(column: pandas.Series) -> tuple[np.ndarray, list[str], list[int]]:
    """Returns the numbers of a column of objects, their text, and the rows in which an object is no number."""
    values = [None if missing else value for value, missing in zip(column, column.isna(), strict=True)]
    if all(value is None or isinstance(value, int | float | decimal.Decimal | np.number) for value in values):
        return np.array([math.nan if value is None else float(value) for value in values]), [], []
    texts = ["" if value is None else str(value) for value in values]
    numbers = [math.nan if cells.is_missing(cell) else cells.to_number(cell, ".") for cell in texts]
    bad = [row for row, number in enumerate(numbers) if number is None]
    return (np.array([]) if bad else np.array(numbers, np.float64)), texts, bad


def in_rows(error: ValueError) -> ValueError:
    """Returns an error with rows instead of lines, for formats that have no lines."""
    return ValueError(str(error).replace("in line ", "in row "))


def checked_labels(name: str, column: pandas.Series, label: str) -> Any:
    """Returns a column of objects that pandas read, as numbers, booleans or text.

    Raises:
      ValueError: if the cells are dates or lists, most of them are numbers, or their types differ.
    """
    import pandas
    from pandas.api import types

    missing = column.isna().to_numpy(bool)
    if missing.all():
        return np.full(len(column), np.nan)
    nested = [row for row, value in enumerate(column) if isinstance(value, list | tuple | dict | set | np.ndarray)]
    if nested:
        kind = "a table" if isinstance(column.iloc[nested[0]], dict) else "a list"
        raise ValueError(
            f"{label}: column {quoted(name)} must hold one value in each row, got {kind} in row {nested[0] + 1}: "
            "leave the column out, or write its parts as columns of their own."
        )
    inferred = types.infer_dtype(column, skipna=True)
    if inferred == "boolean":
        return column.astype("boolean" if missing.any() else "bool")
    distinct = [str(value) for value in pandas.unique(column[~missing])]
    if inferred != "string":
        numbers, texts, bad = parsed(column)
        if not bad:
            return numbers
        raise in_rows(not_numbers(name, texts, bad, [row + 1 for row in range(len(texts))], label))
    if not any(map(cells.is_numeric, distinct)) and not all(map(cells.is_date, distinct[:1000])):
        return column
    numbers, texts, bad = parsed(column)
    num_others = len(texts) - int(missing.sum()) - len(bad)
    if not bad:
        return numbers
    if num_others > len(bad) or all(cells.is_date(texts[row]) for row in bad):
        rows = [row + 1 for row in range(len(texts))]
        raise in_rows(_mostly_numbers(not_numbers(name, texts, bad, rows, label), name, num_others))
    return column
