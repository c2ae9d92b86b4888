"""The density of a table in one call: candidates whose log Z is known, stacked by held-out likelihood.

A Gaussian, a Gaussian mixture, a kernel density and autoregressive energies in several orders of the columns are fitted
to one part of the rows. The weights of their mixture are found by expectation maximisation on the other part (stacking;
Smyth & Wolpert 1999). The mixture is an energy with log Z = 0: its log density is exact, and so are its samples.
"""

from __future__ import annotations

import hashlib
import math
import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm import networks
from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.caller import warn
from tfp_ebm.composition import log_prob_of, mixture, stacked_parts
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, fit_kernel_density, fit_mixture
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.losses.negative_log_likelihood import NegativeLogLikelihood
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.normalized import NormalizedEnergy, WarpedEnergy
from tfp_ebm.recipes.density_training import Settings, Trainer, seconds_of, settings_for_rows

_MIN_ROWS = 10
# A column whose range between its outer thousandths is more than this many times that of its quartiles, about 4.6 for
# a normal, has heavy tails.
_HEAVY_TAILS = 12.0
# Components of a mixture whose conditionals are proposals, at most.
_MAX_PROPOSAL_COMPONENTS = 8
# Logistics of proposals that are free, and functions of each energy; in few columns, where they are cheap, and in more.
_FEW_COLUMNS, _NUM_LOGISTICS, _NUM_FUNCTIONS = 4, (8, 4), (32, 16)
# The number of orders of the columns is as many as the time allows, within these bounds.
_MIN_NETWORKS, _MAX_NETWORKS = 3, 8
# Nodes of the lattices that are tried, and their error at most, in nats a row.
_NUM_NODES, _MAX_QUADRATURE_ERROR = (128, 512), 1e-3
# Columns up to which a kernel density is a candidate.
_MAX_KERNEL_COLUMNS = 64


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


def _check_columns(x: np.ndarray, names: tuple[str, ...] | None) -> None:
    constant = np.flatnonzero((x == x[0]).all(0))
    if len(constant):
        raise ValueError(f"`x` must not have constant columns, but {_named(constant, names)} are constant.")
    first: dict[bytes, int] = {}
    twins = [i for i, column in enumerate(x.T) if first.setdefault(hashlib.sha256(column.tobytes()).digest(), i) != i]
    if twins:
        raise ValueError(f"`x` must not have equal columns, but {_named(twins, names)} equal earlier ones.")


def _named(columns: Any, names: tuple[str, ...] | None) -> str:
    return "columns " + ", ".join(str(i) if names is None else repr(names[i]) for i in columns)


class _Units(NamedTuple):
    """The units in which densities are fitted: y = (x − loc)/scale, and asinh of it in columns with heavy tails."""

    loc: np.ndarray
    scale: np.ndarray
    heavy: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> _Units:
        """Returns the units of a table: moments, or median and quartiles of columns with heavy tails."""
        low, q25, median, q75, high = np.quantile(x, [0.001, 0.25, 0.5, 0.75, 0.999], axis=0)
        moments = DataMoments.of([x])
        spread = np.maximum(high - median, median - low) * 2.0
        heavy = (q75 > q25) & (np.maximum(np.abs(x - median).max(0), spread) > _HEAVY_TAILS * (q75 - q25))
        return cls(np.where(heavy, median, moments.mean), np.where(heavy, (q75 - q25) / 1.349, moments.scale), heavy)

    def to_y(self, x: np.ndarray) -> np.ndarray:
        """Returns the rows in these units, float32."""
        z = (x - self.loc) / self.scale
        return np.where(self.heavy, np.arcsinh(z), z).astype(np.float32)

    def model(self, network: NormalizedEnergy, seed: int = 0) -> EnergyModel:
        """Returns a network of y as a model of x."""
        model = EnergyModel(WarpedEnergy(network, self.heavy) if self.heavy.any() else network, seed=seed)
        model.standardization.loc.assign(self.loc)
        model.standardization.scale.assign(self.scale)
        return model


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
    x: Any, *, minutes: float | None = None, validation: float = 0.1, seed: int = 0, verbose: int = 1
) -> EnergyModel:
    """Fits a density to a table; its log Z is known, so that `log_prob` and `sample` need no chain.

    Args:
      x: array `[rows, columns]` of numbers, or a `pandas.DataFrame` of them.
      minutes: time for the training of the networks, about, after which the clock ends it. Default: the number of
        networks and of their steps depends on the size of the table alone, for about .4 to 2.5 minutes on two processor
        cores, so that the same seed gives the same result.
      validation: share of the rows that stop trainings and choose weights; at least 50 rows, if there are 200.
      seed: of the split, all weights and all batches.
      verbose: 1 prints each candidate's held-out log-likelihood; 0 prints nothing.

    Returns:
      An `EnergyModel` with E(x) = −log p(x). `candidates` maps the name of each candidate to its mean held-out
      log-likelihood per row, in nats, and its standard error; `cut_by_clock` says whether time ended a training.

    Raises:
      TypeError, ValueError: if `x` is no table of finite numbers, has fewer than 10 rows, or has constant or equal
        columns.

    >>> import tfp_ebm as ebm
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    >>> model = fit_density(x, minutes=0.02, verbose=0)
    >>> p = ebm.EnergyDistribution(model)
    >>> p.log_prob(x[:3].astype("float32")).shape, p.sample(5, seed=0).shape
    (TensorShape([3]), TensorShape([5, 2]))
    """
    columns = tuple(str(name) for name in x.columns) if hasattr(x, "columns") else None
    rows = np.asarray(check_data("x", x, min_rows=_MIN_ROWS), np.float64)
    if rows.ndim != 2:
        raise ValueError(f"`x` must be a table of shape [rows, columns], got {rows.shape}.")
    _check_columns(rows, columns)
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
    units = _Units.of(rows[train])
    y, y_held_out = units.to_y(rows[train]), units.to_y(rows[held_out])
    exact: np.ndarray = y.astype(np.float64)
    exact_held_out: np.ndarray = y_held_out.astype(np.float64)
    contest = _Contest(rows[held_out], verbose)

    def fit_parts(number: int | None = None) -> MixtureParameters:
        return fit_mixture(exact, number, seed=seed, x_held_out=exact_held_out)

    parts = fit_parts()
    contest.add("gaussian", units.model(GaussianMixtureEnergy.of(fit_parts(1))))
    if len(parts.probs) > 1:
        contest.add("gaussian_mixture", units.model(GaussianMixtureEnergy.of(parts)))
    if size <= _MAX_KERNEL_COLUMNS:
        kernels = fit_kernel_density(exact, exact_held_out, seed=seed)
        contest.add("kernel_density", units.model(GaussianMixtureEnergy.of(kernels)))
    if len(parts.probs) > _MAX_PROPOSAL_COMPONENTS:
        parts = fit_parts(_MAX_PROPOSAL_COMPONENTS)
    networks_by_name, is_cut = _train_networks(y, y_held_out, parts, seconds, limit, seed)
    for name, network in networks_by_name.items():
        error = settle_nodes(network, y_held_out[:1000])
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


