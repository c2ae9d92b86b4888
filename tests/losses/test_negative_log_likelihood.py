"""The exact negative log-likelihood: what it learns, what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_ebm as ebm

tfd = tfp.distributions


def network(**options):
    return ebm.networks.autoregressive([2], units=[16, 16], seed=0, **options)


def ring(rows, seed):
    """Two coordinates of which one depends on the other in a way that no Gaussian has."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=rows)
    return np.stack([first, first**2 - 1.0 + 0.4 * rng.normal(size=rows)], -1).astype("float32")


def log_density(x):
    return stats.norm.logpdf(x[:, 0]) + stats.norm.logpdf(x[:, 1], x[:, 0] ** 2 - 1.0, 0.4)


@pytest.fixture(scope="module")
def trained():
    model = ebm.EnergyModel(network())
    x = ring(20_000, 0)
    model.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 474)
    model.compile(keras.optimizers.Adam(schedule, global_clipnorm=10.0), "negative_log_likelihood", jit_compile=True)
    history = model.fit(x, batch_size=256, epochs=6, verbose=0)
    return model, history


@pytest.mark.long
def test_it_learns_a_density_and_its_normaliser(trained):
    """KL of 10 000 rows below .05 nat (standard error .002; a Gaussian has .8); ∫ exp(−E) by a grid is 1 to 1e-3."""
    model, _ = trained
    x = ring(10_000, 1)
    p = ebm.EnergyDistribution(model)
    assert np.mean(log_density(x) - p.log_prob(x)) < 0.05
    gaussian = ebm.fit_base(ring(20_000, 0))
    assert np.mean(log_density(x) - gaussian.log_prob(x)) > 0.5
    grid = ebm.evaluation.grid_log_normalizer(model.energy, [-9.0, -9.0], [9.0, 30.0], num=400)
    assert abs(grid.value) < 1e-3
    draws = p.sample(10_000, seed=3).numpy()
    rest = draws[:, 1] - draws[:, 0] ** 2 + 1.0
    assert abs(draws[:, 0].mean()) < 0.05 and abs(rest.std() - 0.4) < 0.05


@pytest.mark.slow
def test_evaluation_is_exact_and_in_standardised_units(trained):
    model, _ = trained
    x = ring(256, 2)
    loss = model.evaluate(x, batch_size=256, verbose=0)
    volume = float(model.standardization.log_scale_sum())
    np.testing.assert_allclose(loss, np.mean(model.energy(x)) - volume, rtol=1e-5)


def test_training_is_reproducible_and_has_random_lattices():
    x = tf.constant(ring(64, 4))
    loss, model = ebm.losses.NegativeLogLikelihood(), ebm.EnergyModel(network(dropout=0.2))
    last = model.network.trunk.last.kernel
    last.assign(0.1 * np.random.default_rng(0).normal(size=last.shape))  # it starts at zero, where nothing varies
    function = model.energy_function
    first, again = (loss(function, x, seed=1, training=True).per_example for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = loss(function, x, seed=2, training=True).per_example
    exact = loss(function, x, seed=1).per_example
    assert np.abs(first - other).max() > 1e-5
    np.testing.assert_array_equal(exact, function(x))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ebm.EnergyModel(ebm.networks.mlp([2], units=[4])), "log Z is known"),
        (lambda: ebm.EnergyModel(network(), base_measure=tfd.MultivariateNormalDiag([0.0, 0.0])), "base_measure"),
    ],
)
def test_energies_without_a_known_normaliser_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make().compile(loss="negative_log_likelihood")
