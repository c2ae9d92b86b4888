"""Noise contrastive estimation in `fit`: what it learns, in which units log Z is, who uses it, files, warnings."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import Quadratic
from test_noise_contrastive import NCE, natural, noise_of, regression

import tfp_ebm as ebm

tfd = tfp.distributions
SHIFT, STRETCH = np.array([5.0, -300.0]), np.array([0.02, 40.0])


def problem(d, rows):
    """Gaussian rows in units of their own, mean and factor of their law, and noise that is wider and elsewhere."""
    factor = (STRETCH[:, None] * np.array([[1.2, 0.0], [0.5, 0.8]]))[:d, :d]
    x = SHIFT[:d] + np.random.default_rng(d).normal(size=(rows, d)) @ factor.T
    return x, SHIFT[:d], factor, tfd.MultivariateNormalTriL(SHIFT[:d] + 0.4 * STRETCH[:d], 1.4 * factor)


def integral(log_prob, centre, factor):
    """∫ exp(log_prob(x)) dx over 10 standard deviations, by the trapezoid rule, which is exact there to rounding."""
    d = len(centre)
    steps = np.stack(np.meshgrid(*[np.linspace(-10, 10, 161)] * d, indexing="ij"), -1).reshape(-1, d)
    return np.exp(log_prob(centre + steps @ factor.T)).sum() * 0.125**d * abs(np.linalg.det(factor))


@pytest.mark.parametrize(("d", "ratio"), [(1, 0.5), (2, 1.0), (1, 4.0), (2, 10.0)])
def test_fit_recovers_the_density_and_its_normaliser(d, ratio):
    """P, Pm and log Z in standardised units within 4 standard errors, noise ≠ data; p integrates to 1 over x.

    The errors are those of one draw of the noise; `fit` sees many, so that its own are smaller. Planted
    mistakes are in the exact test.
    """
    x, mean, factor, noise = problem(d, 1000)
    quadratic, loss = Quadratic(dtype="float64"), NCE(noise, ratio)
    model = ebm.EnergyModel(quadratic, event_shape=(d,))
    model.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 200)
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=100)
    p = ebm.EnergyDistribution(model)
    assert p.log_normalizer is None and model.log_normalizer is None
    with pytest.raises(NotImplementedError, match="log_prob needs log Z"):
        p.log_prob(x)
    history = model.fit(tf.data.Dataset.from_tensors(x).repeat(), steps_per_epoch=200, verbose=0, shuffle=False).history

    units = model.standardization
    precision, mu = quadratic.precision(), quadratic.mean.numpy()
    theta = natural(precision, mu)
    theta[-1] = -float(loss.log_normalizer) - 0.5 * mu @ precision @ mu
    scale = units.scale.numpy()
    truth = natural(np.linalg.inv((factor / scale[:, None]) @ (factor / scale[:, None]).T), units.to_z(mean).numpy())

    def log_q(z):
        return noise.log_prob(units.to_x(z)).numpy() + np.log(scale).sum()

    drawn = units.to_z(noise_of(loss, noise, len(x), seed=1)).numpy()
    _, errors = regression(units.to_z(x).numpy(), drawn, log_q, ratio, ratio, truth)
    assert np.all(np.abs(theta - truth) < 4 * errors) and errors[-1] < 0.15
    assert history["log_normalizer"][0] == pytest.approx(float(loss.log_normalizer), abs=0.2)
    assert set(history) == {"loss", "accuracy", "overlap", "log_normalizer", "uncovered"}

    # the density of x, not of z: Σ log scale is 10 nats away from none
    assert abs(np.log(integral(lambda y: p.log_prob(y).numpy(), mean, factor))) < 4 * errors[-1]
    loss.log_normalizer.assign(0.5 * (d * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1]))
    np.testing.assert_allclose(integral(lambda y: p.log_prob(y).numpy(), mean, factor), 1.0, rtol=1e-9)
    np.testing.assert_allclose(p.log_prob(x), p.unnormalized_log_prob(x) - p.log_normalizer)
    assert float(p.with_log_normalizer(0.5).log_normalizer) == 0.5


def model_and_rows(loss, optimizer=None, jit_compile=False, **kwargs):
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(384, 2)).astype("float32")
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), seed=1, **kwargs)
    model.compile(optimizer or keras.optimizers.Adam(1e-2), loss, jit_compile=jit_compile)
    return model, x


def fit(model, x):
    return model.fit(x, batch_size=128, verbose=0, shuffle=False).history


@pytest.mark.long
def test_default_noise_is_the_base_and_xla_trains_the_same():
    """By the alias; plain gradient descent, which does not blow up rounding, for 3 steps."""
    models = []
    for jit in (False, True):
        model, x = model_and_rows("noise_contrastive_estimation", keras.optimizers.SGD(0.1), jit)
        assert isinstance(model.loss, NCE) and model.loss.noise is None and model.loss.noise_ratio == 1.0
        assert "uncovered" not in fit(model, x)
        models.append(model)
    graph, xla = models
    np.testing.assert_allclose(xla.log_normalizer, graph.log_normalizer, rtol=1e-5)
    np.testing.assert_allclose(xla.energy(x), graph.energy(x), rtol=1e-4, atol=1e-5)
    # log Z is the one of the moment, wherever it is used
    before = float(graph.log_normalizer)
    log_prob = tf.function(ebm.EnergyDistribution(graph).log_prob)
    np.testing.assert_allclose(log_prob(x), -graph.energy(x) - before, rtol=1e-5)
    fit(graph, x)
    assert float(graph.log_normalizer) != before
    np.testing.assert_allclose(log_prob(x), -graph.energy(x) - graph.log_normalizer, rtol=1e-5)
    figures = graph.evaluate(x, batch_size=384, verbose=0, return_dict=True)
    assert figures["log_normalizer"] == pytest.approx(float(graph.log_normalizer))
    graph.compile("adam", "denoising_score_matching")
    assert graph.log_normalizer is None


@pytest.mark.slow
def test_log_z_and_fitted_noise_survive_the_file(tmp_path):
    """A loaded model has the same log Z, draws the same noise, and trains on bit by bit."""
    loss = NCE("gaussian_mixture", 0.7, num_components=2)
    loss.adapt(np.random.default_rng(0).normal(3.0, 2.0, size=(300, 2)))
    model, x = model_and_rows(loss, base_measure=tfd.MultivariateNormalDiag([3.0, 3.0], [2.0, 2.0]))
    fit(model, x)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    p, q = ebm.EnergyDistribution(model), ebm.EnergyDistribution(loaded)
    np.testing.assert_array_equal(p.log_prob(x), q.log_prob(x))
    assert fit(model, x) == fit(loaded, x)
    np.testing.assert_array_equal(p.log_prob(x), q.log_prob(x))


@pytest.mark.parametrize("kind", ["given", "gaussian", "kernel_density"])
def test_config_keeps_the_noise(kind):
    x = np.random.default_rng(0).normal(size=(50, 2)).astype("float32")
    given = tfd.MultivariateNormalDiag([0.5, 0.0], [2.0, 2.0])
    loss = NCE(given if kind == "given" else kind, 2.5, num_centers=20, bandwidth=0.3)
    loss.adapt(x)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert (twin.noise_ratio, twin.num_centers, twin.bandwidth) == (2.5, 20, 0.3)
    values = [each(lambda y: tf.reduce_sum(y**2, -1), x, seed=0).per_example for each in (loss, twin)]
    np.testing.assert_array_equal(*values)


class Wall(tfd.Uniform):
    """No class of TFP's: it cannot be saved."""


