"""Distances between two tables: a classifier that separates their rows, each column, and each pair of columns.

They compare a model's samples with rows that it was not trained on, and need neither the energy nor log Z. Tables are
matrices or data frames with numbers, truth values, labels and missing cells.

Data that are rounded, as most are, take few values, and samples of a continuous model do not. This is no fault of the
model, but a classifier would find it. If a column takes at most half as many values as it has rows in `x`, and more in
`y`, each cell of it in `y` is therefore moved to the nearest of the values in `x` first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfp_ebm.arguments import check_count, is_frame
from tfp_ebm.evaluation.out_of_distribution import share_below
from tfp_ebm.types import Estimate

# Kinds of columns: numbers, labels, and columns that the model leaves out.
NUMBERS, LABELS, LEFT_OUT = ("continuous", "whole"), ("rating", "boolean", "category"), ("constant", "duplicate")
# Rows of each table for the classifier, at least and at most, and for pairs of columns, at most.
MIN_ROWS, _MAX_ROWS, _MAX_PAIR_ROWS = 20, 5000, 20_000
_FOLDS = 5
# The grid of a pair of columns: cells of a number, and of labels, the last of which holds the rare ones.
_NUM_CELLS, _MAX_LABELS = 5, 8


def two_sample_auc(x: Any, y: Any, *, seed: int = 0) -> Estimate:
    """Computes how well a classifier separates rows of `y` from rows of `x`: ½ if it cannot, 1 if it always can.

    The value is the probability that a row of `y` has a higher score than a row of `x`, where ties count half, for
    scikit-learn's gradient boosted trees. A row is scored by trees fitted to the other four fifths of the rows. Equal
    rows are in one fifth, unless most rows are equal to others. The mean of the fifths is returned. Its standard error
    is that of DeLong et al. (1988), times √(1 + 5/4) since the fits share rows (Nadeau & Bengio 2003): without this
    factor it was 1.2 to 1.4 times too small for pairs of draws.

    Args:
      x, y: tables `[rows, columns]` with at least 20 rows each, of which at most 5000 are used. NaN is a missing cell.
      seed: of the choice of rows and of the folds.

    Raises:
      TypeError, ValueError: if the tables have other columns, or too few rows.

    References:
      D. Lopez-Paz and M. Oquab, Revisiting classifier two-sample tests, arXiv:1610.06545.

    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(500, 2)), rng.normal(size=(500, 2))
    >>> same, shifted = two_sample_auc(x, y), two_sample_auc(x, y + 3.0)
    >>> abs(same.value - 0.5) < 3 * same.standard_error, shifted.value > 0.95
    (True, True)
    """
    import threadpoolctl
    from sklearn.ensemble import HistGradientBoostingClassifier

    check_count("seed", seed, minimum=0)
    x, y = numeric_tables(x, y)
    for name, table in (("x", x), ("y", y)):
        if len(table) < MIN_ROWS:
            raise ValueError(f"`{name}` must have at least {MIN_ROWS} rows, got {len(table)}.")
    rng = np.random.default_rng(seed)
    x, y = (table[rng.permutation(len(table))[:_MAX_ROWS]] for table in (x, y))
    rows = np.concatenate([x, y])
    is_y: np.ndarray = np.repeat([0, 1], [len(x), len(y)])
    weights = np.where(is_y, len(rows) / (2.0 * len(y)), len(rows) / (2.0 * len(x)))
    fold = _folds(rows, is_y, rng)
    values, variances = [], []
    for number in range(_FOLDS):
        out = fold == number
        trees = HistGradientBoostingClassifier(
            learning_rate=0.1, max_iter=60, max_leaf_nodes=15, l2_regularization=1.0, early_stopping=False
        )
        with threadpoolctl.threadpool_limits(1):  # so many threads as cores take many times longer if cores are busy
            used = ~np.isnan(rows[~out]).all(0)  # scikit-learn cannot bin a column without any value
            trees.fit(rows[~out][:, used], is_y[~out], weights[~out])
            scores = trees.decision_function(rows[out][:, used])
        of_x, of_y = scores[is_y[out] == 0], scores[is_y[out] == 1]
        exceeded, below = share_below(of_y, of_x), share_below(of_x, of_y)
        values.append(float(exceeded.mean()))
        variances.append(np.var(exceeded, ddof=1) / len(of_y) + np.var(below, ddof=1) / len(of_x))
    shared = 1.0 + _FOLDS / (_FOLDS - 1)
    variance = shared * float(np.sum(variances)) / _FOLDS**2
    return Estimate(float(np.mean(values)), math.hypot(math.sqrt(variance), 0.5 / min(len(x), len(y))))


def _folds(rows: np.ndarray, is_y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the fold of each row, with as many of `x` and of `y` in each; equal rows are in one unless most are."""
    _, group = np.unique(rows, axis=0, return_inverse=True, equal_nan=True)
    group = group.reshape(-1)
    if group.max() + 1 <= len(rows) / 2:
        group = np.arange(len(rows))
    fold = np.empty(group.max() + 1, int)
    in_x: np.ndarray = np.zeros(len(fold), bool)
    in_x[group[is_y == 0]] = True
    for groups in (np.flatnonzero(in_x), np.flatnonzero(~in_x)):
        fold[rng.permutation(groups)] = np.arange(len(groups)) % _FOLDS
    return fold[group]


