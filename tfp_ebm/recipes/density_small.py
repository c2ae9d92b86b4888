"""The density of a small table: every row judges the candidates, by cross-validation.

The rows are dealt into folds. Each simple density is fitted without each fold, judged on it, and fitted again to all
rows. Networks are as many as their folds: each is trained without its own fold, in an order of the columns of its own.
All stop at the same judgement, the one with the best mean over the folds, so that no fold chooses its own, and their
mixture with equal weights is one candidate. The weights of the candidates are found by expectation maximisation on the
log densities of the rows that were left out (stacking; Smyth & Wolpert 1999).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tfp_ebm import networks
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.recipes import density_candidates as candidates
from tfp_ebm.recipes.density_candidates import Table
from tfp_ebm.recipes.density_folds import Chosen, cross_validated, folds_of
from tfp_ebm.recipes.density_rows import part_of_weights
from tfp_ebm.recipes.density_training import Trainer, Training, is_settled, seconds_of, settings_for_rows, settle_nodes

# Rows up to which candidates are cross-validated, and below which no network is trained. On 60 rows of a chain of four
# columns, networks added .04 nat a row, for ten times the time.
MAX_ROWS, MIN_ROWS_OF_NETWORKS = 2000, 100
# Folds of simple densities: many where rows are few.
_NUM_FOLDS, _FEW_ROWS, _NUM_FOLDS_OF_FEW = 5, 200, 10
# Folds of the networks, and how many numbers their copies may hold.
_MIN_FOLDS, _MAX_FOLDS = 3, 4
_MAX_COPIED = 4e7


class Judged(NamedTuple):
    """A candidate that is judged on all rows.

    Attributes:
      name: of the candidate.
      log_probs: log density of each row, by a fit without it, in the units of the fit, `[rows]`.
      networks: what takes its place in the end, with equal weights.
      trainings: of its networks.
      kept: the judgement at which they were kept.
      shares: of the rows in the fold of each, by weight.
    """

    name: str
    log_probs: np.ndarray
    networks: list[NormalizedEnergy]
    trainings: list[Training]
    kept: int
    shares: np.ndarray | None = None


def part_of(table: Table, fold: np.ndarray, number: int) -> Table:
    """Returns the table with one fold held out."""
    out = fold == number
    spread, weights = table.spread[0], table.weights[0]
    return table._replace(
        y=table.y[~out],
        y_held_out=table.y[out],
        spread=(spread[~out], spread[out]),
        weights=(part_of_weights(weights, ~out), part_of_weights(weights, out)),
    )


def simple_densities(table: Table) -> tuple[list[Judged], Chosen]:
    """Returns the simple densities, and the mixture whose conditionals are proposals.

    Args:
      table: all rows; `y_held_out` is not read.
    """
    number, weights = _NUM_FOLDS_OF_FEW if len(table.y) <= _FEW_ROWS else _NUM_FOLDS, table.weights[0]
    fold = folds_of(table.y, number, table.seed, table.labels, weights)
    with_kernels = not table.has_missing and table.y.shape[1] <= candidates.MAX_KERNEL_COLUMNS
    found, proposal = cross_validated(
        table.spread[0], fold, seed=table.seed, with_kernels=with_kernels, weights=weights
    )
    judged = []
    if table.has_missing:
        mixture, log_probs = _gaussian_of_gaps(table, fold)
        judged.append(Judged("gaussian", log_probs, [candidates.of_mixture(table, mixture)], [], 0))
        del found["gaussian"]
    for name, chosen in found.items():
        network = candidates.of_mixture(table, chosen.fit(table.spread[0], weights))
        log_probs = _log_probs(table, chosen, fold) if table.has_missing else chosen.log_probs
        judged.append(Judged(name, log_probs, [network], [], 0))
    return judged, proposal


def _log_probs(table: Table, chosen: Chosen, fold: np.ndarray) -> np.ndarray:
    """Returns the log density of each row, with missing cells, by the mixture fitted without its fold."""
    log_probs = np.empty(len(fold))
    for number in range(fold.max() + 1):
        part = part_of(table, fold, number)
        network = candidates.of_mixture(part, chosen.fit(part.spread[0], part.weights[0]))
        log_probs[fold == number] = -np.asarray(network(part.y_held_out), np.float64)
    return log_probs


def _gaussian_of_gaps(table: Table, fold: np.ndarray) -> tuple[MixtureParameters, np.ndarray]:
    """Returns the Gaussian that is most likely where cells are missing, and its log densities of the rows."""

    log_probs = np.empty((len(candidates.RIDGES), len(fold)))
    for number in range(fold.max() + 1):
        part = part_of(table, fold, number)
        mixtures = candidates.gaussians_of_gaps(part.y, candidates.RIDGES, table.seed, part.weights[0])
        for place, mixture in enumerate(mixtures):
            energies = np.asarray(candidates.of_mixture(part, mixture)(part.y_held_out), np.float64)
            log_probs[place, fold == number] = -energies
    weights = table.weights[0]
    best = int(np.argmax(np.average(log_probs, 1, weights)))
    return candidates.gaussians_of_gaps(table.y, [candidates.RIDGES[best]], table.seed, weights)[0], log_probs[best]


def train_by_folds(
    table: Table, proposal: Chosen | None, seconds: float, limit: float, verbose: int
) -> Iterator[tuple[Judged, bool]]:
    """Trains the networks of each kind of proposals, and yields them with whether time ended a training.

    Args:
      table: all rows.
      proposal: the mixture whose conditionals are proposals; None if there is none.
      seconds: time for which the number of networks is chosen.
      limit: time after which trainings are ended.
      verbose: whether to print which candidate is trained, and about how long the rest takes.
    """
    size, weights = table.y.shape[1], table.weights[0]
    each = seconds_of(settings_for_rows(table.num_rows, size), size)
    kinds = ["free"] if proposal is None or size == 1 else ["mixture", "free"]
    number = int(np.clip(seconds / each / len(kinds), _MIN_FOLDS, _MAX_FOLDS))
    if seconds < _MIN_FOLDS * len(kinds) * each:
        kinds = kinds[:1]
    rng = np.random.default_rng([table.seed, 7])
    natural = list(range(size))
    orders = [natural, natural[::-1], *(rng.permutation(size).tolist() for _ in range(number))]
    fold, total, spent = folds_of(table.y, number, table.seed + 1, table.labels, weights), 0, 0.0
    number = int(fold.max()) + 1
    sizes = np.bincount(fold, weights)
    least = min(part_of(table, fold, place).num_rows for place in range(number))  # equal rows make uneven folds
    settings = settings_for_rows(least, size)
    for kind in kinds:
        trainings: list[Training] = []
        own: list[networks.AutoregressiveEnergy] = []
        trainer: Trainer | None = None
        for place in range(number):
            start = time.monotonic()
            name = f"autoregressive_{'mixture_' if kind == 'mixture' else ''}{place + 1}"
            left = number * len(kinds) - total
            if verbose:
                about = min(limit - spent, left * (spent / total if total else each + candidates.SECONDS_TO_COMPILE))
                print(f"training {name}, {total + 1} of {number * len(kinds)}; about {max(about, 0.0):.0f} s left")
            order = orders[place]
            part = part_of(table, fold, place)
            parts = None if proposal is None or kind == "free" else proposal.fit(part.spread[0], part.weights[0])
            own.append(candidates.network_of(kind, part, settings, parts, order))
            if trainer is None:
                trainer = Trainer(candidates.network_of(kind, part, settings, parts, None), settings, table.seed)
            if parts is not None:
                trainer.start_at(parts, order)
            every = snapshot_every(own[0], number, settings.num_judgements)
            train = functools.partial(
                trainer.train,
                part.y[:, order],
                part.y_held_out[:, order],
                max(limit - spent, 0.01) / left,
                table.seed + total,
                every,
                row_weights=part.weights,
            )
            begin = time.monotonic()
            training, seconds = table.trainings.result(name, trainer, train)
            start += time.monotonic() - begin - seconds  # it may have been trained in an earlier call
            if training.is_interrupted:
                raise KeyboardInterrupt
            trainings.append(training)
            spent, total = spent + time.monotonic() - start, total + 1
        name = "autoregressive" + "_mixture" * (kind == "mixture")
        kept = to_one_judgement(fold, own, trainings, weights)
        error = max(settle_nodes(network, table.y[fold == k]) for k, network in enumerate(own))
        if is_settled(name, error):
            is_cut = any(training.is_cut for training in trainings)
            shares = sizes / sizes.sum()
            yield Judged(name, left_out(table.y, fold, own), list(own), trainings, kept, shares), is_cut


def snapshot_every(network: NormalizedEnergy, number: int, num_judgements: int) -> int:
    """Returns how many judgements lie between copies of the weights, so that those of all networks fit into memory."""
    return max(1, math.ceil(num_judgements * number * network.count_params() / _MAX_COPIED))


def to_one_judgement(
    fold: np.ndarray,
    own: Sequence[NormalizedEnergy],
    trainings: list[Training],
    weights: np.ndarray | None = None,
) -> int:
    """Gives networks their weights at the judgement with the smallest mean energy over the folds; returns it."""
    sizes = np.bincount(fold, weights)
    shares = sizes / sizes.sum()
    common = sorted(set.intersection(*(set(training.snapshots) for training in trainings)))
    means = [sum(shares[k] * training.held_out_losses[i] for k, training in enumerate(trainings)) for i in common]
    kept = common[int(np.argmin(means))]
    for network, training in zip(own, trainings, strict=True):
        network.set_weights(training.snapshots[kept])
    return kept


def left_out(
    y: np.ndarray, fold: np.ndarray, own: Sequence[NormalizedEnergy], columns: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """Returns the log density of each row by the network of its fold, which sees its own `columns`, or all."""
    log_probs = np.empty(len(fold))
    for number, network in enumerate(own):
        rows = y[fold == number] if columns is None else y[fold == number][:, columns[number]]
        log_probs[fold == number] = -np.asarray(network(rows), np.float64)
    return log_probs
