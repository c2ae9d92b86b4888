"""Finds the table in the rows of a file, and recognises titles, header, units, row names and footers.

Programs write additional text around the numbers. If its meaning is certain, it is left out silently. If it is
ambiguous, it is left out or kept, with a warning that names the option for the alternative.
"""

from __future__ import annotations

import collections
import csv
import re
import warnings
from typing import NamedTuple

from tfp_ebm.datasets import cells
from tfp_ebm.datasets.cells import quoted
from tfp_ebm.datasets.text import NO_SEPARATOR, SEPARATORS, Lines, Row

# A last row that begins with one of these words summarises the other rows.
_SUMMARIES = frozenset(
    "total|totals|grand total|sum|mean|average|avg|median|std|sd|min|max|count|n|source|sources|note|notes|gesamt|"
    "summe|mittelwert|somme|moyenne|suma|media|totale".split("|")
)
_MAX_FOOTERS = 5
_UNNAMED = re.compile(r"^Unnamed: \d+(_level_\d+)?$")  # pandas's name of a column without a name
_DIGITS = re.compile(r"^[^A-Za-z]*\d[^A-Za-z]*$")
# A row of numbers is likely to be a header if it is this far outside the numbers below it (in units of their range).
_FAR = 1.0


class Layout(NamedTuple):
    """A table: the names of its columns ("" for none) and its rows, all of the same width."""

    names: list[str]
    has_names: bool
    body: list[Row]
    separator: str


def find_layout(rows: list[Row], source: Lines, separator: str, label: str, mixed: bool = False) -> Layout:
    """Finds the column names and the body of a table in the rows of a file.

    Args:
      rows: the rows of cells.
      source: the lines of the file, for a header within a comment.
      separator: the separator of cells.
      label: the name of the file in error messages.
      mixed: whether the table may have columns of text.

    Raises:
      ValueError: if there is no table, or rows differ in width.
    """
    if not rows:
        raise ValueError(f"{label} is empty.")
    rows, width = _without_empty_edges(rows)
    first = _first_row(rows, width, label)
    body = _without_footers(rows[first:], width, label)
    names, body, is_named = _header(rows[:first], body, width, source, separator, label, mixed)
    if not body:
        raise ValueError(f"{label} has a header but no rows.")
    if is_named:
        body = _without_units(body, label)
    else:
        _warn_of_numeric_header(body, label)
    _check_widths(body, width, label)
    return Layout(names, is_named, body, separator)


def _without_empty_edges(rows: list[Row]) -> tuple[list[Row], int]:
    """Removes the empty first and last columns of lines that begin or end with a delimiter; also returns the width."""
    width = collections.Counter(len(row.cells) for row in rows).most_common(1)[0][0]
    usual = [row.cells for row in rows if len(row.cells) >= width]
    first, last = 0, width
    while last > 1 and not any(row[last - 1] for row in usual):
        last -= 1
    # fewer cells than usual are a title, or a header without a name for the first column
    while first < last - 1 and len(usual) == len(rows) and not any(row[first] for row in usual):
        first += 1
    if last - first < width:
        rows = [row._replace(cells=row.cells[first:last]) if len(row.cells) <= width else row for row in rows]
    return rows, last - first


def _is_text(cell: str) -> bool:
    return not (cells.is_missing(cell) or cells.is_numeric(cell))


def _first_row(rows: list[Row], width: int, label: str) -> int:
    """Returns the number of the table's first row; all rows before it are titles."""
    first = next(i for i, row in enumerate(rows) if len(row.cells) == width)
    # spreadsheets pad a title above a wide table with empty cells
    while width > 1 and first + 1 < len(rows) and len(rows[first + 1].cells) == width:
        filled = [cell for cell in rows[first].cells if cell]
        if 2 * len(filled) >= width and not any(map(_is_text, rows[first + 1].cells)):
            break  # a header in which a name is missing
        if not (len(filled) == 1 and _is_text(rows[first].cells[0]) and sum(map(bool, rows[first + 1].cells)) > 1):
            break
        first += 1
    for row in rows[:first]:
        if not _is_text(next(cell for cell in row.cells if cell)):
            raise _ragged(row, rows[first], label)
    return first


def _ragged(row: Row, expected: Row, label: str) -> ValueError:
    return ValueError(
        f"{label} is ragged: line {row.last_line} has {len(row.cells)} cell(s), line {expected.last_line} has "
        f"{len(expected.cells)}."
    )