def _train_networks(
    y: np.ndarray, y_held_out: np.ndarray, parts: MixtureParameters, seconds: float, limit: float, seed: int
) -> tuple[dict[str, networks.AutoregressiveEnergy], bool]:
    """Trains the autoregressive candidates.

    Args:
      y, y_held_out: rows to train on and to judge by.
      parts: a mixture whose conditionals are proposals.
      seconds: time for which the number of networks is chosen.
      limit: time after which trainings are ended.
      seed: of weights, orders of the columns, and batches.

    Returns:
      The networks by name, and whether time ended a training.
    """
    size = y.shape[1]
    settings = settings_for_rows(len(y), size)
    plan = _plan(size, int(np.clip(seconds / seconds_of(settings, size), _MIN_NETWORKS, _MAX_NETWORKS)), seed)
    trainers: dict[str, Trainer] = {}
    trained, spent, is_cut = {}, 0.0, False
    for number, (name, kind, order) in enumerate(plan):
        start = time.monotonic()
        if kind not in trainers:
            trainers[kind] = Trainer(_network(kind, size, settings, parts, seed), settings, seed)
        if kind == "mixture":
            trainers[kind].start_at(parts, order)
        budget = (limit - spent) / (len(plan) - number)
        weights, was_cut = trainers[kind].train(y[:, order], y_held_out[:, order], budget, seed + number)
        trained[name] = _network(kind, size, settings, parts, seed, order)
        trained[name].set_weights(weights)
        is_cut |= was_cut
        spent += time.monotonic() - start
    return trained, is_cut


def _network(
    kind: str, size: int, settings: Settings, parts: MixtureParameters, seed: int, order: list[int] | None = None
) -> networks.AutoregressiveEnergy:
    """Returns an untrained network: with free proposals, or with the conditionals of a mixture of as many parts."""
    of_mixture, more = kind == "mixture", int(size > _FEW_COLUMNS)
    return networks.AutoregressiveEnergy(
        [size],
        [settings.width] * 2,
        order,
        num_components=len(parts.probs) if of_mixture else _NUM_LOGISTICS[more],
        fixed_proposal=of_mixture,
        num_functions=_NUM_FUNCTIONS[more],
        dropout=settings.dropout,
        seed=seed,
    )


def _plan(size: int, number: int, seed: int) -> list[Candidate]:
    """Returns the autoregressive candidates: kinds of proposals and orders of the columns."""
    natural = list(range(size))
    if size == 1:
        return [Candidate("autoregressive_1", "free", natural)]
    rng = np.random.default_rng([seed, 7])
    orders = [natural, natural[::-1], *(rng.permutation(size).tolist() for _ in range(number))]
    kinds = ["free", "mixture", *["free"] * number]
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
