"""The density of a table in one call: candidates whose log Z is known, stacked by held-out likelihood.

A Gaussian, a Gaussian mixture, a kernel density and autoregressive energies are fitted to one part of the rows: some of
these energies in several orders of the columns, others of linear combinations of the columns that are learned with
them. The weights of their mixture are found by expectation maximisation on the other part (stacking; Smyth & Wolpert
1999). The mixture is an energy with log Z = 0: its log density is exact, and so are its samples. Tables of up to 2000
rows are cross-validated instead, without linear combinations (`density_small.py`).
"""

from __future__ import annotations

import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_count, check_positive, check_share, is_frame, numbers_of
from tfp_ebm.caller import warn
from tfp_ebm.composition import fitted_parts, log_prob_of, mixture_model, stacked_parts
from tfp_ebm.losses.negative_log_likelihood import NegativeLogLikelihood
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.linear import has_linear
from tfp_ebm.recipes import density_small
from tfp_ebm.recipes.density_backup import Trainings
from tfp_ebm.recipes.density_candidates import Table, baselines, train_networks
from tfp_ebm.recipes.density_edges import EdgeUnits
from tfp_ebm.recipes.density_kinds import read_table
from tfp_ebm.recipes.density_residual import MAX_COLUMNS, MIN_ROWS, fit_residual
from tfp_ebm.recipes.density_rows import (
    check_groups,
    check_row_weights,
    effective_number,
    effective_weights,
    equal_rows,
    joined,
    mean_and_error,
    part_of_weights,
    split_rows,
)
from tfp_ebm.recipes.density_training import history_of, is_settled, settle_nodes
from tfp_ebm.recipes.density_units import Units, dequantized, filled

# Components of a mixture whose conditionals are proposals, at most.
_MAX_PROPOSAL_COMPONENTS = 8
# Weight of the best part that is no energy of linear combinations, if the stack has no such part.
_LEAST_SHARE = 1e-3


def _check_columns(x: np.ndarray, names: tuple[str, ...] | None) -> None:
    constant = np.flatnonzero(np.nanmin(x, axis=0) == np.nanmax(x, axis=0))
    if len(constant):
        raise ValueError(f"`x` must not have constant columns, but {_named(constant, names)} are constant.")
    first: dict[bytes, int] = {}
    twins = [i for i, column in enumerate(x.T) if first.setdefault(hashlib.sha256(column.tobytes()).digest(), i) != i]
    if twins:
        raise ValueError(f"`x` must not have equal columns, but {_named(twins, names)} equal earlier ones.")


def _named(columns: Any, names: tuple[str, ...] | None) -> str:
    return "columns " + ", ".join(str(i) if names is None else repr(names[i]) for i in columns)


class _Job(NamedTuple):
    """A table to fit to.

    Attributes:
      rows: float64 `[rows, columns]`.
      weights, labels: of the rows, and numbers of their groups; None if they have none.
      seconds: intended time of the trainings.
      limit: seconds after which the clock ends them.
      seed: of everything that is random.
      verbose: whether lines are printed.
      trainings: keeps finished ones.
    """

    rows: np.ndarray
    weights: np.ndarray | None
    labels: np.ndarray | None
    seconds: float
    limit: float
    seed: int
    verbose: int
    trainings: Trainings


class _Fit(NamedTuple):
    """A fitted density, the results and training curves of its candidates, and whether a training was cut short."""

    model: EnergyModel
    results: dict[str, tuple[float, float]]
    histories: dict[str, dict[str, Any]]
    is_cut: bool


class _Contest:
    """Candidates with their log densities of rows that they were not fitted to.

    Args:
      verbose: whether to print a line for each candidate.
      weights: of the rows, or None.
      labels: numbers of the groups of the rows, or None.
    """

    def __init__(self, verbose: int, weights: np.ndarray | None = None, labels: np.ndarray | None = None) -> None:
        self.verbose, self.weights, self.labels = verbose, weights, labels
        self.models: list[list[EnergyModel]] = []
        self.log_probs: list[np.ndarray] = []
        self.results: dict[str, tuple[float, float]] = {}
        self.histories: dict[str, dict[str, Any]] = {}

    def add(self, name: str, models: Sequence[EnergyModel], log_prob: np.ndarray) -> None:
        """Keeps a candidate, one model or several of equal weight, with its log densities."""
        self.models.append(list(models))
        self.log_probs.append(log_prob)
        self.note(name, log_prob)

    def note(self, name: str, log_prob: np.ndarray) -> None:
        """Keeps mean and standard error of log densities, and prints them."""
        self.results[name] = mean, error = mean_and_error(log_prob, self.weights, self.labels)
        if self.verbose:
            print(f"{name:28s} {mean:12.4f} ± {error:.4f} nats", flush=True)

    def stack(self, choose: Callable[..., tuple[np.ndarray, np.ndarray]] = stacked_parts) -> EnergyModel:
        """Returns the mixture of the candidates; `choose` finds the parts that are kept and their weights."""
        log_probs = np.stack(self.log_probs, 1)
        kept, probs = choose(log_probs, self.weights)
        if all(has_linear(model.network) for i in kept for model in self.models[i]):
            # cells can be completed by draws of a part in the given coordinates alone
            others = [i for i, part in enumerate(self.models) if not has_linear(part[0].network)]
            kept = np.append(kept, max(others, key=lambda i: np.average(log_probs[:, i], weights=self.weights)))
            probs = np.append((1.0 - _LEAST_SHARE) * probs, _LEAST_SHARE)
        self.note("stack", np.logaddexp.reduce(log_probs[:, kept] + np.log(probs), axis=1))
        models = [self.models[i] for i in kept]
        shares = [prob / len(part) for part, prob in zip(models, probs, strict=True) for _ in part]
        return mixture_model([model for part in models for model in part], shares)


