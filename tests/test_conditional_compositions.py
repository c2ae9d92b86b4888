"""Products and mixtures of conditional models: exact in float64, one condition for all parts, files and exports."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.composition import mixture, product
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy

tfd = tfp.distributions
RNG = np.random.default_rng(0)
X, C = RNG.normal(3.0, 2.0, size=(6, 2)), RNG.normal(size=(6, 3))


def energy(seed, **options):
    network = ebm.networks.mlp([2], units=[4], dtype="float64", seed=seed, **options)
    model = ebm.EnergyModel(network)
    model.adapt(X + seed)
    model._fitted_base.assign(DataMoments.of([RNG.normal(size=(50, 2)) + 3.0]))
    return model


@pytest.fixture(scope="module")
def models():
    return energy(1, condition_shape=[3]), energy(2, condition_shape=[3], conditioning="film"), energy(3)


@pytest.mark.slow
def test_products_are_exact(models):
    """E = Σ aᵢ Eᵢ(x; c) to 1e-10, whatever the units of the parts; the operators of batches are the same."""
    first, second, third = models
    normal = tfd.MultivariateNormalDiag(np.array([3.0, 3.0]), np.array([2.0, 2.0]))
    model = product([first, second, third, normal], [1.0, 0.5, 2.0, 1.0])
    assert isinstance(model, ebm.EnergyModel) and model.is_conditional
    expected = first.energy(X, C) + 0.5 * second.energy(X, C) + 2.0 * third.energy(X) - normal.log_prob(X)
    np.testing.assert_allclose(model.energy(X, C), expected, rtol=1e-10)
    assert np.abs(model.energy(X, np.roll(C, 1, 0)) - expected).max() > 1e-3  # control
    np.testing.assert_allclose(model.given(C[0]).energy(X[0]), expected[0], rtol=1e-10)
    p, q = first.given(C), second.given(C)
    for composed, energies in (
        (p * q, first.energy(X, C) + second.energy(X, C)),
        (p**0.5, 0.5 * first.energy(X, C)),
        (p * third, first.energy(X, C) + third.energy(X)),
        (normal_distribution(third) * p, first.energy(X, C) + third.energy(X)),
        (p * normal, first.energy(X, C) - normal.log_prob(X)),
    ):
        assert composed.batch_shape == (6,)
        np.testing.assert_allclose(composed.unnormalized_log_prob(X), -energies, rtol=1e-10)


def normal_distribution(model):
    return ebm.EnergyDistribution(model)


@pytest.mark.slow
def test_files_of_a_product(models, tmp_path):
    model = product(models[:2], [1.0, 0.5])
    model.save(tmp_path / "product.keras")
    loaded = keras.saving.load_model(tmp_path / "product.keras")
    np.testing.assert_array_equal(loaded.energy(X, C), model.energy(X, C))
    model.export(tmp_path / "product", kernel=ebm.mcmc.MALA(0.3), verbose=False)
    served = tf.saved_model.load(tmp_path / "product")
    np.testing.assert_array_equal(served.energy(X, C), model.energy(X, C))
    np.testing.assert_array_equal(served.score(X, C), model.score(X, C))


def test_labels_and_dictionaries_compose():
    first, second = (energy(seed, num_labels=3) for seed in (1, 2))
    labels = np.arange(6) % 3
    total = first.energy(X, labels) + second.energy(X, labels)
    np.testing.assert_allclose(product([first, second]).energy(X, labels), total, rtol=1e-10)
    model = energy(1, condition_shape={"a": [3], "label": []}, num_labels={"label": 3})
    c = {"a": C, "label": labels}
    np.testing.assert_allclose(product([model, model]).energy(X, c), 2.0 * model.energy(X, c), rtol=1e-10)


def regression(seed):
    model = ebm.EnergyModel(RegressionEnergy([TargetEnergy(3, 2, units=(8,), seed=seed)]))
    for weight in model.network.trainable_variables:
        weight.assign_add(0.2 * np.random.default_rng(seed).normal(size=weight.shape))
    model.standardization.loc.assign([seed, -1.0])
    model.standardization.scale.assign([1.0 + seed, 2.0])
    return model


@pytest.mark.slow
def test_mixtures_of_normalised_parts(tmp_path):
    """log Σ wₖ pₖ(x | c), exact draws of each condition with the shares of the parts, files."""
    x, c = X.astype("float32"), C.astype("float32")
    first, second = regression(1), regression(2)
    far = tfd.MultivariateNormalDiag([100.0, 100.0])
    model = mixture([first, second, far], [0.3, 0.5, 0.2])
    logs = np.stack([-first.energy(x, c), -second.energy(x, c), far.log_prob(x)])
    expected = np.logaddexp.reduce(logs + np.log([[0.3], [0.5], [0.2]]))
    np.testing.assert_allclose(-model.energy(x, c), expected, rtol=1e-4, atol=1e-4)
    p = model.given(c)
    assert p.batch_shape == (6,) and (p.log_normalizer == 0.0).numpy().all()
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-4, atol=1e-4)
    drawn = p.sample(500, seed=1)
    share = np.mean(drawn[..., 0] > 90.0)
    assert drawn.shape == (500, 6, 2) and abs(share - 0.2) < 4.5 * np.sqrt(0.16 / 3000)
    one = ebm.EnergyDistribution(model.given(c[0]))
    np.testing.assert_allclose(one.log_prob(x[0]), expected[0], rtol=1e-4, atol=1e-4)
    assert one.sample(7, seed=0).shape == (7, 2)
    model.save(tmp_path / "mixture.keras")
    loaded = keras.saving.load_model(tmp_path / "mixture.keras")
    np.testing.assert_array_equal(loaded.energy(x, c), model.energy(x, c))


NORMAL = tfd.MultivariateNormalDiag(X[0], np.ones(2))
BAD = {
    "kinds": (
        lambda m: product([m[0], energy(1, condition_shape=[2])]),
        ValueError,
        "`parts` must take one kind of condition",
    ),
    "batch": (lambda m: product([m[0].given(C), m[2]]), ValueError, r"`parts\[0\]` must be one density"),
    "conditions": (lambda m: m[0].given(C) * m[1].given(C + 1.0), ValueError, "must have the same conditions"),
    "model": (lambda m: m[0].given(C) * m[1], ValueError, "a conditional model is no density"),
    "negative": (lambda m: product([m[0]], [-1.0]), ValueError, "`exponents` must leave a density"),
    "unknown log Z": (lambda m: mixture(m[:2], [0.5, 0.5]), ValueError, r"`parts\[0\]` must have a known log Z"),
    "callable": (
        lambda m: product(
            [m[0], ebm.EnergyDistribution(lambda x: x[:, 0], [2], base=tfd.MultivariateNormalDiag(X[0]))]
        ),
        ValueError,
        "`parts` must be models or distributions",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, models):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(models)
