"""Creates and checks data frames of numbers, from cells or from frames that pandas read.

Frames returned by this module hold finite numbers only. Anything else raises an error with the name of the column and a
remedy; ambiguous values are kept, with a warning.
"""

from __future__ import annotations

import collections
import math
import re
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.datasets import cells, typed
from tfp_ebm.datasets.cells import cure, quoted
from tfp_ebm.datasets.faults import MIXED, missing_cells, not_numbers
from tfp_ebm.datasets.layout import Layout, is_index, is_unnamed

if TYPE_CHECKING:
    import pandas

# Numbers that usually mark a missing cell, if they occur more than once and are far from all other numbers.
_SENTINELS = tuple(
    sign * value for value in (99.0, 999.0, 9999.0, 99999.0, 99.9, 999.9, 999.99, 9999.9) for sign in (-1, 1)
)
# A whole number with zeros in front, as in a postcode.
_CODE = re.compile(r"0+[1-9]\d*")
# Columns determine each other if the smallest eigenvalue of their correlation matrix is below the first number; frames
# with more columns than the second number are not checked.
_COLLINEAR, _MAX_COLLINEAR_COLUMNS = 1e-6, 256


def unique_names(names: list[str]) -> list[str]:
    """Returns unique names of columns: "column 1" for one without a name, and "a", "a.1" for two with the same name.

    >>> unique_names(["a", "", "a"])
    ['a', 'column 2', 'a.1']
    """
    used: set[str] = set()
    result = []
    for i, name in enumerate(names):
        name = base = " ".join(name.split()) or f"column {i + 1}"
        count = 0
        while name in used:
            count += 1
            name = f"{base}.{count}"
        used.add(name)
        result.append(name)
    return result


def frame_of_layout(layout: Layout, label: str, mixed: bool = False) -> pandas.DataFrame:
    """Returns the table of the cells of a file.

    Args:
      layout: the names of the columns, and the cells.
      label: the name of the file in error messages.
      mixed: whether columns may hold text, truth values and missing cells; else only numbers.

    Raises:
      ValueError: if a cell is infinite, or, unless `mixed`, missing or not a number. The error gives the number of such
        cells and the position of the first.
    """
    import pandas

    names, columns = layout.names, [list(column) for column in zip(*(row.cells for row in layout.body), strict=True)]
    if layout.has_names and len(names) > 1 and is_unnamed(names[0]) and is_index(columns[0]):
        warn_of_index("line numbers or names of rows", label)
        names, columns = names[1:], columns[1:]
    names = unique_names(names)
    lines = [row.last_line for row in layout.body]
    notation = cells.notation_of((cell for column in columns for cell in column), layout.separator, label)
    if notation.doubtful:
        _warn_of_doubt(notation, names, columns, label)
    values: dict[str, Any] = {}
    missing: list[tuple[int, int]] = []
    for i, (name, column) in enumerate(zip(names, columns, strict=True)):
        numbers = [math.nan if cells.is_missing(cell) else cells.to_number(cell, notation.decimal) for cell in column]
        texts = [row for row, number in enumerate(numbers) if number is None]
        if texts and mixed:
            values[name] = typed.labels_of(name, column, texts, lines, label)
            continue
        if texts:
            raise not_numbers(name, column, texts, lines, label)
        infinite = [row for row, number in enumerate(numbers) if number is not None and math.isinf(number)]
        if infinite:
            row = infinite[0]
            raise ValueError(
                f"{label} must hold finite numbers: {len(infinite)} cell(s) of column {quoted(name)} do not, the "
                f"first in line {lines[row]} ({quoted(column[row])})."
            )
        _check_decorations(name, column, label)
        absent = [row for row, number in enumerate(numbers) if number is not None and math.isnan(number)]
        missing += [(row, i) for row in absent]
        if absent and mixed:
            values[name] = typed.numbers_of(column, numbers)
            continue
        warn_of_leading_zeros(name, column, label)
        array = np.array([int(cell) for cell in column] if all(map(cells.is_whole, column)) else numbers)
        values[name] = array if array.dtype != object else np.array(numbers, float)
    if missing and not mixed:
        raise missing_cells(missing, names, label, f"line {lines[min(missing)[0]]}", len(lines))
    return pandas.DataFrame(values)


def warn_of_index(what: str, label: str) -> None:
    """Warns that a column without a name is omitted, because it holds row names."""
    warnings.warn(
        f"{label}: the first column has no name and holds {what}, so it is left out; give it a name to keep it.",
        stacklevel=3,
    )