def fit_density(
    x: Any,
    *,
    minutes: float | None = None,
    validation: float = 0.1,
    kinds: Mapping[Any, Any] | None = None,
    sample_weight: Any = None,
    groups: Any = None,
    residual: bool = False,
    seed: int = 0,
    verbose: int = 1,
    backup_dir: str | os.PathLike[str] | None = None,
) -> EnergyModel:
    """Fits a density to a table; its log Z is known, so that `log_prob` and `sample` need no chain.

    Networks see each column in units without heavy tails (asinh) and, in tables of at least 1000 rows, without edges:
    a column that ends abruptly at both sides, such as a share or an angle, is mapped to a normal distribution by the
    inverse of its distribution function. Arguments and results are in the units of the table.

    Args:
      x: array `[rows, columns]` of numbers, or a `pandas.DataFrame`. NaN marks a missing cell: it has no factor in the
        density, and the columns after it see that it is missing. The columns of a data frame may be of any kind that
        `datasets.TableEncoder` knows: it encodes them, and is kept as `model.encoder`. Equal rows are on one side of
        each split.
      minutes: time for the training of the networks, about, after which the clock ends it. Default: the number of
        networks and of their steps depends on the size of the table alone, for about .4 to 2.5 minutes on two processor
        cores, so that the same seed gives the same result.
      validation: share of the rows that stop trainings and choose weights. Tables of up to 2000 rows without
        columns of a few values do not need it: all their rows do both, by cross-validation. Below 100 rows these train
        no networks.
      kinds: a mapping from columns to kinds, those of `datasets.TableEncoder`. For an array, keys are numbers of
        columns, and columns that are not named are "continuous". "rating", "boolean" (0 and 1) and "category" columns
        have probabilities of the values in the table; a list of numbers in place of a kind names the values itself.
        p is then a density in the other columns, and 0 between the values. "whole" numbers are spread over their unit
        cells by noise from U(−½, ½); draws of them are to be rounded. Ties in continuous columns stay as they are. For
        a data frame, keys are names of columns, and `TableEncoder.fit(x, kinds)` finds the other kinds.
      sample_weight: array `[rows]` of finite numbers, not negative: the fit maximises Σᵢ wᵢ log p(xᵢ), and
        held-out means are weighted. A row of weight 2 counts as two equal rows, and one of weight 0 is left out.
        Networks are trained on batches in which rows come in proportion to their weights. The sizes of candidates
        follow the effective number of rows, (Σw)²/Σw², and standard errors are those of a weighted mean.
      groups: hashable labels `[rows]`, such as ints or strings: rows of one label, such as those of one patient, are on
        one side of each split and in one fold, as are all labels that share equal rows. Standard errors are those of
        means over groups.
      residual: whether the stack is corrected by an energy of all columns, learned by noise contrastive estimation with
        the stack as the noise. It is kept if the held-out log-likelihood is better by more than two standard errors,
        log Z's included; it is the candidate "residual" then. This is for tables of at least 5000 rows, of 32 columns
        at most, without columns of a few values and missing cells. It is off by default, for it takes a minute more
        and gains little: .001 nat a row in a warped table of 8 columns and 20 000 rows.
      seed: of the noise of whole numbers, the split, all weights and all batches.
      verbose: 1 prints each candidate's held-out log-likelihood, and the time that is left; 0 prints nothing.
      backup_dir: directory in which the result of each training is kept, for this call alone: the same call made again
        after a kill or a power cut trains only what was not finished, and returns the same model, bit for bit.

    Ctrl-C ends the trainings, and the best so far is returned, with a warning.

    Returns:
      An `EnergyModel` with E(x) = −log p(x), and these attributes, which are saved with it:
        `candidates`: maps the name of each candidate to its mean held-out log-likelihood per row, in nats, and its
          standard error; the mixture of all is "stack".
        `histories`: maps the names of the networks to their training curves, each a dictionary: "log_likelihood" and
          "held_out_log_likelihood" are lists of the mean log-likelihood per row, in nats, after each of up to 40 equal
          parts of the training; "kept" is the place in these lists of the weights that were kept. "log_likelihood" is a
          mean over the part, with dropout. Where networks are cross-validated, curves are means over the folds.
        `cut_by_clock`: whether time, or Ctrl-C, ended a training.

    Raises:
      TypeError, ValueError: if `x` is no table of numbers, has fewer than 10 rows, has constant, empty or equal
        columns; if `kinds` names an unknown column or kind, or one that the column cannot have; if `sample_weight`
        holds no such numbers, or zeros alone; if `groups` has not one label for each row, or fewer than two groups
        that share no rows; if `backup_dir` is of another call.

    >>> import tfp_ebm as ebm
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    >>> model = fit_density(x, minutes=0.02, verbose=0)
    >>> p = ebm.EnergyDistribution(model)
    >>> p.log_prob(x[:3].astype("float32")).shape, p.sample(5, seed=0).shape
    (TensorShape([3]), TensorShape([5, 2]))
    """
    check_count("seed", seed, minimum=0)
    check_share("validation", validation)
    x = x if is_frame(x) else numbers_of("x", x)
    given_rows = x.shape[0] if x.ndim else 0
    shares = None if sample_weight is None else check_row_weights(sample_weight, given_rows)
    labels = None if groups is None else check_groups(groups, given_rows)
    kept = None if shares is None else shares > 0.0
    table = read_table(x, kinds, kept, seed)
    rows, values, encoder = table.rows, table.supports, table.encoder
    columns = None if encoder is None else encoder.names
    _check_columns(table.cells, columns)
    weights = None if shares is None else effective_weights(shares[kept])
    if labels is not None:
        labels = _joined_labels(rows, labels if kept is None else labels[kept])
    num_rows, size = rows.shape
    if minutes is None:
        seconds = 60.0 * min(2.5, 0.4 + effective_number(weights, num_rows) * size / 80_000)
    else:
        seconds = 60.0 * check_positive("minutes", minutes)
    limit = math.inf if minutes is None else seconds
    arguments: dict[str, Any] = {"minutes": minutes, "validation": validation, "residual": residual, "seed": seed}
    arguments["kinds"] = {str(column): support.tolist() for column, support in values.items()}
    for name, numbers in (("sample_weight", weights), ("groups", labels)):
        arguments[name] = None if numbers is None else hashlib.sha256(numbers.tobytes()).hexdigest()
    trainings = Trainings(None if backup_dir is None else pathlib.Path(backup_dir), rows, arguments)
    job = _Job(rows, weights, labels, seconds, limit, seed, verbose, trainings)
    # with supports, networks trained without a fold filled empty cells less well than those of one split
    if num_rows <= density_small.MAX_ROWS and not values:
        fit = _fit_by_folds(job)
    else:
        fit = _fit_by_split(job, values, validation, residual)
    model = fit.model
    model.seed = seed
    model.compile(loss=NegativeLogLikelihood())  # for `evaluate`
    model.optimizer.build(model.trainable_variables)  # Keras cannot load a file whose optimizer was never built
    model.candidates, model.histories, model.cut_by_clock = fit.results, fit.histories, fit.is_cut
    model.columns, model.encoder = columns, encoder
    return model


