"""An energy in the place of a log density, and the other way round, is refused at every name."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from conditional_energies import Blurred
from energies import Quadratic

import tfp_ebm as ebm
from tfp_ebm.energy import signs

tfd = tfp.distributions
START = tf.ones([4, 2])


@pytest.fixture(scope="module")
def model():
    return ebm.EnergyModel(Quadratic(), event_shape=(2,))


ENERGIES = {
    "model": lambda model: model,
    "network": lambda model: model.network,
    "functional network": lambda model: ebm.networks.mlp([2], [4], seed=0),
    "energy function": lambda model: model.energy_function,
    "energy": lambda model: model.energy,
    "score": lambda model: model.score,
    "call": lambda model: model.call,
    "__call__": lambda model: model.__call__,
    "predict": lambda model: model.predict,
    "network_term": lambda model: model.energy_function.network_term,
    "partial of the model": lambda model: functools.partial(model, training=False),
    "partial of a partial": lambda model: functools.partial(functools.partial(model.energy), condition=None),
    "tf.function": lambda model: tf.function(model.energy),
    "tf.function of the network": lambda model: tf.function(model.network),
}
FUNCTIONS = {
    "sample": lambda target: ebm.mcmc.sample(target, START, ebm.mcmc.RandomWalk(0.5), num_results=2, seed=0),
    "summarize": lambda target: ebm.mcmc.summarize(target, START, ebm.mcmc.RandomWalk(0.5), num_results=4, seed=0),
    "annealed_langevin": lambda target: ebm.mcmc.annealed_langevin(target, START, [1.0, 0.5], num_steps=1, seed=0),
    "kernel": lambda target: ebm.mcmc.MALA(0.5)(target),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ENERGIES)
def test_energies_are_no_targets(name, kind, model):
    if name == "annealed_langevin" and kind == "model":
        with pytest.raises(ValueError, match="a model of \\(x, sigma\\)"):  # it takes conditional models
            FUNCTIONS[name](model)
        return
    cure = "EnergyModel\\(network\\)" if "network" in kind and kind != "network_term" else ""
    with pytest.raises(
        TypeError, match=f"`target_log_prob_fn` must be a log density.*energy.*{cure}.*unnormalized_log"
    ):
        FUNCTIONS[name](ENERGIES[kind](model))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_cannot_be_called_is_refused(name):
    with pytest.raises(TypeError, match="`target_log_prob_fn` must be a callable"):
        FUNCTIONS[name](3.0)


def test_without_the_check_the_sign_is_wrong(model, monkeypatch):
    """The negative control, and the fault itself: chains of exp(+E) run away, from 1.4 to beyond 5."""
    start, kernel = tf.ones([50, 2]), ebm.mcmc.RandomWalk(0.5)

    def distance(target):
        with monkeypatch.context() as planted:
            planted.setattr("tfp_ebm.mcmc.sampling.check_target", lambda target: target)
            samples = ebm.mcmc.sample(target, start, kernel, num_results=1, num_burnin_steps=200, seed=0)
        return float(tf.reduce_mean(tf.norm(samples.states, axis=-1)))

    assert distance(model.unnormalized_log_prob) < 2 < 5 < distance(model.energy)


@pytest.mark.slow
def test_log_densities_pass(model):
    p = ebm.EnergyDistribution(model)
    expected = FUNCTIONS["sample"](model.unnormalized_log_prob).states.numpy()
    for target in (
        p,
        p.unnormalized_log_prob,
        functools.partial(model.unnormalized_log_prob),
        tf.function(model.unnormalized_log_prob),
        lambda x: -model.energy(x),
    ):
        np.testing.assert_array_equal(FUNCTIONS["sample"](target).states, expected)
    assert (
        signs.check_target(model.energy_function.unnormalized_log_prob) == model.energy_function.unnormalized_log_prob
    )


def test_distributions_are_sampled_by_their_density():
    p = tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 2.0])
    for name in ("sample", "summarize"):
        by_object, by_method = FUNCTIONS[name](p), FUNCTIONS[name](p.log_prob)
        tf.nest.map_structure(np.testing.assert_array_equal, tuple(by_object)[:2], tuple(by_method)[:2])
    with pytest.raises(TypeError, match=r"`target_log_prob_fn`.*distribution of x alone"):
        FUNCTIONS["annealed_langevin"](p)


def test_annealed_langevin_takes_a_conditional_model_but_not_its_energy():
    model = ebm.EnergyModel(Blurred(), event_shape=(2,))
    assert FUNCTIONS["annealed_langevin"](model).states.shape == (2, 4, 2)
    assert FUNCTIONS["annealed_langevin"](model.unnormalized_log_prob).states.shape == (2, 4, 2)
    for energy in (model.energy, model.network, model.energy_function):
        with pytest.raises(TypeError, match="`target_log_prob_fn` must be a log density"):
            FUNCTIONS["annealed_langevin"](energy)


def test_log_densities_are_no_energies(model):
    p = tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 2.0])
    for density in (
        model.unnormalized_log_prob,
        model.energy_function.unnormalized_log_prob,
        functools.partial(model.unnormalized_log_prob),
        p.log_prob,
        p.prob,
        tf.function(p.unnormalized_log_prob),
    ):
        with pytest.raises(TypeError, match="`energy_fn` must be an energy, got the method"):
            signs.check_energy(density)
    for energy in (model, p, model.energy, model.network, lambda x: -p.log_prob(x), keras.layers.Dense(1)):
        signs.check_energy(energy)
