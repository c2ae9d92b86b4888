"""The rows that a command works on: arrays of numbers, and tables with columns of several kinds."""

from __future__ import annotations

import argparse
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_count
from tfp_ebm.cli.options import TOYS
from tfp_ebm.datasets.columns import TableEncoder
from tfp_ebm.datasets.loading import as_float32, load_frame, load_named
from tfp_ebm.datasets.tables import is_array_file

if TYPE_CHECKING:
    import pandas


class Rows(NamedTuple):
    """The data of a command.

    Attributes:
      values: float32 `[rows, *event]`, as a model takes them.
      columns: names of the columns of `values`; None where there are none.
      frame: the table as it was read; None for arrays and toy data.
      encoder: maps the table to `values`; None where there is no table.
    """

    values: np.ndarray
    columns: tuple[str, ...] | None
    frame: pandas.DataFrame | None = None
    encoder: TableEncoder | None = None

    @property
    def supports(self) -> dict[int, np.ndarray]:
        """The values of the columns that take a few, by number of the column."""
        return {} if self.encoder is None else self.encoder.numbered_supports


def named_as(encoder: TableEncoder, frame: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a table under the names of an encoder where these are only numbers of columns."""
    labels = [str(label) for label in encoder.labels]
    unnamed = labels == [f"column {i + 1}" for i in range(len(labels))]
    return frame.set_axis(labels, axis=1) if unnamed and frame.shape[1] == len(labels) else frame


def load_rows(options: argparse.Namespace) -> Rows:
    """Loads the numbers that `data` names, as the options specify."""
    given = options.read or {}
    return Rows(
        *load_named(
            options.data,
            options.key,
            options.delimiter,
            options.dequantize,
            n=check_count("--rows", options.rows),
            seed=options.seed,
            **given,
        )
    )


def is_named(options: argparse.Namespace) -> bool:
    """Returns whether the data are a toy distribution or the digits, and not a file."""
    return options.data in (*TOYS, "digits")


def load_table_frame(options: argparse.Namespace) -> pandas.DataFrame:
    """Reads the file that `data` names as a table with columns of several kinds."""
    if options.dequantize:
        raise ValueError("`--dequantize` is for numbers alone; whole numbers in a table are spread by themselves.")
    return load_frame(options.data, options.key, options.delimiter, **(options.read or {}))


def load_mixed(options: argparse.Namespace) -> Rows:
    """Loads a file for a density of columns of several kinds; an array with more than two axes as `load_rows` does."""
    if options.dequantize or (is_array_file(options.data) and options.missing == "refuse"):
        rows = load_rows(options)
        if rows.values.ndim != 2 or options.dequantize:
            return rows
    frame = load_table_frame(options)
    encoder = TableEncoder.fit(frame, kinds=dict(options.kind or ()), missing=options.missing)
    if options.missing == "drop":
        frame = frame[~encoder.missing_rows(frame)].reset_index(drop=True)
    return Rows(encoded(encoder, frame, options), encoder.names, frame, encoder)


def encoded(encoder: TableEncoder, frame: pandas.DataFrame, options: argparse.Namespace) -> np.ndarray:
    """Returns the numbers of a table, float32 `[rows, columns]`; NaN where a cell is missing."""
    return as_float32(encoder.encode(frame, options.seed), encoder.names, f"`{options.data}`")


def in_order(rows: Rows, columns: tuple[str, ...] | None, name: str) -> np.ndarray:
    """Returns the values of the columns that a model was trained on, in its order.

    Args:
      rows: the data; without names its columns are taken as they stand.
      columns: the model's, or None.
      name: of the data, for errors.

    Raises:
      ValueError: if a column of the model is missing.

    >>> in_order(Rows(np.array([[1.0, 2.0]]), ("b", "a")), ("a", "b"), "`x.csv`").tolist()
    [[2.0, 1.0]]
    """
    if columns is None or rows.columns is None:
        return rows.values
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise ValueError(
            f"{name} must have the columns that the model was trained on; missing: {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(repr, rows.columns[:20]))}."
        )
    others = [column for column in rows.columns if column not in columns]
    if others:
        warnings.warn(f"{name}: the model does not know {', '.join(map(repr, others))}; left out.", stacklevel=2)
    return rows.values[:, [rows.columns.index(column) for column in columns]]


def decoded(encoder: TableEncoder, values: Any) -> pandas.DataFrame:
    """Returns rows of numbers as a table in its own kinds; rows with infinite numbers are left out."""
    values = np.asarray(values, np.float64)
    return (encoder.with_missing() if np.isnan(values).any() else encoder).decode(values[~np.isinf(values).any(1)])
