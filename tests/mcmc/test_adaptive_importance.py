"""A density fitted to particles and to its own weighted draws: it gets nearer to the target, and must cover it."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.mcmc import adaptive_importance, particle_sampler
from tfp_ebm.mcmc.adaptive_importance import effective_number, fit_by_weights, suffices

tfd = tfp.distributions


def weigher(log_density, num=4000):
    """Draws from a fitted density, and their log weights."""

    def weigh(fitted, number):
        x = fitted.draw(np.random.default_rng([7, number]).normal(size=(num, len(fitted.low))))
        return x, log_density(x) - fitted.log_prob(x)

    return weigh


@pytest.mark.parametrize(("size", "width", "shift"), [(2, 2.0, 1.0), (10, 1.4, 0.4), (50, 1.1, 0.1)])
def test_fits_to_weighted_draws_approach_the_target(size, width, shift, monkeypatch):
    """From points that are too wide and off, of a correlated Gaussian, the effective share grows; where all draws count
    as much, a wrong weight, it grows less."""
    covariance = 0.5 * np.eye(size) + 0.5
    x = shift + width * np.random.default_rng(0).normal(size=(1000, size)) @ np.linalg.cholesky(covariance).T
    weigh = weigher(scipy.stats.multivariate_normal(np.zeros(size), covariance).logpdf)
    shares = {}
    for most in (1, 4):
        monkeypatch.setattr(adaptive_importance, "_MAX_FITS", most)
        shares[most] = effective_number(fit_by_weights(x, weigh)[1]) / 4000
    original = adaptive_importance.resample
    monkeypatch.setattr(adaptive_importance, "resample", lambda weights, *args: original(0 * weights, *args))
    wrong = effective_number(fit_by_weights(x, weigh)[1]) / 4000
    assert shares[4] > 1.2 * shares[1] and wrong < 0.9 * shares[4]


def modes(size, share):
    """Two modes, eight standard deviations apart in the first coordinate."""
    locs = np.zeros([2, size], "float32")
    locs[1, 0] = 8.0
    probs = [share, 1.0 - share]
    return tfd.MixtureSameFamily(tfd.Categorical(probs=probs), tfd.MultivariateNormalDiag(locs, np.ones_like(locs)))


@pytest.mark.parametrize("size", [5, 10, 50])
def test_particles_show_a_mode_that_the_proposals_miss(size):
    """A density fitted to both modes covers the particles. Fitted to the larger one alone, its weights look perfect,
    but the particles of the other have larger ones than all draws."""
    target = modes(size, 0.9)
    x = target.sample(2000, seed=[0, 1]).numpy().astype("float64")

    def log_density(x):
        return target.log_prob(x.astype("float32")).numpy().astype("float64")

    for points, expected in ((x, True), (x[x[:, 0] < 4.0], False)):
        fitted, log_weights = fit_by_weights(points, weigher(log_density))
        assert suffices(log_weights)
        assert adaptive_importance.covers(log_weights, log_density(x) - fitted.log_prob(x)) == expected


@pytest.mark.slow
def test_a_fit_that_misses_a_mode_is_not_used(monkeypatch):
    """Shares .7 and .3 in ten coordinates, with no search for modes. If the fit is given the particles of one mode
    alone, its draws must not be the result: all particles are annealed. Without the check of the particles, nearly all
    draws are in one mode."""
    target = modes(10, 0.7)
    base = tfd.MultivariateNormalDiag(tf.one_hot(0, 10, 3.0), tf.fill([10], 3.0))
    monkeypatch.setattr(particle_sampler, "_MAX_SEARCH", 0)

    def drawn():
        draws = mcmc.sequential_monte_carlo(target.log_prob, base, num_samples=1000, seed=0, jit_compile=False)
        return draws, np.mean(draws.states[:, 0] < 4.0)

    original = particle_sampler.fit_by_weights
    draws, share = drawn()
    assert len(draws.inverse_temperatures) == 2 and abs(share - 0.7) < 0.1  # 5 standard errors of 500 draws
    one_mode = lambda x, weigh: original(x[x[:, 0] < 4.0], weigh)  # noqa: E731
    monkeypatch.setattr(particle_sampler, "fit_by_weights", one_mode)
    draws, share = drawn()
    assert len(draws.inverse_temperatures) > 2 and abs(share - 0.7) < 0.1
    monkeypatch.setattr(particle_sampler, "covers", lambda *args: True)
    monkeypatch.setattr(particle_sampler, "_MAX_ERRORS", np.inf)
    draws, share = drawn()
    assert len(draws.inverse_temperatures) == 2 and share > 0.9
