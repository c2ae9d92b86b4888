"""Draws down the noise levels: shares of modes and log Z in closed form, the verdict, models, planted mistakes."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.mcmc.running import noise_levels as running

tfd = tfp.distributions
SHARES, LOCS, WIDTH, LOG_Z = np.array([0.3, 0.7]), np.array([[-1.0, 0.0], [1.0, 0.5]]), 0.1, 1.5
LOW, HIGH = 0.02, 6.0


def two_modes(x, sigma):
    """The mixture of two narrow Gaussians plus noise, with log Z = 1.5."""
    variance = (WIDTH**2 + sigma**2)[:, None]
    squares = tf.reduce_sum((x[:, None] - tf.constant(LOCS, x.dtype)) ** 2, -1)
    exponent = -0.5 * squares / variance - tf.math.log(2 * math.pi * variance) + tf.constant(np.log(SHARES), x.dtype)
    return tf.reduce_logsumexp(exponent, -1) + LOG_Z


def base():
    mean = SHARES @ LOCS
    covariance = (WIDTH**2 + HIGH**2) * np.eye(2) + (LOCS - mean).T @ np.diag(SHARES) @ (LOCS - mean)
    return tfd.MultivariateNormalTriL(mean, np.linalg.cholesky(covariance))


def run(target=two_modes, seed=0, **kwargs):
    settings = {"sigma_min": LOW, "sigma_max": HIGH, "num_samples": 1024, "num_last_moves": 5} | kwargs
    return ebm.mcmc.anneal_noise_levels(target, base(), seed=seed, **settings)


@pytest.mark.long
def test_shares_and_log_z():
    """Ten runs: the mean of Ẑ/Z and the mean share within 4 of their standard errors (a bias of .2 is over twenty),
    each run within 5 of the error that it reports, no trouble, and the same bits for the same seed."""
    runs = [run(seed=i) for i in range(10)]
    assert all(draws.trouble == () for draws in runs)
    ratios = np.exp([draws.log_normalizer.value - LOG_Z for draws in runs])
    shares = np.array([np.mean(draws.states[:, 0] > 0) for draws in runs])
    for values, truth, largest in ((ratios, 1.0, 0.05), (shares, 0.7, 0.02)):
        error = values.std(ddof=1) / np.sqrt(10)
        assert abs(values.mean() - truth) < 4 * error < 4 * largest
    for draws in runs:
        assert abs(draws.log_normalizer.value - LOG_Z) < 5 * draws.log_normalizer.standard_error
    draws = runs[0]
    assert np.array_equal(draws.states, run(seed=0).states) and not np.array_equal(draws.states, runs[1].states)
    assert draws.states.shape == (1024, 2) and len(draws.acceptance_rate) == len(draws.inverse_temperatures) - 1
    right = draws.states.numpy()[draws.states.numpy()[:, 0] > 0]
    expected = math.hypot(WIDTH, LOW)  # relative error 1/√(2·700)
    np.testing.assert_allclose(right.std(0), expected, rtol=0.15)


@pytest.mark.long
def test_wrong_weights_are_seen(monkeypatch):
    """Without the backward density, or with another variance forward than in the weights, log Z is off by over .3."""
    normal = running.random.normal
    with monkeypatch.context() as patch:
        patch.setattr(running.random, "normal", lambda *args: 1.1 * normal(*args))
        assert abs(run(lambda x, s: two_modes(x, s)).log_normalizer.value - LOG_Z) > 0.3
    original = running._stepped

    def without_backward(target, event_shape, now, above, below, seed):
        after = original(target, event_shape, now, above, below, seed)
        gap = tf.square(above) - tf.square(below)
        return after._replace(log_weights=after.log_weights + tf.reduce_sum((after.x - now.x) ** 2, 1) / (2 * gap))

    monkeypatch.setattr(running, "_stepped", without_backward)
    assert abs(run(lambda x, s: two_modes(x, s)).log_normalizer.value - LOG_Z) > 0.3


@pytest.mark.slow
def test_a_hole_shows_in_log_z():
    """A model that adds a mode of mass 1 at small levels only, where particles pass: log Z = 1.5 + log(1 + e^−1.5)."""

    def with_hole(x, sigma):
        extra = -0.5 * tf.reduce_sum((x - 0.3) ** 2, -1) / 0.09 - math.log(2 * math.pi * 0.09)
        return tf.reduce_logsumexp([two_modes(x, sigma), tf.where(sigma < 0.3, extra, extra - 50.0)], 0)

    value = run(with_hole).log_normalizer.value
    assert abs(value - LOG_Z - math.log1p(math.exp(-1.5))) < 0.15


@pytest.mark.slow
def test_draws_of_a_model_at_one_level():
    """Of an untrained network the Gaussian of the data: `p.draw` has its moments in x, log Z = 0, and no trouble."""
    data = np.random.default_rng(0).normal(size=(3000, 2)) @ [[2.0, 1.0], [0.0, 0.5]] + [3.0, -1.0]
    model = ebm.EnergyModel(ebm.networks.noise_level_mlp([2], units=[8], sigma_max=5.0))
    model.adapt(data.astype("float32"))
    draws = ebm.EnergyDistribution(model.given(0.3)).draw(1024, seed=0, num_last_moves=5)
    assert draws.trouble == () and abs(draws.log_normalizer.value) < 4 * draws.log_normalizer.standard_error < 0.2
    covariance = np.cov(data.T) + 0.09 * np.diag(data.var(0))
    states = draws.states.numpy()
    np.testing.assert_allclose(states.mean(0), data.mean(0), atol=5 * np.sqrt(covariance.max() / 1000))
    np.testing.assert_allclose(np.cov(states.T), covariance, rtol=0.25, atol=0.15)
    direct = ebm.mcmc.anneal_noise_levels(model, sigma_min=0.3, num_samples=1024, seed=0, num_last_moves=5)
    np.testing.assert_array_equal(direct.states, draws.states)


def test_refusals():
    for arguments, name in (
        ({"sigma_min": 7.0}, "`sigma_min` must be below"),
        ({"sigma_min": -1.0}, "`sigma_min`"),
        ({"num_samples": 0}, "`num_samples`"),
        ({"num_groups": 1}, "`num_groups`"),
        ({"num_levels": 1}, "`num_levels`"),
        ({"jit_compile": "yes"}, "`jit_compile`"),
    ):
        with pytest.raises((TypeError, ValueError), match=name):
            run(**arguments)
    with pytest.raises(ValueError, match="`base` and `sigma_max`"):
        ebm.mcmc.anneal_noise_levels(two_modes, sigma_min=0.1, num_samples=10, seed=0)
    with pytest.raises(ValueError, match="`target_log_prob_fn` must return one number"):
        run(lambda x, sigma: x)
