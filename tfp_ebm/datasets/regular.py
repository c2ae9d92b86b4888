"""Reads regular text tables, however long, by pandas's parser: a piece at a time, in bounded memory.

The layout is found from the first and last lines. A file with anything unusual, such as a footer, a comment, numbers
with thousands or an ambiguous decimal point, is left to the reader that interprets every cell.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.datasets import cells, frames, layout, text, typed

if TYPE_CHECKING:
    import pandas

_HEAD, _TAIL = 1000, 20  # number of lines from which the layout is found
_CHUNK = 100_000  # number of rows that are parsed at once
_BLOCK = 2**24  # number of bytes that are checked at once
_MARK = b"\xef\xbb\xbf"
_CONTROL = bytes([*range(9), 0x0B, *range(0x0E, 0x20), 0x7F])
# A line that may be a comment. A number sign may begin a comment anywhere.
_COMMENT = re.compile(rb"[\r\n][ \t]*(?:%|//|[!*;])")
# A number whose point must be a decimal point, so that no point in the file separates thousands.
_DECIMAL_POINT = re.compile(rb"(?<![\d.])(?:0\.\d|\d+\.\d{1,2}(?![\d.])|\d+\.\d{4}|\d{4,}\.|\d*\.\d+[eE])")


def separator_options(separator: str) -> dict[str, Any]:
    """Returns the options of `pandas.read_csv` for a separator."""
    if separator == text.NO_SEPARATOR:
        return {"sep": ","}
    return {"sep": r"\s+" if separator == " " else separator, "skipinitialspace": True}


def read_regular(
    raw: bytes, label: str, separator: str | None, quote: str | None, mixed: bool
) -> tuple[pandas.DataFrame, bool] | None:
    """Reads a regular table; returns None for any other file.

    Args:
      raw: the content of the file.
      label: the name of the file in warnings.
      separator: the separator of cells; None to find it.
      quote: the quotation mark; None to find it.
      mixed: whether columns may hold text, truth values and missing cells.

    Returns:
      The frame, and whether its columns have names.
    """
    begin = len(_MARK) if raw.startswith(_MARK) else 0
    found = _head_of(raw, begin, separator, quote, label, mixed)
    if found is None:
        return None
    table, start, quote = found
    if not _is_regular(raw, start):
        return None
    decimal = "."
    if b"." in raw and not _DECIMAL_POINT.search(raw):
        return None
    if table.separator != ",":
        try:
            notation = cells.notation_of((cell for row in table.body for cell in row.cells), table.separator, label)
        except ValueError:
            return None
        if notation.doubtful and "," in notation.doubtful:
            return None
        decimal = notation.decimal
    parts = _parsed(raw, start, table, quote, decimal)
    if parts is None:
        return None
    return _joined(parts, raw, start, table, label, mixed)


def _lines(part: bytes) -> list[str]:
    return part.decode("utf-8").replace("\r\n", "\n").split("\n")


def _head_of(
    raw: bytes, begin: int, separator: str | None, quote: str | None, label: str, mixed: bool
) -> tuple[layout.Layout, int, str] | None:
    """Returns the layout of the first and last lines, the offset of the first row, and the quotation mark."""
    end = begin
    for _ in range(_HEAD):
        end = raw.find(b"\n", end) + 1
        if end == 0:
            end = len(raw)
            break
    last = len(raw)
    for _ in range(_TAIL + 1):
        last = raw.rfind(b"\n", end, last)
        if last < 0:
            last = end
            break
    if b"\x00" in raw[begin:end]:
        return None
    try:
        source = text.split_lines("\n".join(_lines(raw[begin:end])))
        tail = _lines(raw[max(last, end) :]) if end < len(raw) else []
    except UnicodeDecodeError:
        return None
    try:
        quote = quote or text.find_quote(source.lines)
        separator = separator or source.separator or text.find_separator(source.lines, quote)
        rows = text.rows(source.lines, separator, quote)
        if len(rows) < 2:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the other reader issues the warnings
            table = layout.find_layout([*rows, *text.rows(tail, separator, quote)], source, separator, label, mixed)
    except (ValueError, Warning, csv.Error):
        return None
    start = begin
    for _ in range(table.body[0].first_line - 1):
        start = raw.find(b"\n", start) + 1
    return table, start, quote


def _is_regular(raw: bytes, start: int) -> bool:
    """Returns whether a file is UTF-8 text with usual line ends, without comments among the rows."""
    if raw.find(b"#", start) >= 0 or _COMMENT.search(raw, max(start - 1, 0)):
        return False
    if raw.count(b"\r") != raw.count(b"\r\n"):
        return False
    for i in range(0, len(raw), _BLOCK):
        block = raw[i : i + _BLOCK]
        if len(block.translate(None, _CONTROL)) < len(block):
            return False
    try:
        return raw.isascii() or bool(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _markers() -> list[str]:
    """Returns the markers of missing cells as programs write them, but for words that may be labels."""
    markers = cells.MISSING - typed.WORDS
    return sorted(
        {v for m in markers for v in (m, m.upper(), m.capitalize(), m.title())} | {"NaN", "-NaN", "NaT", "N.a."}
    )


def _parsed(raw: bytes, start: int, table: layout.Layout, quote: str, decimal: str) -> list[list[Any]] | None:
    """Returns the pieces of each column: nullable arrays of pandas, text as categories."""
    import pandas

    source = io.BytesIO(raw)
    source.seek(start)
    parts: list[list[Any]] = [[] for _ in table.names]
    precision = {"float_precision": "round_trip"} if pandas.__version__.startswith("2.") else {}  # the default since
    try:
        with (
            warnings.catch_warnings(),
            pandas.read_csv(
                source,
                header=None,
                quotechar=quote,
                decimal=decimal,
                keep_default_na=False,
                na_values=_markers(),
                index_col=False,
                dtype_backend="numpy_nullable",
                chunksize=_CHUNK,
                encoding="utf-8",
                **precision,
                **separator_options(table.separator),
            ) as reader,
        ):
            warnings.simplefilter("error")
            for chunk in reader:
                if chunk.shape[1] != len(parts):
                    return None
                for i, name in enumerate(chunk.columns):
                    parts[i].append(_compact(chunk[name]))
    except (ValueError, Warning):
        return None
    return parts


def _compact(column: pandas.Series) -> Any:
    """Returns a piece of a column as an array; None for one whose cells are all missing, with their number."""
    from pandas.api import types

    if column.isna().all():
        return len(column)
    return column.array if types.is_numeric_dtype(column) else column.astype("category").array


def _joined(
    parts: list[list[Any]], raw: bytes, start: int, table: layout.Layout, label: str, mixed: bool
) -> tuple[pandas.DataFrame, bool] | None:
    """Returns the frame of all pieces, if it is one that both readers understand in the same way."""
    import pandas

    columns: list[Any] = []
    for pieces in parts:
        columns.append(_column(pieces))
        pieces.clear()
        if columns[-1] is None:
            return None
    num_rows = len(columns[0])
    missing = [pandas.isna(column) for column in columns]
    if any(absent.any() for absent in missing):
        if not mixed or np.logical_and.reduce(missing).any():  # a row without any cell
            return None
        # pandas fills up short rows
        expected = num_rows * (len(columns) - 1)
        if missing[-1].any() and raw.count(table.separator.encode(), start) != expected:
            return None
    names = frames.unique_names(table.names)
    first = 0
    if table.has_names and len(names) > 1 and layout.is_unnamed(table.names[0]):
        if missing[0].any() or not _counts(columns[0]):
            return None
        first = 1
    result = {}
    for i in range(first, len(names)):
        column = columns[i]
        if isinstance(column, pandas.Categorical):
            column = _labels(names[i], column, label) if mixed else None
        elif column.dtype == bool or str(column.dtype) == "boolean":
            column = column if mixed else None
        elif isinstance(column, np.ndarray) and np.isinf(column).any():
            column = None
        if column is None:
            return None
        if isinstance(column, np.ndarray) and column.dtype.kind == "i":
            frames.warn_of_leading_zeros(names[i], (row.cells[i] for row in table.body), label)
        result[names[i]] = column
        columns[i] = None
    if first:
        frames.warn_of_index("line numbers or names of rows", label)
    return pandas.DataFrame(result), table.has_names


def _column(pieces: list[Any]) -> Any:
    """Returns the pieces of a column as one array of int64, Int64, float64, bool, boolean or categories; else None."""
    import pandas
    from pandas.api import types

    sizes = [piece if isinstance(piece, int) else len(piece) for piece in pieces]
    dtypes = {str(piece.dtype) for piece in pieces if not isinstance(piece, int)}
    if not dtypes:
        return np.full(sum(sizes), np.nan)
    if dtypes == {"category"}:
        full = [pandas.Categorical([None] * piece) if isinstance(piece, int) else piece for piece in pieces]
        full = [piece.set_categories(piece.categories.astype("str")) for piece in full]
        return types.union_categoricals(full)
    if dtypes <= {"Int64", "Float64"} and "Float64" in dtypes:
        return np.concatenate(
            [
                np.full(piece, np.nan) if isinstance(piece, int) else piece.to_numpy(np.float64, na_value=np.nan)
                for piece in pieces
            ]
        )
    if len(dtypes) > 1 or not dtypes <= {"Int64", "boolean"}:
        return None
    dtype = next(iter(dtypes))
    full = [pandas.array([None] * piece, dtype=dtype) if isinstance(piece, int) else piece for piece in pieces]
    joined = pandas.concat([pandas.Series(piece) for piece in full], ignore_index=True).array
    return joined if joined.isna().any() else joined.to_numpy("int64" if dtype == "Int64" else "bool")


def _counts(column: Any) -> bool:
    """Returns whether a column is 0, 1, 2, … or 1, 2, 3, …."""
    return (
        isinstance(column, np.ndarray)
        and column.dtype == np.int64
        and column[0] in (0, 1)
        and bool((column == np.arange(column[0], column[0] + len(column))).all())
    )


def _labels(name: str, column: pandas.Categorical, label: str) -> Any:
    """Returns a column of text, or of booleans; None if the text may be numbers or dates."""
    levels = [" ".join(level.split()) if "\n" in level else level.strip() for level in map(str, column.categories)]
    if any(map(cells.is_numeric, levels)) or all(map(cells.is_date, levels)):
        return None
    if all(map(cells.is_missing, levels)):
        return None
    return typed.text_of(name, np.asarray(column.codes), levels, label)
