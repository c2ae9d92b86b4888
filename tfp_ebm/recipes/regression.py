"""Regression by energies: the density p(y | x) of targets given inputs, for any shape of noise and several modes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.losses import NegativeLogLikelihood
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy
from tfp_ebm.recipes.density import split_rows
from tfp_ebm.recipes.density_training import Trainer, settings_for_rows

_MIN_ROWS = 20


def regression(
    x: Any,
    y: Any,
    *,
    minutes: float | None = None,
    num_networks: int = 2,
    validation: float = 0.1,
    seed: int = 0,
) -> EnergyModel:
    """Fits the density p(y | x) of targets y in few dimensions, given inputs x; its log Z is 0 for every x.

    Each target has an energy on the line with an exact normaliser, given x and the targets before it. Trainings stop
    where the likelihood of held-out rows is best; the model is the mixture of all networks with equal weights.

    Args:
      x: inputs `[rows, inputs]`, or `[rows]`.
      y: targets `[rows, targets]`, or `[rows]`.
      minutes: time for the trainings, about; default: as many steps as the number of rows needs.
      num_networks: number of networks that are averaged.
      validation: share of the rows that are held out.
      seed: of the split, all weights and all batches.

    Returns:
      A conditional `EnergyModel` of y, `[rows, targets]`, with the condition x. `model.energy(y, x)` is −log p(y | x).
      `model.given(x)` of one x is an ordinary model of y with log Z = 0. Of a batch, `[batch, inputs]`, it is a
      distribution of batch shape `[batch]` with `log_prob`, `sample`, `mean`, `stddev`, `mode`, and `quantile`.

    Raises:
      TypeError, ValueError: if x and y are no finite numbers, differ in their rows, or have fewer than 20.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(300, 1))
    >>> model = regression(x, x + 0.3 * rng.normal(size=(300, 1)), minutes=0.02, num_networks=1)
    >>> p = model.given([[0.0], [2.0]])
    >>> p.mean().shape, p.sample(5, seed=0).shape, p.quantile(0.9).shape
    (TensorShape([2, 1]), TensorShape([5, 2, 1]), TensorShape([2, 1]))
    """
    inputs, targets = (_columns(name, value) for name, value in (("x", x), ("y", y)))
    if len(inputs) != len(targets):
        raise ValueError(f"`y` must have as many rows as x, {len(inputs)}, got {len(targets)}.")
    constant = np.flatnonzero(np.ptp(targets, axis=0) == 0.0)
    if len(constant):
        raise ValueError(f"`y` must not be constant, but columns {constant.tolist()} are.")
    if not 0.0 < validation < 1.0:
        raise ValueError(f"`validation` must be a share between 0 and 1, got {validation!r}.")
    number, seed = check_count("num_networks", num_networks), check_count("seed", seed, minimum=0)
    seconds = math.inf if minutes is None else 60.0 * check_positive("minutes", minutes)
    rows: np.ndarray = np.concatenate([inputs, targets], 1)
    train, held_out = split_rows(rows, validation, seed)
    loc, scale = rows[train].mean(0), rows[train].std(0)
    scale = np.where(scale > 0.0, scale, 1.0)
    z: np.ndarray = ((rows - loc) / scale).astype(np.float32)
    settings = settings_for_rows(len(train), rows.shape[1])
    count = inputs.shape[1]

    def network() -> TargetEnergy:
        return TargetEnergy(
            count, targets.shape[1], [settings.width] * 2, num_components=8, dropout=settings.dropout, seed=seed
        )

    trainer = Trainer(network(), settings, seed)
    networks = []
    for i in range(number):
        training = trainer.train(z[train], z[held_out], seconds / number, seed + i)
        if training.weights is None or training.is_interrupted:
            raise KeyboardInterrupt
        networks.append(network())
        networks[-1].set_weights(training.weights)
    model = EnergyModel(RegressionEnergy(networks, loc[:count], scale[:count]), seed=seed)
    model.standardization.loc.assign(loc[count:])
    model.standardization.scale.assign(scale[count:])
    model.compile(loss=NegativeLogLikelihood())  # for `evaluate(y, x)`
    model.optimizer.build(model.trainable_variables)  # Keras cannot load a file whose optimizer was never built
    return model


def _columns(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value) if not hasattr(value, "columns") else value
    array = array[:, None] if getattr(array, "ndim", 2) == 1 else array
    rows: np.ndarray = np.asarray(check_data(name, array, min_rows=_MIN_ROWS), np.float64)
    if rows.ndim != 2:
        raise ValueError(f"`{name}` must have shape [rows, columns] or [rows], got {rows.shape}.")
    return rows
