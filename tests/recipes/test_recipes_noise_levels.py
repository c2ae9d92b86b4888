"""The recipe of noise levels: modes twelve deviations apart get their shares, and log Z is known; settings."""

import keras
import numpy as np
import pytest

import tfp_ebm as ebm


@pytest.mark.long
def test_shares_of_far_modes_and_log_z(tmp_path):
    """1000 small steps from a single Gaussian. The share of .3 is exact to .03, where denoising at all levels is blind;
    log Z on the grid is within .1 of 0. (5000 steps of the recipe: .001 and .01.)"""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 2)) * 0.5
    x[:, 0] += np.where(rng.uniform(size=len(x)) < 0.3, -3.0, 3.0)
    x = x.astype("float32")
    truth = np.mean(x[:, 0] < 0)
    model = ebm.recipes.noise_levels(x, 1000, sigma_min=0.05, units=[64, 64], num_components=1)
    model.fit(x, batch_size=200, epochs=10, verbose=0)
    sharp = model.given(0.05)
    assert float(sharp.log_normalizer) == 0.0
    log_z = ebm.evaluation.grid_log_normalizer(sharp, [-9, -9], [9, 9], num=400).value
    left = ebm.evaluation.grid_log_normalizer(sharp, [-9, -9], [0, 9], num=400).value
    assert abs(log_z) < 0.1 and abs(np.exp(left - log_z) - truth) < 0.03
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.given(0.05).energy(x[:50]), sharp.energy(x[:50]))


def test_settings():
    x = np.random.default_rng(0).normal(size=(100, 3))
    model = ebm.recipes.noise_levels(x, 10, sigma_max=5.0, units=[8], seed=3)
    assert model.loss.sigma_max == model.network.sigma_max == 5.0 and model.loss.average_targets
    assert model.optimizer.use_ema and float(model.optimizer.beta_2) == 0.99 and model.seed == (0, 3)
    for arguments, name in (({"num_steps": 0}, "`num_steps`"), ({"learning_rate": 0.0}, "`learning_rate`")):
        with pytest.raises(ValueError, match=name):
            ebm.recipes.noise_levels(x, **arguments)


@pytest.mark.slow
def test_images_have_one_scale_and_a_bounded_quadratic_energy():
    """All pixels get the same units, the range of the data is known to the network, and a step trains."""
    x = ebm.datasets.digits(images=True)[:200]
    model = ebm.recipes.noise_level_images(x, 4, units=[16], seed=3)
    scale, loc = (np.unique(part.numpy()) for part in (model.standardization.scale, model.standardization.loc))
    assert len(scale) == len(loc) == 1
    np.testing.assert_allclose(scale, np.sqrt(np.mean(x.var(0))), rtol=1e-4)
    np.testing.assert_allclose(model.network.bounds * scale + loc, [x.min(), x.max()], atol=1e-5)
    assert model.network.network.outputs[0].shape[1] == 65 and model.network.is_bounded
    before = model.given(0.05).energy(x[:5]).numpy()
    assert np.isfinite(model.fit(x, batch_size=100, epochs=2, verbose=0).history["loss"]).all()
    assert np.abs(model.given(0.05).energy(x[:5]).numpy() - before).max() > 1e-3
    assert float(model.given(0.05).log_normalizer) == 0.0
    with pytest.raises(ValueError, match="`x` must be images"):
        ebm.recipes.noise_level_images(x[..., 0])
    with pytest.raises(TypeError, match="`network` must be a `NoiseLevelEnergy`"):
        ebm.recipes.noise_level_images(x, network=ebm.networks.mlp([8, 8, 1]))
