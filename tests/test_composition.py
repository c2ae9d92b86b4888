"""Mixtures of densities and stacking: exact log densities, shares of the parts, weights by likelihood."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import rng
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.composition import mixture, stack, stacked_parts, stacking_weights
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy

tfd = tfp.distributions
ONE = tfd.MultivariateNormalDiag([0.0])


def normal_model(mean, sd, loc=0.0, scale=1.0):
    """A model of N(mean, sd²) in two coordinates, in units of its own."""
    parameters = MixtureParameters(np.ones(1), np.full((1, 2), (mean - loc) / scale), np.eye(2)[None] * sd / scale)
    model = ebm.EnergyModel(GaussianMixtureEnergy.of(parameters, dtype="float64"))
    model.standardization.loc.assign([loc, loc])
    model.standardization.scale.assign([scale, scale])
    return model


def log_density(x, means, sds, probs):
    parts = [np.log(w) + stats.norm.logpdf(x, m, s).sum(-1) for m, s, w in zip(means, sds, probs, strict=True)]
    return np.logaddexp.reduce(parts, 0)


@pytest.mark.slow
def test_a_mixture_of_models_in_units_of_their_own(tmp_path):
    """Log density and score against closed forms; shares within 4 standard errors; saved and loaded."""
    base = tfd.MultivariateNormalDiag(np.array([5.0, 5.0]), np.array([2.0, 2.0]))
    parts = [normal_model(-3.0, 1.0, loc=7.0, scale=3.0), normal_model(2.0, 0.5, loc=-1.0, scale=0.1), base]
    p = mixture(parts, [0.2, 0.5, 0.3])
    x = rng().normal(size=(50, 2)) * 4
    expected = log_density(x, (-3.0, 2.0, 5.0), (1.0, 0.5, 2.0), (0.2, 0.5, 0.3))
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-9)
    assert np.abs(mixture(parts, [0.3, 0.5, 0.2]).log_prob(x) - expected).max() > 0.1  # control
    step = 1e-6
    slopes = [
        (log_density(x + step * e, (-3.0, 2.0, 5.0), (1.0, 0.5, 2.0), (0.2, 0.5, 0.3)) - expected) / step
        for e in np.eye(2)
    ]
    model = p.energy_model
    np.testing.assert_allclose(model.score(x), np.stack(slopes, -1), rtol=1e-3, atol=1e-4)
    samples = p.sample(20_000, seed=0).numpy()
    share = np.mean(np.linalg.norm(samples - 2.0, axis=1) < 1.5)
    truth = 0.5 * (1 - np.exp(-0.5 * 9.0))
    rest = 0.3 * np.mean(np.linalg.norm(5.0 + 2.0 * rng().normal(size=(200_000, 2)) - 2.0, axis=1) < 1.5)
    assert abs(share - truth - rest) < 4 * np.sqrt(0.25 / 20_000)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "m.keras").energy(x), model.energy(x))


def test_training_a_part_trains_the_mixture():
    part = normal_model(0.0, 1.0)
    p = mixture([part, normal_model(9.0, 1.0)], [0.5, 0.5])
    before = p.log_prob(np.zeros((1, 2)))
    part.network.assign(MixtureParameters(np.ones(1), np.full((1, 2), 3.0), np.eye(2)[None]))
    assert abs(float(before[0] - p.log_prob(np.zeros((1, 2)))[0]) - 9.0) < 1e-9


def test_weights_are_those_of_the_best_mixture():
    """Against a search over all weights of two parts; half a row of prior weight moves them by less than .01."""
    generator = np.random.default_rng(0)
    x = np.where(generator.uniform(size=2000) < 0.3, generator.normal(size=2000) - 2.0, generator.normal(size=2000) + 2)
    log_probs = np.stack([stats.norm.logpdf(x, -2.0), stats.norm.logpdf(x, 2.0)], 1)
    grid = np.linspace(0.001, 0.999, 999)
    values = [np.logaddexp(np.log(w) + log_probs[:, 0], np.log1p(-w) + log_probs[:, 1]).sum() for w in grid]
    found = stacking_weights(log_probs)
    assert abs(found[0] - grid[np.argmax(values)]) < 0.01 and found.sum() == pytest.approx(1.0)


def test_a_stack_is_better_than_its_parts_and_drops_what_is_useless():
    x = np.concatenate([rng().normal(size=(300, 2)), rng().normal(size=(700, 2)) + 6.0])
    parts = [normal_model(0.0, 1.0), normal_model(6.0, 1.0), normal_model(-50.0, 1.0)]
    p = stack(parts, x)
    np.testing.assert_allclose(p.energy_model.network.probs, [0.3, 0.7], atol=0.01)
    best = max(float(-tf.reduce_mean(part.energy(x))) for part in parts)
    assert float(tf.reduce_mean(p.log_prob(x))) > best + 5.0


@pytest.mark.slow
def test_distributions_of_energies_are_parts(tmp_path):
    """Those that draw exactly are the same parts as their models, so that the mixture can be saved. A given log Z
    counts, and an unknown one is refused."""
    models = [normal_model(-3.0, 1.0), normal_model(2.0, 0.5)]
    x = rng().normal(size=(20, 2)) * 3
    p = mixture([ebm.EnergyDistribution(model) for model in models], [0.4, 0.6])
    np.testing.assert_array_equal(p.log_prob(x), mixture(models, [0.4, 0.6]).log_prob(x))
    nested = mixture([p, ebm.EnergyDistribution(models[0])], [0.5, 0.5])
    np.testing.assert_allclose(nested.log_prob(x), mixture(models, [0.7, 0.3]).log_prob(x), rtol=1e-12)
    nested.energy_model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(ebm.EnergyDistribution(loaded).log_prob(x), nested.log_prob(x))
    base = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    half = ebm.EnergyDistribution(lambda x: tf.reduce_sum(x**2, -1), base=base)
    with pytest.raises(ValueError, match=r"`parts\[1\]` must have a known log Z"):
        mixture([base, half], [0.5, 0.5])
    q = mixture([base, half.with_log_normalizer(np.log(np.pi))], [0.5, 0.5])
    np.testing.assert_allclose(q.log_prob(x), log_density(x, (0.0, 0.0), (1.0, 0.5**0.5), (0.5, 0.5)), rtol=1e-9)
    wrong = mixture([base, half.with_log_normalizer(0.0)], [0.5, 0.5])
    assert np.abs(wrong.log_prob(x) - q.log_prob(x)).max() > 0.5  # control


def test_few_rows_choose_one_part_where_a_mixture_only_fits_their_noise():
    """Nine worse parts with independent errors beside one, 14 rows, 20 tables; 2000 new rows of each judge.

    Planted: the weights that fit the 14 rows best lose .03 nat and more.
    """
    losses = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = -1.0 - 3.0 * np.abs(rng.normal(size=(2014, 9))) + 1.5 * rng.normal(size=(2014, 9))
        log_probs = np.concatenate([np.zeros((2014, 1)), noise], 1)
        kept, probs = stacked_parts(log_probs[:14])
        weights = stacking_weights(log_probs[:14])
        new = log_probs[14:]
        chosen = np.logaddexp.reduce(new[:, kept] + np.log(probs), axis=1).mean()
        losses.append([chosen, np.logaddexp.reduce(new + np.log(weights), axis=1).mean()])
    assert np.mean(losses, 0)[0] > -0.01 and np.mean(losses, 0)[1] < -0.03


def test_a_row_of_density_zero_everywhere_is_refused():
    uniform = tfd.Independent(tfd.Uniform(np.zeros(2), np.ones(2)), 1)
    with pytest.raises(ValueError, match=r"`x_held_out` must have a positive density .* row 1"):
        stack([uniform, uniform], np.array([[0.5, 0.5], [3.0, 0.5]]))


@pytest.mark.parametrize(
    ("parts", "probs", "error", "message"),
    [
        ([], [], ValueError, "`parts` must hold at least one"),
        ([3], [1.0], TypeError, r"`parts\[0\]` must be an EnergyModel"),
        (
            [ebm.EnergyModel(ebm.networks.mlp([2], units=[4]))],
            [1.0],
            ValueError,
            r"`parts\[0\]` must have a known log Z",
        ),
        (
            [tfd.MultivariateNormalDiag([0.0]), tfd.MultivariateNormalDiag([0.0, 0.0])],
            [0.5, 0.5],
            ValueError,
            "one event",
        ),
        ([ONE], [0.5], ValueError, "`probs`"),
    ],
    ids=["none", "number", "unknown", "shapes", "probs"],
)
def test_refusals(parts, probs, error, message):
    with pytest.raises(error, match=message):
        mixture(parts, probs)
