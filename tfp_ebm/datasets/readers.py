"""Numbers from files: NumPy's own formats, and text with one row a line.

Text goes through NumPy's parser, which is fast and says little; only where that fails, or finds a number that is not
finite, is the file gone through cell by cell, so that the error can name the line and the column.
"""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DELIMITERS = (
    "\t;|,"  # in order of trust: a comma may be a decimal comma, a tab or a semicolon is never part of a number
)


def read_numpy(path: Path, label: str, key: str | None) -> np.ndarray:
    """The array of a `.npy` file, or the one called `key` of a `.npz` file."""
    damaged = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
    try:
        with path.open("rb") as stream:  # which NumPy would leave open where the archive is damaged
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = content.files
            if key is None and len(names) == 1:
                key = names[0]
            if key in names:
                return content[key]
    except damaged as error:
        if "Object arrays" in str(error):
            raise TypeError(f"`{label}` must hold real numbers, got an array of Python objects.") from error
        raise ValueError(f"`{label}` is not a whole {path.suffix} file, it may be truncated: {error}") from error
    if not names:
        raise ValueError(f"`{label}` holds no array.")
    raise ValueError(f"`key` must be one of {', '.join(map(repr, names))}, the arrays of {str(path)!r}, got {key!r}.")


def _is_number(cell: str) -> bool:
    """Whether `cell` is a number, finite or not."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python's literals may contain, and data never mean


def _sniff(lines: list[str]) -> str | None:
    """The delimiter that cuts the first lines into equally many cells, more than one; None for white space.

    If none does, the one that occurs in the first line, so that a ragged file is reported as one.
    """
    head = [line for line in lines[:20] if line.strip()]
    counts = {d: [len(row) for row in csv.reader(head, delimiter=d)] for d in DELIMITERS}
    for d, count in counts.items():
        if count[0] > 1 and len(set(count)) == 1:
            return d
    for d, count in counts.items():
        if count[0] > 1:
            return d
    one_column = len(head) > 1 and all(len(line.split()) == 1 for line in head[1:])
    return "," if one_column else None  # of one column, the header may well contain spaces


def read_csv(path: Path, label: str, delimiter: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The numbers `[rows, columns]` of a text file in float64, and the header's names (none without a header)."""
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(f"`delimiter` must be one character, got {delimiter!r}.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{label}` must be UTF-8 text: {error}") from error
    if not any(line.strip() for line in lines):
        raise ValueError(f"`{label}` is empty.")
    marked = lines[0].startswith("#")  # as np.savetxt marks its header
    lines[0] = lines[0].lstrip("# ")
    try:
        separator = _sniff(lines) if delimiter is None else delimiter
        if separator == " ":
            separator = None
        return _numbers(lines, separator, marked, label)
    except csv.Error as error:
        raise ValueError(f"`{label}` is not a table of cells: {error}") from error


def _numbers(lines: list[str], separator: str | None, marked: bool, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """What `read_csv` returns; `marked` says that the first line is a header whatever it holds."""
    first, end = next((row, line) for row, line in _rows(lines, separator) if row)
    header = marked or (any(first) and not any(map(_is_number, first)))
    columns: tuple[str, ...] = ()
    if header:
        columns = tuple(name or f"column {i + 1}" for i, name in enumerate(first))
    body = lines[end:] if header else lines
    if not any(line.strip() for line in body):
        raise ValueError(f"`{label}` has a header but no rows.")
    try:
        # several times faster than the csv module; whatever it will not take is looked at cell by cell
        values = np.loadtxt(body, delimiter=separator, comments=None, quotechar='"', ndmin=2)
        if values.shape[1] == len(first) and np.isfinite(values).all():
            return values, columns
    except ValueError:
        pass
    return _parse(lines, separator, end if header else 0, first, columns, label), columns


def _rows(lines: list[str], separator: str | None) -> Iterator[tuple[list[str], int]]:
    """The cells of each row, none for a blank one, and the number of the line (from 1) that ends it."""
    if separator is None:
        lines = [line.strip() for line in lines]
    reader = csv.reader(lines, delimiter=separator or " ", skipinitialspace=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        yield cells if any(cells) or len(cells) > 1 else [], reader.line_num


def _parse(
    lines: list[str], separator: str | None, skip: int, first: list[str], columns: tuple[str, ...], label: str
) -> np.ndarray:
    """The numbers of all lines but the first `skip`, or an error that counts the bad cells and shows the first."""
    rows: list[list[float]] = []
    num_bad, where = 0, ""
    for cells, line in _rows(lines, separator):
        if line <= skip or not cells:
            continue
        if len(cells) != len(first):
            raise ValueError(
                f"`{label}` is ragged: {len(cells)} cell(s) in line {line}, {len(first)} in the first row."
            )
        row = [float(cell) if _is_number(cell) else math.nan for cell in cells]
        bad = [i for i, number in enumerate(row) if not math.isfinite(number)]
        if bad and not num_bad:
            i = bad[0]
            where = f"line {line}, column {i + 1}" + (f" ({columns[i]!r})" if columns else "")
            where += f", which holds {cells[i]!r}" if cells[i] else ", which is empty"
            where += "" if columns or rows else " (a first line is a header if none of its cells is a number)"
        num_bad += len(bad)
        rows.append(row)
    if num_bad:
        raise ValueError(f"`{label}` must hold finite numbers: {num_bad} of its cells do not, the first in {where}.")
    return np.array(rows)
