"""Noise that is fitted to data: its densities against SciPy's, its draws against its densities, and the fits."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from laws import rng

import tfp_ebm as ebm
from tfp_ebm.energy.base import draw
from tfp_ebm.energy.gaussian_mixture import fit_mixture
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.losses.noise_models import FittedNoise, GaussianMixture

PROBS = np.array([0.2, 0.5, 0.3])


def mixture(d, shared, dtype=tf.float64):
    rng = np.random.default_rng([d, 1])
    scale = np.tril(rng.normal(size=(3, d, d))) * 0.3 + np.eye(d)
    scale[:, range(d), range(d)] = np.abs(scale[:, range(d), range(d)])
    scale = scale[0] if shared else scale
    return GaussianMixture(PROBS, 4 * rng.normal(size=(3, d)), scale, dtype)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("d", [1, 3])
def test_density_is_scipys(d, shared):
    p = mixture(d, shared)
    x = 3 * rng().normal(size=(2, 5, d))
    scale = np.broadcast_to(p.parameters["scale_tril"], (3, d, d))
    parts = [
        w * scipy.stats.multivariate_normal(m, s @ s.T).pdf(x)
        for w, m, s in zip(PROBS, p.parameters["loc"], scale, strict=True)
    ]
    np.testing.assert_allclose(p.log_prob(x), np.log(np.sum(parts, 0)).reshape(2, 5), rtol=1e-10)
    np.testing.assert_allclose(p.log_prob(x[0, 0]), np.log(np.sum(parts, 0)).reshape(2, 5)[0, 0], rtol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_draws_have_that_density(shared):
    """Its distribution function makes draws uniform (KS, false alarm 1e-4), and one with means 20 % off does not.

    That one is over .04 away; 20 000 draws are within .016 of the truth in all but one seed in 10 000, and p is below
    1e-9 from .024 on.
    """
    p = mixture(1, shared)
    x = p.sample(20_000, seed=tf.constant([0, 3])).numpy()[:, 0]
    scale = np.broadcast_to(p.parameters["scale_tril"], (3, 1, 1)).ravel()

    def cdf(y, stretch=1.0):
        parts = zip(PROBS, p.parameters["loc"].ravel(), scale, strict=True)
        return sum(w * scipy.stats.norm.cdf(y, stretch * m, s) for w, m, s in parts)

    assert scipy.stats.kstest(x, cdf).pvalue > 1e-4
    grid = np.linspace(-15, 15, 3001)
    assert np.abs(cdf(grid) - cdf(grid, 1.2)).max() > 0.04
    assert scipy.stats.kstest(x, lambda y: cdf(y, 1.2)).pvalue < 1e-9


def test_draws_of_several_coordinates_have_the_right_moments():
    """Mean and covariance of 40 000 draws within 4 standard errors, and the same under XLA."""
    p = mixture(3, False)
    x = p.sample(40_000, seed=tf.constant([0, 4])).numpy()
    loc, scale = p.parameters["loc"], p.parameters["scale_tril"]
    mean = PROBS @ loc
    second = np.einsum("k,kij->ij", PROBS, scale @ scale.transpose(0, 2, 1) + loc[:, :, None] * loc[:, None])
    assert np.all(np.abs(x.mean(0) - mean) < 4 * x.std(0) / 200)
    products = x[:, :, None] * x[:, None]
    assert np.all(np.abs(products.mean(0) - second) < 4 * products.std(0) / 200)


@pytest.mark.parametrize("shared", [True, False])
def test_graph_and_xla_agree(shared):
    """The same numbers, drawn and evaluated, to rounding."""
    p, seed = mixture(2, shared, tf.float32), tf.constant([0, 5])

    @tf.function(jit_compile=True)
    def compiled(seed):
        x = draw(p, tf.constant([50]), seed)
        return x, p.log_prob(x)

    x, log_prob = compiled(seed)
    np.testing.assert_allclose(x, p.sample(50, seed=seed), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_prob, p.log_prob(x), rtol=1e-5, atol=1e-5)


def test_mixture_noise_has_a_wide_tenth_in_any_units():
    """.9 of the fit in standardised units, .1 of the Gaussian fitted to all, with twice its standard deviations."""
    z = ebm.datasets.two_gaussians(1000, seed=0).astype("float64")
    x = z * [100.0, 0.01] + [5.0, -7.0]
    noise = FittedNoise.gaussian_mixture(x, 2).distribution(tf.float64)
    moments = DataMoments.of([x])
    fit = fit_mixture((x - moments.mean) / moments.scale, 2, ridge=1e-4)
    log_fit = fit.log_prob((x - moments.mean) / moments.scale) - np.log(moments.scale).sum()
    log_wide = scipy.stats.multivariate_normal(x.mean(0), 4 * np.cov(x.T, bias=True)).logpdf(x)
    expected = np.logaddexp(np.log(0.9) + log_fit, np.log(0.1) + log_wide)
    np.testing.assert_allclose(noise.log_prob(x), expected, rtol=1e-8)


def test_kernel_density_is_scipys():
    """Scott's rule, with all rows as centres; and h as given."""
    x = rng().normal(size=(200, 2)) @ [[2.0, 1.0], [0.0, 0.3]] + [100.0, -5.0]
    y = x[:20] + 0.1
    unbiased = (len(x) - 1) / len(x)  # SciPy's covariance is that of a sample
    twin = scipy.stats.gaussian_kde(x.T, lambda kde: kde.scotts_factor() * np.sqrt(unbiased))
    noise = FittedNoise.kernel_density(x, num_centers=1000)
    np.testing.assert_allclose(noise.distribution(tf.float64).log_prob(y), twin.logpdf(y.T), rtol=1e-9)
    np.testing.assert_allclose(
        noise.distribution(tf.float32).log_prob(y.astype("float32")), twin.logpdf(y.T), rtol=1e-4
    )
    half = scipy.stats.gaussian_kde(x.T, 0.5 * np.sqrt(unbiased))
    noise = FittedNoise.kernel_density(x, bandwidth=0.5).distribution(tf.float64)
    np.testing.assert_allclose(noise.log_prob(y), half.logpdf(y.T), rtol=1e-9)
    assert len(FittedNoise.kernel_density(x, num_centers=7).loc) == 7


def test_gaussian_is_that_of_fit_base_and_images_keep_their_shape():
    x = rng().normal(size=(100, 2, 2, 1)).astype("float32")
    base = ebm.fit_base(x)
    gaussian = FittedNoise.gaussian(DataMoments.of([x]), (2, 2, 1)).distribution(tf.float32)
    np.testing.assert_array_equal(gaussian.log_prob(x), base.log_prob(x))
    for noise in (FittedNoise.gaussian_mixture(x, 2), FittedNoise.kernel_density(x)):
        drawn = draw(noise.distribution(tf.float32), tf.constant([5]), tf.constant([0, 0]))
        assert drawn.shape == (5, 2, 2, 1)
        assert noise.distribution(tf.float32).log_prob(drawn).shape == (5,)
    with pytest.raises(ValueError, match="at most 512 coordinates, got 600"):
        FittedNoise.kernel_density(np.zeros([10, 600]))