def test_noise_that_cannot_be_saved_says_so(tmp_path):
    noise = tfd.Independent(Wall(tf.constant([-20.0, -20.0]), tf.constant([20.0, 20.0])), 1)
    model, _ = model_and_rows(NCE(noise))
    with pytest.raises(TypeError, match=r"`noise.* cannot be saved"):
        model.save(tmp_path / "model.keras")


def test_fit_warns_of_noise_that_is_too_easy():
    """Once per fit, with the figures; the default noise, in the tests above, is not warned of."""
    model, x = model_and_rows(NCE(tfd.MultivariateNormalDiag([90.0, 90.0], [1.0, 1.0])), keras.optimizers.Adam(0.1))
    with pytest.warns(UserWarning, match=r"epoch \d.*saturated.* accuracy (1|0\.9)") as caught:
        model.fit(x, batch_size=32, epochs=4, verbose=0)
    assert len(caught) == 1


def test_noise_that_leaves_data_out_is_complained_of():
    """Where its density is zero the loss is 0 and teaches nothing; log Z begins at a finite value all the same."""
    box = tfd.Independent(tfd.Uniform(tf.constant([-1.0, -1.0]), tf.constant([1.0, 1.0])), 1)
    loss, x = NCE(box), tf.constant([[0.0, 0.0], [0.5, 0.5], [2.0, 0.0], [0.0, -0.9]])
    weight = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        output = loss(lambda y: weight * tf.reduce_sum(y**2, -1), x, seed=0, training=True)
    metrics = {name: float(value) for name, value in output.metrics.items()}
    assert metrics["uncovered"] == 0.25 and np.isfinite(metrics["log_normalizer"])
    assert np.isfinite(output.per_example).all() and np.isfinite(tape.gradient(output.per_example, weight))
    assert "no density at 25.00% of the data" in loss.training_warning(metrics)
    assert loss.training_warning({"overlap": 0.5, "accuracy": 0.8}) == "" == loss.training_warning({})
