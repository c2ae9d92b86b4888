"""Loads data sets by name or from a file, as finite float32 numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.arguments import check_data
from tfp_ebm.datasets import frames, tables
from tfp_ebm.datasets.arrays import read_array
from tfp_ebm.datasets.draws import TOY_NAMES, TOYS, dequantize_whole, digits

if TYPE_CHECKING:
    import pandas


def load(
    path_or_name: str | os.PathLike[str],
    key: str | None = None,
    delimiter: str | None = None,
    dequantize: bool = False,
    n: int = 50_000,
    seed: Any = 0,
    **read_options: Any,
) -> np.ndarray:
    """Loads data by name (a toy distribution, `digits`) or from a file, as float32 `[rows, ...]`.

    Args:
      path_or_name: one of `TOY_NAMES`, "digits", or the path of a file: any file that `load_table` reads, or a `.npy`
        or `.npz` file with an array of any number of axes.
      key: the name of the array in a `.npz` file with several arrays, or of the file in a `.zip` archive.
      delimiter: one character that separates the cells of a text file; default: detected.
      dequantize: whether to add U(0, 1) to every number. Allowed for whole numbers only, including the digits, which
        are then also divided by 17.
      n: number of points drawn from a toy distribution; a file is read completely.
      seed: an int or int32[2], for the toy distributions and for the dequantisation.
      **read_options: see `load_table`.

    Returns:
      float32 `[rows, *event]`.

    Raises:
      FileNotFoundError: if `path_or_name` is neither a known name nor a file.
      TypeError: if an argument, or the numbers in the file, are of the wrong type.
      ValueError: as for `load_table`; or if all rows are equal, or a column needs more precision than float32 has (the
        error names the column).

    >>> load("two_moons", n=100).shape
    (100, 2)
    """
    return load_named(path_or_name, key, delimiter, dequantize, n, seed, **read_options)[0]


def load_named(
    path_or_name: str | os.PathLike[str],
    key: str | None = None,
    delimiter: str | None = None,
    dequantize: bool = False,
    n: int = 50_000,
    seed: Any = 0,
    **read_options: Any,
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Loads data as `load` does; also returns the names of the columns, or None if the data have no names."""
    name, read_options = _place(path_or_name, key, delimiter, read_options)
    if name in TOYS or name == "digits":
        if name == "digits":
            return digits(dequantize, seed), None
        if dequantize:
            raise ValueError(f"`dequantize` is for whole numbers, and {name} has a density already.")
        return TOYS[name](n, seed), None
    label = tables.content_label(name)
    values, columns = _values(name, label, read_options)
    if (values == values[0]).all():
        raise ValueError(f"{label} must hold at least two different rows, got {len(values)} equal ones.")
    if dequantize:
        if not (values == np.floor(values)).all():
            raise ValueError(f"`dequantize` is for whole numbers, and {label} holds others.")
        values = dequantize_whole(values, seed)
    return as_float32(values, columns, label), columns


def load_frame(
    path_or_name: str | os.PathLike[str],
    key: str | None = None,
    delimiter: str | None = None,
    n: int = 50_000,
    seed: Any = 0,
    **read_options: Any,
) -> pandas.DataFrame:
    """Loads a table by name or from a file, with columns of text, truth values and missing cells, for `TableEncoder`.

    Args:
      path_or_name: one of `TOY_NAMES`, "digits", or the path of a file that `load_table` reads.
      key: the name of the array in a `.npz` file with several arrays, or of the file in a `.zip` archive.
      delimiter: one character that separates the cells of a text file; default: detected.
      n: number of points drawn from a toy distribution; a file is read completely.
      seed: an int or int32[2], for the toy distributions.
      **read_options: see `load_table`.

    Returns:
      A `pandas.DataFrame`; columns without names are "column 1", "column 2", ….

    Raises:
      FileNotFoundError: if `path_or_name` is neither a known name nor a file.
      TypeError: if an argument, or the numbers in the file, are of the wrong type.
      ValueError: as for `load_table(path, mixed=True)`; or if an array does not have two axes.

    >>> load_frame("two_moons", n=100).columns.tolist()
    ['column 1', 'column 2']
    """
    name, read_options = _place(path_or_name, key, delimiter, read_options)
    if name in TOYS or name == "digits":
        values = digits(dequantize=False) if name == "digits" else TOYS[name](n, seed)
        return tables.frame_of_array(values, name)[0]
    return tables.load_table(name, mixed=True, **_options_of(name, read_options))


