"""The likelihood by the probability flow against closed forms; constants play no part; planted mistakes fail."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import gaussian_data, mixture

import tfp_ebm as ebm

tfd = tfp.distributions
LOW, HIGH = 0.05, 20.0


def gaussian_family(x, factor=1.0, offset=0.0):
    """The energy of N(m, Σ + factor σ²I) plus a constant that depends on σ, and the base at HIGH."""
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)

    def energy(y, sigma):
        along = tf.matmul(y - mean, tf.constant(vectors))
        return 0.5 * tf.reduce_sum(along**2 / (values + factor * sigma[:, None] ** 2), -1) + offset * tf.sin(sigma)

    return energy, tfd.MultivariateNormalTriL(mean, np.linalg.cholesky(covariance + HIGH**2 * np.eye(len(mean))))


@pytest.mark.slow
def test_gaussian_in_closed_form():
    """log N(x; m, Σ + σ²I) to 10⁻⁴ in each row's mean, whatever the energy's constants; wrong blur or base fails."""
    x = gaussian_data(3, 400)
    energy, base = gaussian_family(x, offset=3.0)
    covariance = np.cov(x.T, bias=True) + LOW**2 * np.eye(3)
    exact = tfd.MultivariateNormalTriL(x.mean(0), np.linalg.cholesky(covariance)).log_prob(x).numpy()
    found = ebm.evaluation.probability_flow_log_likelihood(energy, x, base, sigma_min=LOW, sigma_max=HIGH)
    assert abs(found.value - exact.mean()) < 1e-4
    assert abs(found.standard_error - exact.std(ddof=1) / 20) < 1e-4
    wrong = ebm.evaluation.probability_flow_log_likelihood(
        gaussian_family(x, factor=1.2)[0], x, base, sigma_min=LOW, sigma_max=HIGH
    )
    assert abs(wrong.value - exact.mean()) > 0.05
    few = ebm.evaluation.probability_flow_log_likelihood(energy, x, base, sigma_min=LOW, sigma_max=HIGH, num_steps=6)
    assert abs(few.value - exact.mean()) < few.standard_error and few.standard_error > 1.3 * found.standard_error


@pytest.mark.long
def test_two_modes_and_models():
    """A mixture of unequal weights to .003; a model in x gives the log density of x, its units included."""
    weights, means, width = [0.3, 0.7], np.array([[-1.0, 0.0], [1.0, 0.5]]), 0.3

    def energy(y, sigma):
        variance = width**2 + sigma[:, None] ** 2
        squares = tf.reduce_sum((y[:, None] - means) ** 2, -1)
        return -tf.reduce_logsumexp(np.log(weights) - 0.5 * squares / variance - tf.math.log(variance), -1)

    centre = weights @ means
    spread = (means - centre).T @ np.diag(weights) @ (means - centre) + (width**2 + HIGH**2) * np.eye(2)
    base = tfd.MultivariateNormalTriL(centre, np.linalg.cholesky(spread))
    exact = mixture(weights, means, math.hypot(width, LOW))
    x = exact.sample(300, seed=0).numpy()
    found = ebm.evaluation.probability_flow_log_likelihood(energy, x, base, sigma_min=LOW, sigma_max=HIGH)
    assert abs(found.value - float(tf.reduce_mean(exact.log_prob(x)))) < 3e-3

    data = gaussian_data(2, 2000) * [5.0, 0.2]
    network = ebm.networks.noise_level_mlp([2], units=[8], sigma_max=HIGH, dtype="float64")
    model = ebm.EnergyModel(network)
    model.adapt(data)
    found = ebm.evaluation.probability_flow_log_likelihood(model, data[:300], sigma_min=LOW, num_steps=32)
    own = ebm.evaluation.log_likelihood(model.given(LOW), data[:300], 0.0)
    assert abs(found.value - own.value) < 2e-3


def test_refusals():
    x = gaussian_data(2, 20)
    energy, base = gaussian_family(x)
    settings = {"sigma_min": LOW, "sigma_max": HIGH}
    for arguments, name in (
        ((energy, x, None), "`base` and `sigma_max`"),
        ((energy, x[0], base), "`x`"),
        ((energy, x, base, {"num_steps": 5}), "`num_steps` must be even"),
        ((energy, x, base, {"sigma_min": 30.0}), "`sigma_min` must be below"),
        ((lambda y, sigma: base.log_prob(y), x[:, :0], base), "`x` must not be empty"),
    ):
        *given, others = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
        with pytest.raises((TypeError, ValueError), match=name):
            ebm.evaluation.probability_flow_log_likelihood(*given, **(settings | others))
