"""Noise contrastive estimation in `fit`: what it learns, in which units log Z is, who uses it, files, warnings."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_energies import Quadratic
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


@pytest.mark.parametrize(("d", "ratio"), [(1, 4.0), (2, 0.5), (2, 1.0), (2, 4.0), (2, 10.0)])
def test_fit_recovers_the_density_and_its_normaliser(d, ratio):
    """P, Pm and log Z in standardised units within 4 standard errors, noise ≠ data; p integrates to 1 over x.

    The errors are those of one draw of the noise; `fit` sees many, so that its own are smaller. With the minimiser
    30 000 rows would have, log Z wrong by log ν is over 10 errors off for every ν but 1 (see the exact test).
    """
    x, mean, factor, noise = problem(d, 1000)
    quadratic, loss = Quadratic(dtype="float64"), NCE(noise, ratio)
    model = ebm.EnergyModel(quadratic, event_shape=(d,))
    model.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 300)
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=100)
    p = ebm.EnergyDistribution(model)
    assert p.log_normalizer is None and model.log_normalizer is None
    with pytest.raises(NotImplementedError, match="log_prob needs log Z"):
        p.log_prob(x)
    history = model.fit(tf.data.Dataset.from_tensors(x).repeat(), steps_per_epoch=300, verbose=0, shuffle=False).history

    units = model.units
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


def trained(loss, jit_compile=False, **kwargs):
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(512, 2)).astype("float32")
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), seed=1, **kwargs)
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=jit_compile)
    model.fit(x, batch_size=100, epochs=2, verbose=0, shuffle=False)  # a last batch of 12, too
    return model, x


def test_default_noise_is_the_base_and_xla_trains_the_same():
    """From the alias, with a base measure or without; nothing of it warns."""
    model, x = trained("noise_contrastive_estimation")
    assert isinstance(model.loss, NCE) and model.loss.noise is None and model.loss.noise_ratio == 1.0
    xla, _ = trained(NCE(), jit_compile=True)
    np.testing.assert_allclose(xla.log_normalizer, model.log_normalizer, rtol=1e-4)
    np.testing.assert_allclose(xla.energy(x), model.energy(x), rtol=1e-3, atol=1e-4)
    before = float(model.log_normalizer)
    figures = model.evaluate(x, verbose=0, return_dict=True)
    assert float(model.log_normalizer) == before == pytest.approx(figures["log_normalizer"])
    log_prob = tf.function(ebm.EnergyDistribution(model).log_prob)
    np.testing.assert_allclose(log_prob(x), -model.energy(x) - before, rtol=1e-5)
    model.fit(x, batch_size=100, verbose=0)
    np.testing.assert_allclose(log_prob(x), -model.energy(x) - model.log_normalizer, rtol=1e-5)  # goes along
    assert float(model.log_normalizer) != before
    model.compile("adam", "denoising_score_matching")
    assert model.log_normalizer is None


def test_log_z_and_fitted_noise_survive_the_file(tmp_path):
    """A loaded model has the same log Z, draws the same noise, and trains on bit by bit."""
    fitted = NCE("gaussian_mixture", 0.7, num_components=2)
    fitted.adapt(np.random.default_rng(0).normal(3.0, 2.0, size=(300, 2)))
    given = NCE(tfd.MultivariateNormalDiag([3.0, 3.0], [2.5, 2.5]), 2.0)
    for loss in (fitted, given):
        model, x = trained(loss, base_measure=tfd.MultivariateNormalDiag([3.0, 3.0], [2.0, 2.0]))
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.loss.noise_ratio == loss.noise_ratio
        p, q = ebm.EnergyDistribution(model), ebm.EnergyDistribution(loaded)
        np.testing.assert_array_equal(p.log_prob(x), q.log_prob(x))
        for m in (model, loaded):
            m.fit(x, batch_size=100, epochs=1, verbose=0, shuffle=False)
        np.testing.assert_array_equal(p.log_prob(x), q.log_prob(x))


class Wall(tfd.Uniform):
    """No class of TFP's: it cannot be saved."""


def test_noise_that_cannot_be_saved_says_so(tmp_path):
    noise = tfd.Independent(Wall(tf.constant([-20.0, -20.0]), tf.constant([20.0, 20.0])), 1)
    model, _ = trained(NCE(noise))
    with pytest.raises(TypeError, match="`noise.* cannot be saved"):
        model.save(tmp_path / "model.keras")


def test_fit_warns_of_noise_that_is_too_easy_or_leaves_data_out():
    """Once per fit, with the figures; accuracy is then near 1, and overlap near 0."""
    with pytest.warns(UserWarning, match=r"in epoch \d: the classifier is saturated: .* accuracy (1\.0|0\.9)") as caught:
        model, _ = trained(NCE(tfd.MultivariateNormalDiag([90.0, 90.0], [1.0, 1.0])))
    assert len(caught) == 1
    figures = model.evaluate(np.full((100, 2), 3.0), verbose=0, return_dict=True)
    assert figures["accuracy"] > 0.99 and figures["overlap"] < 0.02
    box = tfd.Independent(tfd.Uniform(tf.constant([-1.0, -1.0]), tf.constant([7.0, 7.0])), 1)
    with pytest.warns(UserWarning, match=r"no density at \d\.\d\d% of the data|no density at \d\d\.\d\d% of the data"):
        model, _ = trained(NCE(box))
    assert np.isfinite(model.log_normalizer)
