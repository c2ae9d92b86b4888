"""The density of a table in one call: candidates whose log Z is known, stacked by held-out likelihood.

A Gaussian, a Gaussian mixture and autoregressive energies in several orders of the columns are fitted to one part of
the rows; weights of their mixture are found by expectation maximisation on the other (stacking; Smyth & Wolpert
1999). The mixture is an energy with log Z = 0: its log density is exact, and so are its samples.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_ebm import networks
from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, fit_kernel_density, fit_mixture
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.normalized import MixtureEnergy, NormalizedEnergy, WarpedEnergy
from tfp_ebm.recipes.density_training import Settings, Trainer, energies_of, settings_for_rows

_MIN_ROWS = 10
# A column whose range between its outer thousandths is more than this many times that of its quartiles, about 4.6 for
# a normal, has heavy tails.
_HEAVY_TAILS = 12.0
# Components of a mixture whose conditionals are proposals, at most, and logistics of proposals that are free.
_MAX_PROPOSAL_COMPONENTS, _NUM_LOGISTICS = 8, 4
# Seconds for a training, about; the number of orders of the columns is as many as that allows, within bounds.
_SECONDS_PER_NETWORK, _MIN_NETWORKS, _MAX_NETWORKS = 10.0, 3, 8
# Columns up to which a kernel density is a candidate.
_MAX_KERNEL_COLUMNS = 64


def stacking_weights(log_probs: np.ndarray, num_steps: int = 500) -> np.ndarray:
    """Finds the weights of a mixture by expectation maximisation.

    Args:
      log_probs: log densities of held-out rows `[rows, parts]`.
      num_steps: of expectation maximisation.

    Returns:
      Weights `[parts]` with sum 1 that maximise Σ log Σₖ wₖ pₖ(x), with half a row of prior weight for each part.

    >>> stacking_weights(np.log([[1.0, 0.1], [1.0, 0.1], [0.1, 1.0]])).round(1).tolist()
    [0.7, 0.3]
    """
    num_rows, num_parts = log_probs.shape
    densities = np.exp(log_probs - log_probs.max(1, keepdims=True))
    weights = np.full(num_parts, 1.0 / num_parts)
    for _ in range(num_steps):
        shares = densities * weights
        shares /= shares.sum(1, keepdims=True)
        weights = (shares.sum(0) + 0.5 / num_parts) / (num_rows + 0.5)
    return weights


def split_rows(x: np.ndarray, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns row numbers to train on and to hold out; equal rows are on one side."""
    _, group = np.unique(x, axis=0, return_inverse=True)
    group = group.reshape(-1)
    goal = min(max(validation * len(x), min(50.0, 0.25 * len(x))), 20_000.0)
    order = np.random.default_rng(seed).permutation(group.max() + 1)
    sizes = np.bincount(group)[order]
    chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes), goal)))]
    held_out = np.isin(group, chosen)
    if held_out.all():
        raise ValueError("`x` must hold rows that differ, but they are all equal.")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _check_columns(x: np.ndarray) -> None:
    constant = np.flatnonzero((x == x[0]).all(0))
    if len(constant):
        raise ValueError(f"`x` must not have constant columns, but columns {constant.tolist()} are constant.")
    _, first, inverse = np.unique(x, axis=1, return_index=True, return_inverse=True)
    twins = [(int(first[j]), i) for i, j in enumerate(inverse.reshape(-1)) if first[j] != i]
    if twins:
        raise ValueError(f"`x` must not have equal columns, but these pairs are equal: {twins}.")


