"""One door to all data: a name or a file becomes finite float32 numbers with names for their columns."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_data
from tfp_ebm.datasets.draws import TOY_NAMES, TOYS, dequantize_whole, digits
from tfp_ebm.datasets.readers import read_csv, read_numpy


class Table(NamedTuple):
    """Data and what its coordinates are called.

    Attributes:
      values: float32 `[rows, *event]`.
      columns: one name for each coordinate of a row, in the order of `values.reshape(rows, -1)`.
    """

    values: np.ndarray
    columns: tuple[str, ...]


def load(
    path_or_name: str | os.PathLike[str],
    key: str | None = None,
    delimiter: str | None = None,
    dequantize: bool = False,
    n: int = 50_000,
    seed: Any = 0,
) -> np.ndarray:
    """Data by name (a toy distribution, `digits`) or from a `.npy`, `.npz` or `.csv` file, as float32 `[rows, ...]`.

    A `.csv` file is UTF-8 text of one row a line. Its delimiter (comma, semicolon, tab, bar or spaces) is found from
    the first lines; the first line is a header if none of its cells is a number.

    Args:
      path_or_name: one of `TOY_NAMES`, "digits", or a path.
      key: the array's name in a `.npz` file that holds several.
      delimiter: one character that separates the cells of a `.csv` file, instead of the one found.
      dequantize: add U(0, 1) to every number of data that are all whole numbers, digits included (which are then also
        divided by 17).
      n: number of points drawn from a toy distribution; files are read whole.
      seed: an int or int32[2], for the toys and for the dequantisation.

    Returns:
      float32 `[rows, *event]`.

    Raises:
      FileNotFoundError: if there is neither such a name nor such a file.
      TypeError: if an argument, or the numbers in the file, are of the wrong type.
      ValueError: if the file is damaged, empty, ragged, not numeric, not finite, constant throughout, or needs more
        than float32's precision: the error says which, and where.

    >>> load("two_moons", n=100).shape
    (100, 2)
    """
    return load_table(path_or_name, key, delimiter, dequantize, n, seed).values


def load_table(
    path_or_name: str | os.PathLike[str],
    key: str | None = None,
    delimiter: str | None = None,
    dequantize: bool = False,
    n: int = 50_000,
    seed: Any = 0,
) -> Table:
    """As `load`, with the names of the columns: the header's, or "column 1", "column 2", ….

    Args:
      path_or_name: as for `load`, like all other arguments.
      key: as for `load`.
      delimiter: as for `load`.
      dequantize: as for `load`.
      n: as for `load`.
      seed: as for `load`.

    Returns:
      A `Table`.

    Raises:
      FileNotFoundError: as `load`.
      TypeError: as `load`.
      ValueError: as `load`.

    >>> load_table("banana", n=10).columns
    ('column 1', 'column 2')
    """
    if not isinstance(path_or_name, str | os.PathLike):
        raise TypeError(f"`path_or_name` must be a name or a path, got {path_or_name!r}.")
    name = os.fspath(path_or_name)
    path = Path(name)
    suffix = path.suffix.lower()
    for option, given, needed in (("key", key, ".npz"), ("delimiter", delimiter, ".csv")):
        if given is not None and suffix != needed:
            raise ValueError(f"`{option}` is for {needed} files, got {option}={given!r} with {name!r}.")

    if name in TOYS:
        if dequantize:
            raise ValueError(f"`dequantize` is for whole numbers, and {name} has a density already.")
        values = TOYS[name](n, seed)
        return Table(values, _default_columns(values))
    if name == "digits":
        values = digits(dequantize, seed)
        return Table(values, _default_columns(values))

    label = f"path_or_name={name!r}"
    if not path.is_file():
        known = ", ".join([*TOY_NAMES, "digits"])
        raise FileNotFoundError(f"`{label}` is neither a file nor a known name; the names are {known}.")
    columns: tuple[str, ...] = ()
    if suffix == ".csv":
        raw, columns = read_csv(path, label, delimiter)
    elif suffix in (".npy", ".npz"):
        raw = read_numpy(path, label, key)
    else:
        raise ValueError(f"`{label}` must be a .npy, .npz or .csv file, got the suffix {suffix!r}.")
    raw = check_data(label, raw)
    columns = columns or _default_columns(raw)
    if (raw == raw[0]).all():
        raise ValueError(f"`{label}` must hold at least two different rows, got {len(raw)} equal ones.")
    if dequantize:
        if not (raw == np.floor(raw)).all():
            raise ValueError(f"`dequantize` is for whole numbers, and `{label}` holds others.")
        raw = dequantize_whole(raw, seed)
    return Table(_as_float32(raw, columns, label), columns)


def _default_columns(values: np.ndarray) -> tuple[str, ...]:
    """ "column 1", "column 2", … for rows of numbers; "entry [i, j]" for rows of another shape."""
    if values.ndim == 2:
        return tuple(f"column {i + 1}" for i in range(values.shape[1]))
    return tuple(f"entry {list(index)}" for index in np.ndindex(values.shape[1:]))


def _as_float32(raw: np.ndarray, columns: tuple[str, ...], label: str) -> np.ndarray:
    """`raw` in float32, if float32 resolves it.

    A column whose numbers are large beside their spread, such as 1e6 ± 1e-3, would arrive on a few steps. A model would
    learn the steps and nobody would know, so it is an error: the user subtracts the offset, or drops the column.
    """
    if np.can_cast(raw.dtype, np.float32):
        return raw.astype(np.float32)
    rows: np.ndarray = raw.reshape(len(raw), -1).astype(np.float64)
    with np.errstate(over="ignore"):  # what overflows is infinitely rounded, and reported so
        values: np.ndarray = raw.astype(np.float32)
        spread, mean = rows.std(axis=0), rows.mean(axis=0)
        loss = np.sqrt(np.mean((values.reshape(rows.shape) - rows) ** 2, axis=0))
    coarse = (loss > 1e-3 * spread) & (rows != rows[0]).any(axis=0)
    lossy = np.flatnonzero(coarse | np.isinf(loss))
    if len(lossy):
        i = lossy[0]
        raise ValueError(
            f"`{label}` needs more than float32's precision in {columns[i]!r}: its numbers, {mean[i]:.9g} ± "
            f"{spread[i]:.3g}, would be rounded by {loss[i]:.2g}. Subtract its mean or change its unit first."
        )
    return values
