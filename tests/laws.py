"""Densities, data and chains that are known in closed form, and comparisons, for all tests."""

import numpy as np
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def rng():
    """The same numbers in every test, in whatever order they run."""
    return np.random.default_rng(0)


# --- log densities and energies ---------------------------------------------------------------------------------------


def normal(x):
    """−½‖x‖², the log density of N(0, I) but for its constant."""
    return -0.5 * tf.reduce_sum(x**2, -1)


def quartic(x):
    """A log density in two coordinates; not quadratic, so that a leapfrog step has an error, and not symmetric."""
    return -tf.reduce_sum(x**4 / 4 + 0.5 * tf.cos(x), -1) - 0.3 * x[..., 0] * x[..., 1]


def quadratic(precision, mean):
    """The energy ½(x − mean)ᵀ precision (x − mean), in float64."""
    precision, mean = tf.convert_to_tensor(precision, tf.float64), tf.convert_to_tensor(mean, tf.float64)
    return lambda x: 0.5 * tf.einsum("...i,ij,...j->...", x - mean, precision, x - mean)


# --- distributions ----------------------------------------------------------------------------------------------------


def diagonal_normal(d, sd=1.0, loc=0.0):
    """N((loc, ..., loc), sd²I) in d coordinates, float64."""
    return tfd.MultivariateNormalDiag(tf.fill([d], np.float64(loc)), tf.fill([d], np.float64(sd)))


def mixture(weights, means, sd):
    """Σ weights[k] N(means[k], sd²I), float64."""
    means = tf.constant(means, tf.float64)
    return tfd.MixtureSameFamily(
        tfd.Categorical(probs=tf.constant(weights, tf.float64)),
        tfd.MultivariateNormalDiag(means, tf.fill(tf.shape(means), np.float64(sd))),
    )


# --- data and chains --------------------------------------------------------------------------------------------------


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


# --- comparisons ------------------------------------------------------------------------------------------------------


def assert_same(first, second):
    """Two sequences of arrays or None are equal, bit for bit."""
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def smallest_p_value(x, cdfs):
    """Of Kolmogorov-Smirnov tests of the rows x along directions, {direction: cdf}, times their number (Bonferroni)."""
    return min(1.0, len(cdfs) * min(scipy.stats.kstest(x @ np.array(axis), cdf).pvalue for axis, cdf in cdfs.items()))