def _robust_units(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns location and scale of each column, and whether its tails are heavy."""
    low, q25, median, q75, high = np.quantile(x, [0.001, 0.25, 0.5, 0.75, 0.999], axis=0)
    moments = DataMoments.of([x])
    quartiles = (q75 - q25) / 1.349
    spread = np.maximum(high - median, median - low) * 2.0
    heavy = (quartiles > 0) & (np.maximum(np.abs(x - median).max(0), spread) > _HEAVY_TAILS * (q75 - q25))
    return np.where(heavy, median, moments.mean), np.where(heavy, quartiles, moments.scale), heavy


def fit_density(
    x: Any, *, minutes: float | None = None, validation: float = 0.1, seed: int = 0, verbose: int = 1
) -> EnergyModel:
    """Fits a density to a table; its log Z is known, so that `log_prob` and `sample` need no chain.

    Args:
      x: array `[rows, columns]` of numbers, or a `pandas.DataFrame` of them.
      minutes: time for the training of the networks, about; default: by the size of the table, .4 to 2.5.
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
    _check_columns(rows)
    check_count("seed", seed, minimum=0)
    if not 0.0 < validation < 1.0:
        raise ValueError(f"`validation` must be a share between 0 and 1, got {validation!r}.")
    num_rows, size = rows.shape
    if minutes is None:
        seconds = 60.0 * min(2.5, 0.4 + num_rows * size / 80_000)
    else:
        seconds = 60.0 * check_positive("minutes", minutes)
    train, held_out = split_rows(rows, validation, seed)
    loc, scale, heavy = _robust_units(rows[train])
    with np.errstate(over="ignore"):
        z = ((rows - loc) / scale).astype(np.float32)
    y = np.where(heavy, np.arcsinh(z.astype(np.float64)), z).astype(np.float32)
    log_volume = float(np.log(scale).sum())
    warp = np.where(heavy, 0.5 * np.logaddexp(0.0, 2.0 * np.log(np.maximum(np.abs(z.astype(np.float64)), 1e-300))), 0.0)
    offsets = log_volume + warp.sum(1)[held_out]

    parts: dict[str, NormalizedEnergy] = {}
    candidates: dict[str, tuple[float, float]] = {}
    log_probs: list[np.ndarray] = []

    def add(name: str, network: NormalizedEnergy) -> None:
        values = -energies_of(network, y[held_out]) - offsets
        if not np.isfinite(values).all():
            return
        parts[name] = network
        log_probs.append(values)
        note(name, values)

    def note(name: str, values: np.ndarray) -> None:
        candidates[name] = (float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))
        if verbose:
            print(f"{name:28s} {candidates[name][0]:12.4f} ± {candidates[name][1]:.4f} nats")

    mixture = fit_mixture(y[train], seed=seed, x_held_out=y[held_out])
    add("gaussian", GaussianMixtureEnergy.of(fit_mixture(y[train], 1, seed=seed, x_held_out=y[held_out])))
    if len(mixture.probs) > 1:
        add("gaussian_mixture", GaussianMixtureEnergy.of(mixture))
    if size <= _MAX_KERNEL_COLUMNS:
        add("kernel_density", GaussianMixtureEnergy.of(fit_kernel_density(y[train], y[held_out], seed=seed), ))
    if len(mixture.probs) > _MAX_PROPOSAL_COMPONENTS:
        mixture = fit_mixture(y[train], _MAX_PROPOSAL_COMPONENTS, seed=seed, x_held_out=y[held_out])
    is_cut = False
    settings = settings_for_rows(len(train), size)
    plan = _plan(size, seconds, seed)
    trainers: dict[str, Trainer] = {}
    spent = 0.0
    for number, (name, kind, order) in enumerate(plan):
        start = time.monotonic()
        if kind not in trainers:
            trainers[kind] = Trainer(_network(kind, size, settings, mixture, seed), settings, seed)
        trainer = trainers[kind]
        if kind == "mixture":
            trainer.start_at(mixture, order)
        budget = (seconds - spent) / (len(plan) - number)
        weights_of, was_cut = trainer.train(y[train][:, order], y[held_out][:, order], budget, seed + number)
        is_cut |= was_cut
        network = _network(kind, size, settings, mixture, seed, order)
        network.set_weights(weights_of)
        add(name, network)
        spent += time.monotonic() - start
    weights = stacking_weights(np.stack(log_probs, 1))
    kept = weights > 1e-3
    weights = weights[kept] / weights[kept].sum()
    stacked = [part for part, keep in zip(parts.values(), kept, strict=True) if keep]
    note("stack", np.logaddexp.reduce(np.stack(log_probs, 1)[:, kept] + np.log(weights), axis=1))
    network = stacked[0] if len(stacked) == 1 else MixtureEnergy(stacked, weights)
    if heavy.any():
        network = WarpedEnergy(network, heavy)
    model = EnergyModel(network, seed=seed)
    model.standardization.loc.assign(loc)
    model.standardization.scale.assign(scale)
    model.candidates, model.columns, model.cut_by_clock = candidates, columns, is_cut
    _warn_of_quadrature(parts, y[held_out][:1000])
    return model


def _network(
    kind: str, size: int, settings: Settings, mixture: MixtureParameters, seed: int, order: list[int] | None = None
) -> networks.AutoregressiveEnergy:
    """Returns an untrained network: with free proposals, or with the conditionals of a mixture of as many parts."""
    of_mixture = kind == "mixture"
    return networks.AutoregressiveEnergy(
        [size],
        [settings.width] * 2,
        order,
        num_components=len(mixture.probs) if of_mixture else _NUM_LOGISTICS,
        fixed_proposal=of_mixture,
        num_functions=16,
        dropout=settings.dropout,
        seed=seed,
    )


class Candidate(NamedTuple):
    """An autoregressive energy to train: its name, the kind of its proposals, and the order of the columns."""

    name: str
    kind: str
    order: list[int]


def _plan(size: int, seconds: float, seed: int) -> list[Candidate]:
    """Returns the autoregressive candidates: as many orders of the columns as the time allows."""
    natural = list(range(size))
    if size == 1:
        return [Candidate("autoregressive_1", "free", natural)]
    rng = np.random.default_rng([seed, 7])
    number = int(np.clip(seconds / _SECONDS_PER_NETWORK, _MIN_NETWORKS, _MAX_NETWORKS))
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


def _warn_of_quadrature(parts: Mapping[str, NormalizedEnergy], z: np.ndarray) -> None:
    for name, part in parts.items():
        if isinstance(part, networks.AutoregressiveEnergy):
            fine = part(z, num_nodes=4 * part.num_nodes[1])
            error = float(tf.abs(tf.reduce_mean(fine - part(z))))
            if error > 1e-3:
                warnings.warn(f"the quadrature of {name} is wrong by {error:.4f} nat a row.", stacklevel=3)
