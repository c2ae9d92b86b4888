"""Networks of (x, condition) inside an `EnergyModel`: both ways to write one, `given`, files, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conditional_energies import NETWORKS, Blurred, Conditioned, functional
from energies import Quadratic

import tfp_ebm as ebm
from tfp_ebm.networks.conditional import takes_condition

X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 3.0], size=(64, 2)).astype("float32")
SIGMAS = (1.0, 0.5, 0.1)


def called(network, x, sigma):
    """The network as its author calls it."""
    inputs = getattr(network, "inputs", None)
    output = network(x, sigma) if inputs is None else network([x, np.reshape(sigma, (-1, *inputs[1].shape[1:]))])
    return np.reshape(output, -1)


def fitted(name):
    model = ebm.EnergyModel(NETWORKS[name](), event_shape=(2,), seed=3)
    model.adapt(X)
    loss = ebm.losses.NoiseConditionalDenoisingScoreMatching(SIGMAS)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(tf.data.Dataset.from_tensor_slices(X).batch(32), verbose=0, shuffle=False)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_every_door_calls_the_network_with_its_condition(name):
    network = NETWORKS[name]()
    model = ebm.EnergyModel(network, event_shape=(2,))
    assert model.is_conditional
    sigma = np.linspace(0.1, 2.0, 6).astype("float32")
    x, c = X[:6].reshape(2, 3, 2), sigma.reshape(2, 3)
    truth = called(network, X[:6], sigma)
    assert np.ptp(truth / called(network, X[:6], np.full(6, 0.3, "float32"))) > 1e-3, "the condition must matter"
    np.testing.assert_allclose(model.energy(x, c), truth.reshape(2, 3), rtol=1e-5)
    np.testing.assert_array_equal(model.unnormalized_log_prob(x, c), -model.energy(x, c))
    np.testing.assert_allclose(model.energy(X[0], 0.1), truth[0], rtol=1e-5)
    for condition in (sigma, sigma[:, None]):
        np.testing.assert_allclose(model([X[:6], condition]), truth, rtol=1e-5)
        np.testing.assert_allclose(model.predict([X[:6], condition], verbose=0), truth, rtol=1e-5)
    # one number stands for all rows
    np.testing.assert_allclose(model.energy(x, 0.3), model.energy(x, np.full((2, 3), 0.3)), rtol=1e-6)
    step = 1e-2 * np.eye(2, dtype="float32")
    slopes = [(model.energy(x + e, c) - model.energy(x - e, c)) / 2e-2 for e in step]
    np.testing.assert_allclose(model.score(x, c), -np.stack(slopes, -1), rtol=1e-2, atol=1e-3)


def test_xla_agrees():
    model = ebm.EnergyModel(functional())
    compiled = tf.function(model.score, jit_compile=True)
    np.testing.assert_allclose(
        compiled(X, tf.constant(X[:, 0] ** 2)), model.score(X, X[:, 0] ** 2), rtol=1e-4, atol=1e-6
    )


def test_units_and_tilt_leave_the_condition_alone():
    """E(x; c) = E_z(z; c) + Σ log scale, less log base(x); a condition divided by the scale as x is would not pass."""
    base = ebm.fit_base(X)
    network = Blurred()
    plain, tilted = (ebm.EnergyModel(network, event_shape=(2,), base_measure=b) for b in (None, base))
    for model in (plain, tilted):
        model.adapt(X)
    z = (X - X.mean(0)) / X.std(0)
    truth = called(network, z, np.full(64, 0.7)) + np.log(X.std(0)).sum()
    np.testing.assert_allclose(plain.energy(X, 0.7), truth, rtol=1e-4)
    assert np.abs(plain.energy(X, 0.7 / X.std(0)[1]) - truth).max() > 0.1
    difference = called(network, z, np.full(64, 0.7)) - base.log_prob(X)
    np.testing.assert_allclose(tilted.energy(X, 0.7), difference, rtol=1e-4)


def test_float64_and_training_mode():
    model = ebm.EnergyModel(functional(dtype="float64"))
    assert model.dtype == "float64" and model.energy(X, 0.5).dtype == tf.float64
    function = ebm.EnergyModel(Conditioned(), event_shape=(2,)).energy_function
    x = tf.constant(X)
    np.testing.assert_allclose(function(x, 0.5, training=True), 2.0 * function(x, 0.5), rtol=1e-6)
    np.testing.assert_allclose(function.in_mode(True)(x, 0.5), 2.0 * function(x, 0.5), rtol=1e-6)


@pytest.mark.parametrize("name", ["functional, column", "subclassed"])
def test_given_is_an_ordinary_model(name, tmp_path):
    model = ebm.EnergyModel(NETWORKS[name](), event_shape=(2,))
    given = model.given(0.3)
    assert not given.is_conditional and given.seed == model.seed
    np.testing.assert_array_equal(given.energy(X), model.energy(X, 0.3))
    model.adapt(X)  # units and base are shared,
    model.network.trainable_variables[0].assign_add(tf.ones_like(model.network.trainable_variables[0]))  # and weights
    np.testing.assert_array_equal(given.energy(X), model.energy(X, 0.3))
    np.testing.assert_array_equal(given.score(X), model.score(X, 0.3))
    np.testing.assert_array_equal(given.base.mean(), model.base.mean())
    assert not np.array_equal(given.energy(X), model.given(0.4).energy(X))
    given.save(tmp_path / "given.keras")
    loaded = keras.saving.load_model(tmp_path / "given.keras")
    np.testing.assert_array_equal(loaded.energy(X), given.energy(X))
    np.testing.assert_array_equal(loaded.base.mean(), given.base.mean())
    trace = ebm.derivatives.laplacian(given, X[:4])
    np.testing.assert_allclose(
        trace, ebm.derivatives.laplacian(lambda x: model.energy(x, 0.3), tf.constant(X[:4])), rtol=1e-4, atol=1e-5
    )


def test_given_keeps_the_base_measure():
    base = ebm.fit_base(X)
    model = ebm.EnergyModel(functional(), base_measure=base)
    model.adapt(X)
    given = model.given(0.3)
    assert given.base is base
    np.testing.assert_array_equal(given.energy(X), model.energy(X, 0.3))


@pytest.mark.slow
def test_a_given_model_samples_and_exports(tmp_path):
    model = fitted("functional")
    with pytest.raises(ValueError, match="`y` must not be given"):
        model.fit(X, X[:, 0], verbose=0)
    given = model.given(0.1)
    p = ebm.EnergyDistribution(given, kernel=ebm.mcmc.MALA(0.3), num_burnin_steps=3)
    assert p.sample(5, seed=0).shape == (5, 2)
    np.testing.assert_array_equal(p.unnormalized_log_prob(X), -given.energy(X))
    given.export(tmp_path / "saved", kernel=ebm.mcmc.MALA(0.3), verbose=False)
    served = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_array_equal(served.score(X), given.score(X))
    given.compile("adam", "denoising_score_matching")  # the losses of ordinary networks take it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["functional", "subclassed", "layer"])
def test_round_trip(name, tmp_path):
    """Energies, scores and loss are bit-equal."""
    model = fitted(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.energy(X, 0.5), model.energy(X, 0.5))
    np.testing.assert_array_equal(loaded.score(X, 0.1), model.score(X, 0.1))
    assert loaded.loss.sigmas == SIGMAS and loaded.evaluate(X, verbose=0) == model.evaluate(X, verbose=0)


def test_a_model_that_learns_its_shape_from_a_batch():
    for call in (lambda m: m([X, X[:, 0] ** 2]), lambda m: m.energy(X, 0.5), lambda m: m.adapt(X)):
        model = ebm.EnergyModel(Conditioned())
        call(model)
        assert model.event_shape == (2,)


def test_what_counts_as_a_condition():
    def layer(call):
        return type("Own", (keras.layers.Layer,), {"call": call})()

    assert takes_condition(layer(lambda self, x, time: x))
    for ordinary in (
        layer(lambda self, x: x),
        layer(lambda self, x, training: x),
        layer(lambda self, x, mask, training=None: x),
        layer(lambda self, x, sigma=1.0: x),
        layer(lambda self, x, *rest, scale: x),
        keras.layers.Dense(1),
        keras.layers.Lambda(lambda x: x),
        keras.Sequential([keras.layers.Dense(1)]),
        ebm.networks.mlp([2], units=[2]),
        Quadratic(),
    ):
        assert not takes_condition(ordinary)


class Three(keras.layers.Layer):
    """A layer of x and two conditions."""

    def call(self, x, first, second):
        return x


@pytest.fixture(scope="module")
def models():
    return ebm.EnergyModel(functional(), event_shape=(2,)), ebm.EnergyModel(Quadratic(), event_shape=(2,))


MISSING = r"`condition` must be given: .* `model\.given\(condition\)`"
SURPLUS = "`condition` must not be given: the network takes x alone"
BAD = {
    "energy without": (lambda c, o: c.energy(X), ValueError, MISSING),
    "score without": (lambda c, o: c.score(X), ValueError, MISSING),
    "log prob without": (lambda c, o: c.unnormalized_log_prob(X), ValueError, MISSING),
    "call without": (lambda c, o: c(X), ValueError, MISSING),
    "function without": (lambda c, o: c.energy_function(X), ValueError, MISSING),
    "ordinary with": (lambda c, o: o.energy(X, 0.5), ValueError, SURPLUS),
    "ordinary called with": (lambda c, o: o([X, X[:, 0]]), ValueError, SURPLUS),
    "ordinary given": (lambda c, o: o.given(0.5), ValueError, SURPLUS),
    "three": (lambda c, o: c([X, X[:, 0], X]), ValueError, r"`x` must be one tensor, or \[x, condition\], got 3"),
    "shape": (lambda c, o: c.energy(X, X[:5, 0]), ValueError, r"leading shape of x, \(64,\), got shape \(5,\)"),
    "dtype": (
        lambda c, o: c.energy(X, tf.constant(0.5, tf.float64)),
        TypeError,
        "`condition` must be a tensor of dtype float32",
    ),
    "text": (lambda c, o: c.energy(X, "low"), TypeError, "`condition` must hold real numbers"),
    "given text": (lambda c, o: c.given("low"), TypeError, "`condition` must be a finite number"),
    "given NaN": (lambda c, o: c.given(float("nan")), ValueError, "`condition` must be a finite number"),
    "given of x": (
        lambda c, o: ebm.networks.FixedCondition(Quadratic(), 1.0),
        ValueError,
        "`network` must take x and a condition",
    ),
    "distribution": (lambda c, o: ebm.EnergyDistribution(c), ValueError, r"pass `model\.given\(condition\)`"),
    "distribution of network": (
        lambda c, o: ebm.EnergyDistribution(functional(), event_shape=[2]),
        ValueError,
        r"pass `model\.given\(condition\)`",
    ),
    "laplacian": (lambda c, o: ebm.derivatives.laplacian(c, X), ValueError, "`energy_fn` must take x alone"),
    "exact": (
        lambda c, o: ebm.losses.ScoreMatching()(c.energy_function, X, seed=0),
        ValueError,
        MISSING,
    ),
    "noise-conditional": (
        lambda c, o: o.compile("adam", ebm.losses.NoiseConditionalDenoisingScoreMatching(SIGMAS)),
        ValueError,
        r"`network` must take \(x, condition\), got one that takes x alone",
    ),
    "inputs": (lambda c, o: ebm.EnergyModel(Three()), ValueError, "got one that takes 3 tensors"),
    "adapt on pairs": (lambda c, o: c.adapt([X, X[:, 0]]), ValueError, "`x` must be a rectangular array"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, models):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(*models)