def _place(
    path_or_name: str | os.PathLike[str], key: str | None, delimiter: str | None, read_options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Returns a known name or the path of a file, and the options of the file; raises if it is neither."""
    if not isinstance(path_or_name, str | os.PathLike):
        raise TypeError(f"`path_or_name` must be a name or a path, got {path_or_name!r}.")
    name = os.fspath(path_or_name)
    if name in TOYS or name == "digits":
        for option, given in {"key": key, "delimiter": delimiter, **read_options}.items():
            if given is not None:
                raise ValueError(f"`{option}` is for files, got {option}={given!r} with {name!r}.")
    elif not Path(name).is_file():
        known = ", ".join([*TOY_NAMES, "digits"])
        raise FileNotFoundError(f"{name!r} is neither a file nor a known name; the names are {known}.")
    given = {"key": key, "sep": delimiter}
    return name, read_options | {option: value for option, value in given.items() if value is not None}


def _options_of(name: str, read_options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a file; raises ValueError if the file has none of that name."""
    suffix = Path(name).suffix.lower()
    if tables.is_array_file(name):
        needless = next((option for option in read_options if option != "key" or suffix == ".npy"), None)
        if needless is not None:
            raise ValueError(f"`{'delimiter' if needless == 'sep' else needless}` is not for {suffix} files.")
    elif "key" in read_options and suffix != ".zip":
        raise ValueError(f"`key` is for .npz and .zip files, got key={read_options['key']!r} with {name!r}.")
    return read_options


def _values(name: str, label: str, read_options: dict[str, Any]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Returns the numbers of a file, unconverted, and the names of their columns."""
    _options_of(name, read_options)
    if tables.is_array_file(name):
        suffix = Path(name).suffix.lower()
        array = read_array(Path(name).read_bytes(), suffix, label, read_options.get("key"))
        if array.dtype.names is None:
            array = check_data(label.strip("`"), array)
            if array.ndim == 2:
                frames.warn_of_habits(tables.frame_of_array(array, label)[0], label, has_names=False)
            return array, None
    frame = tables.load_table(name, **read_options)
    return frame.to_numpy(), tuple(frame.columns) if tables.named(frame) else None


def default_columns(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Returns default names of the coordinates: "column 1", …, or "entry [i, j]" for rows with several axes.

    >>> default_columns((2,)), default_columns((1, 2))
    (('column 1', 'column 2'), ('entry [0, 0]', 'entry [0, 1]'))
    """
    if len(shape) == 1:
        return tuple(f"column {i + 1}" for i in range(shape[0]))
    return tuple(f"entry {list(index)}" for index in np.ndindex(shape))


def as_float32(raw: np.ndarray, columns: tuple[str, ...] | None, label: str) -> np.ndarray:
    """Returns `raw` as float32, or raises if the precision of float32 is too low for it.

    Numbers that are large compared with their spread, such as 1e6 ± 1e-3, would be rounded to a few values, and a model
    would learn these values. This is an error; the user can subtract the offset or leave out the column.
    """
    if np.can_cast(raw.dtype, np.float32):
        return raw.astype(np.float32)
    rows: np.ndarray = raw.reshape(len(raw), -1).astype(np.float64)
    with np.errstate(over="ignore"):  # an overflow counts as an infinite rounding error and is reported below
        values: np.ndarray = raw.astype(np.float32)
        spread, mean = rows.std(axis=0), rows.mean(axis=0)
        loss = np.sqrt(np.mean((values.reshape(rows.shape) - rows) ** 2, axis=0))
    coarse = (loss > 1e-3 * spread) & (rows != rows[0]).any(axis=0)
    lossy = np.flatnonzero(coarse | np.isinf(loss))
    if len(lossy):
        i = lossy[0]
        name = (columns or default_columns(raw.shape[1:]))[i]
        raise ValueError(
            f"{label} needs more than float32's precision in {name!r}: its numbers, {mean[i]:.9g} ± {spread[i]:.3g}, "
            f"would be rounded by {loss[i]:.2g}. Subtract its mean or change its unit first."
        )
    return values
