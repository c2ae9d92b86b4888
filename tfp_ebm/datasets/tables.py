"""Reads tables from files of all usual formats as data frames of numbers. pandas is imported only when needed."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.arguments import check_bool
from tfp_ebm.datasets import frames, layout, regular, text
from tfp_ebm.datasets.arrays import read_array
from tfp_ebm.datasets.cells import quoted
from tfp_ebm.datasets.faults import reason_of

if TYPE_CHECKING:
    import pandas

TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")
ARRAYS = (".npy", ".npz")
OTHERS = (".parquet", ".feather", ".xlsx", ".json", ".jsonl", ".ndjson")
_DECOMPRESS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
COMPRESSED = (*_DECOMPRESS, ".zip")
SUFFIXES = (*TEXT, *OTHERS, *ARRAYS, *COMPRESSED)


def load_table(path: str | os.PathLike[str], *, mixed: bool = False, **read_options: Any) -> pandas.DataFrame:
    """Reads a table from a file: of numbers, or of numbers, text and truth values.

    In text files (`.csv`, `.tsv`, `.txt`, `.dat`, `.data`), encoding, separator, decimal comma, header, comments,
    titles, units, row names and footers are detected. Other formats are `.parquet`, `.feather`, `.xlsx`,
    `.json`, `.jsonl` or `.ndjson`, `.npy` and `.npz` (two axes, or fields); each may be compressed as `.gz`, `.bz2`,
    `.xz` or `.zip`.

    Args:
      path: the path of the file.
      mixed: whether columns may hold text, categories, truth values and missing cells, for `TableEncoder`. Empty cells
        and the usual markers (NA, NaN, null, ?, …) are then missing. By default only numbers are allowed.
      **read_options: passed to the pandas function for the format: `read_csv`, `read_excel`, `read_parquet`,
        `read_feather` or `read_json`. With any option, pandas alone reads the file; only the encoding and the separator
        are still detected, unless given. `key` names the array of a `.npz` file or the file in a `.zip`.

    Returns:
      A `pandas.DataFrame` of finite numbers, with the names of the columns, or "column 1", "column 2", ….
      If `mixed`, also of text, categories and booleans; whole numbers with missing cells are Int64.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if the format needs a package that is not installed; the error names the extra.
      TypeError: if `path` is not a path, or pandas has no such option.
      ValueError: if the file is damaged, empty or ragged; if a column holds dates, or mostly numbers and some text;
        unless `mixed`, if cells are missing, or if a column holds truth values or categories. The error names the line
        and the column, and a remedy.

    Warns:
      UserWarning: if the file is ambiguous; the warning names the column, and the option for the alternative.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "lake.csv")
    ...     _ = path.write_text("depth;temperature\\n0,5;18,25\\n1,5;17,5\\n")
    ...     load_table(path)
       depth  temperature
    0    0.5        18.25
    1    1.5        17.50
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "fish.csv")
    ...     _ = path.write_text("species,length,tagged\\nperch,21,true\\ntrout,NA,false\\n")
    ...     load_table(path, mixed=True)
      species  length  tagged
    0   perch      21    True
    1   trout    <NA>   False
    """
    check_bool("mixed", mixed)
    label, raw, suffix = _content(path, read_options)
    if suffix in ARRAYS:
        frame, has_names = frame_of_array(read_array(raw, suffix, label, read_options.pop("key", None)), label, mixed)
        _refuse(read_options, f"{suffix} files")
    elif suffix in TEXT:
        frame, has_names = _read_text(raw, label, suffix, read_options, mixed)
    else:
        frame, has_names = _read_other(raw, label, suffix, read_options, mixed)
    frames.warn_of_habits(frame, label, has_names, mixed)
    return frame


def named(frame: pandas.DataFrame) -> bool:
    """Returns whether the columns have names from the file, not default names.

    >>> import pandas
    >>> named(pandas.DataFrame({"a": [1]})), named(pandas.DataFrame({"column 1": [1]}))
    (True, False)
    """
    return list(frame.columns) != frames.unique_names([""] * frame.shape[1])


def is_array_file(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is that of a NumPy file."""
    return Path(path).suffix.lower() in ARRAYS


