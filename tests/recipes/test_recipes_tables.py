"""The recipe for tables: what it gives each loss, in closed form where there is one, and what it leaves alone."""

import numpy as np
import pytest

import tfp_ebm as ebm
from tfp_ebm import losses, recipes
from tfp_ebm.energy.moments import DataMoments

# the exact likelihood is for networks that know their log Z, which `fit_density` makes
ALIASES = (*sorted({*losses.aliases()} - {"negative_log_likelihood"}), "multiscale_denoising_score_matching")
LIKELIHOOD = ("contrastive_divergence", "persistent_contrastive_divergence")


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal([5.0, -1.0], [2.0, 0.1], size=(512, 2)).astype("float32")


def made(x, **arguments):
    """Whether there are Fourier features, and the learning rate at the start."""
    model = recipes.low_dimensional(x, num_steps=10, **arguments)
    features = any("fourier" in layer.name for layer in model.network.layers)
    return features, float(f"{float(model.optimizer.learning_rate):.6g}")  # of a float32


@pytest.mark.parametrize("name", ALIASES)
def test_network_and_learning_rate_suit_the_loss(x, name):
    """Fourier features where the loss is one of energies, none where it is one of scores, or of many coordinates."""
    features, rate = made(x, loss=name)
    of_energies = name in LIKELIHOOD or name == "noise_contrastive_estimation"
    assert features == of_energies
    assert rate == (1e-3 if name in LIKELIHOOD else 5e-3 if of_energies else 2e-3)
    wide = np.random.default_rng(0).normal(size=(512, 4)).astype("float32")
    assert made(wide, loss=name) == (False, rate)
    assert made(x, loss=name, fourier_features=0 if features else 8, learning_rate=0.5) == (not features, 0.5)
    memory = recipes.low_dimensional(x, name, 10).optimizer.beta_2
    assert memory == (0.99 if name in ("score_matching", "sliced_score_matching") else 0.999)


def test_the_learning_rate_falls_to_zero_along_a_cosine(x):
    optimizer = recipes.low_dimensional(x, "score_matching", num_steps=1000).optimizer

    def rate(step):
        optimizer.iterations.assign(step)
        return float(optimizer.learning_rate)

    rates = np.array([rate(step) for step in (0, 250, 500, 1000, 2000)])
    expected = rate(0) * 0.5 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 1, 1])))
    np.testing.assert_allclose(rates, expected, atol=1e-9)


def test_the_energy_is_tilted_by_the_fitted_gaussian(x):
    """E(x) = network(z) − log base(x); without the tilt it would be another by 10 nats and more."""
    model = recipes.low_dimensional(x, "score_matching", num_steps=10)
    z = (x - x.mean(0)) / x.std(0)
    tilt = -ebm.fit_base(x).log_prob(x).numpy()
    network = model.network(z).numpy()[:, 0]
    np.testing.assert_allclose(model.energy(x), network + tilt, atol=1e-4)
    far = x + 10 * x.std(0)
    assert np.abs(model.energy(far) - model.network(z + 10).numpy()[:, 0]).min() > 10


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((5000, 1), losses.NoiseContrastiveEstimation),
        ((5000, 3), losses.NoiseContrastiveEstimation),
        ((4999, 3), losses.DenoisingScoreMatching),
        ((5000, 4), losses.DenoisingScoreMatching),
    ],
)
def test_the_default_is_noise_contrastive_for_many_rows_of_few_coordinates(shape, kind):
    rows = np.random.default_rng(0).normal(size=shape)
    loss = recipes.low_dimensional(rows, num_steps=10).loss
    assert type(loss) is kind
    assert getattr(loss, "sigma", None) in (None, recipes.noise_scale(rows))


