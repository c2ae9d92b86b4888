"""The density of a table in one call: candidates whose log Z is known, stacked by held-out likelihood.

A Gaussian, a Gaussian mixture, a kernel density and autoregressive energies in several orders of the columns are fitted
to one part of the rows. The weights of their mixture are found by expectation maximisation on the other part (stacking;
Smyth & Wolpert 1999). The mixture is an energy with log Z = 0: its log density is exact, and so are its samples.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm import networks
from tfp_ebm.arguments import check_count, check_data, check_positive, numbers_of
from tfp_ebm.caller import warn
from tfp_ebm.composition import log_prob_of, mixture, stacked_parts
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, fit_kernel_density, fit_mixture
from tfp_ebm.losses.negative_log_likelihood import NegativeLogLikelihood
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.networks.supports import check_supports
from tfp_ebm.recipes.density_training import Settings, Trainer, seconds_of, set_mixture, settings_for_rows
from tfp_ebm.recipes.density_units import Units, dequantized, filled, frequencies

_MIN_ROWS = 10
# Components of a mixture whose conditionals are proposals, at most.
_MAX_PROPOSAL_COMPONENTS = 8
# Logistics of proposals that are free, and functions of each energy; in few columns, where they are cheap, and in more.
_FEW_COLUMNS, _NUM_LOGISTICS, _NUM_FUNCTIONS = 4, (8, 4), (32, 16)
# The number of orders of the columns is as many as the time allows, within these bounds.
_MIN_NETWORKS, _MAX_NETWORKS = 3, 8
# Values of a column that have an output of the network each.
_MAX_FREE_VALUES = 128
# Nodes of the lattices that are tried, and their error at most, in nats a row.
_NUM_NODES, _MAX_QUADRATURE_ERROR = (128, 512), 1e-3
# Columns up to which a kernel density is a candidate.
_MAX_KERNEL_COLUMNS = 64


class _Table(NamedTuple):
    """The rows in the units of the fit.

    Attributes:
      y, y_held_out: float32 `[rows, columns]`, NaN where a cell is missing.
      supports: the values of columns that take a few.
      has_missing: whether cells are missing.
      seed: of all random choices.
      spread: the rows without missing cells and with spread values, in float64, for mixtures.
    """

    y: np.ndarray
    y_held_out: np.ndarray
    supports: dict[int, np.ndarray]
    has_missing: bool
    seed: int
    spread: tuple[np.ndarray, np.ndarray]

    def fit_parts(self, number: int | None = None) -> MixtureParameters:
        """Fits a Gaussian mixture; columns of a few values are spread over the cells around these."""
        return fit_mixture(self.spread[0], number, seed=self.seed, x_held_out=self.spread[1])


class Candidate(NamedTuple):
    """An autoregressive energy to train: its name, the kind of its proposals, and the order of the columns."""

    name: str
    kind: str
    order: list[int]


def split_rows(x: np.ndarray, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns row numbers to train on and to hold out; equal rows are on one side."""
    import pandas

    rows = np.ascontiguousarray(x) + 0.0  # −0 becomes 0
    _, group = np.unique(pandas.util.hash_pandas_object(pandas.DataFrame(rows), index=False), return_inverse=True)
    goal = min(max(validation * len(x), min(50.0, 0.25 * len(x))), 20_000.0)
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    sizes = np.bincount(group)[order]
    chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes), goal)))]
    held_out = np.isin(group, chosen)
    if held_out.all():
        raise ValueError("`x` must hold rows that differ, but they are all equal.")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _check_rows(x: Any) -> np.ndarray:
    """Returns the table as float64; NaN is allowed, but no column may be empty."""
    array = numbers_of("x", x)
    is_missing = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    rows: np.ndarray = np.asarray(check_data("x", np.where(is_missing, 0, array), min_rows=_MIN_ROWS), np.float64)
    if rows.ndim != 2:
        raise ValueError(f"`x` must be a table of shape [rows, columns], got {rows.shape}.")
    empty = np.flatnonzero(is_missing.all(0))
    if len(empty):
        raise ValueError(f"`x` must not have empty columns, but all cells of columns {empty.tolist()} are missing.")
    return np.where(is_missing, np.nan, rows)


