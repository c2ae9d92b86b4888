"""The export of a model at one noise level: log p, draws down the levels and log Z, with TensorFlow alone."""

import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.networks.noise_levels import has_log_normalizer_zero


@pytest.mark.long
def test_a_model_at_one_level_exports_log_prob_and_draws(tmp_path, capsys):
    """Two modes twelve deviations apart, known to the mixture at which the network starts: log p is −E, the share of
    draws is within 5 standard errors of .3, log Ẑ within .1 of 0. Before training, log Z is not known."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2)) * 0.5 + 1.0
    x[:, 0] += np.where(rng.uniform(size=len(x)) < 0.3, -3.0, 3.0)
    model = ebm.EnergyModel(ebm.networks.noise_level_mlp([2], units=[8], sigma_max=5.0, num_components=2))
    model.adapt(x.astype("float32"))
    assert not has_log_normalizer_zero(model.given(0.1))
    model.network.mark_levels_as_matched()
    sharp = model.given(0.1)
    sharp.export(tmp_path / "saved")
    assert "log_prob, draw" in capsys.readouterr().out
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    rows = tf.constant(x[:20], tf.float32)
    np.testing.assert_allclose(loaded.log_prob(rows), -sharp.energy(rows), rtol=1e-5, atol=1e-5)
    drawn = loaded.draw(tf.constant(1500), tf.constant([0, 1]))
    states = drawn["states"].numpy()
    np.testing.assert_array_equal(states, loaded.draw(tf.constant(1500), tf.constant([0, 1]))["states"])
    assert states.shape == (1500, 2)
    assert abs(np.mean(states[:, 0] < 1.0) - 0.3) < 5 * np.sqrt(0.21 / 700)
    assert np.abs(states[states[:, 0] < 1.0].mean(0) - [-2.0, 1.0]).max() < 0.15
    assert abs(float(drawn["log_normalizer"])) < 0.1 and float(drawn["standard_error"]) < 0.05
    assert int(drawn["trouble"]) == 0


@pytest.mark.long
def test_exported_draws_are_in_the_units_of_the_data(tmp_path):
    """The noise has units of its own here. Before training the model is a Gaussian in these: quantiles of its exported
    draws are those of `draw`; without the way back from these units they are not."""
    rng = np.random.default_rng(1)
    x = np.stack([rng.standard_t(1.5, 4000) * 3.0 + 5.0, rng.normal(size=4000)], 1).astype("float32")
    model = ebm.EnergyModel(
        ebm.networks.noise_level_mlp([2], units=[8], sigma_max=5.0, num_components=1, adapts_units=True)
    )
    model.adapt(x)
    model.network.mark_levels_as_matched()
    sharp = model.given(0.1)
    sharp.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    rows = tf.constant(x[:20])
    np.testing.assert_allclose(loaded.log_prob(rows), -sharp.energy(rows), rtol=1e-5, atol=1e-5)
    exported = loaded.draw(tf.constant(2000), tf.constant([0, 1]))["states"].numpy()[:, 0]
    drawn = ebm.EnergyDistribution(sharp).draw(2000, seed=1).states.numpy()[:, 0]
    levels = np.linspace(0.1, 0.9, 9)
    rank = np.searchsorted(np.sort(exported), np.quantile(drawn, levels)) / 2000  # both samples have errors
    error = np.sqrt(2 * levels * (1 - levels) / 2000)
    assert (np.abs(rank - levels) < 5 * error).all(), rank
    in_units_of_noise = model.network.noise_units.to_y(model.standardization.to_z(np.stack([exported] * 2, 1))).numpy()
    wrong = np.searchsorted(np.sort(in_units_of_noise[:, 0]), np.quantile(drawn, levels)) / 2000
    assert (np.abs(wrong - levels) > 5 * error).any()
