"""The standard error of log Ẑ from the descent of the particles: closed forms, and z-scores of independent passes."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm.mcmc.running.particles as particles_module
from tfp_ebm import mcmc
from tfp_ebm.mcmc.running.particle_state import Particles, Plan, Settings, initial_particles
from tfp_ebm.mcmc.running.particles import run_pass
from tfp_ebm.mcmc.weights import jackknife_of_log_mean

tfd = tfp.distributions


def skewed(x):
    """The log density of Gumbel(1, .5), times e²."""
    z = (x[:, 0] - 1.0) / 0.5
    return 2.0 - z - tf.exp(-z) - np.log(0.5)


def wide():
    return tfd.MultivariateNormalDiag(tf.constant([-2.0], tf.float64), tf.constant([2.0], tf.float64))


def passes(num_seeds, num=512, betas=(0.02, 0.06, 0.15, 0.35, 0.7, 1.0)):
    """log Ẑ − log Z and the estimated standard error of passes with frozen temperatures and poor moves."""
    count = len(betas) + 1
    settings = Settings(8, 0.9, (1, 2), 5, 1, len(betas), True)
    plan = Plan(
        tf.constant([*betas, 1.0], tf.float64),
        tf.ones([count], tf.int32),
        tf.fill([count], tf.constant(np.log(0.4), tf.float64)),
        tf.eye(1, batch_shape=[count], dtype=tf.float64),
        tf.ones([count], tf.bool),
    )
    base, zero = wide(), tf.constant(0.0, tf.float64)

    @tf.function(autograph=False)
    def one(seed):
        x = base.sample(num, seed=tf.stack([seed, 1]))
        start = initial_particles(x, skewed(x) - base.log_prob(x), 8)
        passed = run_pass(lambda: skewed, base, settings, start, plan, tf.constant(True), zero, tf.stack([seed, 2]))
        log_z = tf.reduce_logsumexp(passed.particles.log_normalizers) - np.log(8)
        return tf.stack([log_z - 2.0, tf.sqrt(passed.relative_variance)])

    return np.array([one(tf.constant(seed)) for seed in range(num_seeds)]).T


def z_scores():
    """z-scores of 120 passes."""
    errors, standard_errors = passes(120)
    return errors / standard_errors


@pytest.mark.slow
def test_z_scores_of_independent_passes():
    # the standard deviation of 120 z-scores has a standard error of .065, their mean of .09
    z = z_scores()
    assert 0.7 < z.std(ddof=1) < 1.4 and abs(z.mean()) < 0.5


@pytest.mark.slow
def test_descent_that_is_lost_at_resampling_fails(monkeypatch):
    original = particles_module._resampled

    def forgets(settings, now, is_last, seed):
        return original(settings, now, is_last, seed)._replace(eves=tf.range(now.x.shape[0]))

    monkeypatch.setattr(particles_module, "_resampled", forgets)
    assert z_scores().std(ddof=1) > 1.4


def test_relative_variance_in_closed_form():
    zeros, own = tf.zeros([4], tf.float64), tf.range(4)
    particles = Particles(zeros[:, None], zeros, zeros, zeros[:2], own // 2, own, tf.constant(1.0, tf.float64), own)
    variance = particles_module._relative_variance
    assert float(variance(particles)) == 0.0
    assert float(variance(particles._replace(eves=tf.constant([0, 0, 2, 2])))) == pytest.approx(0.25)
    # weights 1, 1, 3, 3, by the factors of the groups
    unequal = particles._replace(log_normalizers=tf.math.log(tf.constant([1.0, 3.0], tf.float64)))
    assert float(variance(unequal)) == pytest.approx(20 / 64 - 0.25)


@pytest.mark.long
def test_the_larger_of_two_errors_is_reported(monkeypatch):
    far = tfd.MultivariateNormalDiag(tf.constant([-8.0], tf.float64), tf.constant([2.0], tf.float64))

    def error(target):
        draws = mcmc.sequential_monte_carlo(target, far, num_samples=5, seed=0, num_last_moves=2, jit_compile=False)
        assert len(draws.inverse_temperatures) > 2  # the particles are annealed
        groups = jackknife_of_log_mean(np.asarray(draws.log_normalizer.log_weights))[1]
        return draws.log_normalizer.standard_error, groups

    assert error(skewed)[0] >= error(skewed)[1] > 0.0
    monkeypatch.setattr(particles_module, "_relative_variance", lambda now: tf.constant(0.04, tf.float64))
    reported, groups = error(lambda x: skewed(x))  # a new target, since compiled functions are kept
    assert reported == pytest.approx(max(0.2, groups)) and groups != reported