def _check_support(values: np.ndarray, support: np.ndarray, column: int) -> None:
    far = ~np.isin(values.astype(np.float32), support.astype(np.float32)) & ~np.isnan(values)
    if far.any():
        raise ValueError(
            f"`supports[{column}]` must hold all values of the column, but {values[far][0]:g} is not among them."
        )


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


class _Contest:
    """Candidates with their log densities of held-out rows.

    Args:
      x_held_out: rows in the user's units.
      verbose: whether to print a line for each candidate.
    """

    def __init__(self, x_held_out: np.ndarray, verbose: int) -> None:
        self.x_held_out, self.verbose = x_held_out, verbose
        self.models: list[EnergyModel] = []
        self.log_probs: list[np.ndarray] = []
        self.results: dict[str, tuple[float, float]] = {}

    def add(self, name: str, model: EnergyModel) -> None:
        """Judges a candidate and keeps it."""
        self.models.append(model)
        self.log_probs.append(log_prob_of(model, self.x_held_out))
        self.note(name, self.log_probs[-1])

    def note(self, name: str, log_prob: np.ndarray) -> None:
        """Keeps mean and standard error of log densities, and prints them."""
        with np.errstate(invalid="ignore"):  # a density may be zero at some row
            error = float(log_prob.std(ddof=1)) / math.sqrt(len(log_prob))
        self.results[name] = (float(log_prob.mean()), error)
        if self.verbose:
            print(f"{name:28s} {self.results[name][0]:12.4f} ± {error:.4f} nats")

    def stack(self) -> EnergyModel:
        """Returns the mixture of the candidates that is most likely on the held-out rows."""
        log_probs = np.stack(self.log_probs, 1)
        kept, probs = stacked_parts(log_probs)
        self.note("stack", np.logaddexp.reduce(log_probs[:, kept] + np.log(probs), axis=1))
        return mixture([self.models[i] for i in kept], probs)


