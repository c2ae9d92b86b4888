"""Data and chains of known distribution, which many tests use."""

import numpy as np


def gaussian_data(d, rows=40_000):
    """Rows of a Gaussian with random covariance, d = 1 to 5, float64."""
    rng = np.random.default_rng(d)
    factor = np.eye(d) + 0.3 * rng.normal(size=(d, d))
    return rng.normal(size=(rows, d)) @ factor.T + rng.normal(size=d)


def autoregressive(rho, num_results, num_chains, num_coordinates, seed=0):
    """Stationary chains x' = ρx + √(1 − ρ²)·Z."""
    rng = np.random.default_rng(seed)
    x = np.empty([num_results, num_chains, num_coordinates])
    x[0] = rng.normal(size=x.shape[1:])
    for t in range(1, num_results):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=x.shape[1:])
    return x
