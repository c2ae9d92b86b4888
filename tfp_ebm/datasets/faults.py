"""Errors for columns and cells of tables that are not the numbers that were expected."""

from __future__ import annotations

import collections
import re

from tfp_ebm.datasets import cells
from tfp_ebm.datasets.cells import cure, quoted

_EXAMPLES = 3
# What to do with a table that holds more than numbers.
MIXED = "`load_table(path, mixed=True)` reads such tables, and `TableEncoder` turns them into numbers"


# Words of Python, and of libraries, about their own variables.
_INSIDES = re.compile(r"object|codec|NoneType|unhashable|argument|subscript|iterable|callable|index|<|0x|\bint\b|dtype")


def reason_of(error: BaseException) -> str:
    """Returns the message of a library's error about a file, if a reader who does not know the library can use it.

    >>> reason_of(ValueError("line 3 is too short")), reason_of(KeyError("x"))
    ('line 3 is too short', 'its content is damaged, or not of this kind.')
    """
    if isinstance(error, MemoryError):
        return "it announces more numbers than fit into memory."
    text = " ".join(str(error).split())[:300]
    if isinstance(error, KeyError | IndexError | AttributeError | UnicodeError) or not text or _INSIDES.search(text):
        return "its content is damaged, or not of this kind."
    return text


def not_numbers(name: str, column: list[str], texts: list[int], lines: list[int], label: str) -> ValueError:
    """Returns the error for a column with text in some cells."""
    words = [column[row] for row in texts]
    where = f"the first in line {lines[texts[0]]} ({quoted(words[0])})"
    kinds = list(dict.fromkeys(words))
    shown = ", ".join(quoted(kind) for kind in kinds[:_EXAMPLES]) + (", …" if len(kinds) > _EXAMPLES else "")
    start = f"{label}: column {quoted(name)} holds"
    if all(map(cells.is_date, words)):
        return ValueError(
            f"{start} dates or times ({shown}), {where}; energies take numbers: write them as numbers, such as days or "
            "seconds from the first, or leave the column out."
        )
    others = [cell for row, cell in enumerate(column) if row not in set(texts) and not cells.is_missing(cell)]
    if {word.lower() for word in kinds} <= cells.BOOLEANS and set(others) <= {"0", "1"}:
        return ValueError(
            f"{start} truth values ({shown}), {where}; energies take numbers: leave the column out, or write 0 and 1, "
            f"which have no density unless noise is added; {MIXED}."
        )
    if not others:
        return ValueError(
            f"{start} {len(kinds)} categories ({shown}), {where}; energies take numbers: leave the column out, or fit "
            f"one model for each category; {MIXED}."
        )
    more = ""
    if len(kinds) == 1 and len(words) > 1:
        more = f" If {quoted(words[0])} stands for a missing cell, {cure(f'na_values=[{quoted(words[0], 400)}]')}"
    return ValueError(
        f"{label} must hold numbers: {len(words)} cell(s) of column {quoted(name)} do not, {where}." + more
    )


def missing_cells(missing: list[tuple[int, int]], names: list[str], label: str, where: str, rows: int) -> ValueError:
    """Returns the error for missing cells.

    Args:
      missing: the row and the column of each.
      names: the names of all columns.
      label: the name of the file.
      where: the line or row of the first one, in words.
      rows: number of rows of the table.
    """
    by_column = collections.Counter(names[i] for _, i in missing)
    most = ", ".join(f"{count} in {quoted(name)}" for name, count in by_column.most_common(_EXAMPLES))
    more = f" and others in {len(by_column) - _EXAMPLES} more columns" if len(by_column) > _EXAMPLES else ""
    affected, column = len({row for row, _ in missing}), names[min(missing)[1]]
    return ValueError(
        f"{label} has {len(missing)} missing cell(s) in {affected} of {rows} rows: {most}{more}; the first in {where}, "
        f"column {quoted(column)}. Fill them in, or leave those rows or columns out, first; {MIXED}."
    )
