"""Mixtures and kernel densities of data: densities against SciPy's, fits against truths, bases and energies of them."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from laws import rng

import tfp_ebm as ebm
from tfp_ebm import serialization
from tfp_ebm.energy.base import draw, fit_base
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, fit_kernel_density, fit_mixture
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy

PROBS = np.array([0.2, 0.5, 0.3])


def parameters(size, shared):
    generator = np.random.default_rng([size, 1])
    scale = np.tril(generator.normal(size=(3, size, size))) * 0.3 + np.eye(size)
    scale[:, range(size), range(size)] = np.abs(scale[:, range(size), range(size)])
    return MixtureParameters(PROBS, 4 * generator.normal(size=(3, size)), scale[0] if shared else scale)


def scipys(mixture, x):
    scale = np.broadcast_to(mixture.scale_tril, (len(mixture.probs), *mixture.scale_tril.shape[-2:]))
    parts = zip(mixture.probs, mixture.loc, scale, strict=True)
    return np.log(sum(w * scipy.stats.multivariate_normal(m, s @ s.T).pdf(x) for w, m, s in parts))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [1, 2, 10])
def test_density_is_scipys(size, shared):
    """In NumPy, as an energy in float64 and float32, and in other units."""
    mixture = parameters(size, shared)
    x = mixture.loc[rng().integers(3, size=40)] + rng().normal(size=(40, size))
    expected = scipys(mixture, x).reshape(40)
    np.testing.assert_allclose(mixture.log_prob(x), expected, rtol=1e-10)
    for dtype, rtol in (("float64", 1e-10), ("float32", 3e-5)):
        energy = GaussianMixtureEnergy.of(mixture, dtype=dtype)
        np.testing.assert_allclose(-energy(x.astype(dtype)), expected, rtol=rtol)
    scale = np.exp(rng().normal(size=size))
    moved = mixture.in_units(np.full(size, 7.0), scale)
    np.testing.assert_allclose(moved.log_prob(7.0 + scale * x), expected - np.log(scale).sum(), rtol=1e-10)
    other = mixture._replace(loc=mixture.loc + 0.5)
    assert np.abs(other.log_prob(x) - expected).max() > 0.1  # control


@pytest.mark.parametrize("shared", [True, False])
def test_samples_of_the_energy_have_its_density(shared):
    """Its distribution function makes the samples of two coordinates uniform (KS, false alarm 1e-4 each).

    Control: the function with weights in another order, which is over .05 away, gives p < 1e-9.
    """
    mixture = parameters(2, shared)
    energy = GaussianMixtureEnergy.of(mixture)
    seed = tf.constant([0, 3])
    x = energy.draw(20_000, seed).numpy()
    np.testing.assert_allclose(tf.function(energy.draw, jit_compile=True)(20_000, seed), x, atol=1e-4)
    scale = np.broadcast_to(mixture.scale_tril, (3, 2, 2))

    def cdf(y, axis, probs=PROBS):
        sds = np.sqrt(np.square(scale[:, axis]).sum(-1))
        return sum(w * scipy.stats.norm.cdf(y, m, s) for w, m, s in zip(probs, mixture.loc[:, axis], sds, strict=True))

    for axis in range(2):
        assert scipy.stats.kstest(x[:, axis], lambda y, axis=axis: cdf(y, axis)).pvalue > 1e-4
        assert scipy.stats.kstest(x[:, axis], lambda y, axis=axis: cdf(y, axis, PROBS[[1, 2, 0]])).pvalue < 1e-9


def test_the_energy_is_saved(tmp_path):
    model = ebm.EnergyModel(GaussianMixtureEnergy.of(parameters(2, True)))
    model.save(tmp_path / "m.keras")
    restored = keras.saving.load_model(tmp_path / "m.keras")
    x = rng().normal(size=(5, 2)).astype("float32")
    np.testing.assert_array_equal(restored.energy(x), model.energy(x))


def test_a_mixture_is_found():
    """two_gaussians: its cross entropy on fresh data is the entropy's, within 4 errors and 11 parameters/(2n).

    One Gaussian is .4 nats worse, a hundred errors.
    """
    target = ebm.targets.two_gaussians()
    x, fresh = (ebm.datasets.two_gaussians(5000, seed=seed).astype("float64") for seed in (0, 1))
    losses = {}
    for number in (1, 2, None):
        mixture = fit_mixture(x, number)
        losses[number] = target.log_prob(fresh.astype("float32")).numpy() - mixture.log_prob(fresh)
    error = losses[2].std() / np.sqrt(5000)
    assert error < 0.005 and abs(losses[2].mean()) < 4 * error + 11 / (2 * 5000)
    assert losses[1].mean() > 0.4
    assert abs(losses[None].mean()) < 0.01  # the number chosen by held-out rows
    mixture = fit_mixture(x, 2)
    order = np.argsort(mixture.loc[:, 0])
    assert np.abs(mixture.probs[order] - [0.3, 0.7]).max() < 4 * np.sqrt(0.21 / 5000)
    assert np.abs(mixture.loc[order] - [[-2, 0], [2, 0]]).max() < 4 * 0.5 / np.sqrt(1500)
    covariance = mixture.scale_tril @ mixture.scale_tril.transpose(0, 2, 1)
    assert np.abs(covariance - 0.25 * np.eye(2)).max() < 4 * 0.25 * np.sqrt(2 / 1500)


def test_few_rows_of_many_columns_do_not_overfit():
    """100 rows of 30 independent normals: with a ridge the fit is less than half as far from the truth."""
    x, fresh = rng().normal(size=(100, 30)), np.random.default_rng(1).normal(size=(2000, 30))
    truth = scipy.stats.norm.logpdf(fresh).sum(1).mean()
    without = truth - fit_mixture(x, 1, ridge=0.0).log_prob(fresh).mean()
    assert truth - fit_mixture(x).log_prob(fresh).mean() < 0.5 * without


def test_duplicates_and_constant_columns():
    twice = fit_mixture(np.repeat([[-1.0], [1.0]], 50, 0), 3)
    np.testing.assert_allclose(twice.probs.sum(), 1.0)
    assert np.isfinite(twice.scale_tril).all()
    x = np.concatenate([rng().normal(size=(100, 1)), np.full((100, 1), 5.0)], 1)
    mixture = fit_mixture(x, 2)
    np.testing.assert_allclose(mixture.scale_tril[:, 1], [[0.0, 1.0]] * 2)
    np.testing.assert_allclose(mixture.loc[:, 1], 5.0)
    with pytest.raises(ValueError, match="`num_components` must not exceed the 5 rows, got 6"):
        fit_mixture(x[:5], 6)


def test_kernel_density_is_scipys_at_a_good_bandwidth():
    """The density is SciPy's with the same covariance; half and twice the bandwidth are less likely."""
    x = rng().normal(size=(500, 2)) @ [[2.0, 1.0], [0.0, 0.3]] + [100.0, -5.0]
    held_out = np.random.default_rng(1).normal(size=(500, 2)) @ [[2.0, 1.0], [0.0, 0.3]] + [100.0, -5.0]
    density = fit_kernel_density(x, held_out)
    np.testing.assert_allclose(density.log_prob(held_out[:20]), scipys(density, held_out[:20]), rtol=1e-9)
    best = density.log_prob(held_out).mean()
    for factor in (0.5, 2.0):
        assert density._replace(scale_tril=factor * density.scale_tril).log_prob(held_out).mean() < best - 0.02
    assert abs(density.scale_tril[1, 0]) > 0  # a full covariance fits correlated columns better
    assert len(fit_kernel_density(x, held_out, max_centers=7).loc) == 7


