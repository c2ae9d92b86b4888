"""The rows that a command works on, in the order of the columns that a model knows."""

from __future__ import annotations

import argparse
import warnings
from typing import NamedTuple

import numpy as np

from tfp_ebm.arguments import check_count
from tfp_ebm.datasets.loading import load_named


class Rows(NamedTuple):
    """float32 `[rows, *event]`, and the names of the columns, None where there are none."""

    values: np.ndarray
    columns: tuple[str, ...] | None


def load_rows(options: argparse.Namespace) -> Rows:
    """Loads what `data` names, as the options say."""
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
