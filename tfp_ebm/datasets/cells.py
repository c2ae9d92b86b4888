"""Interprets the cells of a text table: a number in one of the usual notations, a missing value, or text.

Numbers may have a decimal comma, groups of three digits, a currency sign, a percent sign, a Fortran exponent (1.5D+03)
or a typographic minus. Whether the comma in "1,234" is a decimal comma or separates thousands cannot be determined from
one cell, so `notation_of` uses all cells.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable
from typing import Any, NamedTuple

_MINUS = "\u2212\u2013\ufe63\uff0d"  # typographic forms of "-"
_CURRENCY = "$\u20ac\u00a3\u00a5\u20b9"
_GROUP_SPACE = " \u00a0\u202f\u2009"
_APOSTROPHE = "'\u2019"
_NUMBER = re.compile(
    rf"^(?P<sign>[+\-{_MINUS}]?)\s*(?P<before>[{_CURRENCY}]?)\s*(?P<sign2>[+\-{_MINUS}]?)"
    rf"(?P<mantissa>\d[\d.,{_APOSTROPHE}{_GROUP_SPACE}]*|[.,]\d+)"
    rf"(?P<exponent>[eEdD][+\-{_MINUS}]?\d+)?\s*(?P<after>[%{_CURRENCY}]?)$"
)
_SPACED = re.compile(rf"^\d{{1,3}}(?:[{_GROUP_SPACE}{_APOSTROPHE}]\d{{3}})+(?:[.,]\d*)?$")
_POINTS = re.compile(r"^(?:\d+[.,]?\d*|[.,]\d+|\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d{1,3}(?:\.\d{3})+(?:,\d*)?)$")
_AMBIGUOUS = re.compile(r"^[1-9]\d{0,2}[.,]\d{3}$")
_PLAIN = re.compile(r"^[+-]?\d+$")

MISSING = frozenset(
    (
        "|na|n/a|n.a.|nan|-nan|nat|null|(null)|none|nil|missing|<na>|\\n|?|-|--|\u2013|\u2014|.|..|*|1.#qnan|"
        "1.#ind|-1.#ind|#n/a|#n/a n/a|#na|#null!|#value!|#ref!|#div/0!|#num!|#name?"
    ).split("|")
)
_INFINITE = frozenset("inf|+inf|-inf|infinity|+infinity|-infinity|1.#inf|-1.#inf|\u221e|-\u221e".split("|"))
BOOLEANS = frozenset(("true", "false", "yes", "no", "t", "f", "y", "n"))
_DATE = re.compile(
    r"^(?:\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
    r"|\d{1,2}[-/. ](?:[A-Za-z]{3,9})[-/., ]+\d{2,4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})?"
    r"[T ]*(?:\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:\s*[AaPp][Mm])?)?\s*(?:Z|UTC|[+-]\d{2}:?\d{2})?$"
)


def is_missing(cell: str) -> bool:
    """Returns whether a cell is empty or holds a usual marker of a missing value: NA, NaN, null, #N/A, ?, -, a dot, ….

    >>> is_missing("#N/A"), is_missing("0")
    (True, False)
    """
    return cell.lower() in MISSING


def is_infinite(cell: str) -> bool:
    """Returns whether a cell is an infinite number."""
    return cell.lower() in _INFINITE


def is_date(cell: str) -> bool:
    """Returns whether a cell is a date, a time of day, or both.

    >>> is_date("2024-03-01"), is_date("12:30"), is_date("1.5")
    (True, True, False)
    """
    return bool(cell) and any(map(str.isdigit, cell)) and not is_numeric(cell) and bool(_DATE.match(cell))


def is_numeric(cell: str) -> bool:
    """Returns whether a cell is a number in any of the notations, finite or not.

    >>> [is_numeric(cell) for cell in ("-1.5e3", "1.234,5", "1 234", "12 %", "1_000", "1.2.3", "5 2")]
    [True, True, True, True, False, False, False]
    """
    match = _NUMBER.match(cell)
    if match is None:
        return is_infinite(cell)
    mantissa = match["mantissa"].strip()
    return bool(_POINTS.match(mantissa) or _SPACED.match(mantissa)) and not (match["sign"] and match["sign2"])


class Notation(NamedTuple):
    """The notation of numbers in a table.

    Attributes:
      decimal: "." or ",".
      doubtful: the first ambiguous cell, if the decimal character is uncertain; else None.
    """

    decimal: str
    doubtful: str | None = None


def evidence(cell: str) -> tuple[str | None, bool]:
    """Returns the decimal character of a cell, if it is certain, and whether the cell is ambiguous ("1,234").

    >>> evidence("1.234,5"), evidence("0,5"), evidence("1,234"), evidence("12")
    ((',', False), (',', False), (None, True), (None, False))
    """
    match = _NUMBER.match(cell) if ("." in cell or "," in cell) else None
    if match is None or not is_numeric(cell):
        return None, False
    mantissa = match["mantissa"].strip()
    marks = [character for character in mantissa if character in ".,"]
    if len(marks) > 1:
        return (marks[-1] if len(set(marks)) == 2 else {".": ",", ",": "."}[marks[0]]), False
    if _AMBIGUOUS.match(mantissa) and match["exponent"] is None:
        return None, True
    return marks[0], False


def notation_of(cells: Iterable[str], separator: str, label: str) -> Notation:
    """Finds the decimal character common to all numbers of a table.

    Args:
      cells: all cells.
      separator: the separator of cells; if it is a comma, a decimal point is more likely.
      label: the name of the file in error messages.

    Raises:
      ValueError: if some numbers have a decimal comma and others a decimal point.

    >>> notation_of(["1,5", "1.234"], ";", "`x.csv`")
    Notation(decimal=',', doubtful=None)
    """
    certain: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    for cell in cells:
        decimal, is_doubtful = evidence(cell)
        if decimal is not None:
            certain.setdefault(decimal, cell)
        elif is_doubtful:
            doubtful.setdefault("," if "," in cell else ".", cell)
    if len(certain) == 2:
        raise ValueError(
            f"{label} mixes decimal points and decimal commas, as in {certain['.']!r} and {certain[',']!r}; write all "
            "numbers in the same notation."
        )
    if certain:
        return Notation(*certain)
    if len(doubtful) == 2:
        raise ValueError(
            f"{label} is ambiguous: one of {doubtful['.']!r} and {doubtful[',']!r} has thousands, the other decimals; "
            + cure("decimal='.', thousands=','")
        )
    if doubtful:
        mark, cell = next(iter(doubtful.items()))
        return Notation("." if mark == "." or separator == "," else ",", cell)
    return Notation(".")


def cure(options: str) -> str:
    """Returns the advice to read a file with these options, for Python and for the command line."""
    return f'read it with {options} (on the command line: --read "{options}").'


def to_number(cell: str, decimal: str) -> float | None:
    """Returns the number in a cell, or None if there is none; infinities count as numbers, missing cells do not.

    >>> to_number("$1,234.50", "."), to_number("1.234,5", ","), to_number("1.5D+03", "."), to_number("1,23", ".")
    (1234.5, 1234.5, 1500.0, None)
    """
    try:
        if cell.isascii() and "_" not in cell and (decimal == "." or ("." not in cell and "," not in cell)):
            return float(cell)
    except ValueError:
        pass
    match = _NUMBER.match(cell)
    if match is None or (match["sign"] and match["sign2"]):
        return (-math.inf if cell.startswith("-") else math.inf) if is_infinite(cell) else None
    mantissa = match["mantissa"].strip()
    if _SPACED.match(mantissa):
        mantissa = re.sub(f"[{_GROUP_SPACE}{_APOSTROPHE}]", "", mantissa)
    group = "," if decimal == "." else "."
    if group in mantissa:
        if not re.match(rf"^\d{{1,3}}(?:\{group}\d{{3}})+(?:\{decimal}\d*)?$", mantissa):
            return None
        mantissa = mantissa.replace(group, "")
    mantissa = mantissa.replace(decimal, ".")
    exponent = (match["exponent"] or "").lower().replace("d", "e")
    sign = "-" if (match["sign"] or match["sign2"]) not in ("", "+") else ""
    for minus in _MINUS:
        exponent = exponent.replace(minus, "-")
    try:
        return float(f"{sign}{mantissa}{exponent}")
    except ValueError:
        return None


def decoration(cell: str) -> str:
    """Returns the percent or currency sign of a number, or "" if it has none.

    >>> decoration("12 %"), decoration("$5"), decoration("5")
    ('%', '$', '')
    """
    if cell.isascii() and "%" not in cell and "$" not in cell:
        return ""
    match = _NUMBER.match(cell)
    return "" if match is None else match["before"] or match["after"]


def is_whole(cell: str) -> bool:
    """Returns whether a cell is a whole number, written without decimals; with 300 digits it is too large for a float.

    >>> is_whole("-12"), is_whole("12.0")
    (True, False)
    """
    return len(cell) < 300 and bool(_PLAIN.match(cell))


def quoted(value: Any, longest: int = 80) -> str:
    """Returns a name or a cell as Python writes it; the middle of a long text is left out.

    >>> quoted("width"), quoted(2), quoted("a" * 500, longest=15)
    ("'width'", '2', "'aaaaa...aaaaa'")
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = longest
    return short.repr(value)


def shown_list(items: list[Any], separator: str = ", ") -> str:
    """Returns the first ten items of a list as text, strings in quotes if they are joined by a comma.

    >>> shown_list(["a", 2])
    "'a', 2"
    """
    shown = [quoted(item) if separator == ", " else str(item) for item in items[:10]]
    return separator.join(shown) + (f"{separator}…" if len(items) > 10 else "")
