"""Conditional densities that are stacked by `recipes.regression`, judged on rows that none of them was fitted to.

The rows are dealt into folds. The conditionals of a Gaussian (a linear regression), of Gaussians of several widths and
of Gaussian mixtures are fitted without each fold, and judged on it by the density of the targets given the inputs.
Networks are trained without one fold each, and kept at the judgement with the best mean over their folds. Half of
them start at the linear regression, the others at random weights: these err elsewhere.
The weights of all are those that are most likely on the rows left out, as in `density_small.py`.
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

# Columns up to which Gaussians are fitted.
_MAX_SIMPLE_COLUMNS = 128
# Rows up to which mixtures of several centres are fitted, and each row is left out by a network of each kind.
FEW_ROWS = 2000
# Rows up to which networks learn slowly and are judged often: most are best after some 30 to 300 steps. Then the
# learning rate, and the number of judgements.
_ROWS_OF_SLOW, _SLOW_RATE, _MANY_JUDGEMENTS = 5000, 1e-3, 200
# Kinds of networks, which start at the linear regression and at random weights, and how many make both worthwhile.
_KINDS, _MIN_OF_BOTH_KINDS = ("networks", "networks_from_random"), 4
# Components of the proposals of a network.
_NUM_COMPONENTS = 8


class Candidates(NamedTuple):
    """Stacked conditional densities.

    Attributes:
      networks: of rows (x, y), in the units of the fit.
      orders: of the targets of each.
      probs: their weights.
      log_probs: log densities of each candidate, by name, at the rows that judged.
      histories: training curve of each kind of networks, as `density_training.history_of` makes it.
      is_cut: whether time ended a training.
      judges: numbers of the rows that judged.
    """

    networks: list[TargetEnergy]
    orders: list[tuple[int, ...]]
    probs: np.ndarray
    log_probs: dict[str, np.ndarray]
    histories: dict[str, dict[str, Any]]
    is_cut: bool
    judges: np.ndarray


class _Trained(NamedTuple):
    """The networks of a kind, the orders of their targets, log densities of the rows left out, and their training."""

    networks: list[TargetEnergy]
    orders: list[tuple[int, ...]]
    log_probs: np.ndarray
    history: dict[str, Any]
    is_cut: bool


def fit_candidates(
    z: np.ndarray, num_inputs: int, num_networks: int, validation: float, seconds: float, seed: int
) -> Candidates:
    """Fits simple densities and networks to rows (x, y), and stacks them.

    Args:
      z: rows `[rows, inputs + targets]` in standardised units, float32.
      num_inputs: columns of x.
      num_networks: number of networks; each has a fold. Of 4 or more, both kinds have half, rounded down.
      validation: share of the rows in a fold, about: less with many networks, more of few rows.
      seconds: time for the trainings, may be infinite.
      seed: of the folds, the weights and the batches.

    Raises:
      KeyboardInterrupt: at Ctrl-C.
    """
    size = z.shape[1]
    is_few = len(z) <= FEW_ROWS
    kinds = _KINDS if num_networks >= _MIN_OF_BOTH_KINDS else _KINDS[:1]
    each = num_networks // len(kinds)
    if is_few and len(kinds) > 1:
        folds = {kind: folds_of(z, each, seed + i) for i, kind in enumerate(kinds)}
    else:
        goal = min(max(validation * len(z), min(50.0, 0.25 * len(z))), 20_000.0)
        fold = folds_of(z, max(2, each, int(len(z) / goal)), seed)
        folds = dict.fromkeys(kinds, np.where(fold < each, fold, -1))
    fold = folds[_KINDS[0]]
    judges = np.flatnonzero(fold >= 0)
    simple: dict[str, Chosen] = {}
    if size <= _MAX_SIMPLE_COLUMNS:
        rows: np.ndarray = z.astype(np.float64)
        simple, _ = cross_validated(
            rows, fold, seed=seed, with_kernels=False, with_mixtures=is_few, num_inputs=num_inputs
        )
    trained = _train(z, folds, num_inputs, simple.get("gaussian"), seconds, seed)
    log_probs = {name: one.log_probs for name, one in simple.items()}
    log_probs |= {kind: one.log_probs[judges] for kind, one in trained.items()}
    names, of_all = list(log_probs), np.stack(list(log_probs.values()), 1)
    kept, weights = stacked_parts(of_all)
    stacked: list[tuple[TargetEnergy, tuple[int, ...], float]] = []
    for name, weight in zip((names[i] for i in kept), weights, strict=True):
        if name in trained:
            parts = zip(trained[name].networks, trained[name].orders, strict=True)
            stacked += [(network, order, weight / len(trained[name].networks)) for network, order in parts]
        else:
            mixture = simple[name].fit(z.astype(np.float64))
            stacked.append((_of_mixture(mixture, num_inputs, size), tuple(range(size - num_inputs)), weight))
    log_probs["stack"] = np.logaddexp.reduce(of_all[:, kept] + np.log(weights), axis=1)
    histories = {kind: one.history for kind, one in trained.items()}
    is_cut = any(one.is_cut for one in trained.values())
    parts_of = [list(part) for part in zip(*stacked, strict=True)]
    return Candidates(parts_of[0], parts_of[1], np.array(parts_of[2]), log_probs, histories, is_cut, judges)


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
    z: np.ndarray, folds: dict[str, np.ndarray], num_inputs: int, start: Chosen | None, seconds: float, seed: int
) -> dict[str, _Trained]:
    """Trains, for each kind of networks, one without each of its folds."""
    size = z.shape[1]
    least = len(z) - max(int(np.bincount(fold[fold >= 0]).max()) for fold in folds.values())
    settings = settings_for_rows(least, size)
    if len(z) <= _ROWS_OF_SLOW:
        steps = settings.num_steps - settings.num_steps % _MANY_JUDGEMENTS
        settings = settings._replace(num_steps=steps, learning_rate=_SLOW_RATE, num_judgements=_MANY_JUDGEMENTS)

    def network() -> TargetEnergy:
        widths = [settings.width] * 2
        return TargetEnergy(num_inputs, size - num_inputs, widths, _NUM_COMPONENTS, dropout=settings.dropout, seed=seed)

    trainer = Trainer(network(), settings, seed)
    total = sum(int(fold.max()) + 1 for fold in folds.values())
    orders = iter(orders_of(size - num_inputs, total, seed))
    seeds = itertools.count(seed)
    trained = {}
    for kind, fold in folds.items():
        of_kind = list(itertools.islice(orders, int(fold.max()) + 1))
        columns = [[*range(num_inputs), *(num_inputs + place for place in order)] for order in of_kind]
        networks = [network() for _ in of_kind]
        trainings: list[Training] = []
        for i, own in enumerate(networks):
            held_out = fold == i
            if start is not None and kind == _KINDS[0]:
                own.start_at(start.fit(z[~held_out].astype(np.float64)), columns[i])
            trainer.start_from(own.get_weights())
            rows = z[:, columns[i]]
            every = snapshot_every(own, total, settings.num_judgements)
            training = trainer.train(rows[~held_out], rows[held_out], seconds / total, next(seeds), every)
            if training.is_interrupted:
                raise KeyboardInterrupt
            trainings.append(training)
        judging = fold[fold >= 0]
        kept = to_one_judgement(judging, networks, trainings)
        log_probs = left_out(z, fold, networks, columns)
        shares = np.bincount(judging) / len(judging)
        trained[kind] = _Trained(
            networks,
            of_kind,
            np.where(np.isnan(log_probs), -np.inf, log_probs),
            history_of(trainings, 0.0, 0.0, kept, shares),
            any(training.is_cut for training in trainings),
        )
    return trained


def orders_of(size: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """Returns an order of the targets for each network: as they come, reversed, and random ones.

    >>> orders_of(3, 2, 0)
    [(0, 1, 2), (2, 1, 0)]
    """
    rng = np.random.default_rng([seed, 17])
    known = [tuple(range(size)), tuple(reversed(range(size)))]
    drawn = (tuple(int(i) for i in rng.permutation(size)) for _ in itertools.count())
    return list(itertools.islice(itertools.chain(known, drawn), number))
