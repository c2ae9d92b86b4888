"""How good a run is: its model beside simple densities on rows held out, its samples beside these rows."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.cli.data import Rows, decoded
from tfp_ebm.cli.evaluate import log_normalizer_of
from tfp_ebm.cli.table_report import table_report
from tfp_ebm.composition import log_prob_of
from tfp_ebm.datasets.loading import default_columns
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.evaluation.references import References, fit_references
from tfp_ebm.files import DAMAGED, load_arrays
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.recipes.density_units import Units, dequantized, log_cell_volumes

# Rows that the simple densities are fitted to, at most.
_MAX_ROWS = 20_000
# What the report has on a column.
_OF_COLUMN = ("name", "kind", "treatment")


class Judgement(NamedTuple):
    """A report, and the two tables that it compares.

    Attributes:
      report: as `table_report` returns it.
      held_out, samples: data frames, or arrays where the data were no table.
      kinds: the kind of each column of the tables.
      references: the simple densities.
    """

    report: dict[str, Any]
    held_out: Any
    samples: Any
    kinds: list[str]
    references: References


def judge(
    model: EnergyModel,
    rows: Rows,
    train: np.ndarray,
    held_out: np.ndarray,
    samples: np.ndarray,
    sampling: dict[str, Any],
    seed: int,
) -> Judgement:
    """Judges a model of a table.

    Args:
      model: the model of `rows.values`.
      rows: the data.
      train, held_out: numbers of its rows.
      samples: of the model.
      sampling: diagnostics of the samples.
      seed: of fits and of the classifier.
    """
    x: np.ndarray = rows.values.astype(np.float64)
    supports = rows.supports
    judged = x[held_out]
    references = fit_references(dequantized(x[train[:_MAX_ROWS]], supports, seed), seed=seed)
    found = reference_log_probs(references, judged, supports, seed + 1)
    known = log_normalizer_of(model)
    log_prob = None if known is None else log_prob_of(model, judged) - known[0].value
    drawn = references.sample("gaussian_mixture", len(samples), seed=seed)
    if np.isnan(judged).any():
        samples, drawn = (_with_gaps(values, judged, seed) for values in (samples, drawn))
    if rows.encoder is None or rows.frame is None:
        names = rows.columns or default_columns(x.shape[1:])
        columns: list[dict[str, Any]] = [
            {"name": name, "kind": "continuous", "treatment": "modelled as it is"} for name in names
        ]
        tables = judged, samples, drawn
    else:
        columns = [{key: getattr(column, key) for key in _OF_COLUMN} for column in rows.encoder.columns]
        tables = rows.frame.iloc[held_out], decoded(rows.encoder, samples), decoded(rows.encoder, drawn)
    report = table_report(
        tables[0], tables[1], columns, log_prob, found, reference_samples=tables[2], sampling=sampling, seed=seed
    )
    return Judgement(report, tables[0], tables[1], [column["kind"] for column in columns], references)


def reference_log_probs(
    references: References, x: np.ndarray, supports: dict[int, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """Returns the log densities of rows under simple densities, by name, as the model has them.

    In columns of a few values these are log probabilities: a value has that of the cell around it.

    Args:
      references: the simple densities.
      x: rows, `[rows, columns]`.
      supports: the values of the columns that take a few, by number of the column.
      seed: of the places in the cells.
    """
    volumes = log_cell_volumes(x, supports)
    return {name: found + volumes for name, found in references.log_probs(dequantized(x, supports, seed)).items()}


def _with_gaps(samples: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns samples whose cells are missing as often as those of rows, and together as in these."""
    gaps = np.isnan(rows)[np.random.default_rng(seed).integers(len(rows), size=len(samples))]
    return np.where(gaps, np.nan, samples)


def save_references(path: pathlib.Path, references: References) -> None:
    """Writes the simple densities of a run."""
    arrays = {f"units/{name}": np.asarray(value) for name, value in references.units._asdict().items()}
    for name, density in references.densities.items():
        arrays |= {f"{name}/{key}": value for key, value in density._asdict().items()}
    np.savez_compressed(path, **arrays)


def load_references(path: pathlib.Path) -> References:
    """Reads the simple densities of a run; raises ValueError if the file is damaged."""
    try:
        arrays: dict[str, Any] = load_arrays(path)
        units = Units(*(arrays[f"units/{name}"] for name in Units._fields))
        names = dict.fromkeys(key.split("/")[0] for key in arrays if not key.startswith("units/"))
        densities = {
            name: MixtureParameters(*(arrays[f"{name}/{key}"] for key in MixtureParameters._fields)) for name in names
        }
        return References(units, densities)
    except (OSError, *DAMAGED) as error:
        raise ValueError(f"`run` {path.parent}: {path.name} is damaged; without the file, it is left out.") from error
