"""Checks of data frames for `TableEncoder`: names, kinds given by the user, missing cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.arguments import check_choice, is_frame
from tfp_ebm.caller import warn
from tfp_ebm.datasets.cells import quoted, shown_list
from tfp_ebm.datasets.kinds import KINDS, no_value

if TYPE_CHECKING:
    import pandas


def named_frame(frame: Any) -> tuple[list[Any], pandas.DataFrame]:
    """Returns the names of the columns as they are, and the frame with names of type str."""
    import pandas

    if not is_frame(frame):
        raise TypeError(f"`frame` must be a pandas.DataFrame, got {type(frame).__name__}.")
    labels = [label.item() if isinstance(label, np.generic) else label for label in frame.columns]
    other = next((label for label in labels if not isinstance(label, str | int)), None)
    if other is not None or isinstance(frame.columns, pandas.MultiIndex):
        raise TypeError(f"`frame` must have names of columns of type str or int, got {quoted(other)}.")
    names = [str(label) for label in labels]
    repeated = [name for i, name in enumerate(names) if name in names[:i]] if len(set(names)) < len(names) else []
    if repeated or not names:
        raise ValueError(f"`frame` must have columns with different names, got {shown_list(repeated) or 'no column'}.")
    return labels, frame.set_axis(names, axis=1)


def checked_kinds(kinds: Mapping[str, str] | None, names: list[str]) -> dict[str, str]:
    """Returns the kinds of columns that the user gave; raises if a column or a kind is unknown."""
    if kinds is None:
        return {}
    if not isinstance(kinds, Mapping):
        raise TypeError(f"`kinds` must be a dict from names of columns to kinds, got {kinds!r}.")
    given = {str(name): kind for name, kind in kinds.items()}
    for name, kind in given.items():
        if name not in names:
            raise ValueError(f"`kinds` must name columns of the table, got {quoted(name)}; it has {shown_list(names)}.")
        check_choice(f"kinds[{quoted(name)}]", kind, KINDS)
    return given


def without_missing(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Returns the rows of a table without missing cells, and warns of the others."""
    for name in frame.columns:
        if len(frame) and frame[name].isna().all():
            raise no_value(name, len(frame))
    missing = frame.isna().to_numpy().any(axis=1)
    if missing.any():
        warn(f"`frame`: {missing.sum()} of {len(frame)} rows have missing cells and are left out.")
    return frame[~missing].reset_index(drop=True)


def refuse_missing(missing: dict[str, np.ndarray], rows: int) -> None:
    """Raises ValueError if cells are missing, with their number and the first places."""
    at = np.stack(list(missing.values()), axis=1)
    if not at.any():
        return
    names = list(missing)
    places = [f"row {row + 1}, column {quoted(names[i])}" for row, i in np.argwhere(at)[:3]]
    raise ValueError(
        f"`frame` has {at.sum()} missing cell(s) in {at.any(axis=1).sum()} of {rows} rows, the first in "
        f"{'; '.join(places)}. Fill them in, or choose missing='drop' (leave out these rows) or missing='model'."
    )
