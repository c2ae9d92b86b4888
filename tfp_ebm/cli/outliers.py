"""`outliers`: p-values of rows under a fitted model, by calibration rows that it was not trained on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_data, check_share
from tfp_ebm.cli.data import in_order, load_rows, load_table_frame, named_as
from tfp_ebm.cli.evaluate import save_beside
from tfp_ebm.cli.messages import note
from tfp_ebm.cli.runs import Run, check_file, load_run, to_json
from tfp_ebm.outliers import conformal_p_values, row_statistics, threshold_of

if TYPE_CHECKING:
    import pandas


class _Scored(NamedTuple):
    """Rows of a file, as a table or as numbers with names, and the statistic of each."""

    frame: pandas.DataFrame | None
    x: np.ndarray
    columns: tuple[str, ...] | None
    statistics: np.ndarray


def outliers(options: argparse.Namespace) -> bool:
    """Runs the command."""
    rate = check_share("--rate", options.rate)
    if options.out is not None:
        check_file(options.out.resolve(), options.overwrite)
    run = load_run(options.run)
    # another seed, so that toy data differ, and the noise of whole numbers
    other = {**vars(options), "data": options.calibration, "seed": options.seed + 1}
    calibration = _scored(run, argparse.Namespace(**other)).statistics
    limit = threshold_of(calibration, rate)
    frame, x, columns, statistics = _scored(run, options)
    p_values = conformal_p_values(calibration, statistics)
    result: dict[str, Any] = {
        "rows": len(statistics),
        "calibration_rows": len(calibration),
        "rate": rate,
        "threshold": limit,
        "outliers": int((p_values <= rate).sum()),
    }
    if options.out is not None:
        save_beside(options.out, frame, x, columns, {"p_value": p_values, "statistic": statistics})
    print(to_json(result))
    return True


def _scored(run: Run, options: argparse.Namespace) -> _Scored:
    """Reads the rows that `data` names as `evaluate` does, and computes their statistics."""
    model, columns, encoder = run
    if encoder is None:
        rows = load_rows(options)
        x = check_data(options.data, in_order(rows, columns, f"`{options.data}`"), model.event_shape)
        return _Scored(None, x, columns or rows.columns, row_statistics(model, x, name=options.data))
    frame = named_as(encoder, load_table_frame(options))
    if encoder.missing == "drop":
        is_incomplete = ~encoder.unknown_rows(frame)
        is_incomplete[is_incomplete] = encoder.missing_rows(frame[is_incomplete])
        if count := int(is_incomplete.sum()):
            note(options, f"`{options.data}`: {count} rows have missing cells and are left out.")
        frame = frame[~is_incomplete]
    statistics = row_statistics(model, frame, seed=options.seed, name=options.data)
    return _Scored(frame, np.empty((len(frame), 0)), None, statistics)
