"""Conditional densities that are stacked by `recipes.regression`, judged on rows that none of them was fitted to.

The rows are dealt into folds. The conditionals of a Gaussian (a linear regression), of Gaussians of several widths and
of Gaussian mixtures are fitted without each fold, and judged on it by the density of the targets given the inputs.
Networks are trained without one fold each, from the linear regression on, and kept at the judgement with the best mean
over their folds. The weights of all are those that are most likely on the rows left out, as in `density_small.py`.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.composition import stacked_parts
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.targets import TargetEnergy
from tfp_ebm.recipes.density_folds import Chosen, cross_validated, folds_of
from tfp_ebm.recipes.density_small import left_out, snapshot_every, to_one_judgement
from tfp_ebm.recipes.density_training import Trainer, Training, history_of, settings_for_rows

# Columns up to which Gaussians are fitted, and rows up to which mixtures of several centres are.
_MAX_SIMPLE_COLUMNS, _MAX_MIXTURE_ROWS = 128, 2000
# Rows up to which networks learn slowly, and their learning rate: faster ones are worse than the linear regression at
# which they start before the first judgement.
_FEW_ROWS, _RATE_OF_FEW = 1000, 1e-3
# Components of the proposals of a network.
_NUM_COMPONENTS = 8


class Candidates(NamedTuple):
    """Stacked conditional densities.

    Attributes:
      networks: of rows (x, y), in the units of the fit.
      orders: of the targets of each.
      probs: their weights.
      log_probs: log densities of each candidate, by name, at the rows that judged.
      history: training curve of the networks, as `density_training.history_of` makes it.
      is_cut: whether time ended a training.
      judges: numbers of the rows that judged.
    """

    networks: list[TargetEnergy]
    orders: list[tuple[int, ...]]
    probs: np.ndarray
    log_probs: dict[str, np.ndarray]
    history: dict[str, Any]
    is_cut: bool
    judges: np.ndarray


def fit_candidates(
    z: np.ndarray, num_inputs: int, num_networks: int, validation: float, seconds: float, seed: int
) -> Candidates:
    """Fits simple densities and networks to rows (x, y), and stacks them.

    Args:
      z: rows `[rows, inputs + targets]` in standardised units, float32.
      num_inputs: columns of x.
      num_networks: number of networks; each has a fold.
      validation: share of the rows in a fold, about: less with many networks, more of few rows.
      seconds: time for the trainings, may be infinite.
      seed: of the folds, the weights and the batches.

    Raises:
      KeyboardInterrupt: at Ctrl-C.
    """
    goal = min(max(validation * len(z), min(50.0, 0.25 * len(z))), 20_000.0)
    fold = folds_of(z, max(2, num_networks, int(len(z) / goal)), seed)
    number = min(num_networks, int(fold.max()) + 1)
    fold = np.where(fold < number, fold, -1)
    size = z.shape[1]
    simple: dict[str, Chosen] = {}
    if size <= _MAX_SIMPLE_COLUMNS:
        with_mixtures = len(z) <= _MAX_MIXTURE_ROWS
        rows: np.ndarray = z.astype(np.float64)
        simple, _ = cross_validated(
            rows, fold, seed=seed, with_kernels=False, with_mixtures=with_mixtures, num_inputs=num_inputs
        )
    orders = orders_of(size - num_inputs, number, seed)
    networks, trainings, of_networks = _train(z, fold, num_inputs, orders, simple.get("gaussian"), seconds, seed)
    judges = np.flatnonzero(fold >= 0)
    log_probs = {name: one.log_probs for name, one in simple.items()}
    log_probs["networks"] = of_networks[judges]
    names, of_all = list(log_probs), np.stack(list(log_probs.values()), 1)
    kept, weights = stacked_parts(of_all)
    stacked: list[tuple[TargetEnergy, tuple[int, ...], float]] = []
    for name, weight in zip((names[i] for i in kept), weights, strict=True):
        if name == "networks":
            parts = zip(networks, orders, strict=True)
            stacked += [(network, order, weight / number) for network, order in parts]
        else:
            mixture = simple[name].fit(z.astype(np.float64))
            stacked.append((_of_mixture(mixture, num_inputs, size), tuple(range(size - num_inputs)), weight))
    log_probs["stack"] = np.logaddexp.reduce(of_all[:, kept] + np.log(weights), axis=1)
    shares = np.bincount(fold[judges]) / len(judges)
    history = history_of(trainings, 0.0, 0.0, None, shares)
    is_cut = any(training.is_cut for training in trainings)
    parts_of = [list(part) for part in zip(*stacked, strict=True)]
    return Candidates(parts_of[0], parts_of[1], np.array(parts_of[2]), log_probs, history, is_cut, judges)


def _of_mixture(mixture: MixtureParameters, num_inputs: int, size: int) -> TargetEnergy:
    """Returns the conditionals of a mixture of rows (x, y), without a correction."""
    network = TargetEnergy(
        num_inputs,
        size - num_inputs,
        (8,),
        num_components=len(mixture.probs),
        num_functions=1,
        fixed_proposal=True,
    )
    network.start_at(mixture)
    return network


def _train(
    z: np.ndarray,
    fold: np.ndarray,
    num_inputs: int,
    orders: list[tuple[int, ...]],
    start: Chosen | None,
    seconds: float,
    seed: int,
) -> tuple[list[TargetEnergy], list[Training], np.ndarray]:
    """Trains a network without each fold, and returns all, and the log density of each row in a fold by its network."""
    size, number = z.shape[1], len(orders)
    least = len(z) - int(np.bincount(fold[fold >= 0]).max())
    settings = settings_for_rows(least, size)
    if least <= _FEW_ROWS:
        settings = settings._replace(learning_rate=_RATE_OF_FEW)

    def network() -> TargetEnergy:
        widths = [settings.width] * 2
        return TargetEnergy(num_inputs, size - num_inputs, widths, _NUM_COMPONENTS, dropout=settings.dropout, seed=seed)

    trainer = Trainer(network(), settings, seed)
    networks: list[TargetEnergy] = []
    trainings: list[Training] = []
    columns = [[*range(num_inputs), *(num_inputs + place for place in order)] for order in orders]
    for i in range(number):
        networks.append(network())
        held_out = fold == i
        if start is not None:
            networks[i].start_at(start.fit(z[~held_out].astype(np.float64)), columns[i])
            trainer.start_from(networks[i].get_weights())
        rows = z[:, columns[i]]
        every = snapshot_every(networks[i], number)
        training = trainer.train(rows[~held_out], rows[held_out], seconds / number, seed + i, every)
        if training.is_interrupted:
            raise KeyboardInterrupt
        trainings.append(training)
    to_one_judgement(fold[fold >= 0], networks, trainings)
    log_probs = left_out(z, fold, networks, columns)
    return networks, trainings, np.where(np.isnan(log_probs), -np.inf, log_probs)


def orders_of(size: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """Returns an order of the targets for each network: as they come, reversed, and random ones.

    >>> orders_of(3, 2, 0)
    [(0, 1, 2), (2, 1, 0)]
    """
    rng = np.random.default_rng([seed, 17])
    known = [tuple(range(size)), tuple(reversed(range(size)))]
    drawn = (tuple(int(i) for i in rng.permutation(size)) for _ in itertools.count())
    return list(itertools.islice(itertools.chain(known, drawn), number))
