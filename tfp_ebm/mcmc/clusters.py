"""Clusters of draws, and how well independent groups of draws agree on the clusters' shares.

If particles cannot pass between modes, the share of a mode in a group of particles is random, and differs between
independent groups by more than that of independent draws. With the share p of a cluster, the shares p_g of the groups
and the groups' parts a_g of all draws, Σ a_g = 1,

    Var p ≈ G/(G − 1) Σ a_g² (p_g − p)²,    effective number of draws = p(1 − p)/Var p,

which for independent draws is about their number. No other diagnostic of a run shows this: each particle may move well
within its mode.

Draws are divided into cells by k-means. Cells between whose centres the log density has no valley form one cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Number of cells, rows from which they are found, and rounds of Lloyd's algorithm.
_NUM_CELLS, _MAX_ROWS, _NUM_ROUNDS = 16, 4096, 20
# Points between two centres at which the density is evaluated, and the depth of a valley that separates clusters.
_NUM_BETWEEN, _MIN_VALLEY = 8, 1.0
# Number of points that `find_clusters` evaluates, at most.
MAX_POINTS = _NUM_CELLS + _NUM_BETWEEN * _NUM_CELLS * (_NUM_CELLS - 1) // 2


class Shares(NamedTuple):
    """The shares of clusters among draws, in descending order.

    Attributes:
      values: share of each cluster, `[clusters]`.
      standard_errors: of the shares, from their spread between groups, but not below those of as many independent
        draws as there are, or as the weights were worth from which they were resampled, `[clusters]`.
      ess: effective number of independent draws that would give these errors, `[clusters]`.
      of_groups: share of each cluster in each group, `[groups, clusters]`.
      centers: mean of the draws in each cluster, `[clusters, *event]`.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    ess: np.ndarray
    of_groups: np.ndarray
    centers: np.ndarray


