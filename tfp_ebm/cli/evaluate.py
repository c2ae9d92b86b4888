"""`evaluate`: energies and log-likelihoods of data under a fitted model."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from tfp_ebm.arguments import check_data
from tfp_ebm.cli.data import in_order, load_rows
from tfp_ebm.cli.messages import note
from tfp_ebm.cli.runs import check_file, load_run, save_rows, to_json
from tfp_ebm.datasets.loading import default_columns
from tfp_ebm.evaluation import Estimate, grid_log_normalizer
from tfp_ebm.evaluation.estimate import combined, mean_estimate
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.exact_draws import draws_exactly

# A grid for log Z: half its width in standard deviations of the base, and its cells along each axis.
_GRID_WIDTH, _GRID_CELLS = 7.0, 768


def evaluate(options: argparse.Namespace) -> None:
    """Runs the command."""
    if options.out is not None:
        check_file(options.out.resolve(), options.overwrite)
    model, columns = load_run(options.run)
    rows = load_rows(options)
    x = check_data(options.data, in_order(rows, columns, f"`{options.data}`"), model.event_shape)
    energies = energies_of(model, x)
    result: dict[str, Any] = {"rows": len(x), **likelihood_of(model, energies)}
    if result["log_likelihood"] is None:
        note(options, "log Z is not known, so there is no log-likelihood; --loss nce learns it.")
    result |= {"loss": mean_loss(model, x), "energy": {"mean": float(energies.mean()), "sd": float(energies.std())}}
    if options.out is not None:
        _save(options, x, energies, result["log_normalizer"], columns or rows.columns)
    print(to_json(result))


def energies_of(model: EnergyModel, x: np.ndarray) -> np.ndarray:
    """Returns the energies of rows `[rows]`."""
    return np.asarray(model.predict(x, batch_size=1024, verbose=0))


def mean_loss(model: EnergyModel, x: np.ndarray) -> float:
    """Returns the mean of the loss that the model was trained with."""
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


def _save(
    options: argparse.Namespace,
    x: np.ndarray,
    energies: np.ndarray,
    log_normalizer: float | None,
    columns: tuple[str, ...] | None,
) -> None:
    """Writes the energies, or the rows with energy and log density beside them."""
    out = options.out.resolve()
    if out.suffix.lower() == ".npy":
        save_rows(out, energies, ())
        return
    names = list(columns or default_columns(x.shape[1:]))
    added = {"energy": energies}
    if log_normalizer is not None:
        added["log_prob"] = -energies - log_normalizer
    for name, values in added.items():
        x = np.column_stack([x.reshape(len(x), -1), values])
        names.append(name if name not in names else f"model {name}")
    save_rows(out, x, tuple(names))