def warn_of_leading_zeros(name: str, column: Iterable[str], label: str) -> None:
    """Warns if whole numbers are written with zeros in front, as codes are."""
    coded = next((cell for cell in column if _CODE.fullmatch(cell) and cells.is_whole(cell)), None)
    if coded is not None:
        labels = f"dtype={{{quoted(name, 400)}: 'str'}}"
        warnings.warn(
            f"{label}: column {quoted(name)}: {quoted(coded)} is read as {int(coded)}. If such cells are codes, "
            + cure(labels),
            stacklevel=3,
        )


def _warn_of_doubt(notation: cells.Notation, names: list[str], columns: list[list[str]], label: str) -> None:
    doubtful = [name for name, column in zip(names, columns, strict=True) if any(cells.evidence(c)[1] for c in column)]
    mark = "," if "," in str(notation.doubtful) else "."
    other = {",": ".", ".": ","}[mark]
    is_decimal = mark == notation.decimal
    options = f"thousands={mark!r}, decimal={other!r}" if is_decimal else f"decimal={mark!r}, thousands={other!r}"
    warnings.warn(
        f"{label}: column {quoted(doubtful[0])}: {quoted(notation.doubtful)} is read with {mark!r} as the "
        f"{'decimal mark' if is_decimal else 'mark of thousands'}. If it is the other, {cure(options)}",
        stacklevel=3,
    )


def _check_decorations(name: str, column: list[str], label: str) -> None:
    """Raises if only some of a column's numbers have a percent or currency sign; warns about percentages."""
    kinds = collections.Counter(cells.decoration(cell) for cell in column if not cells.is_missing(cell))
    if len(kinds) > 1:
        counts = ", ".join(
            f"{count} with {quoted(kind)}" if kind else f"{count} without a sign" for kind, count in kinds.items()
        )
        raise ValueError(f"{label}: column {quoted(name)} mixes units: of its numbers, {counts}.")
    if "%" in kinds:
        warnings.warn(f"{label}: column {quoted(name)}: 12 % is read as 12, not as 0.12.", stacklevel=3)


def checked_frame(
    frame: pandas.DataFrame, label: str, mixed: bool = False, as_given: frozenset[str] = frozenset()
) -> pandas.DataFrame:
    """Returns a frame that pandas read, after checking that it holds finite numbers only.

    Args:
      frame: the frame.
      label: the name of the file in error messages.
      mixed: whether columns may also hold text, categories, truth values and missing cells.
      as_given: the columns whose dtype the user gave; their text is not checked.

    Raises:
      ValueError: if a column holds anything else, or, unless `mixed`, cells are missing.
    """
    import pandas
    from pandas.api import types

    if isinstance(frame.columns, pandas.MultiIndex):
        frame = frame.set_axis([" ".join(map(str, name)) for name in frame.columns], axis=1)
    if not isinstance(frame.index, pandas.RangeIndex):
        named = [str(name) for name in frame.index.names if name is not None]
        if named:
            warnings.warn(
                f"{label}: the index ({', '.join(map(repr, named))}) is left out; `reset_index` makes it a column.",
                stacklevel=3,
            )
        frame = frame.reset_index(drop=True)
    frame = frame.set_axis(unique_names([str(name) for name in frame.columns]), axis=1)
    if frame.shape[1] == 0 or len(frame) == 0:
        raise ValueError(f"{label} is empty: it has {len(frame)} rows and {frame.shape[1]} columns.")
    for name in frame.columns:
        column = frame[name]
        start = f"{label}: column {quoted(name)} holds"
        if mixed and (types.is_bool_dtype(column) or isinstance(column.dtype, pandas.CategoricalDtype)):
            continue
        if types.is_bool_dtype(column):
            raise ValueError(
                f"{start} truth values; energies take numbers: leave the column out, or write 0 and 1, which have no "
                f"density unless noise is added; {MIXED}."
            )
        if types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pandas.PeriodDtype):
            raise ValueError(
                f"{start} dates or times; energies take numbers: write them as numbers, such as days or seconds from "
                "the first, or leave the column out."
            )
        if types.is_timedelta64_dtype(column):
            raise ValueError(f"{start} durations; write them as numbers, such as seconds.")
        if types.is_complex_dtype(column):
            raise TypeError(f"{start} complex numbers; write their real and imaginary parts as two columns.")
        if name in as_given and types.is_string_dtype(column):
            continue
        if not types.is_numeric_dtype(column):
            frame[name] = typed.checked_labels(name, column, label) if mixed else _numbers_of(name, column, label)
        elif not mixed and types.is_extension_array_dtype(column):
            frame[name] = column.to_numpy(np.float64, na_value=np.nan)
    missing = [] if mixed else [(int(row), int(i)) for row, i in np.argwhere(frame.isna().to_numpy())]
    if missing:
        raise missing_cells(missing, list(frame.columns), label, f"row {min(missing)[0] + 1}", len(frame))
    for name in numeric_names(frame):
        infinite = np.flatnonzero(np.isinf(frame[name].to_numpy(np.float64, na_value=np.nan)))
        if len(infinite):
            raise ValueError(
                f"{label} must hold finite numbers: {len(infinite)} cell(s) of column {quoted(name)} do not, the "
                f"first in row {infinite[0] + 1}."
            )
    return frame


