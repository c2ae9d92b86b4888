"""Products and powers of densities: Gaussians and tilted models exact in float64, draws, files, and refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import Quadratic

import tfp_ebm as ebm
from tfp_ebm.composition import product

tfd = tfp.distributions


def gaussian(seed, size=3):
    rng = np.random.default_rng(seed)
    factor = np.eye(size) + 0.5 * np.tril(rng.normal(size=(size, size)), -1)
    return tfd.MultivariateNormalTriL(rng.normal(size=size), factor)


@pytest.mark.slow
def test_gaussians_are_exact():
    """The energy is Σ aᵢ Eᵢ to 1e-12, and the base has the product's mean and twice its covariance."""
    parts, exponents = [gaussian(1), gaussian(2), gaussian(3)], [1.0, 0.5, -0.2]
    x = np.random.default_rng(0).normal(size=(5, 20, 3))
    p = product(parts, exponents)
    energy = -sum(a * np.asarray(part.log_prob(x)) for part, a in zip(parts, exponents, strict=True))
    np.testing.assert_allclose(p.unnormalized_log_prob(x), -energy, rtol=1e-12)
    np.testing.assert_allclose(p.energy_model.energy(x), energy, rtol=1e-12)
    inverses = [np.linalg.inv(part.covariance()) for part in parts]
    precision = sum(a * inverse for a, inverse in zip(exponents, inverses, strict=True))
    pulls = [a * inverse @ part.mean().numpy() for a, inverse, part in zip(exponents, inverses, parts, strict=True)]
    mean = np.linalg.solve(precision, sum(pulls))
    np.testing.assert_allclose(p.base.mean(), mean, atol=1e-9)
    np.testing.assert_allclose(p.base.covariance(), 2.0 * np.linalg.inv(precision), rtol=1e-6)
    score = -(x - mean) @ precision
    np.testing.assert_allclose(p.energy_model.score(x), score, rtol=1e-9, atol=1e-9)
    wrong = energy + 0.5 * np.asarray(parts[1].log_prob(x))  # a part left out
    assert np.abs(wrong - energy).max() > 0.1


@pytest.mark.slow
def test_a_mixture_that_was_never_fitted_is_a_factor():
    """It has no base: its own draws give mean and covariance, here ±2 with variance 5; the base's of 4096 draws.

    The product of N(0, 5) and N(0, 5) is N(0, 2.5), of twice this variance its base: 5 within 4 standard errors of .1.
    """
    parts = [tfd.MultivariateNormalDiag([side], [1.0]) for side in (-2.0, 2.0)]
    mixture = ebm.composition.mixture(parts, [0.5, 0.5])
    with pytest.raises(ValueError, match="no base distribution yet"):
        _ = mixture.base
    wide = tfd.MultivariateNormalDiag([0.0], [5.0**0.5])
    x = np.linspace(-3.0, 3.0, 7, dtype="float32")[:, None]
    density = 0.5 * sum(np.exp(np.float64(part.log_prob(x))) for part in parts)
    for factor in (mixture, mixture.energy_model):
        p = product([factor, wide])
        np.testing.assert_allclose(p.unnormalized_log_prob(x), np.log(density) + wide.log_prob(x), atol=1e-5)
        assert abs(p.base.mean()[0]) < 0.2 and abs(p.base.variance()[0] - 5.0) < 0.4


@pytest.mark.slow
def test_models_count_with_their_units_and_base_measures():
    """Each is the density that it is: −E(x) of the product is the sum of the parts' −E(x), in x."""
    rng = np.random.default_rng(0)
    x = rng.normal([5.0, -300.0], [2.0, 40.0], size=(200, 2))
    models = []
    wide = tfd.MultivariateNormalTriL(x.mean(0), 1.5 * np.linalg.cholesky(np.cov(x.T)))
    for base in (None, wide):
        model = ebm.EnergyModel(Quadratic(dtype="float64"), event_shape=(2,), base_measure=base)
        model.adapt(x if base is None else x + np.array([1.0, 10.0]))
        model.network.factor.assign([[1.2, 0.0], [0.4, 0.8]])
        models.append(model)
    p, q = (ebm.EnergyDistribution(model) for model in models)
    both = -(models[0].energy(x) + models[1].energy(x))
    for composed in (p * q, product(models), p * models[1], product([p, q], [1, 1])):
        np.testing.assert_allclose(composed.unnormalized_log_prob(x), both, rtol=1e-10)
    np.testing.assert_allclose((p**0.5).unnormalized_log_prob(x), -0.5 * models[0].energy(x), rtol=1e-10)
    np.testing.assert_allclose(((p * q) ** 2).unnormalized_log_prob(x), 2.0 * both, rtol=1e-10)
    np.testing.assert_allclose((p * wide).unnormalized_log_prob(x), wide.log_prob(x) - models[0].energy(x), rtol=1e-10)
    models[0].network.mean.assign([1.0, 0.0])  # parts are shared, not copied
    np.testing.assert_allclose((p * q).unnormalized_log_prob(x), -(models[0].energy(x) + models[1].energy(x)))
    assert (p * q).energy_model.dtype == "float64"


