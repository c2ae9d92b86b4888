"""Maps data frames with columns of several kinds to arrays of numbers, and back.

**Whole numbers with many values** have no density. Noise from U(−½, ½) spreads each number over its own unit cell, and
rounding removes the noise again; the mean of a log density over the cell is a lower bound on the number's
log-probability (Theis, van den Oord & Bethge, A note on the evaluation of generative models, 2016,
https://arxiv.org/abs/1511.01844). Ratings, booleans and categories keep their values, for a model of probabilities.

**Determined columns** are left out of the array: constants, and columns that equal others or are linear combinations of
them, which have no density beside the others. They are computed from the others when an array is decoded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfp_ebm import random
from tfp_ebm.arguments import check_choice
from tfp_ebm.caller import warn
from tfp_ebm.datasets.cells import quoted, shown_list
from tfp_ebm.datasets.coding import computed, fill, recoded, rounded, spread_whole
from tfp_ebm.datasets.decoding import decoded_series
from tfp_ebm.datasets.dependence import dependences
from tfp_ebm.datasets.frame_checks import checked_kinds, named_frame, refuse_missing, without_missing
from tfp_ebm.datasets.kinds import Column, Content, describe, read_column

if TYPE_CHECKING:
    import pandas

MISSING = ("refuse", "drop", "model")
_FORMAT = 1


@keras.saving.register_keras_serializable("tfp_ebm")
class TableEncoder:
    """Maps a data frame with columns of several kinds to float64 numbers `[rows, size]`, and back.

    `TableEncoder.fit` finds the kind of each column:

    - "continuous": numbers, encoded as they are.
    - "whole": whole numbers with many values. Encoding adds noise from U(−½, ½); decoding rounds.
    - "rating": numbers with few distinct values, each in several rows: up to 64 whole numbers or 12 others, or up to
      128, each in 50 rows. Decoding returns the nearest of the values.
    - "boolean" and "category": encoded as codes 0, 1, …; decoded to the labels.
    - "constant": all rows are equal. Not encoded; decoding puts the value back.
    - "duplicate": equal to an earlier column, or an exact linear combination of earlier columns of numbers. Not
      encoded; decoding computes it.

    Args:
      columns: descriptions of all columns, in the order of the frame.
      missing: how missing cells are treated, see `fit`.
      labels: the names of the columns in decoded frames; default: those in `columns`.

    Attributes:
      columns: descriptions of all columns: `name`, `kind`, `dtype`, `levels`, `support`, and `treatment`, one sentence.
      names: the names of the encoded columns.
      supports: a dict from the names of encoded ratings, booleans and categories to their values, sorted.
      allows_missing: whether encoded arrays hold NaN for missing cells.

    >>> import pandas
    >>> frame = pandas.DataFrame({"size": [1.5, 2.5, 0.25], "colour": ["red", "blue", "red"], "year": [2024] * 3})
    >>> encoder = TableEncoder.fit(frame)
    >>> [column.kind for column in encoder.columns]
    ['continuous', 'category', 'constant']
    >>> encoder.encode(frame).tolist()
    [[1.5, 0.0], [2.5, 1.0], [0.25, 0.0]]
    >>> encoder.decode([[0.75, 1.0]])
       size colour  year
    0  0.75   blue  2024
    """

    def __init__(self, columns: tuple[Column, ...], missing: str = "refuse", labels: Any = None) -> None:
        self.columns = tuple(columns)
        self.missing = check_choice("missing", missing, MISSING)
        self.labels = tuple(labels) if labels is not None else tuple(column.name for column in self.columns)
        self._kept = tuple(column for column in self.columns if column.kind not in ("constant", "duplicate"))
        self._duplicates = tuple(column for column in self.columns if column.kind == "duplicate")
        self._by_name = {column.name: column for column in self.columns}

    def __repr__(self) -> str:
        shown = ", ".join(f"{quoted(column.name)}: {column.kind}" for column in self.columns[:20])
        return f"TableEncoder({{{shown}{', …' if len(self.columns) > 20 else ''}}}, missing={self.missing!r})"

    @classmethod
    def fit(
        cls, frame: pandas.DataFrame, kinds: Mapping[str, str] | None = None, missing: str = "refuse"
    ) -> TableEncoder:
        """Finds the kinds of the columns of a training table.

        Args:
          frame: a `pandas.DataFrame` of at least two rows; its index is ignored.
          kinds: kinds of columns by name, where they are not to be found.
          missing: "refuse" raises an error for missing cells; "drop" leaves out their rows; "model" encodes them as
            NaN, except where another column determines the cell.

        Returns:
          A `TableEncoder`.

        Raises:
          TypeError: if `frame` is no data frame, or a column holds complex numbers, or objects of several types.
          ValueError: if cells are missing and `missing` is "refuse"; if all cells of a column are missing; if a column
            holds infinities, dates, a different text in each row, or more than 1000 levels; if a column cannot be of
            the kind given; or if all columns are constant.

        Warns:
          UserWarning: of rows that are left out, and of columns that others determine.

        >>> import pandas
        >>> frame = pandas.DataFrame({"a": [1, 2, 4, 7], "b": [2, 4, 8, 14]})
        >>> TableEncoder.fit(frame, kinds={"a": "category", "b": "continuous"}).columns[0].levels
        (1, 2, 4, 7)
        """
        check_choice("missing", missing, MISSING)
        labels, frame = named_frame(frame)
        given = checked_kinds(kinds, list(frame.columns))
        if missing == "drop":
            frame = without_missing(frame)
        if len(frame) < 2:
            raise ValueError(f"`frame` must have at least two rows, got {len(frame)}.")
        contents = {name: read_column(name, frame[name]) for name in frame.columns}
        columns = {}
        for name, content in contents.items():
            kind = given.get(name)
            columns[name] = describe(name, content, None if kind == "duplicate" else kind, missing)
        if missing == "refuse":
            refuse_missing({name: np.isnan(content.values) for name, content in contents.items()}, len(frame))
        fixed = frozenset(name for name, kind in given.items() if kind != "duplicate")
        found = dependences(columns, contents, fixed)
        for name, kind in given.items():
            if kind == "duplicate" and name not in found:
                raise ValueError(
                    f"`kinds`: column {quoted(name)} cannot be a duplicate, no earlier columns determine it."
                )
        for name, parts in found.items():
            tolerance = 1e-5 * float(np.nanstd(contents[name].values)) if columns[name].levels is None else 0.0
            columns[name] = dataclasses.replace(
                columns[name],
                kind="duplicate",
                treatment=parts.treatment(),
                sources=parts.sources,
                intercept=parts.intercept,
                tolerance=tolerance,
            )
        if found:
            told = [f"{quoted(name)} is {parts.treatment()}" for name, parts in found.items()]
            warn(f"`frame`: other columns determine {len(found)} column(s): {shown_list(told, '; ')}.")
        if all(column.kind == "constant" for column in columns.values()):
            raise ValueError("`frame` must have a column that varies; all its rows are equal.")
        return cls(tuple(columns.values()), missing, labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the encoded columns."""
        return tuple(column.name for column in self._kept)

    @property
    def supports(self) -> dict[str, np.ndarray]:
        """The values of encoded ratings, booleans and categories, sorted, by name of the column."""
        return {column.name: np.array(column.support) for column in self._kept if column.support is not None}

    @property
    def numbered_supports(self) -> dict[int, np.ndarray]:
        """The same values by number of the encoded column, as `fit_density(kinds=)` takes them."""
        return {self.names.index(name): values for name, values in self.supports.items()}

    @property
    def allows_missing(self) -> bool:
        """Whether encoded arrays hold NaN for missing cells."""
        return self.missing == "model"

    def with_missing(self) -> TableEncoder:
        """Returns an encoder of the same columns that lets cells be missing."""
        return TableEncoder(self.columns, "model", self.labels)

    def encode(self, frame: pandas.DataFrame, seed: Any = 0) -> np.ndarray:
        """Returns the numbers of a table.

        Args:
          frame: a `pandas.DataFrame` with the encoded columns, in any order. Constant and duplicate columns may be
            left out; duplicates fill missing cells of the columns that they are computed from.
          seed: an int or int32[2], for the noise that is added to whole numbers.

        Returns:
          float64 `[rows, size]`, NaN where cells are missing. With `missing="drop"`, only the rows without missing
          cells, see `missing_rows`.

        Raises:
          TypeError: if `frame` is no data frame, or a column of numbers holds text.
          ValueError: if columns are absent; if cells are missing and `missing` is "refuse"; if a label was not in the
            training table; if a column of whole numbers holds others.

        Warns:
          UserWarning: of columns that were not in the training table, and of rows that are left out.

        >>> import pandas
        >>> frame = pandas.DataFrame({"n": range(100), "x": np.linspace(0.0, 1.0, 100) ** 2})
        >>> encoder = TableEncoder.fit(frame)
        >>> x = encoder.encode(frame, seed=1)
        >>> bool((np.abs(x[:, 0] - frame["n"]) < 0.5).all()), bool((x[:, 1] == frame["x"]).all())
        (True, True)
        """
        key = random.stateless_seed(seed)
        values = self._values(frame)
        missing = np.stack([np.isnan(values[column.name]) for column in self._kept], axis=1)
        if self.missing == "refuse":
            refuse_missing(dict(zip(self.names, missing.T, strict=True)), len(missing))
        encoded = np.stack([values[column.name] for column in self._kept], axis=1)
        for i, column in enumerate(self._kept):
            if column.kind == "whole":
                encoded[:, i] = spread_whole(encoded[:, i], random.fold_in(key, i))
        if self.missing == "drop" and missing.any():
            dropped = missing.any(axis=1)
            warn(f"`frame`: {dropped.sum()} of {len(dropped)} rows have missing cells and are left out.")
            encoded = encoded[~dropped]
        return encoded

    def missing_rows(self, frame: pandas.DataFrame) -> np.ndarray:
        """Returns, for each row of a table, whether a cell is missing that other columns do not determine.

        These are the rows that `encode` leaves out with `missing="drop"`.

        >>> import pandas
        >>> encoder = TableEncoder.fit(pandas.DataFrame({"a": [1.5, 2.0, 7.0]}), missing="drop")
        >>> encoder.missing_rows(pandas.DataFrame({"a": [1.0, None]})).tolist()
        [False, True]
        """
        values = self._values(frame)
        return np.stack([np.isnan(values[name]) for name in self.names]).any(axis=0)

    def unknown_rows(self, frame: pandas.DataFrame) -> np.ndarray:
        """Returns, for each row of a table, whether `encode` refuses a cell of it.

        Such cells hold a label that was not in the training table, or a broken number in a column of whole numbers.

        >>> import pandas
        >>> encoder = TableEncoder.fit(pandas.DataFrame({"colour": ["red", "blue", "red"]}))
        >>> encoder.unknown_rows(pandas.DataFrame({"colour": ["blue", "green"]})).tolist()
        [False, True]
        """
        bad: np.ndarray = np.zeros(len(frame), bool)
        for name, content in self._contents(frame).items():
            column = self._by_name[name]
            if column.kind == "constant":  # not encoded
                continue
            values = recoded(column, content, strict=False)
            if column.levels is not None:
                bad |= values == -1
            elif column.kind == "whole":
                bad |= ~np.isnan(values) & (values != np.rint(values))
        return bad

    def violations(self, frame: pandas.DataFrame) -> np.ndarray:
        """Returns, for each row of a table, whether it contradicts a constant or a duplicate of the training table.

        >>> import pandas
        >>> encoder = TableEncoder.fit(pandas.DataFrame({"a": [1.5, 2.0, 7.0], "unit": ["m"] * 3}))
        >>> encoder.violations(pandas.DataFrame({"a": [1.0, 2.0], "unit": ["m", "km"]})).tolist()
        [False, True]
        """
        contents = self._contents(frame)
        bad: np.ndarray = np.zeros(len(frame), bool)
        values = {name: recoded(self._by_name[name], content, False) for name, content in contents.items()}
        for column in self.columns:
            if column.name not in values:
                continue
            own, present = values[column.name], ~np.isnan(contents[column.name].values)
            if column.kind == "constant":
                bad |= present & (own != column.value)
            elif column.kind == "duplicate":
                derived = computed(column, values, self._by_name)
                differ = ~(np.abs(own - derived) <= column.tolerance)
                bad |= present & ~np.isnan(derived) & differ
        return bad

    def decode(self, values: Any) -> pandas.DataFrame:
        """Returns the table of encoded numbers, with the names, the order and the dtypes of the training table.

        Args:
          values: `[rows, size]` numbers; NaN for missing cells.

        Returns:
          A `pandas.DataFrame`. Whole numbers are rounded, and not below 0 if none was in the training table; ratings
          and codes are rounded to the nearest value. An int column with missing cells is returned as Int64, a bool
          column as boolean.

        Raises:
          TypeError: if `values` are not numbers.
          ValueError: if they have another shape, or are infinite.

        >>> import pandas
        >>> encoder = TableEncoder.fit(pandas.DataFrame({"n": [4, 8, 15, 16]}))
        >>> encoder.decode([[22.7], [-3.0]])["n"].tolist()
        [23, 0]
        """
        import pandas

        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"`values` must be numbers, got an array of dtype {array.dtype}.")
        if array.ndim != 2 or array.shape[1] != len(self._kept):
            raise ValueError(f"`values` must have shape [rows, {len(self._kept)}], got {array.shape}.")
        array = array.astype(np.float64)
        infinite = np.argwhere(np.isinf(array))
        if len(infinite):
            row, i = infinite[0]
            raise ValueError(
                f"`values` must be finite or NaN: {len(infinite)} are infinite, the first in row {row + 1}, column "
                f"{quoted(self.names[i])}."
            )
        decoded = {column.name: rounded(column, array[:, i]) for i, column in enumerate(self._kept)}
        series = []
        for column in self.columns:
            if column.kind == "constant":
                decoded[column.name] = np.full(len(array), column.value, np.float64)
            elif column.kind == "duplicate":
                decoded[column.name] = computed(column, decoded, self._by_name)
            series.append(decoded_series(column, decoded[column.name]))
        frame = pandas.concat(series, axis=1)
        return frame.set_axis(pandas.Index(self.labels), axis=1)

    def get_config(self) -> dict[str, Any]:
        """Returns the encoder as a dict of plain types, which JSON can hold.

        >>> import json, pandas
        >>> encoder = TableEncoder.fit(pandas.DataFrame({"a": [1.5, 2.0, 7.0]}))
        >>> TableEncoder.from_config(json.loads(json.dumps(encoder.get_config()))).names
        ('a',)
        """
        columns = [dataclasses.asdict(column) for column in self.columns]
        defaults = {field.name: field.default for field in dataclasses.fields(Column)}
        columns = [{key: value for key, value in column.items() if value != defaults[key]} for column in columns]
        for column in columns:
            for key, value in column.items():
                if isinstance(value, tuple):
                    column[key] = [list(part) if isinstance(part, tuple) else part for part in value]
        return {"format": _FORMAT, "missing": self.missing, "labels": list(self.labels), "columns": columns}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TableEncoder:
        """Returns the encoder that `get_config` described.

        Args:
          config: a dict as returned by `get_config`.

        Raises:
          ValueError: if the dict has another format.
        """
        if config.get("format") != _FORMAT:
            raise ValueError(f"`config` must have format {_FORMAT}, got {config.get('format')!r}.")
        columns = []
        for entry in config["columns"]:
            fields: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
            }
            fields["sources"] = tuple((name, float(weight)) for name, weight in fields.get("sources", ()))
            columns.append(Column(**fields))
        return cls(tuple(columns), config["missing"], config["labels"])

    def _contents(self, frame: pandas.DataFrame) -> dict[str, Content]:
        """Returns the cells of the known columns of a table."""
        _, frame = named_frame(frame)
        absent = [name for name in self.names if name not in frame.columns]
        if absent:
            raise ValueError(
                f"`frame` must have the columns of the training table; missing: {shown_list(absent)}; it has "
                f"{shown_list(list(frame.columns))}."
            )
        others = [name for name in frame.columns if name not in self._by_name]
        if others:
            warn(f"`frame`: {len(others)} column(s) were not in the training table: {shown_list(others)}; left out.")
        return {name: read_column(name, frame[name]) for name in frame.columns if name in self._by_name}

    def _values(self, frame: pandas.DataFrame) -> dict[str, np.ndarray]:
        """Returns the numbers and codes of all columns but constants; duplicates fill missing cells of others."""
        contents = self._contents(frame)
        known = [column for column in self._kept + self._duplicates if column.name in contents]
        values = {column.name: recoded(column, contents[column.name]) for column in known}
        for column in self._duplicates:
            if column.name in values:
                fill(column, values, self._by_name)
        return values