def fit_density(
    x: Any,
    *,
    minutes: float | None = None,
    validation: float = 0.1,
    supports: Mapping[int, Any] | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> EnergyModel:
    """Fits a density to a table; its log Z is known, so that `log_prob` and `sample` need no chain.

    Args:
      x: array `[rows, columns]` of numbers, or a `pandas.DataFrame` of them. NaN marks a missing cell: it has no factor
        in the density, and the columns after it see that it is missing.
      minutes: time for the training of the networks, about, after which the clock ends it. Default: the number of
        networks and of their steps depends on the size of the table alone, for about .4 to 2.5 minutes on two processor
        cores, so that the same seed gives the same result.
      validation: share of the rows that stop trainings and choose weights; at least 50 rows, if there are 200.
      supports: for columns that take a few values, such as ratings or codes of categories, these values: a mapping from
        column numbers to lists. Such columns have probabilities, and p is a density in the other columns.
      seed: of the split, all weights and all batches.
      verbose: 1 prints each candidate's held-out log-likelihood; 0 prints nothing.

    Returns:
      An `EnergyModel` with E(x) = −log p(x). `candidates` maps the name of each candidate to its mean held-out
      log-likelihood per row, in nats, and its standard error; `cut_by_clock` says whether time ended a training.

    Raises:
      TypeError, ValueError: if `x` is no table of numbers, has fewer than 10 rows, has constant, empty or equal
        columns, or a number that is not in the support of its column.

    >>> import tfp_ebm as ebm
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    >>> model = fit_density(x, minutes=0.02, verbose=0)
    >>> p = ebm.EnergyDistribution(model)
    >>> p.log_prob(x[:3].astype("float32")).shape, p.sample(5, seed=0).shape
    (TensorShape([3]), TensorShape([5, 2]))
    """
    columns = tuple(str(name) for name in x.columns) if hasattr(x, "columns") else None
    rows = _check_rows(x)
    _check_columns(rows, columns)
    values = check_supports(supports, rows.shape[1])
    for column, support in values.items():
        _check_support(rows[:, column], support, column)
    check_count("seed", seed, minimum=0)
    if not 0.0 < validation < 1.0:
        raise ValueError(f"`validation` must be a share between 0 and 1, got {validation!r}.")
    num_rows, size = rows.shape
    if minutes is None:
        seconds = 60.0 * min(2.5, 0.4 + num_rows * size / 80_000)
    else:
        seconds = 60.0 * check_positive("minutes", minutes)
    limit = math.inf if minutes is None else seconds
    train, held_out = split_rows(rows, validation, seed)
    units = Units.of(rows[train], values)
    units = units._replace(has_missing=bool(np.isnan(rows).any()))
    y: np.ndarray = units.to_y(rows[train]).astype(np.float32)
    y_held_out: np.ndarray = units.to_y(rows[held_out]).astype(np.float32)
    both = filled(y, y_held_out, seed=seed) if units.has_missing else (y, y_held_out)
    spread = dequantized(both[0], values, seed), dequantized(both[1], values, seed + 1)
    table = _Table(y, y_held_out, values, units.has_missing, seed, spread)
    contest = _Contest(rows[held_out], verbose)
    parts = None if values and units.has_missing else table.fit_parts()
    if parts is not None:
        for name, network in _baselines(table, parts).items():
            contest.add(name, units.model(network))
        if len(parts.probs) > _MAX_PROPOSAL_COMPONENTS:
            parts = table.fit_parts(_MAX_PROPOSAL_COMPONENTS)
    # the conditionals of a mixture need all coordinates
    trained, is_cut = _train_networks(table, None if units.has_missing else parts, seconds, limit)
    for name, network in trained.items():
        error = settle_nodes(network, table.y_held_out[:1000])
        if error > _MAX_QUADRATURE_ERROR:
            warn(f"{name} is left out: its quadrature has an error of {error:.2g} nat a row, as for collinear columns.")
        else:
            contest.add(name, units.model(network))
    model = contest.stack()
    model.seed = seed
    model.compile(loss=NegativeLogLikelihood())  # for `evaluate`
    model.optimizer.build(model.trainable_variables)  # Keras cannot load a file whose optimizer was never built
    model.candidates, model.columns, model.cut_by_clock = contest.results, columns, is_cut
    return model


def _baselines(table: _Table, parts: MixtureParameters) -> dict[str, NormalizedEnergy]:
    """Returns a Gaussian, a Gaussian mixture and a kernel density, the last where all columns are numbers on a line."""
    size = table.y.shape[1]
    gaussian = table.fit_parts(1)
    mixtures = {"gaussian": gaussian} | ({"gaussian_mixture": parts} if len(parts.probs) > 1 else {})
    if not table.supports:
        options = {"allows_missing": table.has_missing}
        baselines = {name: GaussianMixtureEnergy.of(fitted, **options) for name, fitted in mixtures.items()}
        if size <= _MAX_KERNEL_COLUMNS and not table.has_missing:
            kernels = fit_kernel_density(*table.spread, seed=table.seed)
            baselines["kernel_density"] = GaussianMixtureEnergy.of(kernels)
        return baselines
    networks_by_name = {}
    for name, fitted in mixtures.items():
        network = networks.AutoregressiveEnergy(
            [size], [8], None, len(fitted.probs), True, num_functions=1, supports=table.supports
        )
        set_mixture(network, fitted, list(range(size)))
        network.set_frequencies(_frequencies(table))
        networks_by_name[name] = network
    return networks_by_name


def _frequencies(table: _Table) -> dict[int, np.ndarray]:
    return {column: frequencies(table.y[:, column], support) for column, support in table.supports.items()}


def _train_networks(
    table: _Table, parts: MixtureParameters | None, seconds: float, limit: float
) -> tuple[dict[str, networks.AutoregressiveEnergy], bool]:
    """Trains the autoregressive candidates.

    Args:
      table: the rows.
      parts: a mixture whose conditionals are proposals; None if there is none.
      seconds: time for which the number of networks is chosen.
      limit: time after which trainings are ended.

    Returns:
      The networks by name, and whether time ended a training.
    """
    size, seed = table.y.shape[1], table.seed
    settings = settings_for_rows(len(table.y), size)
    most = _MIN_NETWORKS if table.supports else _MAX_NETWORKS  # with supports, each order is compiled by itself
    number = int(np.clip(seconds / seconds_of(settings, size), _MIN_NETWORKS, most))
    trainers: dict[str, Trainer] = {}
    trained, spent, is_cut = {}, 0.0, False
    plan = _plan(size, number, seed, parts is not None)
    for number, (name, kind, order) in enumerate(plan):
        start = time.monotonic()
        own = _network(kind, table, settings, parts, order)
        if table.supports:
            trainer = Trainer(own, settings, seed)
        else:
            if kind not in trainers:
                trainers[kind] = Trainer(_network(kind, table, settings, parts), settings, seed)
            trainer = trainers[kind]
        columns = list(range(size)) if table.supports else order  # a network of its own orders the columns itself
        if kind == "mixture" and parts is not None:
            trainer.start_at(parts, order)
        budget = (limit - spent) / (len(plan) - number)
        weights, was_cut = trainer.train(table.y[:, columns], table.y_held_out[:, columns], budget, seed + number)
        own.set_weights(weights)
        trained[name] = own
        is_cut |= was_cut
        spent += time.monotonic() - start
    return trained, is_cut


def _network(
    kind: str, table: _Table, settings: Settings, parts: MixtureParameters | None, order: list[int] | None = None
) -> networks.AutoregressiveEnergy:
    """Returns an untrained network: with free proposals, or with the conditionals of a mixture of as many parts."""
    size = table.y.shape[1]
    more = int(size > _FEW_COLUMNS)
    of_mixture = kind == "mixture" and parts is not None
    number = len(parts.probs) if kind == "mixture" and parts is not None else _NUM_LOGISTICS[more]
    longest = min(_MAX_FREE_VALUES, max((len(support) for support in table.supports.values()), default=0))
    network = networks.AutoregressiveEnergy(
        [size],
        [settings.width] * 2,
        order,
        num_components=number,
        fixed_proposal=of_mixture,
        num_functions=max(_NUM_FUNCTIONS[more], -(-longest // number)),
        dropout=settings.dropout,
        supports=table.supports,
        allows_missing=table.has_missing,
        seed=table.seed,
    )
    if table.supports:
        network.set_frequencies(_frequencies(table))
    return network


def _plan(size: int, number: int, seed: int, has_mixture: bool) -> list[Candidate]:
    """Returns the autoregressive candidates: kinds of proposals and orders of the columns."""
    natural = list(range(size))
    if size == 1:
        return [Candidate("autoregressive_1", "free", natural)]
    rng = np.random.default_rng([seed, 7])
    orders = [natural, natural[::-1], *(rng.permutation(size).tolist() for _ in range(number))]
    kinds = ["free", "mixture" if has_mixture else "free", *["free"] * number]
    counts = {"free": 0, "mixture": 0}
    candidates = []
    for i in range(number):
        kind = kinds[i % 3] if i < 6 else "free"
        counts[kind] += 1
        name = f"autoregressive_{'mixture_' if kind == 'mixture' else ''}{counts[kind]}"
        candidates.append(Candidate(name, kind, orders[counts[kind] - 1 if kind == "free" else -counts[kind]]))
    return candidates


def settle_nodes(network: networks.AutoregressiveEnergy, y: np.ndarray) -> float:
    """Makes the lattice finer until its error is small; returns the error of the mean log density of rows, in nats."""
    error = math.inf
    for number in _NUM_NODES:
        network.num_nodes = (network.num_nodes[0], number)
        error = float(tf.abs(tf.reduce_mean(network(y, num_nodes=4 * number) - network(y))))
        if error <= _MAX_QUADRATURE_ERROR:
            break
    return error