# --- as a base ------------------------------------------------------------------------------------------------------


def test_a_base_of_two_modes():
    """Density of the fit with its broad part, in any units; samples by KS; the same under XLA; saved and restored."""
    x = ebm.datasets.two_gaussians(2000, seed=0).astype("float64") * [100.0, 0.01] + [5.0, -7.0]
    base = fit_base(x, dtype=tf.float64, kind="gaussian_mixture", num_components=2, broad_share=0.1)
    narrow = fit_base(x, dtype=tf.float64, kind="gaussian_mixture", num_components=2)
    wide = scipy.stats.multivariate_normal(x.mean(0), 4 * np.cov(x.T, bias=True)).logpdf(x)
    expected = np.logaddexp(np.log(0.9) + narrow.log_prob(x), np.log(0.1) + wide)
    np.testing.assert_allclose(base.log_prob(x), expected, rtol=1e-8)
    seed = tf.constant([0, 1])
    samples = draw(base, tf.constant([4000]), seed)
    np.testing.assert_allclose(
        tf.function(lambda: draw(base, tf.constant([4000]), seed), jit_compile=True)(), samples, rtol=1e-9
    )
    tfps = base.sample(4000, seed=seed)  # TFP's own sampler
    assert scipy.stats.ks_2samp(samples[:, 0], tfps[:, 0]).pvalue > 1e-4
    assert (
        scipy.stats.ks_2samp(samples[:, 0], fit_base(x, dtype=tf.float64).sample(4000, seed=seed)[:, 0]).pvalue < 1e-9
    )
    restored = serialization.decode(serialization.encode(base))
    np.testing.assert_array_equal(restored.log_prob(x), base.log_prob(x))
    assert draw(base, tf.constant([2, 3]), seed).shape == (2, 3, 2)


def test_a_base_of_images_keeps_their_shape():
    x = rng().normal(size=(60, 2, 2, 1)).astype("float32")
    base = fit_base(x, kind="gaussian_mixture", num_components=2)
    assert isinstance(base, tfp.distributions.Distribution) and base.event_shape == (2, 2, 1)
    assert draw(base, tf.constant([5]), tf.constant([0, 0])).shape == (5, 2, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "mixture"}, ValueError, "`kind` must be one of 'gaussian', 'gaussian_mixture'"),
        ({"num_components": 2}, ValueError, "need kind="),
        ({"kind": "gaussian_mixture", "width": 2.0}, ValueError, "`width` must be 1"),
        ({"kind": "gaussian_mixture", "broad_share": 2.0}, ValueError, "`broad_share`"),
        ({"kind": "gaussian_mixture", "num_components": 0}, ValueError, "`num_components`"),
        ({"kind": "gaussian_mixture", "x_held_out": np.zeros((3, 4))}, ValueError, "`x_held_out`"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fit_base(rng().normal(size=(20, 2)), **arguments)
