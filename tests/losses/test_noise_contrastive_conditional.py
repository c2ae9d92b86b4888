"""Noise contrastive estimation of networks of (x, c): noise given c, and shuffled conditions, which learn a ratio."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm

tfd = tfp.distributions
SLOPE, SD = 0.8, 0.6  # c ~ N(0, 1), x | c ~ N(.8c, .6²), so x ~ N(0, 1)


@keras.saving.register_keras_serializable("tests")
class QuadraticInBoth(keras.Model):
    """The energy ax² + bxc + dc², float64: quadratic in (x, c)."""

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float64", **kwargs})

    def build(self, x_shape, c_shape):
        self.factors = self.add_weight(shape=(3,), initializer="zeros", name="factors")
        self.built = True

    def call(self, x, c):
        a, b, d = tf.unstack(self.factors.value)
        return a * x[:, 0] ** 2 + b * x[:, 0] * c + d * c**2


@keras.saving.register_keras_serializable("tests")
def noise_given(c):
    """N(.5c, 1), wider than x | c and with another mean."""
    return tfd.MultivariateNormalDiag(0.5 * c[:, None], tf.ones_like(c)[:, None])


def data(rows=20_000, seed=0):
    rng = np.random.default_rng(seed)
    c = rng.normal(size=rows)
    return SLOPE * c[:, None] + SD * rng.normal(size=(rows, 1)), c


def density():
    """The factors of −log p(x | c), and log Z."""
    precision = 1.0 / SD**2
    return 0.5 * precision * np.array([1.0, -2.0 * SLOPE, SLOPE**2]), np.log(SD) + 0.5 * np.log(2 * np.pi)


def ratio():
    """The factors of −log p(x | c)/p(x), and log Z."""
    factors, log_z = density()
    return factors - [0.5, 0.0, 0.0], log_z - 0.5 * np.log(2 * np.pi)


def model_of(loss, measure=None):
    model = ebm.EnergyModel(QuadraticInBoth(), event_shape=(1,), condition_shape=(), base_measure=measure)
    model.compile(loss=loss)
    return model


def deviation(loss, model, factors, log_z, x, c):
    """The largest mean gradient over 50 batches, in standard errors, at the given parameters."""
    model.network.factors.assign(factors)
    loss.log_normalizer.assign(log_z)
    loss._begun.assign(1)
    weights = [model.network.factors.value, loss.log_normalizer.value]

    @tf.function
    def gradient(x, c, i):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(model.energy_function, x, c, seed=tf.stack([i, 1]), training=True).per_example)
        return tf.concat([tf.reshape(part, [-1]) for part in tape.gradient(value, weights)], 0)

    rows = np.arange(len(x)).reshape(50, -1)
    slopes = np.array([gradient(x[batch], c[batch], tf.constant(i)) for i, batch in enumerate(rows)])
    return np.abs(slopes.mean(0) / (slopes.std(0, ddof=1) / np.sqrt(50))).max()


@pytest.mark.parametrize("noise_ratio", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["shuffled", "shuffled, with p(x) as measure", "given c"])
def test_the_gradient_vanishes_at_the_truth(kind, noise_ratio):
    """Within 4.5 standard errors (t, 49 degrees; false alarm 4e-5 for each of four); planted: beyond 6.

    Planted are the density in place of the ratio, or the reverse, and conditions of other rows.
    """
    x, c = data()
    loss = ebm.losses.NoiseContrastiveEstimation(noise_given if kind == "given c" else "shuffled", noise_ratio)
    measure = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1)) if "measure" in kind else None
    model = model_of(loss, measure)
    right, wrong = (density(), ratio()) if kind == "given c" else (ratio(), density())
    assert deviation(loss, model, *right, x, c) < 4.5
    assert deviation(loss, model, *wrong, x, c) > 6.0
    assert deviation(loss, model, *right, x, np.roll(c, 1)) > 6.0


def test_no_row_meets_its_own_condition():
    """The pairs of a batch, seen by a network that returns x − c: 0 for a pair of one row."""

    class Difference(keras.layers.Layer):
        def build(self, x_shape, c_shape):
            self.seen = self.add_weight(shape=(), initializer="zeros", name="seen")

        def call(self, x, c):
            return x[:, 0] - c + 0.0 * self.seen.value

    loss = ebm.losses.NoiseContrastiveEstimation("shuffled", 3.0)
    model = ebm.EnergyModel(Difference(), event_shape=(1,), condition_shape=())
    model.compile(loss=loss)
    rows = tf.range(5.0)
    for seed in range(8):
        energy_fn = model.energy_function.with_condition(rows)
        values = -loss._ratio_to_shuffled(energy_fn, rows[:, None], tf.constant(15), tf.constant([0, seed]))
        assert values.shape == (20,) and (values[:5] == 0.0).numpy().all() and (values[5:] != 0.0).numpy().all()
        pairs = {(i % 5, float(value)) for i, value in enumerate(values[5:])}
        assert len(pairs) == 15  # each pair once


@pytest.mark.slow
def test_posterior_is_prior_times_ratio(tmp_path):
    """p(x | c) by a trained ratio: slope and width within .05; log Z is learned, saved and loaded."""
    x, c = data(4000, seed=1)
    prior = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))
    loss = ebm.losses.NoiseContrastiveEstimation("shuffled", 4.0)
    model = ebm.EnergyModel(QuadraticInBoth(), event_shape=(1,), condition_shape=(), base_measure=prior)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 300)), loss, steps_per_execution=20
    )
    batch = tf.data.Dataset.from_tensors((x, c)).repeat()
    model.fit(batch, steps_per_epoch=300, verbose=0, shuffle=False)
    grid = np.linspace(-4.0, 4.0, 801)[:, None]
    p = np.exp(model.given([1.0]).log_prob(grid[:, None])[:, 0])
    mass = p.sum() * 0.01
    mean = (p * grid[:, 0]).sum() * 0.01 / mass
    sd = np.sqrt((p * (grid[:, 0] - mean) ** 2).sum() * 0.01 / mass)
    assert abs(mass - 1.0) < 0.05 and abs(mean - SLOPE) < 0.05 and abs(sd - SD) < 0.05
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.noise == "shuffled"
    np.testing.assert_array_equal(
        loaded.given([1.0]).log_prob(grid[:, None]), model.given([1.0]).log_prob(grid[:, None])
    )


def test_log_z_of_a_ratio_without_measure_is_not_that_of_a_density():
    loss = ebm.losses.NoiseContrastiveEstimation("shuffled")
    model = model_of(loss)
    x, c = data(100)
    model.fit(x, c, verbose=0)
    assert model.log_normalizer is None


@pytest.mark.slow
def test_noise_given_c_is_saved(tmp_path):
    x, c = data(100)
    model = model_of(ebm.losses.NoiseContrastiveEstimation(noise_given))
    model.fit(x, c, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, c, verbose=0) == model.evaluate(x, c, verbose=0)


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        (lambda c: c, TypeError, "`noise` must return a tfp.distributions.Distribution"),
        (lambda c: tfd.Normal(c, tf.ones_like(c)), ValueError, r"`noise` must return .* event shape \(1,\)"),
        (lambda c: tfd.MultivariateNormalDiag(np.zeros(1)), ValueError, r"`noise` must return .* batch shape \[rows\]"),
    ],
    ids=["tensor", "event", "batch"],
)
def test_bad_noise_is_named(noise, error, message):
    x, c = data(100)
    model = model_of(ebm.losses.NoiseContrastiveEstimation(noise))
    with pytest.raises(error, match=message):
        model.fit(x, c, verbose=0)


def test_a_network_of_x_alone_is_refused():
    for noise in ("shuffled", noise_given):
        model = ebm.EnergyModel(ebm.networks.mlp([1], units=[4]))
        with pytest.raises(ValueError, match=r"`noise` .* needs a network of"):
            model.compile(loss=ebm.losses.NoiseContrastiveEstimation(noise))