def content_label(path: str | os.PathLike[str]) -> str:
    """Returns the name of a file in error messages."""
    return f"`{os.fspath(path)}`"


def _content(path: str | os.PathLike[str], options: dict[str, Any]) -> tuple[str, bytes, str]:
    """Returns the label, the bytes and the suffix of a file, decompressed if necessary."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a path, got {path!r}.")
    label, place = content_label(path), Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"`path`: there is no file {os.fspath(path)!r}.")
    raw, name = place.read_bytes(), place.name
    while (suffix := Path(name).suffix.lower()) in COMPRESSED:
        try:
            raw, name = _unpacked(raw, name, suffix, label, options)
        except (
            OSError,
            EOFError,
            zlib.error,
            lzma.LZMAError,
            zipfile.BadZipFile,
            RuntimeError,
            NotImplementedError,
            MemoryError,
            UnicodeError,
        ) as error:
            reason = reason_of(error)
            raise ValueError(f"{label} is not a complete {suffix} file, it may be truncated: {reason}") from error
    if suffix not in SUFFIXES:
        raise ValueError(f"{label} must be a file of one of the kinds {', '.join(SUFFIXES)}, got {suffix or name!r}.")
    return label, raw, suffix


def _unpacked(raw: bytes, name: str, suffix: str, label: str, options: dict[str, Any]) -> tuple[bytes, str]:
    """Returns the content of a compressed file, and its name without the suffix of the compression."""
    if suffix in _DECOMPRESS:
        inner = name[: -len(suffix)]
        return _DECOMPRESS[suffix](raw), inner if Path(inner).suffix else f"{inner}.csv"
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [
            member
            for member in archive.namelist()
            if member and not member.endswith("/") and not member.startswith("__MACOSX")
            if not Path(member).name.startswith(".")
        ]
        key = options.pop("key", None)
        if key is None and len(members) == 1:
            key = members[0]
        if key not in members:
            listed = ", ".join(map(repr, members)) or "nothing"
            raise ValueError(f"`key` must name one of the files in {label}, which are {listed}, got {key!r}.")
        return archive.read(key), key


def _refuse(options: dict[str, Any], what: str) -> None:
    if options:
        raise TypeError(f"`{next(iter(options))}` is no option for {what}.")


# The last code point of Unicode; those from 0xD800 to 0xDFFF are no characters.
_LAST_CODE = 0x10FFFF


def frame_of_array(array: np.ndarray, label: str, mixed: bool = False) -> tuple[pandas.DataFrame, bool]:
    """Returns the columns of a 2-D array, or the fields of a structured array, and whether they have names."""
    import pandas

    if array.dtype.names:
        names = array.dtype.names
        wide = [name for name in names if array.dtype[name].shape]
        if wide:
            raise ValueError(
                f"{label}: the field {quoted(wide[0])} must hold one number in each row, got {array.dtype[wide[0]]}."
            )
        array = array.reshape(-1)
        frame = pandas.DataFrame({name: _field(array[name], f"{label}: the field {quoted(name)}") for name in names})
        return frames.checked_frame(_native(frame), label, mixed), True
    if array.ndim != 2:
        raise ValueError(
            f"{label} must have shape [rows, columns], got {array.shape}; `datasets.load` reads such arrays."
        )
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{label} must hold real numbers, got an array of dtype {array.dtype}.")
    array = array.astype(np.uint8) if array.dtype.kind == "b" and not mixed else array
    frame = pandas.DataFrame(array, columns=frames.unique_names([""] * array.shape[1]))
    return frames.checked_frame(_native(frame), label, mixed), False


def _field(values: np.ndarray, label: str) -> np.ndarray:
    """Returns a field of a structured array, bytes as text, which is checked: a file may hold any bits."""
    if values.dtype.kind not in "SU":
        return values
    try:
        text = np.ascontiguousarray(values.astype(str))
    except UnicodeError as error:
        raise ValueError(f"{label} must hold ASCII text: {error}.") from error
    codes = text.view(np.uint32) if text.dtype.itemsize else np.zeros(0, np.uint32)
    if bad := codes[(codes > _LAST_CODE) | ((codes >= 0xD800) & (codes < 0xE000))].tolist():
        raise ValueError(f"{label} must hold text, but U+{bad[0]:04X} is no character of Unicode.")
    return text


def _native(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Converts a frame to this machine's byte order and to a precision that pandas supports."""
    swapped = {
        name: kind.newbyteorder("=") for name, kind in frame.dtypes.items() if not getattr(kind, "isnative", True)
    }
    return frame.astype(swapped) if swapped else frame