def numeric_names(frame: pandas.DataFrame) -> list[str]:
    """Returns the names of the columns that hold numbers, not truth values."""
    from pandas.api import types

    return [
        name for name in frame.columns if types.is_numeric_dtype(frame[name]) and not types.is_bool_dtype(frame[name])
    ]


def _numbers_of(name: str, column: Any, label: str) -> np.ndarray:
    """Returns the numbers of a column of objects, such as decimals or text, in which each object is a number."""
    numbers, texts, bad = typed.parsed(column)
    if bad:
        raise typed.in_rows(not_numbers(name, texts, bad, [row + 1 for row in range(len(texts))], label))
    return numbers


def warn_of_habits(frame: pandas.DataFrame, label: str, has_names: bool, mixed: bool = False) -> None:
    """Warns about columns that count the rows, numbers that may mark missing cells, and linearly dependent columns.

    The last warning is left out for `mixed` tables, because `TableEncoder` keeps dependent columns aside.
    """
    names = numeric_names(frame)
    if not names:
        return
    values = frame[names].to_numpy(np.float64, na_value=np.nan)
    for value in _SENTINELS:
        at = values == value
        for i in np.flatnonzero((at.sum(axis=0) > 1) & ~(at | np.isnan(values)).all(axis=0)):
            if _is_far(value, values[~at[:, i], i]):
                warnings.warn(
                    f"{label}: column {quoted(names[i])} holds {value:g} {at[:, i].sum()} times, far from its other "
                    f"numbers. If it stands for a missing cell, {cure(f'na_values=[{value:g}]')}",
                    stacklevel=3,
                )
    first = values[:, 0]
    if names[0] != frame.columns[0]:
        return
    if len(frame) > 4 and frame.shape[1] > 1 and first[0] in (0, 1) and (np.diff(first) == 1).all():
        kept = list(frame.columns[1:]) if has_names else list(range(1, frame.shape[1]))
        shown = repr(kept[:3])[:-1] + (", …]" if len(kept) > 3 else "]")
        warnings.warn(
            f"{label}: column {quoted(frame.columns[0])} counts the rows. If it is no measurement, "
            + cure(f"usecols={shown}"),
            stacklevel=3,
        )
    if not mixed:
        _warn_of_collinear_columns(values, list(frame.columns), label)


def _is_far(value: float, others: np.ndarray) -> bool:
    low, high = float(np.nanmin(others)), float(np.nanmax(others))
    return bool(max(low - value, value - high) > high - low)


def _warn_of_collinear_columns(values: np.ndarray, names: list[str], label: str) -> None:
    largest = np.abs(values).max(axis=0)
    values = values / np.where(largest > 0, largest, 1.0)  # squares must not overflow
    spread = values.std(axis=0)
    # other checks cover columns that are constant or whose spread is lost in rounding
    varying = np.flatnonzero(spread > 1e-12)
    if not 1 < len(varying) <= _MAX_COLLINEAR_COLUMNS or len(values) <= len(varying):
        return
    z = (values[:, varying] - values[:, varying].mean(axis=0)) / spread[varying]
    least, vectors = np.linalg.eigh(z.T @ z / len(z))
    if least[0] < _COLLINEAR:
        weights = np.abs(vectors[:, 0])
        involved = [repr(names[varying[i]]) for i in np.argsort(-weights) if weights[i] > 0.1][:5]
        warnings.warn(
            f"{label}: columns {', '.join(involved)} determine each other, up to {math.sqrt(max(least[0], 0)):.1g} "
            "standard deviations: such data have no density that a model could learn; leave out one of them.",
            stacklevel=3,
        )
