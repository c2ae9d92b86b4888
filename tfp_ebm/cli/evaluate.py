"""`evaluate`: energies and log-likelihoods of data under a fitted model."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.arguments import check_data
from tfp_ebm.cli.data import encoded, in_order, load_rows, load_table_frame, named_as
from tfp_ebm.cli.messages import note
from tfp_ebm.cli.runs import check_file, load_run, save_frame, save_rows, to_json
from tfp_ebm.composition import log_prob_of
from tfp_ebm.datasets.loading import default_columns
from tfp_ebm.evaluation import Estimate, grid_log_normalizer
from tfp_ebm.evaluation.estimate import combined, mean_estimate
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.exact_draws import draws_exactly

if TYPE_CHECKING:
    import pandas

# A grid for log Z: half its width in standard deviations of the base, and its cells along each axis.
_GRID_WIDTH, _GRID_CELLS = 7.0, 768


def evaluate(options: argparse.Namespace) -> bool:
    """Runs the command."""
    if options.out is not None:
        check_file(options.out.resolve(), options.overwrite)
    model, columns, encoder = load_run(options.run)
    frame = None
    if encoder is None:
        rows = load_rows(options)
        x = check_data(options.data, in_order(rows, columns, f"`{options.data}`"), model.event_shape)
        columns = columns or rows.columns
    else:
        frame = named_as(encoder, load_table_frame(options))
        x = encoded(encoder, frame, options)
        if encoder.missing == "drop":
            frame = frame[~encoder.missing_rows(frame)]
        if count := int(encoder.violations(frame).sum()):
            note(options, f"{count} rows contradict a constant or a duplicate column of the training table.")
    energies = energies_of(model, x)
    result: dict[str, Any] = {"rows": len(x), **likelihood_of(model, energies)}
    if result["log_likelihood"] is None:
        note(options, "log Z is not known, so there is no log-likelihood; --loss nce learns it.")
    result |= {"loss": mean_loss(model, x), "energy": {"mean": float(energies.mean()), "sd": float(energies.std())}}
    if (path := options.run / "references.npz").exists() and x.ndim == 2:
        result["references"] = _references(path, x, {} if encoder is None else encoder.numbered_supports, options)
    if options.out is not None:
        added = {"energy": energies}
        if result["log_normalizer"] is not None:
            added["log_prob"] = -energies - result["log_normalizer"]
        save_beside(options.out, frame, x, columns, added)
    print(to_json(result))
    return True


def _references(
    path: pathlib.Path, x: np.ndarray, supports: dict[int, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """Returns the log-likelihoods of the rows under the simple densities of a run."""
    from tfp_ebm.cli.judgement import load_references, reference_log_probs

    found = reference_log_probs(load_references(path), x.astype(np.float64), supports, options.seed % 2**32)
    estimates = {name: mean_estimate(values, "the log density") for name, values in found.items()}
    return {
        name: {"log_likelihood": estimate.value, "standard_error": estimate.standard_error}
        for name, estimate in estimates.items()
    }


def energies_of(model: EnergyModel, x: np.ndarray) -> np.ndarray:
    """Returns the energies of rows `[rows]`."""
    if np.isnan(x).any():  # Keras's loops take finite numbers alone
        return -log_prob_of(model, x)
    return np.asarray(model.predict(x, batch_size=1024, verbose=0))


def mean_loss(model: EnergyModel, x: np.ndarray) -> float:
    """Returns the mean of the loss that the model was trained with."""
    if np.isnan(x).any():  # the loss of models of missing cells is the energy
        return float(energies_of(model, x).mean())
    return float(model.evaluate(x, batch_size=1024, verbose=0, return_dict=True)["loss"])


def log_normalizer_of(model: EnergyModel) -> tuple[Estimate, str] | None:
    """Returns log Z of a model and its source, the network, a grid or the loss; None if it is unknown."""
    if draws_exactly(model):
        return Estimate(0.0, 0.0), "network"
    if model.event_shape in ((1,), (2,)):
        center, width = np.asarray(model.base.mean()), _GRID_WIDTH * np.asarray(model.base.stddev())
        return grid_log_normalizer(model, center - width, center + width, num=_GRID_CELLS), "grid"
    if model.log_normalizer is None:
        return None
    return Estimate(float(model.log_normalizer), 0.0), "loss"


def likelihood_of(model: EnergyModel, energies: np.ndarray) -> dict[str, Any]:
    """Returns the mean log-likelihood of rows with its standard error, and log Z; None where log Z is unknown."""
    known = log_normalizer_of(model)
    if known is None:
        return dict.fromkeys(("log_likelihood", "standard_error", "log_normalizer", "log_normalizer_from"))
    log_normalizer, source = known
    mean = mean_estimate(-energies.astype(np.float64), "the energy")
    likelihood = combined(mean, -log_normalizer.value, log_normalizer.standard_error)
    return {
        "log_likelihood": likelihood.value,
        "standard_error": likelihood.standard_error,
        "log_normalizer": log_normalizer.value,
        "log_normalizer_from": source,
    }


def log_normalizer_entries(model: EnergyModel) -> dict[str, Any]:
    """Returns log Z of a model and its source for a report."""
    known = log_normalizer_of(model)
    value, source = (None, None) if known is None else (known[0].value, known[1])
    return {"log_normalizer": value, "log_normalizer_from": source}


def save_beside(
    out: pathlib.Path,
    frame: pandas.DataFrame | None,
    x: np.ndarray,
    columns: tuple[str, ...] | None,
    added: dict[str, np.ndarray],
) -> None:
    """Writes the rows with further columns beside them; a .npy file holds the first of these alone.

    Args:
      out: the file.
      frame: the rows as a table; None for arrays.
      x: the rows as numbers `[rows, *event]`.
      columns: the names of the numbers, or None.
      added: the further columns by name.
    """
    import pandas

    out = out.resolve()
    if out.suffix.lower() == ".npy":
        save_rows(out, next(iter(added.values())), ())
        return
    if frame is None:
        frame = pandas.DataFrame(x.reshape(len(x), -1), columns=list(columns or default_columns(x.shape[1:])))
    given = list(map(str, frame.columns))
    save_frame(out, frame.assign(**{_free(name, given): values for name, values in added.items()}))


def _free(name: str, names: list[str]) -> str:
    return name if name not in names else f"model {name}"