def effective_draws(of_groups: np.ndarray, parts: np.ndarray, num: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the shares, their standard errors and their effective numbers of draws.

    Args:
      of_groups: shares in each group, `[groups, clusters]`.
      parts: part of all draws that each group has, `[groups]`.
      num: the largest effective number. The spread between few groups is often too small by chance.

    >>> shares, errors, ess = effective_draws(np.array([[1.0], [0.0]]), np.array([0.5, 0.5]), 1000)
    >>> shares.tolist(), errors.tolist(), ess.tolist()
    ([0.5], [0.5], [1.0])
    """
    shares = parts @ of_groups
    groups = len(parts)
    shares = np.clip(shares, 0.0, 1.0)  # a sum of parts may exceed 1 by rounding
    variance = groups / (groups - 1) * np.square(parts) @ np.square(of_groups - shares)
    binomial = shares * (1 - shares)
    variance = np.maximum(variance, binomial / num)
    ess = np.full(len(shares), float(num))
    varies = binomial > 1e-12
    ess[varies] = np.minimum(binomial[varies] / variance[varies], num)
    return shares, np.sqrt(variance), ess


def k_means(x: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Returns at most `num` centres of rows `[rows, d]` by Lloyd's algorithm, started far apart (k-means++).

    >>> x = np.repeat([[0.0], [5.0]], 10, 0)
    >>> sorted(k_means(x, 2, np.random.default_rng(0)).ravel().tolist())
    [0.0, 5.0]
    """
    centers = x[rng.integers(len(x))][None]
    distances = np.square(x - centers[0]).sum(1)
    while len(centers) < num and distances.max() > 0:
        chosen = x[rng.choice(len(x), p=distances / distances.sum())]
        centers = np.concatenate([centers, chosen[None]])
        distances = np.minimum(distances, np.square(x - chosen).sum(1))
    for _ in range(_NUM_ROUNDS):
        cells = nearest(x, centers)
        counts = np.bincount(cells, minlength=len(centers))
        sums = np.zeros_like(centers)
        np.add.at(sums, cells, x)
        moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers


def nearest(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns the number of the nearest centre of each row."""
    return np.argmin(np.square(centers).sum(1) - 2.0 * x @ centers.T, 1)


def joined(
    centers: np.ndarray, log_density: Callable[[np.ndarray], np.ndarray], min_valley: float = _MIN_VALLEY
) -> np.ndarray:
    """Returns for each centre the number of its cluster: centres between which there is no valley form one.

    A valley is a point between the two, on the line that connects them, where the log density is lower than at both by
    more than `min_valley`.

    >>> centers = np.array([[-5.0], [-4.5], [5.0]])
    >>> joined(centers, lambda x: np.logaddexp(-((x + 5) ** 2), -((x - 5) ** 2))[:, 0]).tolist()
    [0, 0, 1]
    """
    first, second = np.triu_indices(len(centers), 1)
    t = ((np.arange(_NUM_BETWEEN) + 1) / (_NUM_BETWEEN + 1))[None, :, None]
    between = centers[first][:, None] * (1 - t) + centers[second][:, None] * t
    values = log_density(np.concatenate([centers, between.reshape(-1, centers.shape[1])]))
    at_centers, along = values[: len(centers)], values[len(centers) :].reshape(-1, _NUM_BETWEEN)
    lowest = np.minimum(at_centers[first], at_centers[second])
    with np.errstate(invalid="ignore"):
        is_joined = lowest - along.min(1, initial=np.inf) <= min_valley
    labels = np.arange(len(centers))
    for i, j in zip(first[is_joined], second[is_joined], strict=True):
        labels[labels == labels[j]] = labels[i]
    return np.unique(labels, return_inverse=True)[1]


def find_clusters(
    x: np.ndarray,
    groups: np.ndarray,
    num_groups: int,
    log_density: Callable[[np.ndarray], np.ndarray],
    seed: int,
    max_ess: float = np.inf,
) -> tuple[Shares, float]:
    """Finds the clusters of draws and their shares.

    Args:
      x: draws, float64 `[n, d]`.
      groups: number of the group of each, `[n]`.
      num_groups: number of groups.
      log_density: maps at most `MAX_POINTS` points `[m, d]` to the log density up to a constant, `[m]`.
      seed: of the starts of k-means.
      max_ess: effective number of the weights by which the draws were resampled.

    Returns:
      The shares of the clusters, with centres `[clusters, d]`, and the smallest effective number of draws among them
      and the cells that they consist of.
    """
    scale = x.std(0)
    scale[scale == 0] = 1.0
    z = (x - x.mean(0)) / scale
    rng = np.random.default_rng(seed)
    rows = z if len(z) <= _MAX_ROWS else z[rng.choice(len(z), _MAX_ROWS, replace=False)]
    centers = k_means(rows, _NUM_CELLS, rng)
    cells = nearest(z, centers)
    present, cells = np.unique(cells, return_inverse=True)
    centers = centers[present]
    labels = joined(centers * scale + x.mean(0), log_density)
    parts = np.bincount(groups, minlength=num_groups) / len(x)
    present_groups = parts > 0

    def of_groups(which: np.ndarray, num: int) -> np.ndarray:
        table = np.zeros([num_groups, num])
        np.add.at(table, (groups, which), 1.0)
        return table / np.maximum(table.sum(1, keepdims=True), 1.0)

    clusters = labels[cells]
    table = of_groups(clusters, int(labels.max()) + 1)
    table[~present_groups] = 0.0
    num = max(1.0, min(float(len(x)), max_ess))
    shares, errors, ess = effective_draws(table, parts, num)
    _, _, ess_of_cells = effective_draws(of_groups(cells, len(centers)), parts, num)
    order = np.argsort(-shares, kind="stable")
    means = np.stack([x[clusters == c].mean(0) for c in order])
    return Shares(shares[order], errors[order], ess[order], table[:, order], means), float(
        min(ess.min(), ess_of_cells.min())
    )
