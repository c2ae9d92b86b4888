"""Whether draws, log Z and the verdict of `mcmc.sequential_monte_carlo` can be trusted: many seeds on known densities.

    python benchmarks/draws.py [--cases modes broken ...] [--seeds 20] [--json out.json]

- `modes`: two modes, ten apart, of shares .3 and .7 and of equal and unequal widths, in 2 to 50 coordinates; the base
  is `fit_base` of 5000 rows. Shares, log Z and its standard error.
- `broken`: two modes of unequal widths, along an axis or a diagonal, in 10 and 20 coordinates, from a round Gaussian as
  base, where annealing must fail. Shares and log Z are right, since a search finds the modes, or the verdict is not
  empty.
- `known`: many wells, GMM-40, a funnel: log Z, shares, modes.
- `z_scores`: (log Ẑ − log Z) over its standard error.
- `healthy`: how often the verdict is empty on densities that the sampler draws well.
"""

import argparse
import itertools
import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import mcmc, targets

tfd = tfp.distributions


def wide(size, scale):
    """A round Gaussian."""
    return tfd.MultivariateNormalDiag(tf.zeros([size]), tf.fill([size], float(scale)))


def of_wells(size):
    """A Gaussian of the scale of many wells."""
    return tfd.MultivariateNormalDiag(tf.zeros([size]), tf.tile(tf.constant([1.65, 1.0]), [size // 2]))


def gaussians(size, number, seed):
    """A mixture of Gaussians of several widths at random places."""
    rng = np.random.default_rng(seed)
    locs, widths = 2.0 * rng.normal(size=(number, size)), rng.uniform(0.7, 1.3, size=(number, size))
    probs = rng.dirichlet(np.full(number, 5.0)).astype("float32")
    components = tfd.MultivariateNormalDiag(locs.astype("float32"), widths.astype("float32"))
    return tfd.MixtureSameFamily(tfd.Categorical(probs=probs), components)


def two(size, wide_mode, narrow_mode):
    """Two modes, of shares .3 and .7 and standard deviations 1 and .5."""
    locs, widths = np.stack([wide_mode, narrow_mode]), np.stack([np.ones(size), np.full(size, 0.5)])
    components = tfd.MultivariateNormalDiag(locs.astype("float32"), widths.astype("float32"))
    return tfd.MixtureSameFamily(tfd.Categorical(probs=[0.3, 0.7]), components)


def correlated(size, rho):
    """A Gaussian with correlations ρ^|i − j|."""
    covariance = rho ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return tfd.MultivariateNormalTriL(tf.zeros([size]), np.linalg.cholesky(covariance).astype("float32"))


def chain(x):
    """The log density of pairs of coordinates, the second of each near half the square of the first."""
    first, second = x[..., 0::2], x[..., 1::2]
    log_prob = tfd.Normal(0.0, 1.0).log_prob(first) + tfd.Normal(0.5 * first**2, 0.5).log_prob(second)
    return tf.reduce_sum(log_prob, -1)


def drawn(log_prob, base, seed, num_samples=2000):
    """A run, its log Z, of which the true value is 0, and its standard error."""
    draws = mcmc.sequential_monte_carlo(log_prob, base, num_samples=num_samples, seed=seed)
    return draws, draws.log_normalizer.value, draws.log_normalizer.standard_error


def two_modes(seeds):
    """Two modes from a base that was fitted to data."""
    for size, ratio in itertools.product((2, 10, 20, 50), (1.0, 0.5)):
        target = targets.two_widths(size, 10.0, ratio)
        for seed in range(seeds):
            base = ebm.fit_base(target.sample(5000, seed=100 + seed).numpy(), "gaussian_mixture")
            draws, value, error = drawn(target.log_prob, base, seed)
            share = float(np.mean(draws.states[:, 0] > 0))
            good = abs(share - 0.7) <= 0.03 and abs(value) <= 3 * error and error <= 0.05
            yield f"two modes, ratio {ratio:g}, d = {size}", good, f"share {share:.3f}, log Z {value:.3f} ± {error:.3f}"


def broken(seeds):
    """Two modes of unequal width from a round Gaussian."""
    for size, scale, is_diagonal in itertools.product((10, 20), (3.0, 6.0), (False, True)):
        direction = np.full(size, size**-0.5) if is_diagonal else np.eye(size)[0]
        target = two(size, -5.0 * direction, 5.0 * direction)
        for seed in range(seeds):
            draws, value, error = drawn(target.log_prob, wide(size, scale), seed)
            share = float(np.mean(draws.states.numpy() @ direction > 0))
            right = abs(share - 0.7) <= 0.05 and abs(value) <= max(4 * error, 0.05)
            note = f"share {share:.3f}, log Z {value:.3f} ± {error:.3f}, sentences {len(draws.trouble)}"
            where = "diagonal" if is_diagonal else "axis"
            yield f"broken path, d = {size}, base {scale:g}, {where}", bool(draws.trouble or right), note


def known(seeds):
    """Densities of which log Z, and shares or modes are known."""
    for seed in range(seeds):
        target = targets.many_well(32)
        draws, value, error = drawn(target.log_prob, of_wells(32), seed)
        share = float(np.mean(draws.states.numpy()[:, 0::2] > 0))
        good = abs(value) <= 0.05 and abs(share - float(target.shares[1])) <= 0.02
        yield "many wells, d = 32", good, f"share {share:.4f}, log Z {value:.3f} ± {error:.3f}"
        target = targets.gmm40()
        draws, value, error = drawn(target.log_prob, wide(2, 25.0), seed, num_samples=20_000)
        counts = np.bincount(target.modes(draws.states).numpy(), minlength=40) / 20_000
        distance = 0.5 * np.abs(counts - target.shares).sum()  # .018 for as many exact draws
        good = (counts > 0).all() and distance <= 0.03
        yield "GMM-40", good, f"total variation {distance:.3f}, log Z {value:.3f} ± {error:.3f}"
        draws, value, error = drawn(targets.funnel(10).log_prob, wide(10, 3.0), seed)
        yield "funnel, d = 10", abs(value) <= 0.05, f"log Z {value:.3f} ± {error:.3f}, {len(draws.trouble)} sentences"


def z_scores(seeds):
    """Scores of log Z, of which mean and standard deviation are judged; at least 20 seeds."""
    for name, log_prob, base in (
        ("many wells, d = 16", targets.many_well(16).log_prob, of_wells(16)),
        ("three Gaussians, d = 5", gaussians(5, 3, 0).log_prob, wide(5, 4.0)),
        ("five Gaussians, d = 10", gaussians(10, 5, 1).log_prob, wide(10, 4.0)),
        ("curved pairs, d = 10", chain, wide(10, 2.0)),
    ):
        scores = [value / error for _, value, error in (drawn(log_prob, base, seed) for seed in range(max(seeds, 20)))]
        mean, deviation = float(np.mean(scores)), float(np.std(scores, ddof=1))
        note = f"mean {mean:.2f}, standard deviation {deviation:.2f} of {len(scores)}"
        yield f"z-scores of log Z, {name}", abs(mean) <= 0.5 and 0.7 <= deviation <= 1.4, note


def healthy(seeds):
    """Ten densities with as many runs as seeds, whose verdict should be empty."""
    banana, moons = targets.banana(), targets.two_moons()
    for name, log_prob, base in (
        ("normal, d = 2", wide(2, 1.0).log_prob, wide(2, 2.0)),
        ("normal, d = 50", wide(50, 1.0).log_prob, wide(50, 1.5)),
        ("correlated, d = 20", correlated(20, 0.7).log_prob, wide(20, 1.5)),
        ("banana", banana.log_prob, wide(2, 4.0)),
        ("two moons", moons.log_prob, wide(2, 2.0)),
        ("eight Gaussians", targets.eight_gaussians().log_prob, wide(2, 4.0)),
        ("many wells, d = 8", targets.many_well(8).log_prob, of_wells(8)),
        ("many wells, d = 32", targets.many_well(32).log_prob, of_wells(32)),
        ("three Gaussians, d = 5", gaussians(5, 3, 0).log_prob, wide(5, 4.0)),
        ("curved pairs, d = 10", chain, wide(10, 2.0)),
    ):
        for seed in range(seeds):
            draws, value, error = drawn(log_prob, base, seed)
            yield f"healthy: {name}", not draws.trouble, f"log Z {value:.3f} ± {error:.3f}, {draws.trouble}"


CASES = {"modes": two_modes, "broken": broken, "known": known, "z_scores": z_scores, "healthy": healthy}


def main():
    """Runs what is asked for, prints a line per density and each run that is not good, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", help="where to write the runs")
    options = parser.parse_args()
    runs = []
    for case in options.cases:
        start, found = time.monotonic(), {}
        for name, good, note in CASES[case](options.seeds):
            found.setdefault(name, []).append((bool(good), note))
            if not good:  # at once, since a case takes long
                print(f"      not good: {name}, run {len(found[name]) - 1}: {note}", flush=True)
        for name, rows in found.items():
            print(f"  {name:42s} {sum(good for good, _ in rows):3d} of {len(rows):3d} good, the first: {rows[0][1]}")
        rows = [{"case": case, "name": name, "good": row[0], "note": row[1]} for name in found for row in found[name]]
        good = sum(row["good"] for row in rows)
        print(f"{case}: {good} of {len(rows)} good, {time.monotonic() - start:.0f} s", flush=True)
        runs += rows
    if options.json:
        with open(options.json, "w") as file:
            json.dump(runs, file, indent=2)
    sys.exit(sum(run["good"] for run in runs) < 0.95 * len(runs))


if __name__ == "__main__":
    main()