# --- text ----------------------------------------------------------------------------------------------------------


def _read_text(
    raw: bytes, label: str, suffix: str, options: dict[str, Any], mixed: bool
) -> tuple[pandas.DataFrame, bool]:
    _refuse({name: value for name, value in options.items() if name == "key"}, f"{suffix} files")
    frame = _read_fast(raw, label, options, mixed)
    if frame is not None:
        return frame
    content = text.decode(raw, label, options.pop("encoding", None))
    source = text.split_lines(content)
    if not any(line.strip() for line in source.lines):
        raise ValueError(f"{label} is empty.")
    quote = options.get("quotechar") or text.find_quote(source.lines)
    separator = options.pop("sep", None) or options.pop("delimiter", None) or source.separator
    separator = _checked_separator(separator) if separator else text.find_separator(source.lines, quote)
    if set(options) - {"quotechar"}:
        named = {**regular.separator_options(separator), **options}
        return _read_by_pandas("read_csv", io.StringIO(content), label, named, mixed), True
    rows = text.rows(source.lines, separator, quote)
    found = layout.find_layout(rows, source, separator, label, mixed)
    return frames.frame_of_layout(found, label, mixed), found.has_names


def _read_fast(raw: bytes, label: str, options: dict[str, Any], mixed: bool) -> tuple[pandas.DataFrame, bool] | None:
    """Reads a regular table of text by pandas's own parser; returns None for any other table.

    The parser is about ten times faster than reading cell by cell, but it does not report ambiguous values.
    """
    if set(options) - {"quotechar", "sep", "delimiter"}:
        return None
    given = options.get("sep") or options.get("delimiter")
    return regular.read_regular(raw, label, given and _checked_separator(given), options.get("quotechar"), mixed)


def _checked_separator(separator: Any) -> str:
    separator = {"\\t": "\t", r"\s+": " "}.get(separator, separator) if isinstance(separator, str) else separator
    if not isinstance(separator, str) or len(separator) != 1 or separator in "\"'\r\n":
        raise ValueError(f"`sep` must be one character, got {separator!r}.")
    return separator


# --- other formats -------------------------------------------------------------------------------------------------


def _read_by_pandas(function: str, source: Any, label: str, options: dict[str, Any], mixed: bool) -> pandas.DataFrame:
    """Reads a frame by a pandas function, and checks it."""
    import pandas

    try:
        if function == "read_feather":
            _validate_feather(source)
        frame = getattr(pandas, function)(source, **options)
    except ImportError as error:
        raise ImportError(f'{label} needs a package that is not installed: pip install "tfp_ebm[tables]".') from error
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise TypeError(f"pandas.{function} does not take these options: {error}") from error
        raise ValueError(f"{label} cannot be read: {error}") from error
    except Exception as error:  # each engine has its own errors for damaged files
        raise ValueError(f"{label} cannot be read: {reason_of(error)}") from error
    if isinstance(frame, dict):
        raise ValueError(f"{label}: `sheet_name` must name one sheet, got {options.get('sheet_name')!r}.")
    if not isinstance(frame, pandas.DataFrame):
        raise ValueError(f"{label} must hold a table, got {type(frame).__name__}.")
    if function == "read_csv" and options.get("header", 0) is None and "names" not in options:
        frame = frame.set_axis(frames.unique_names([""] * frame.shape[1]), axis=1)
    dtype = options.get("dtype") if mixed else None
    as_given = frozenset(map(str, frame.columns if isinstance(dtype, str | type) else dtype or ()))
    return frames.checked_frame(frame, label, mixed, as_given)


def _validate_feather(source: io.BytesIO) -> None:
    """Raises an error if offsets lead outside the file: Arrow looks only if asked to, and else ends the process."""
    from pyarrow import feather

    feather.read_table(source).validate(full=True)
    source.seek(0)


