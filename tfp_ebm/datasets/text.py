"""Splits text files into rows of cells: encoding, separator, quotes, comments and blank lines.

This module does not interpret cells, except that it chooses the separator for which most cells are numbers.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tfp_ebm.datasets.cells import is_missing, is_numeric

# In order of reliability: a comma or a space may be part of a number, a tab or a semicolon never is.
SEPARATORS = ("\t", ";", "|", ",", " ")
# The separator for "one cell per line"; no text contains it, because control characters raise an error.
NO_SEPARATOR = "\x1f"
# Number of lines used to find the separator and the header.
HEAD = 200

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
# The first line in which Excel names the separator.
_SEPARATOR_LINE = re.compile(r'^"?sep=(.)"?$', re.IGNORECASE)
_COMMENT = re.compile(
    r"^\s*(#(?!N/A|DIV/0!|REF!|NAME\?|VALUE!|NUM!|NULL!)|%|//|[!*](?=\s+[^\W\d])|;(?=\s+[^\W\d][^;]*$))"
)
_INLINE_COMMENT = re.compile(r"(^|\s)#(?!N/A|DIV/0!|REF!|NAME\?|VALUE!|NUM!|NULL!).*$")
_SINGLE_QUOTED = re.compile(r"(?:^|[,;\t| ])'[^']*'(?:$|[,;\t| ])")


class Row(NamedTuple):
    """The cells of a row, and the lines (from 1) in which it begins and ends."""

    cells: list[str]
    first_line: int
    last_line: int


class Lines(NamedTuple):
    """The lines of a text. Comments are blank in `lines`, so that line numbers are those of the file."""

    lines: list[str]
    comments: dict[int, str]  # by line number, without the comment character
    separator: str | None  # the separator, if the file names it


def decode(raw: bytes, label: str, encoding: str | None = None) -> str:
    """Returns the text of a file, with "\\n" as the only line end.

    UTF-8, UTF-16 and UTF-32 are recognised by their byte order marks, and UTF-16 without a mark by its zero bytes.
    Other text that is not UTF-8 is read as Windows-1252, or as Latin-1 if Windows-1252 lacks one of its characters.

    >>> decode("a;b\\r\\n1;2".encode("utf-16"), "`x.csv`")
    'a;b\\n1;2'
    """
    text = _decoded(raw, label, encoding)
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a").replace("\ufeff", "")
    if _CONTROL.search(text):
        raise ValueError(f"{label} is not a text file: it holds control characters.")
    return text


def _decoded(raw: bytes, label: str, encoding: str | None) -> str:
    if encoding is None:
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if raw.startswith(mark)), None)
    if encoding is None and b"\x00" in raw[:4096]:
        head = raw[:4096]
        odd, even = head[1::2].count(0), head[::2].count(0)
        if max(odd, even) < 0.3 * len(head) / 2:
            raise ValueError(f"{label} is not a text file: it holds zero bytes.")
        encoding = "utf-16-le" if odd > even else "utf-16-be"
    for name in (encoding,) if encoding else ("utf-8", "cp1252", "latin-1"):
        try:
            return raw.decode(name)
        except LookupError as error:
            raise ValueError(f"`encoding` must be a text encoding, got {name!r}.") from error
        except UnicodeDecodeError as error:
            if encoding:
                raise ValueError(f"{label} is not text in {name}: not from its byte {error.start + 1} on.") from error
    raise AssertionError("Latin-1 decodes everything")


def split_lines(text: str) -> Lines:
    """Separates lines from comments and from the line `sep=;` with which Excel names the separator."""
    lines, comments, separator = text.split("\n"), {}, None
    for number, line in enumerate(lines, 1):
        if separator is None and not any(lines[: number - 1]) and (match := _SEPARATOR_LINE.match(line.strip())):
            separator = match[1]
            lines[number - 1] = ""
        elif match := _COMMENT.match(line):
            comments[number] = line[match.end() :].lstrip("#% \t")
            lines[number - 1] = ""
    return Lines(lines, comments, separator)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Removes the csv module's limit of 131 072 characters per cell."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def rows(lines: list[str], separator: str, quote: str) -> list[Row]:
    """Splits lines into rows; omits blank lines and rows in which every cell is empty."""
    if separator == " ":
        lines = [line.replace("\t", " ").strip() for line in lines]
    found, start = [], 1
    with _long_fields():
        reader = csv.reader(
            (f"{line}\n" for line in lines), delimiter=separator, quotechar=quote, skipinitialspace=True
        )
        for cells in reader:
            cells = _without_comment([" ".join(cell.split()) if "\n" in cell else cell.strip() for cell in cells])
            if any(cells):
                found.append(Row(cells, start, reader.line_num))
            start = reader.line_num + 1
    return found


def _without_comment(cells: list[str]) -> list[str]:
    for i, cell in enumerate(cells):
        if "#" in cell and (match := _INLINE_COMMENT.search(cell)):
            kept = cell[: match.start()].strip()
            if kept and not is_numeric(kept):
                continue  # a name that contains a number sign
            return [*cells[:i], kept] if kept else cells[:i]
    return cells


def find_quote(lines: list[str]) -> str:
    """Returns the quotation mark around cells: double, unless there are only single ones."""
    head = [line for line in lines if line.strip()][:HEAD]
    singles = any(_SINGLE_QUOTED.search(line) for line in head)
    return "'" if singles and not any('"' in line for line in head) else '"'


def find_separator(lines: list[str], quote: str) -> str:
    """Returns the separator that splits most of the first lines into the same number of cells, most of them numbers.

    >>> find_separator(["a b", "1,5 2,5", "2,25 3,5"], '"')
    ' '
    """
    head, filled = [], 0
    for line in lines:
        head.append(line)
        filled += bool(line.strip())
        if filled == HEAD:
            break
    scores = {}
    for separator in (*SEPARATORS, NO_SEPARATOR):
        if separator != NO_SEPARATOR and not any(separator in line or (separator == " ") for line in head):
            continue
        found = rows(head, separator, quote)
        width = collections.Counter(len(row.cells) for row in found).most_common(1)[0][0] if found else 0
        if width > 1 or separator == NO_SEPARATOR:
            scores[separator] = _score(found, width)
    return max(scores, key=lambda separator: scores[separator])  # the first one in case of a tie


def _score(found: list[Row], width: int) -> float:
    """Computes the share of rows of the usual width, times the share of numbers in them except in the first row."""
    usual = [row for row in found[1:] or found if len(row.cells) == width]
    cells = [cell for row in usual for cell in row.cells if not is_missing(cell)]
    numbers = sum(map(is_numeric, cells))
    consistent = sum(len(row.cells) == width for row in found) / max(len(found), 1)
    return (numbers / max(len(cells), 1) + 1e-6) * consistent
