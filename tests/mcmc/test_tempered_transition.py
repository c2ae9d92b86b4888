"""ReplicaExchange transitions: the independence sampler at one temperature, and accepted where that is not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import diagonal_normal

import tfp_ebm as ebm
from tfp_ebm import mcmc
from tfp_ebm.energy.base import draw
from tfp_ebm.random import fold_in

tfd = tfp.distributions


def one_step(kernel, target, x, seed=(0, 1)):
    kernel = kernel(target)
    state, results = kernel.one_step(x, kernel.bootstrap_results(x), seed=tf.constant(seed))
    return state, results


def test_one_temperature_is_the_independence_sampler():
    """log α = h(y) − h(x), h = log p − log b, with the very draw y of the base."""
    base, target = diagonal_normal(2, 1.5), diagonal_normal(2, 1.0, 0.3)
    x = draw(target, [50], tf.constant([3, 4]))
    _, results = one_step(mcmc.TemperedTransition(mcmc.MALA(0.5), base, 1), target.log_prob, x)
    y = results.proposed_state
    h = target.log_prob(y) - base.log_prob(y) - target.log_prob(x) + base.log_prob(x)
    np.testing.assert_allclose(results.log_accept_ratio, h, rtol=1e-9)
    assert np.abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 4 / np.sqrt(50)


def test_the_ratio_is_that_of_the_path():
    """With a kernel that never moves, h is the same at every bridge: log α = h(y) − h(x) for any number of them."""
    base, target = diagonal_normal(2, 1.5), diagonal_normal(2, 1.0, 0.3)
    still = mcmc.MetropolisHastings(lambda x, seed: x)
    x = draw(target, [50], tf.constant([3, 4]))
    _, results = one_step(mcmc.TemperedTransition(still, base, 7), target.log_prob, x)
    y = results.proposed_state
    h = target.log_prob(y) - base.log_prob(y) - target.log_prob(x) + base.log_prob(x)
    np.testing.assert_allclose(results.log_accept_ratio, h, rtol=1e-9)


def acceptance(num_temperatures, d=12):
    """Of one move; the base is 2.5 times as wide as the target, and elsewhere."""
    base, target = diagonal_normal(d), diagonal_normal(d, 0.4, 0.8)
    x = draw(target, [2000], tf.constant([5, 6]))
    kernel = mcmc.TemperedTransition(mcmc.HMC(0.4, 2), base, num_temperatures)
    _, results = tf.function(lambda x: one_step(kernel, target.log_prob, x))(x)
    return float(tf.reduce_mean(tf.exp(tf.minimum(results.log_accept_ratio, 0.0))))


@pytest.mark.slow
def test_bridges_make_global_moves_in_many_dimensions():
    """12 dimensions: a plain draw is accepted less than once in a thousand, one over 30 bridges 30 times as often."""
    plain, bridged = acceptance(1), acceptance(30)
    assert plain < 1e-3
    assert bridged > 0.03


@pytest.mark.slow
def test_same_seed_same_bits_and_one_trace():
    traces = []

    def target(x):
        traces.append(0)
        return -0.5 * tf.reduce_sum(tf.square(x), -1)

    base = tfd.MultivariateNormalDiag(tf.zeros([2]), 2.0 * tf.ones([2]))
    kernel = mcmc.TemperedTransition(mcmc.MALA(0.5), base, 3)
    first = mcmc.sample(target, tf.zeros([4, 2]), kernel, num_results=3, seed=1)
    once = len(traces)
    same = mcmc.TemperedTransition(mcmc.MALA(0.5), base, 3)
    again = mcmc.sample(target, tf.zeros([4, 2]), same, num_results=3, seed=1)
    assert len(traces) == once
    np.testing.assert_array_equal(first.states, again.states)
    other = mcmc.sample(target, tf.zeros([4, 2]), kernel, num_results=3, seed=2)
    assert np.abs(other.states - first.states).max() > 0.01


@pytest.mark.slow
def test_it_is_saved_and_trains():
    """A model with a tempered move: the step of its local kernel serves, its acceptance is reported."""
    base = tfd.MultivariateNormalDiag(tf.zeros([2]), 2.0 * tf.ones([2]))
    kernel = mcmc.TemperedTransition(mcmc.MALA(0.5), base, 3)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(kernel))
    assert twin == kernel and twin.num_temperatures == 3

    x = draw(base, [256], fold_in(tf.constant([0, 1]), 1)).numpy()
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), base_measure=base)
    loss = ebm.losses.PersistentContrastiveDivergence(
        num_steps=2, capacity=64, global_move="tempered", num_temperatures=3
    )
    model.compile("adam", loss)
    history = model.fit(x, batch_size=64, epochs=1, verbose=0).history
    assert 0.1 < history["global_acceptance_rate"][0] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((None, diagonal_normal(2)), TypeError, "kernel"),
        ((mcmc.Langevin(0.1), diagonal_normal(2)), ValueError, "kernel"),
        ((mcmc.MALA(0.1), "base"), TypeError, "base"),
        ((mcmc.MALA(0.1), diagonal_normal(2), 0), ValueError, "num_temperatures"),
    ],
)
def test_bad_arguments(arguments, error, name):
    with pytest.raises(error, match=f"`{name}`"):
        mcmc.TemperedTransition(*arguments)