def _check_widths(body: list[Row], width: int, label: str) -> None:
    usual = next((row for row in body if len(row.cells) == width), body[0])
    for row in body:
        if len(row.cells) != width:
            raise _ragged(row, usual, label)


def _without_footers(body: list[Row], width: int, label: str) -> list[Row]:
    """Removes the rows at the end that summarise or explain the others."""
    kept = len(body)
    while kept > 1 and len(body) - kept < _MAX_FOOTERS:
        row = body[kept - 1]
        filled = [cell for cell in row.cells if cell]
        above = [cell for other in body[max(0, kept - 20) : kept - 1] for cell in other.cells]
        if not any(map(cells.is_numeric, above)) or not _is_text(filled[0]):
            break
        if _is_label(row, body):
            break
        word = re.split(r"[:\s]", filled[0].lower())[0]
        is_note = len(filled) == 1 and width > 1 and len(row.cells) <= width
        is_summary = filled[0].lower().rstrip(":") in _SUMMARIES or (word in _SUMMARIES and len(row.cells) != width)
        if not (is_summary or is_note):
            break
        kept -= 1
    for row in body[kept:]:
        warnings.warn(f"{label}: line {row.last_line} ({_shown(row.cells)}) is a footer and left out.", stacklevel=2)
    return body[:kept]


def _is_label(row: Row, body: list[Row]) -> bool:
    """Returns whether the first text of a row at the end belongs to a column of labels."""
    i = next(i for i, cell in enumerate(row.cells) if cell)
    column = [other.cells[i] for other in body[: max(1, len(body) - _MAX_FOOTERS)] if i < len(other.cells)]
    # a note in the first cell, below labels, is none of them
    return row.cells[i] in column if i == 0 else any(cell and _is_text(cell) for cell in column[-20:])


def _shown(row: list[str]) -> str:
    text = ", ".join(map(repr, row[:4])) + (", …" if len(row) > 4 else "")
    return text if len(text) < 80 else f"{text[:77]}…"


def _header(
    above: list[Row], body: list[Row], width: int, source: Lines, separator: str, label: str, mixed: bool
) -> tuple[list[str], list[Row], bool]:
    """Returns the names of the columns, the rows below them, and whether there are names."""
    head = body[0].cells if body else []
    texts = [i for i, cell in enumerate(head) if _is_text(cell)]
    has_numbers = any(map(cells.is_numeric, head))
    if texts and not has_numbers:
        raw = source.lines[body[0].first_line - 1] if source.lines else ""
        if separator == NO_SEPARATOR and '"' not in raw and any(mark in head[0] for mark in SEPARATORS[:-1]):
            raise ValueError(
                f"{label} is ragged: line {body[0].last_line} ({quoted(head[0])}) has more cells than the rows."
            )
        if not (mixed and _recurs(body, label)):
            return list(head), body[1:], True
    elif texts and has_numbers and (_below(body, texts) or (mixed and _is_new(body, texts))):
        warnings.warn(
            f"{label}: line {body[0].last_line} ({_shown(head)}) is taken as the header, although it holds numbers. If "
            f"it is a row, {cells.cure('header=None')}",
            stacklevel=2,
        )
        return list(head), body[1:], True
    if above and len(above[-1].cells) > 1:
        return _header_of_named_rows(above[-1], body, width, label)
    names = _commented_names(source, separator, body, width)
    return (names or [""] * width), body, bool(names)


def _below(body: list[Row], columns: list[int]) -> bool:
    """Returns whether one of these columns holds only numbers below the first row."""
    for i in columns:
        column = [row.cells[i] for row in body[1:] if i < len(row.cells) and not cells.is_missing(row.cells[i])]
        if column and sum(map(cells.is_numeric, column)) > len(column) / 2:
            return True
    return False


def _recurs(body: list[Row], label: str) -> bool:
    """Returns whether all cells of a first row of text recur below it; warns if some do."""
    head = body[0].cells
    again = [any(row.cells[i] == cell for row in body[1:] if i < len(row.cells)) for i, cell in enumerate(head)]
    if not any(again):
        return False
    option = "header=0" if all(again) else "header=None"
    warnings.warn(
        f"{label}: line {body[0].last_line} ({_shown(head)}) is read as {'a row' if all(again) else 'the header'}, but "
        f"may be {'the header' if all(again) else 'a row'}, because its cells recur below it. If it is, "
        + cells.cure(option),
        stacklevel=2,
    )
    return all(again)