@pytest.mark.slow
def test_draws_and_log_z_of_a_product_and_of_tempered_densities():
    """Means and covariances of 4000 draws within 4 standard errors, log Z within 4 of its own."""
    left, right = tfd.MultivariateNormalDiag(np.array([-1.0, 0.0]), np.array([1.0, 2.0])), gaussian(5, 2)
    inverses = [np.linalg.inv(part.covariance()) for part in (left, right)]
    pulls = [inverse @ part.mean().numpy() for inverse, part in zip(inverses, (left, right), strict=True)]
    for p, precision, loc in (
        (product([left, right]), sum(inverses), sum(pulls)),
        (product([right], [0.5]), 0.5 * inverses[1], 0.5 * pulls[1]),
    ):
        covariance = np.linalg.inv(precision)
        mean = covariance @ loc
        draws = p.draw(4000, seed=1)
        assert not draws.trouble
        error = np.sqrt(np.diag(covariance) / 4000)
        assert np.all(np.abs(np.mean(draws.states, 0) - mean) < 4 * error)
        spread = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / 4000)
        assert np.all(np.abs(np.cov(np.asarray(draws.states).T) - covariance) < 4 * spread)
        log_z = float(p.unnormalized_log_prob(mean)) + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        assert abs(draws.log_normalizer.value - log_z) < 4 * draws.log_normalizer.standard_error + 1e-6


@pytest.mark.slow
def test_files(tmp_path):
    """A product and its SavedModel return the same bits as before."""
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(64, 2)).astype("float32")
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), base_measure=ebm.fit_base(x))
    model.adapt(x)
    p = ebm.EnergyDistribution(model) * tfd.MultivariateNormalDiag([3.0, 3.0], [2.0, 2.0])
    composed = p.energy_model
    composed.save(tmp_path / "product.keras")
    loaded = keras.saving.load_model(tmp_path / "product.keras")
    np.testing.assert_array_equal(loaded.energy(x), composed.energy(x))
    np.testing.assert_array_equal(loaded.base.mean(), composed.base.mean())
    composed.export(tmp_path / "product", kernel=ebm.mcmc.MALA(0.3), verbose=False)
    served = tf.saved_model.load(tmp_path / "product")
    np.testing.assert_array_equal(served.energy(x), composed.energy(x))
    np.testing.assert_array_equal(served.score(x), composed.score(x))


def test_callable_energies_compose():
    base = tfd.MultivariateNormalDiag([0.0], [2.0])
    p = ebm.EnergyDistribution(lambda x: 0.5 * x[..., 0] ** 2, event_shape=[1], base=base)
    x = np.linspace(-2.0, 2.0, 5, dtype="float32")[:, None]
    np.testing.assert_allclose((p * p).unnormalized_log_prob(x), -(x[:, 0] ** 2), rtol=1e-6)
    np.testing.assert_allclose((p**0.5).unnormalized_log_prob(x), -0.25 * x[:, 0] ** 2, rtol=1e-6)
    with pytest.raises(ValueError, match="the energy must be an EnergyModel"):
        _ = (p * p).energy_model


BAD = {
    "none": (lambda: product([]), ValueError, "`parts` must hold at least one"),
    "number": (lambda: product([3.0]), TypeError, r"`parts\[0\]` must be"),
    "shapes": (lambda: product([gaussian(0, 2), gaussian(0, 3)]), ValueError, "`parts` must have one event shape"),
    "batch": (lambda: product([tfd.Normal([0.0, 1.0], 1.0)]), ValueError, r"`parts\[0\]` must be one distribution"),
    "count": (lambda: product([gaussian(0)], [1.0, 2.0]), ValueError, "`exponents` must be 1 numbers"),
    "nan": (lambda: product([gaussian(0)], [np.nan]), ValueError, r"`exponents\[0\]` must be a finite"),
    "negative": (lambda: product([gaussian(0)], [-1.0]), ValueError, "`exponents` must leave a density"),
    "outweighed": (lambda: product([gaussian(0), gaussian(1)], [1.0, -3.0]), ValueError, "`exponents` must leave"),
    "base": (
        lambda: product([ebm.EnergyModel(ebm.networks.mlp([2], units=[4]))]),
        ValueError,
        "no base distribution",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