def _read_other(
    raw: bytes, label: str, suffix: str, options: dict[str, Any], mixed: bool
) -> tuple[pandas.DataFrame, bool]:
    _refuse({name: value for name, value in options.items() if name == "key"}, f"{suffix} files")
    source = io.BytesIO(raw)
    if suffix == ".parquet":
        return _read_by_pandas("read_parquet", source, label, options, mixed), True
    if suffix == ".feather":
        return _read_by_pandas("read_feather", source, label, options, mixed), True
    if suffix in (".json", ".jsonl", ".ndjson"):
        content = text.decode(raw, label)
        if options:
            return _read_by_pandas("read_json", io.StringIO(content), label, options, mixed), True
        return frames.checked_frame(_parsed_json(content, label), label, mixed), True
    if options.keys() - {"sheet_name"}:
        return _read_by_pandas("read_excel", source, label, options, mixed), True
    return _read_sheet(source, label, options.get("sheet_name", 0), mixed)


def _parsed_json(content: str, label: str) -> pandas.DataFrame:
    """Parses JSON of any layout of pandas, or one record per line, since `pandas.read_json` guesses dates."""
    import pandas

    try:
        lines = [line for line in content.splitlines() if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
            return pandas.DataFrame([json.loads(line) for line in lines])
        return _frame_of_json(json.loads(content))
    except RecursionError as error:
        raise ValueError(f"{label} cannot be read: it holds no table, but values nested too deeply.") from error
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"{label} cannot be read: it holds no table: {reason_of(error)}") from error


def _frame_of_json(table: Any) -> pandas.DataFrame:
    """The table in records or columns, or in one of pandas' layouts "split", "table" and "index"."""
    import pandas

    if isinstance(table, dict) and isinstance(table.get("data"), list):
        if {"columns", "data"} <= table.keys() <= {"columns", "index", "data"}:
            return pandas.DataFrame(table["data"], columns=table["columns"])
        if isinstance(table.get("schema"), dict):
            return pandas.DataFrame(table["data"]).drop(columns="index", errors="ignore")
    if isinstance(table, dict) and table and all(isinstance(part, dict) for part in table.values()):
        counted = [str(i) for i in range(len(table))]
        if list(table) == counted and not all(key.isdigit() for part in table.values() for key in part):
            return pandas.DataFrame(list(table.values()))  # rows by their number
    return pandas.DataFrame(table)


def _read_sheet(source: io.BytesIO, label: str, sheet: str | int, mixed: bool) -> tuple[pandas.DataFrame, bool]:
    """Reads the table in a sheet of a workbook; its cells are treated as those of a text file."""
    import pandas

    try:
        with pandas.ExcelFile(source) as book:
            others = [repr(name) for i, name in enumerate(book.sheet_names) if sheet not in (i, name)]
            if others and sheet == 0:
                warnings.warn(
                    f"{label}: the first sheet, {quoted(book.sheet_names[0])}, is read. For another, "
                    + frames.cure(f"sheet_name={others[0]}"),
                    stacklevel=4,
                )
            cells = pandas.read_excel(book, sheet_name=sheet, header=None, dtype=object, na_filter=False)
    except ImportError as error:
        raise ImportError(f'{label} needs a package that is not installed: pip install "tfp_ebm[tables]".') from error
    except Exception as error:
        raise ValueError(f"{label} cannot be read: {reason_of(error)}") from error
    rows = [
        text.Row([_cell_text(value) for value in row], i + 1, i + 1)
        for i, row in enumerate(cells.itertuples(index=False, name=None))
    ]
    filled = [row for row in rows if any(row.cells)]
    found = layout.find_layout(filled, text.Lines([], {}, None), ",", label, mixed)
    return frames.frame_of_layout(found, label, mixed), found.has_names


def _cell_text(value: Any) -> str:
    """Returns the text of a typed cell."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):
        return (
            repr(float(value)) if "e" in repr(float(value)) or np.isinf(value) else f"{float(value)!r}e0"
        )  # with an exponent no point could be one of thousands
    return str(value).strip()
