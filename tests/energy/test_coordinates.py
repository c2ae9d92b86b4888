"""The trip between x and the chains' coordinates: its Jacobian, and the identity where there is no standardization."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import Quadratic

import tfp_ebm as ebm
from tfp_ebm.energy.standardization import Coordinates, Standardization
from tfp_ebm.mcmc import Samples

tfd = tfp.distributions
LOC, SCALE = np.array([5.0, -3.0]), np.array([0.1, 20.0])
X = np.random.default_rng(0).normal(LOC, SCALE, size=(50, 2))


@pytest.fixture
def coordinates():
    layer = Standardization((2,), "float64")
    layer.loc.assign(LOC)
    layer.scale.assign(SCALE)
    return Coordinates(layer)


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_there_and_back(coordinates, jit_compile):
    def trip(x):
        z = coordinates.to_chain(x)
        return z, coordinates.from_chain(z), coordinates.log_volume()

    z, x, log_volume = (trip if jit_compile is None else tf.function(trip, jit_compile=jit_compile))(tf.constant(X))
    np.testing.assert_allclose(z, (X - LOC) / SCALE, rtol=1e-12)
    np.testing.assert_allclose(x, X, rtol=1e-12)
    assert float(log_volume) == pytest.approx(np.log(SCALE).sum(), rel=1e-12)


def test_densities_and_distributions(coordinates):
    """N(LOC, SCALE²) is N(0, I) in z, as function and as distribution; without the volume it is off by log 2."""
    p, standard = tfd.MultivariateNormalDiag(LOC, SCALE), tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    z = coordinates.to_chain(tf.constant(X))
    truth = standard.log_prob(z)
    np.testing.assert_allclose(coordinates.log_prob_in_chain(p.log_prob)(z), truth, rtol=1e-10)
    np.testing.assert_allclose(coordinates.distribution_in_chain(p).log_prob(z), truth, rtol=1e-10)
    assert np.abs(p.log_prob(coordinates.from_chain(z)) - truth).min() > 0.6


def test_finish_carries_samples_back(coordinates):
    z = coordinates.to_chain(tf.constant(X))
    standard = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    samples = Samples(z, standard.log_prob(z), tf.ones([50], tf.bool), None, tf.constant(0))
    finished = coordinates.finish(samples)
    np.testing.assert_allclose(finished.states, X, rtol=1e-12)
    truth = tfd.MultivariateNormalDiag(LOC, SCALE).log_prob(X)
    np.testing.assert_allclose(finished.unnormalized_log_prob, truth, rtol=1e-10)
    assert finished[2:] == samples[2:]


def test_whatever_has_no_standardization_runs_in_x():
    def density(x):
        return -tf.reduce_sum(x**2, -1)

    identity = Coordinates.of(density)
    assert identity == Coordinates()
    x = tf.constant(X)
    assert identity.to_chain(x) is x and identity.from_chain(x) is x and identity.log_volume() == 0.0
    assert identity.log_prob_in_chain(density) is density
    p = tfd.MultivariateNormalDiag(LOC, SCALE)
    assert identity.distribution_in_chain(p) is p
    samples = Samples(x, density(x), tf.ones([50], tf.bool), None, tf.constant(0))
    assert identity.finish(samples) is samples
    assert Coordinates.of(functools.partial(density)) == identity


def test_an_energy_function_takes_z_and_a_model_takes_x():
    model = ebm.EnergyModel(Quadratic(), event_shape=(2,))
    model.adapt(X)
    assert Coordinates.of(model.energy_function).standardization is model.standardization
    assert Coordinates.of(model).standardization is None


def test_an_energy_function_as_a_plain_energy_is_sampled_in_its_own_coordinates():
    """A distribution over z of E_z: its chains must not be carried to x."""
    model = ebm.EnergyModel(Quadratic(), event_shape=(2,))
    model.adapt(X)
    standard = tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])
    p = ebm.EnergyDistribution(model.energy_function, [2], ebm.mcmc.RandomWalk(0.5), standard, num_burnin_steps=3)
    chains = p.sample_chains(2, 200, seed=0)
    assert np.abs(chains.states).max() < 6  # in x the second coordinate would have standard deviation 20
    np.testing.assert_allclose(chains.unnormalized_log_prob, p.unnormalized_log_prob(chains.states), rtol=1e-5)
    with pytest.raises(TypeError):
        p.sample_chains(2, 200, 0)  # the seed is a keyword