def _joined_labels(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns numbers of groups, of which those that share equal rows are one; raises if fewer than two are left."""
    found = joined(equal_rows(rows), labels)
    if not found.any():
        raise ValueError("`groups` must hold at least two groups that share no equal rows, but all rows are connected.")
    return found


def _fit_by_split(job: _Job, values: dict[int, np.ndarray], validation: float, with_residual: bool) -> _Fit:
    """Fits candidates to one part of the rows, and stacks them on the other."""
    rows, weights, labels, seed = job.rows, job.weights, job.labels, job.seed
    train, held_out = split_rows(rows, validation, seed, labels, weights)
    of_train, of_judges = part_of_weights(weights, train), part_of_weights(weights, held_out)
    plain = Units.of(rows[train], values, of_train)._replace(has_missing=bool(np.isnan(rows).any()))
    units = EdgeUnits.of(plain, rows[train], values, of_train)
    slopes = [
        np.average(units.log_slopes(rows[part]).sum(1), weights=part_of_weights(weights, part))
        for part in (train, held_out)
    ]
    y: np.ndarray = units.to_y(rows[train]).astype(np.float32)
    y_held_out: np.ndarray = units.to_y(rows[held_out]).astype(np.float32)
    both = filled(y, y_held_out, seed=seed, weights=of_train) if units.has_missing else (y, y_held_out)
    spread = dequantized(both[0], values, seed), dequantized(both[1], values, seed + 1)
    table = Table(y, y_held_out, values, units.has_missing, seed, spread, job.trainings, (of_train, of_judges))
    contest = _Contest(job.verbose, of_judges, part_of_weights(labels, held_out))
    parts = None
    if not (values and units.has_missing):
        simple, parts = baselines(table)
        for name, baseline in simple.items():
            log_prob = log_prob_of(units.model(baseline.network), rows[held_out])
            contest.add(name, [units.model(baseline.of_all_rows)], log_prob)
        if len(parts.probs) > _MAX_PROPOSAL_COMPONENTS:
            parts = table.fit_parts(_MAX_PROPOSAL_COMPONENTS)
    is_cut = False
    try:
        # the conditionals of a mixture need all coordinates
        of_networks = None if units.has_missing else parts
        for trained in train_networks(table, of_networks, job.seconds, job.limit, job.verbose):
            is_cut |= trained.is_cut
            error = settle_nodes(trained.network, table.y_held_out[:1000])
            if is_settled(trained.name, error):
                own = units.model(trained.network)
                contest.add(trained.name, [own], log_prob_of(own, rows[held_out]))
                contest.histories[trained.name] = history_of([trained.training], *slopes)
    except KeyboardInterrupt:
        if not contest.models:
            raise
        is_cut, with_residual = True, False
        warn(f"the fit was interrupted and keeps the {len(contest.models)} candidates that it has.")
    model = contest.stack()
    can_be_corrected = len(rows) >= MIN_ROWS and rows.shape[1] <= MAX_COLUMNS and not (values or units.has_missing)
    if with_residual and can_be_corrected:
        model = _corrected(model, rows, train, held_out, contest, seed, of_train)
    return _Fit(model, contest.results, contest.histories, is_cut)


def _corrected(
    model: EnergyModel,
    rows: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    contest: _Contest,
    seed: int,
    weights: np.ndarray | None = None,
) -> EnergyModel:
    """Returns a density with a correction if that is better, else the density."""
    loc, scale = (np.asarray(value, np.float64) for value in (model.standardization.loc, model.standardization.scale))
    z = (rows - loc) / scale
    network = fit_residual(model.network, z[train], z[held_out], seed, (weights, contest.weights), contest.labels)
    if network is None:
        return model
    corrected = EnergyModel(network)
    corrected.standardization.loc.assign(loc)
    corrected.standardization.scale.assign(scale)
    contest.note("residual", log_prob_of(corrected, rows[held_out]))
    return corrected


def _fit_by_folds(job: _Job) -> _Fit:
    """Fits candidates by cross-validation, so that all rows judge them, and stacks them."""
    rows, weights, labels, seed = job.rows, job.weights, job.labels, job.seed
    units = EdgeUnits.of(Units.of(rows, weights=weights), rows, {}, weights)
    slopes = units.log_slopes(rows).sum(1)
    y: np.ndarray = units.to_y(rows).astype(np.float32)
    complete: np.ndarray = filled(y, y, seed=seed, weights=weights)[0] if units.has_missing else y
    spread: np.ndarray = complete.astype(np.float64)
    table = Table(y, y[:0], {}, units.has_missing, seed, (spread, spread[:0]), job.trainings, (weights, None), labels)
    contest = _Contest(job.verbose, weights, labels)
    mean_slope = np.average(slopes, weights=weights)
    judged, proposal = density_small.simple_densities(table)
    for one in judged:
        contest.add(one.name, [units.model(network) for network in one.networks], one.log_probs + slopes)
    is_cut = False
    try:
        if table.num_rows >= density_small.MIN_ROWS_OF_NETWORKS:
            # the conditionals of a mixture need all coordinates
            of_networks = None if units.has_missing else proposal
            for one, cut in density_small.train_by_folds(table, of_networks, job.seconds, job.limit, job.verbose):
                is_cut |= cut
                contest.add(one.name, [units.model(network) for network in one.networks], one.log_probs + slopes)
                contest.histories[one.name] = history_of(one.trainings, mean_slope, mean_slope, one.kept, one.shares)
    except KeyboardInterrupt:
        is_cut = True
        warn(f"the fit was interrupted and keeps the {len(contest.models)} candidates that it has.")
    return _Fit(contest.stack(fitted_parts), contest.results, contest.histories, is_cut)
