"""The candidates of `fit_density`: simple densities, and autoregressive energies in several orders of the columns."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm import networks
from tfp_ebm.energy.gaussian_mixture import (
    MixtureChoice,
    MixtureParameters,
    choose_mixture,
    fit_kernel_density,
    refit_mixture,
)
from tfp_ebm.energy.missing import fit_gaussian
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.linear import LinearEnergy
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.recipes.density_backup import Trainings
from tfp_ebm.recipes.density_rows import effective_number, resampled
from tfp_ebm.recipes.density_training import (
    MANY_ROWS,
    Settings,
    Trainer,
    Training,
    seconds_of,
    set_mixture,
    settings_for_rows,
)
from tfp_ebm.recipes.density_units import frequencies

# Logistics of proposals that are free, and functions of each energy; in few columns, where they are cheap, and in more.
_FEW_COLUMNS, _NUM_LOGISTICS, _NUM_FUNCTIONS = 4, (8, 4), (32, 16)
# Many rows of few columns show edges that more functions resolve; these need more nodes in training. Waves of the
# columns let the network learn where an edge moves quickly.
_NUM_FINE_FUNCTIONS, _NUM_FINE_NODES, _NUM_FREQUENCIES = 64, 96, 4
# The number of orders of the columns is as many as the time allows, within these bounds.
_MIN_NETWORKS, _MAX_NETWORKS = 3, 8
# Values of a column that have an output of the network each.
_MAX_FREE_VALUES = 128
# Starts of each mixture.
_NUM_STARTS = 4
# Columns up to which a kernel density is a candidate.
MAX_KERNEL_COLUMNS = 64
# Added to the variances of a Gaussian fitted to rows with missing cells.
RIDGES = (0.0, 1e-3, 0.01, 0.03, 0.1)
# Columns up to which linear combinations are learned, and rows and steps that find where this starts.
_MAX_LINEAR_COLUMNS, _MAX_DEMIXED_ROWS, _MAX_DEMIXING_STEPS = 32, 10_000, 200
# The effective number of rows with weights below which they are not learned.
_MIN_WEIGHTED_ROWS = 500
# The condition number up to which a covariance is far enough from singular for them.
_MAX_CONDITION = 1e8
# A kind of network whose held-out loss is this much worse than that of the best kind, in nats, has no further turn.
_MAX_LOSS_BEHIND = 0.05
# By which a kind may be worse than another that has one network more, and still has the next turn.
_LOSS_PER_NETWORK = 0.01
# The turn of a second network whose proposals are the conditionals of a mixture.
_SECOND_MIXTURE = 4
# Of the first training, on two processor cores.
SECONDS_TO_COMPILE = 10.0


class Table(NamedTuple):
    """The rows in the units of the fit.

    Attributes:
      y, y_held_out: float32 `[rows, columns]`, NaN where a cell is missing.
      supports: the values of columns that take a few.
      has_missing: whether cells are missing.
      seed: of all random choices.
      spread: the rows without missing cells and with spread values, in float64, for mixtures.
      trainings: where results of trainings are kept.
      weights: of the rows and of the rows held out, with the effective number of all as their sum; None: equal ones.
      labels: numbers of the groups of the rows, which share a fold; None: each row is one.
    """

    y: np.ndarray
    y_held_out: np.ndarray
    supports: dict[int, np.ndarray]
    has_missing: bool
    seed: int
    spread: tuple[np.ndarray, np.ndarray]
    trainings: Trainings = Trainings()
    weights: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    labels: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """The effective number of rows that are not held out."""
        return effective_number(self.weights[0], len(self.y))

    @property
    def all_weights(self) -> np.ndarray | None:
        """The weights of all rows, those held out last."""
        first, second = self.weights
        return None if first is None or second is None else np.concatenate([first, second])

    def fit_parts(self, number: int | None = None) -> MixtureParameters:
        """Fits a Gaussian mixture; columns of a few values are spread over the cells around these."""
        return self.choose_parts(number)[0]

    def choose_parts(self, number: int | None) -> tuple[MixtureParameters, MixtureChoice]:
        """Fits a Gaussian mixture, and also returns what the held-out rows chose."""
        rows, held_out = self.spread
        return choose_mixture(
            rows, number, seed=self.seed, x_held_out=held_out, num_starts=_NUM_STARTS, weights=self.weights
        )


class Baseline(NamedTuple):
    """A simple density: fitted to the training rows, and, to take its place in the end, to all rows."""

    network: NormalizedEnergy
    of_all_rows: NormalizedEnergy


def baselines(table: Table) -> tuple[dict[str, Baseline], MixtureParameters]:
    """Returns a Gaussian, a Gaussian mixture and a kernel density, and the parameters of the mixture.

    The kernel density is left out where cells are missing, and where columns take a few values.
    """
    size = table.y.shape[1]
    everything = np.concatenate(table.spread)
    mixtures = {"gaussian": table.choose_parts(1)}
    parts, choice = table.choose_parts(None)
    if choice.num_components > 1:
        mixtures["gaussian_mixture"] = parts, choice
    found = {}
    if table.has_missing and not table.supports:
        found["gaussian"] = _gaussian_of_gaps(table)
        del mixtures["gaussian"]
    for name, (fitted, chosen) in mixtures.items():
        again = refit_mixture(everything, chosen, seed=table.seed, start=fitted, weights=table.all_weights)
        found[name] = Baseline(of_mixture(table, fitted), of_mixture(table, again))
    if size <= MAX_KERNEL_COLUMNS and not table.has_missing and not table.supports:
        kernels = fit_kernel_density(*table.spread, seed=table.seed, weights=table.weights)
        loc = np.concatenate([kernels.loc, table.spread[1]])
        probs = np.full(len(loc), 1.0 / len(loc))
        own, held_out = table.weights
        if own is not None and held_out is not None:
            # of many rows the kernels are a part, which stands for as many of its own size
            probs = np.concatenate([kernels.probs * own.sum() * len(kernels.loc) / len(own), held_out])
            probs /= probs.sum()
        again = MixtureParameters(probs, loc, kernels.scale_tril)
        found["kernel_density"] = Baseline(GaussianMixtureEnergy.of(kernels), GaussianMixtureEnergy.of(again))
    return found, parts


def gaussians_of_gaps(
    rows: np.ndarray, ridges: Sequence[float], seed: int, weights: np.ndarray | None = None
) -> list[MixtureParameters]:
    """Returns the Gaussian that is most likely for rows with missing cells, once for each ridge."""
    mean, covariance = fit_gaussian(rows, seed=seed, weights=weights)
    factors = [np.linalg.cholesky(covariance + ridge * np.eye(len(mean))) for ridge in ridges]
    return [MixtureParameters(np.ones(1), mean[None], factor[None]) for factor in factors]


def _gaussian_of_gaps(table: Table) -> Baseline:
    """Returns the Gaussian that is most likely where cells are missing; held-out rows choose its ridge."""

    def fitted(rows: np.ndarray, ridges: Sequence[float], weights: np.ndarray | None) -> list[NormalizedEnergy]:
        return [of_mixture(table, one) for one in gaussians_of_gaps(rows, ridges, table.seed, weights)]

    candidates = fitted(table.y, RIDGES, table.weights[0])
    energies = [float(np.average(network(table.y_held_out), weights=table.weights[1])) for network in candidates]
    best = int(np.argmin(energies))
    everything = np.concatenate([table.y, table.y_held_out])
    return Baseline(candidates[best], fitted(everything, [RIDGES[best]], table.all_weights)[0])


def of_mixture(table: Table, fitted: MixtureParameters) -> NormalizedEnergy:
    """Returns the energy of a mixture; columns of a few values have its conditional probabilities."""
    if not table.supports:
        return GaussianMixtureEnergy.of(fitted, allows_missing=table.has_missing)
    size, number = fitted.loc.shape[1], len(fitted.probs)
    network = networks.AutoregressiveEnergy(
        [size], [8], None, number, True, num_functions=1, num_nodes=(32, 32), supports=table.supports
    )
    set_mixture(network, fitted, list(range(size)))
    network.set_frequencies(frequencies_of(table))
    return network


def frequencies_of(table: Table) -> dict[int, np.ndarray]:
    """Returns the shares of the values of each column that has a support."""
    return {
        column: frequencies(table.y[:, column], support, table.weights[0]) for column, support in table.supports.items()
    }


class Trained(NamedTuple):
    """An autoregressive candidate, whether time, or the user, ended its training, and the training."""

    name: str
    network: Any
    is_cut: bool
    training: Training


def train_networks(
    table: Table, parts: MixtureParameters | None, seconds: float, limit: float, verbose: int
) -> Iterator[Trained]:
    """Trains the autoregressive candidates, one after the other, and yields each.

    An interrupt (Ctrl-C) ends the trainings; the candidate in training is kept as it was when last judged.

    Args:
      table: the rows.
      parts: a mixture whose conditionals are proposals; None if there is none.
      seconds: time for which the number of networks is chosen.
      limit: time after which trainings are ended.
      verbose: whether to print which candidate is trained, and about how long the rest takes.
    """
    size, seed = table.y.shape[1], table.seed
    settings = settings_for_rows(table.num_rows, size)
    most = _MIN_NETWORKS if table.supports else _MAX_NETWORKS  # with supports, each order is compiled by itself
    each = seconds_of(settings, size)
    total = 1 if size == 1 else int(np.clip(seconds / each, _MIN_NETWORKS, most))
    with_linear = total > _MIN_NETWORKS and _can_be_demixed(table)
    kinds = ["free", *["mixture"] * (parts is not None), *["linear"] * with_linear][:total]
    turns = _Turns(kinds, size, seed)
    trainers: dict[str, Trainer] = {}
    spent = 0.0
    for number in range(total):
        start = time.monotonic()
        name, kind, order = turns.next()
        left = total - number
        if verbose:
            about = min(limit - spent, left * (spent / number if number else each + SECONDS_TO_COMPILE))
            print(f"training {name}, {number + 1} of {total}; about {max(about, 0.0):.0f} s left", flush=True)
        own: Any = network_of(kind, table, settings, parts, None if kind == "linear" else order)
        rows, held_out = table.y, table.y_held_out
        matrix = demixing(rows, seed + number, table.weights[0])[order] if kind == "linear" else None
        if matrix is not None:
            own = LinearEnergy(own)
            rows, held_out = ((part @ matrix.T).astype(np.float32) for part in (rows, held_out))
        elif not table.supports:  # a network of its own orders the columns itself
            rows, held_out = rows[:, order], held_out[:, order]
        if table.supports:
            trainer = Trainer(own, settings, seed)
        else:
            if kind not in trainers:
                first: Any = network_of(kind, table, settings, parts)
                trainers[kind] = Trainer(first if matrix is None else LinearEnergy(first), settings, seed)
            trainer = trainers[kind]
        if kind == "mixture" and parts is not None:
            trainer.start_at(parts, order)
        time_left = max(limit - spent, 0.01) / left
        train = functools.partial(trainer.train, rows, held_out, time_left, seed + number, row_weights=table.weights)
        begin = time.monotonic()
        training, seconds = table.trainings.result(name, trainer, train)
        start += time.monotonic() - begin - seconds  # it may have been trained in an earlier call
        if training.weights is None:
            raise KeyboardInterrupt
        own.set_weights(training.weights)
        if matrix is not None:
            own.put_before(matrix, rows)
            training = training.of_units(-float(np.linalg.slogdet(matrix)[1]))
        spent += time.monotonic() - start
        turns.judge(kind, min(training.held_out_losses))
        yield Trained(name, own, training.is_cut, training)
        if training.is_interrupted:
            raise KeyboardInterrupt


def network_of(
    kind: str, table: Table, settings: Settings, parts: MixtureParameters | None, order: list[int] | None = None
) -> networks.AutoregressiveEnergy:
    """Returns an untrained network: its proposals are free, or the conditionals of a mixture of as many parts."""
    size = table.y.shape[1]
    more = int(size > _FEW_COLUMNS)
    of_mixture = kind == "mixture" and parts is not None
    number = len(parts.probs) if kind == "mixture" and parts is not None else _NUM_LOGISTICS[more]
    is_fine = not more and table.num_rows >= MANY_ROWS
    functions = _NUM_FINE_FUNCTIONS if is_fine else _NUM_FUNCTIONS[more]
    longest = min(_MAX_FREE_VALUES, max((len(support) for support in table.supports.values()), default=0))
    network = networks.AutoregressiveEnergy(
        [size],
        [settings.width] * 2,
        order,
        num_components=number,
        fixed_proposal=of_mixture,
        num_functions=max(functions, -(-longest // number)),
        dropout=settings.dropout,
        num_nodes=(_NUM_FINE_NODES if is_fine else 64, 128),
        supports=table.supports,
        allows_missing=table.has_missing,
        num_frequencies=_NUM_FREQUENCIES if is_fine else 0,
        seed=table.seed,
    )
    if table.supports:
        network.set_frequencies(frequencies_of(table))
    return network


class _Turns:
    """Whose turn it is to be trained: each kind once, then the kinds that do well, in further orders of the columns.

    Args:
      kinds: "free" proposals, the conditionals of a "mixture", and "linear" combinations of the columns.
      size: number of columns.
      seed: of the orders.
    """

    def __init__(self, kinds: Sequence[str], size: int, seed: int) -> None:
        self._kinds = tuple(kinds)
        natural = list(range(size))
        rng = np.random.default_rng([seed, 7])
        self._orders = [natural, natural[::-1], *(rng.permutation(size).tolist() for _ in range(_MAX_NETWORKS))]
        self._counts = dict.fromkeys(kinds, 0)
        self._losses: dict[str, float] = {}

    def next(self) -> tuple[str, str, list[int]]:
        """Returns the name of the next candidate, its kind and its order."""
        kind = self._next_kind(sum(self._counts.values()))
        self._counts[kind] += 1
        count = self._counts[kind]
        prefix = "autoregressive_" + ("" if kind == "free" else f"{kind}_")
        return f"{prefix}{count}", kind, self._orders[count - 1 if kind == "free" else -count]

    def _next_kind(self, number: int) -> str:
        if number < len(self._kinds):
            return self._kinds[number]
        best = min(self._losses.values())
        good = [kind for kind in self._kinds if self._losses[kind] <= best + _MAX_LOSS_BEHIND]
        others = [kind for kind in good if kind != "mixture"]
        if not others or ("mixture" in good and number == _SECOND_MIXTURE):
            return "mixture"
        return min(others, key=lambda kind: self._losses[kind] + _LOSS_PER_NETWORK * self._counts[kind])

    def judge(self, kind: str, loss: float) -> None:
        """Notes the loss of a candidate on the rows held out."""
        self._losses[kind] = min(loss, self._losses.get(kind, np.inf))


def _can_be_demixed(table: Table) -> bool:
    """Returns whether linear combinations of the columns have a density, and are worth a training."""
    size = table.y.shape[1]
    if table.supports or table.has_missing or not 2 < size <= _MAX_LINEAR_COLUMNS:
        return False
    if table.weights[0] is not None and table.num_rows < _MIN_WEIGHTED_ROWS:
        return False
    return bool(np.linalg.cond(np.cov(table.y.T.astype(np.float64), aweights=table.weights[0])) <= _MAX_CONDITION)


def demixing(y: np.ndarray, seed: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the matrix of linear combinations of columns that are as independent as they can be, `[size, size]`.

    They are found by independent component analysis (FastICA; Hyvärinen & Oja 2000), and have unit variance. Rows that
    have weights are drawn in proportion to them.

    >>> y = np.random.default_rng(0).uniform(-1.0, 1.0, size=(2000, 2)) @ [[1.0, 1.0], [-1.0, 1.0]]
    >>> matrix = demixing(y, seed=0)  # of x₁ + x₂ and x₁ − x₂, in either order
    >>> bool((np.abs(np.abs(matrix[:, 1] / matrix[:, 0]) - 1.0) < 0.2).all())
    True
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng(seed)
    if weights is None:
        rows = rng.permutation(len(y))[:_MAX_DEMIXED_ROWS]
    else:
        rows = resampled(weights, min(len(y), _MAX_DEMIXED_ROWS), rng)
    analysis = FastICA(whiten="unit-variance", max_iter=_MAX_DEMIXING_STEPS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the matrix is only where training starts
        analysis.fit(y[rows].astype(np.float64))
    return np.asarray(analysis.components_)