def column_distances(x: Any, y: Any, kinds: Sequence[str] | Mapping[str, str] | None = None) -> dict[str, float]:
    """Computes the distance of each column's values in two tables, between 0 and 1.

    For numbers it is the Kolmogorov-Smirnov statistic max |F_x − F_y| of the distribution functions, without missing
    cells. For ratings, truth values and categories it is the total variation ½ Σ |p_x − p_y| of the frequencies, in
    which missing is a value. It is 0 for constant and duplicated columns, and NaN for a number without any value.

    Args:
      x, y: data frames, or matrices `[rows, columns]` whose columns are named "0", "1", ….
      kinds: the kind of each column, in order or by name: "continuous", "whole", "rating", "boolean", "category",
        "constant" or "duplicate". Default: "continuous" for numbers, "category" for all else.

    Returns:
      The distances by the names of the columns.

    >>> column_distances(np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[2.0, 1.0], [3.0, 2.0]]), ["whole", "rating"])
    {'0': 1.0, '1': 0.5}
    """
    names, kinds = names_and_kinds(x, kinds)
    x, y = numeric_tables(x, y, kinds)
    return {name: _distance(a, b, kind) for name, kind, a, b in zip(names, kinds, x.T, y.T, strict=True)}


def chance_distances(x: Any, y: Any, kinds: Sequence[str] | Mapping[str, str] | None = None) -> dict[str, float]:
    """Computes the mean distance of each column, as in `column_distances`, of two draws of one distribution.

    It is √(π/2) log 2 √(1/n + 1/m) for numbers (the mean of Kolmogorov's distribution), and for labels
    ½ Σ √(2/π p(1 − p)(1/n + 1/m)) with the frequencies p in both tables.
    """
    names, kinds = names_and_kinds(x, kinds)
    x, y = numeric_tables(x, y, kinds)
    return {name: _by_chance(a, b, kind) for name, kind, a, b in zip(names, kinds, x.T, y.T, strict=True)}


def _distance(x: np.ndarray, y: np.ndarray, kind: str) -> float:
    if kind in LEFT_OUT:
        return 0.0
    if kind in LABELS:
        p, q = _frequencies(x, y)
        return 0.5 * float(np.abs(p - q).sum())
    x, y = np.sort(x[~np.isnan(x)]), np.sort(y[~np.isnan(y)])
    if not len(x) or not len(y):
        return math.nan
    values = np.concatenate([x, y])
    shares = np.searchsorted(x, values, "right") / len(x) - np.searchsorted(y, values, "right") / len(y)
    return float(np.abs(shares).max())


def _by_chance(x: np.ndarray, y: np.ndarray, kind: str) -> float:
    if kind in LEFT_OUT:
        return 0.0
    if kind in LABELS:
        p, q = _frequencies(x, y)
        pooled = (len(x) * p + len(y) * q) / (len(x) + len(y))
        sds = np.sqrt(pooled * (1.0 - pooled) * (1.0 / len(x) + 1.0 / len(y)))
        return 0.5 * math.sqrt(2.0 / math.pi) * float(sds.sum())
    n, m = np.count_nonzero(~np.isnan(x)), np.count_nonzero(~np.isnan(y))
    return math.sqrt(math.pi / 2.0) * math.log(2.0) * math.sqrt(1.0 / n + 1.0 / m) if n and m else math.nan