def _is_new(body: list[Row], columns: list[int]) -> bool:
    """Returns whether a first row of words and whole numbers is a header above columns of labels: its words are new.

    The labels below it must recur, or a new word means nothing.
    """
    head = body[0].cells
    if not all(cells.is_whole(cell) for i, cell in enumerate(head) if i not in columns) or len(set(head)) < len(head):
        return False
    for i in columns:
        below = collections.Counter(row.cells[i] for row in body[1:] if i < len(row.cells))
        if head[i] in below or 2 * len(below) > len(body) - 1:
            return False
    return True


def _header_of_named_rows(header: Row, body: list[Row], width: int, label: str) -> tuple[list[str], list[Row], bool]:
    """Returns the names in a header with one cell fewer than the rows, whose first cells are row names, as in R."""
    labels = [row.cells[0] for row in body]
    if len(header.cells) != width - 1 or not all(map(_is_text, header.cells)) or not is_index(labels):
        raise _ragged(header, body[0], label)
    return ["", *header.cells], body, True


def is_index(labels: list[str]) -> bool:
    """Returns whether cells name or count rows: distinct words, or 0, 1, 2, … or 1, 2, 3, ….

    >>> is_index(["a", "b"]), is_index(["1", "2", "3"]), is_index(["4", "2"])
    (True, True, False)
    """
    if all(map(_is_text, labels)):
        return len(set(labels)) == len(labels)
    if not all(map(cells.is_whole, labels)):
        return False
    numbers = [int(cell) for cell in labels]
    return numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def is_unnamed(name: str) -> bool:
    """Returns whether a column has no name, or the name that pandas gives to a column without a name."""
    return not name or bool(_UNNAMED.match(name))


def _commented_names(source: Lines, separator: str, body: list[Row], width: int) -> list[str]:
    """Returns the names in the last comment above the table, as written by `numpy.savetxt`; [] for none."""
    lines = [number for number in source.comments if body and number < body[0].first_line + 1]
    if not lines:
        return []
    text = source.comments[max(lines)].strip()
    for mark in dict.fromkeys((separator, ",", "\t", ";", "|")):
        found = [text.split()] if mark == " " else list(csv.reader([text], delimiter=mark, skipinitialspace=True))
        names = [name.strip() for name in found[0]] if found else []
        if len(names) == width and all(names):
            return names
    return text.split() if len(text.split()) == width else []


def _without_units(body: list[Row], label: str) -> list[Row]:
    """Removes the first row if it holds units: words above columns of numbers."""
    head = body[0].cells
    texts = [i for i, cell in enumerate(head) if _is_text(cell)]
    numbers = [cell for cell in head if cells.is_numeric(cell) and cell != "1"]
    has_digits = any(_DIGITS.match(head[i]) for i in texts)  # a number in a notation that is not known
    if len(body) > 1 and texts and not numbers and not has_digits and all(_below(body, [i]) for i in texts):
        warnings.warn(
            f"{label}: line {body[0].last_line} ({_shown(head)}) is taken as units and left out.", stacklevel=2
        )
        return body[1:]
    return body


def _warn_of_numeric_header(body: list[Row], label: str) -> None:
    """Warns if a first row of numbers may be the header: 0, 1, 2, …, or numbers far from all others."""
    if len(body) < 4 or len({len(row.cells) for row in body}) > 1:
        return
    head, rest = body[0].cells, [row.cells for row in body[1:1000]]
    if not all(map(cells.is_whole, head)):
        return
    numbers = [int(cell) for cell in head]
    counts = len(head) > 2 and numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(head)))
    has_fractions = any(not cells.is_whole(cell) for row in rest for cell in row)
    if (counts and (has_fractions or numbers[0] == 0)) or all(
        _is_far(numbers[i], [row[i] for row in rest]) for i in range(len(head))
    ):
        warnings.warn(
            f"{label}: line {body[0].last_line} ({_shown(head)}) is read as a row, but may be the header. If it is, "
            f"{cells.cure('header=0')}",
            stacklevel=2,
        )


def _is_far(number: int, column: list[str]) -> bool:
    values = [value for cell in column if (value := cells.to_number(cell, ".")) is not None]
    if not values:
        return False
    low, high = min(values), max(values)
    return max(low - number, number - high) > _FAR * (high - low)