def test_noise_is_a_mixture_and_the_base_is_wide(x):
    """The recipe's own noise contrastive loss trains as it is: noise fitted to the data, a base of twice its width."""
    loss = recipes.loss_for(x, "noise_contrastive_estimation")
    assert (loss.noise, loss.noise_ratio) == ("gaussian_mixture", 4.0)
    model = recipes.low_dimensional(x, loss, num_steps=10)
    moments = DataMoments.of([x])
    np.testing.assert_allclose(model.base.mean(), moments.mean, rtol=1e-5)
    covariance = moments.comoment / len(x)
    np.testing.assert_allclose(model.base.covariance(), 2**2 * covariance, rtol=1e-4, atol=1e-7)
    narrow = recipes.low_dimensional(x, "persistent_contrastive_divergence", num_steps=10)
    assert narrow.loss.jit_compile
    np.testing.assert_allclose(narrow.base.covariance(), covariance, rtol=1e-4, atol=1e-7)
    waves = [made.network.get_layer("fourier_features") for made in (model, narrow)]
    assert [layer.stddev for layer in waves] == [2.0, 1.5]
    np.testing.assert_allclose(waves[0].kernel.numpy() / waves[1].kernel.numpy(), 2 / 1.5, rtol=1e-6)
    metrics = model.train_on_batch(x, return_dict=True)
    assert 0.5 < metrics["overlap"] < 1.2 and model.log_normalizer is not None


def test_few_rows_bear_a_mixture_of_few_gaussians():
    rows = np.random.default_rng(0).normal(size=(5, 2))
    assert recipes.loss_for(rows, "noise_contrastive_estimation").num_components == 5


def test_scales_are_fitted_to_the_data(x):
    """σ₀²·(mean of σᵢ⁻²) = 1, so that P⁻¹ = σ₀²(I + κΣ) is Σ + σ₀²I: a Gaussian blurred by one σ₀. With the mean of
    the σᵢ as σ₀ its covariance would come out 1.9 times as large."""
    loss = recipes.loss_for(x, "multiscale_denoising_score_matching")
    sigmas = np.array(loss.sigmas)
    assert sigmas.min() == pytest.approx(recipes.noise_scale(x), rel=1e-12)
    kappa = np.mean(sigmas**-2)
    covariance = np.diag([1.0, 0.3])
    learned = loss.sigma0**2 * (np.eye(2) + kappa * covariance)
    np.testing.assert_allclose(learned, covariance + loss.sigma0**2 * np.eye(2), rtol=1e-12)
    assert np.mean(sigmas) ** 2 * kappa > 1.8
    assert recipes.loss_for(x, "denoising_score_matching").sigma == recipes.noise_scale(x)


def test_a_loss_that_is_given_is_left_alone(x):
    given = losses.NoiseContrastiveEstimation(ebm.fit_base(x), 2.0)
    assert recipes.loss_for(x, given) is given and recipes.low_dimensional(x, given, 10).loss is given
    assert given.noise_ratio == 2.0
    given = losses.DenoisingScoreMatching(0.7)
    assert recipes.low_dimensional(x, given, 10).loss.sigma == 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIASES)
def test_every_loss_trains(x, name):
    model = recipes.low_dimensional(x, name, num_steps=2, units=[8], steps_per_execution=1)
    before = [weight.numpy() for weight in model.network.trainable_weights]
    history = model.fit(x, batch_size=256, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = [np.abs(a.numpy() - b).max() for a, b in zip(model.network.trainable_weights, before, strict=True)]
    assert 0 < max(moved) < 0.05  # two steps of Adam, of 5e-3 at most


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"loss": "hinge"}, ValueError, "`loss` must be one of .*multiscale_denoising_score_matching"),
        ({"loss": 3}, TypeError, "`loss` must be"),
        ({"loss": "maximum_likelihood"}, ValueError, "needs kernel, num_steps, chains"),
        ({"loss": "noise_conditional_denoising_score_matching"}, ValueError, "needs sigmas"),
        ({"num_steps": 0}, ValueError, "`num_steps`"),
        ({"learning_rate": -1.0}, ValueError, "`learning_rate`"),
        ({"fourier_features": -1}, ValueError, "`fourier_features`"),
        ({"steps_per_execution": 0}, ValueError, "`steps_per_execution`"),
    ],
)
def test_bad_arguments(x, arguments, error, words):
    with pytest.raises(error, match=words):
        recipes.low_dimensional(x, **arguments)


@pytest.mark.parametrize("bad", [[[np.nan, 1.0]] * 20, [], [["a", "b"]] * 20])
def test_bad_data(bad):
    for function in (recipes.low_dimensional, recipes.loss_for):
        with pytest.raises((TypeError, ValueError), match="`x`"):
            function(np.array(bad))