def _frequencies(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the frequencies of all values, NaN among them, in x and in y."""
    values, codes = np.unique(np.concatenate([x, y]), return_inverse=True, equal_nan=True)
    counts = [np.bincount(part, minlength=len(values)) for part in (codes[: len(x)], codes[len(x) :])]
    return counts[0] / len(x), counts[1] / len(y)


class PairDistance(NamedTuple):
    """Two columns, and how far their dependence in one table is from that in another.

    Attributes:
      first, second: names of the columns.
      distance: share of the rows that the difference puts into other cells of a grid, less what chance gives.
    """

    first: str
    second: str
    distance: float


def worst_pairs(
    x: Any, y: Any, kinds: Sequence[str] | Mapping[str, str] | None = None, *, count: int | None = None
) -> list[PairDistance]:
    """Ranks pairs of columns by how far their dependence in `y` is from that in `x`, worst first.

    Each column is cut into a few cells: a number at its quintiles, labels by themselves; missing is a cell. The
    dependence of two columns is C = P(a, b) − P(a) P(b) over their cells, and the distance ½ Σ |C_x − C_y|, less the
    value that chance gives: it is about 0 for two draws of one distribution. Unlike a difference of correlations it is
    defined for every kind of column and sees dependence that is not monotonic. Quintiles are each table's own, so that
    a column that is wrong by itself, which `column_distances` shows, is not in all of the worst pairs.

    Args:
      x, y, kinds: as for `column_distances`. At most 20 000 rows of each are used.
      count: number of pairs to return. Default: all.

    >>> x, noise = np.random.default_rng(0).normal(size=(2, 1000, 3))
    >>> x[:, 2] += x[:, 0]
    >>> y = noise
    >>> [(pair.first, pair.second) for pair in worst_pairs(x, y, count=1)]
    [('0', '2')]
    """
    if count is not None:
        check_count("count", count)
    names, kinds = names_and_kinds(x, kinds)
    x, y = numeric_tables(x, y, kinds)
    x, y = x[:_MAX_PAIR_ROWS], y[:_MAX_PAIR_ROWS]
    used = [i for i, kind in enumerate(kinds) if kind not in LEFT_OUT]
    if len(used) < 2:
        return []
    cells = [_cells(x[:, i], y[:, i], kinds[i]) for i in used]
    tables = [np.concatenate(parts, 1) for parts in zip(*cells, strict=True)]
    joint = [table.T.astype(np.float64) @ table / len(table) for table in tables]
    dependence = [p - np.outer(np.diag(p), np.diag(p)) for p in joint]
    pooled = (len(x) * joint[0] + len(y) * joint[1]) / (len(x) + len(y))
    chance = np.sqrt(2.0 / math.pi * _variance(pooled) * (1.0 / len(x) + 1.0 / len(y)))
    difference = np.abs(dependence[0] - dependence[1]) - chance
    starts = np.cumsum([0, *(part.shape[1] for part, _ in cells)])[:-1]
    distances = 0.5 * np.add.reduceat(np.add.reduceat(difference, starts, 0), starts, 1)
    first, second = np.triu_indices(len(used), 1)
    order = np.argsort(-distances[first, second], kind="stable")[:count]
    pairs = [(used[first[i]], used[second[i]], float(distances[first[i], second[i]])) for i in order]
    return [PairDistance(names[i], names[j], distance) for i, j, distance in pairs]


def _variance(joint: np.ndarray) -> np.ndarray:
    """Returns the variance of one row's (a − P(a))(b − P(b)) for all cells a and b, from their joint frequencies."""
    p = np.diag(joint)
    a, b = np.square(p)[:, None], np.square(p)[None]
    not_a, not_b = np.square(1.0 - p)[:, None], np.square(1.0 - p)[None]
    only_a, only_b = p[:, None] - joint, p[None] - joint
    neither = 1.0 - p[:, None] - p[None] + joint
    second_moment = joint * not_a * not_b + only_a * not_a * b + only_b * a * not_b + neither * a * b
    return np.maximum(second_moment - np.square(joint - np.outer(p, p)), 0.0)


def _cells(x: np.ndarray, y: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns which cell of a column each row is in, `[rows, cells]` of zeros and ones, for both tables."""
    of_x, of_y = x[~np.isnan(x)], y[~np.isnan(y)]
    codes: list[Any]
    if kind in LABELS:
        values, counts = np.unique(np.concatenate([of_x, of_y]), return_counts=True)
        frequent = values[np.argsort(-counts, kind="stable")[: _MAX_LABELS - 1]]
        codes = [_positions(frequent, column) for column in (x, y)]
    else:
        shares = np.arange(1, _NUM_CELLS) / _NUM_CELLS
        edges = [np.quantile(part if len(part) else [0.0], shares) for part in (of_x, of_y)]
        if _takes_few_values(of_x):  # a quantile in the middle of equal values is no boundary between rows
            edges[1] = edges[0]
        codes = [np.searchsorted(edge, column, "left") for edge, column in zip(edges, (x, y), strict=True)]
    most = max(_NUM_CELLS, _MAX_LABELS)
    codes = [np.where(np.isnan(column), most, code) for column, code in zip((x, y), codes, strict=True)]
    values = np.unique(np.concatenate(codes))
    one_hot = [np.equal(code[:, None], values).astype(np.float32) for code in codes]
    return one_hot[0], one_hot[1]


def _positions(values: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Returns the position of each cell among the values, and their number for one that is not among them."""
    is_value = np.equal(column[:, None], values)
    return np.where(is_value.any(1), is_value.argmax(1) if len(values) else 0, len(values))


def names_and_kinds(x: Any, kinds: Sequence[str] | Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
    """Returns the names and the kinds of the columns of a table.

    Raises:
      ValueError: if a kind is unknown, or the number of kinds is not that of the columns.
    """
    frame = is_frame(x)
    names = [str(name) for name in x.columns] if frame else [str(i) for i in range(np.shape(x)[1])]
    if kinds is None:
        found = [_kind_of(x.iloc[:, i]) for i in range(len(names))] if frame else ["continuous"] * len(names)
    elif isinstance(kinds, Mapping):
        missing = [name for name in names if name not in kinds]
        if missing:
            raise ValueError(f"`kinds` must name every column, but {missing[0]!r} is missing.")
        found = [kinds[name] for name in names]
    else:
        found = list(kinds)
    if len(found) != len(names):
        raise ValueError(f"`kinds` must have one kind for each of the {len(names)} columns, got {len(found)}.")
    known = (*NUMBERS, *LABELS, *LEFT_OUT)
    for kind in found:
        if kind not in known:
            raise ValueError(f"`kinds` must be among {', '.join(known)}, got {kind!r}.")
    return names, found


def _kind_of(column: Any) -> str:
    from pandas.api import types

    if types.is_bool_dtype(column):
        return "boolean"
    return "continuous" if types.is_numeric_dtype(column) else "category"


def numeric_tables(x: Any, y: Any, kinds: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns two tables as float64 matrices, NaN where a cell is missing, and labels as codes common to both.

    In columns that take few values in `x` and many in `y`, cells of `y` are moved to the nearest of those in `x`.
    """
    if is_frame(x) != is_frame(y):
        raise TypeError("`x` and `y` must both be data frames, or both be arrays.")
    if is_frame(x):
        if list(x.columns) != list(y.columns):
            raise ValueError(f"`y` must have the columns {list(x.columns)}, got {list(y.columns)}.")
        pairs = [_codes(x.iloc[:, i], y.iloc[:, i]) for i in range(x.shape[1])]
        x, y = (np.stack(columns, 1) for columns in zip(*pairs, strict=True))
    x, y = np.array(x, np.float64), np.array(y, np.float64)
    for name, table in (("x", x), ("y", y)):
        if table.ndim != 2 or not table.size:
            raise ValueError(f"`{name}` must be a table of shape [rows, columns], got {table.shape}.")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"`y` must have the {x.shape[1]} columns of `x`, got {y.shape[1]}.")
    for i in range(x.shape[1]):
        present = x[~np.isnan(x[:, i]), i]
        is_number = kinds is None or kinds[i] in NUMBERS
        if is_number and _takes_few_values(present) and not _takes_few_values(y[~np.isnan(y[:, i]), i]):
            y[:, i] = _nearest(np.unique(present), y[:, i])
    return x, y


def _takes_few_values(x: np.ndarray) -> bool:
    return 0 < 2 * len(np.unique(x)) <= len(x)


def _nearest(values: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Returns the nearest of some increasing values to each cell; NaN stays."""
    nearest = values[np.searchsorted(0.5 * values[1:] + 0.5 * values[:-1], column)]
    return np.where(np.isnan(column), np.nan, nearest)


def _codes(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns two columns of data frames as numbers: labels as positions in the order of all labels in both."""
    import pandas

    if _kind_of(x) != "category" and _kind_of(y) != "category":
        return x.to_numpy(np.float64, na_value=np.nan), y.to_numpy(np.float64, na_value=np.nan)
    both = pandas.concat([x.astype(object), y.astype(object)], ignore_index=True)
    codes, _ = pandas.factorize(both.map(str).where(both.notna()), sort=True)
    numbers = np.where(codes < 0, np.nan, codes)
    return numbers[: len(x)], numbers[len(x) :]
