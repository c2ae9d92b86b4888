"""Energies over noise levels of many coordinates: quadratic residuals, their floor, bounded data, waves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.networks import noise_levels
from tfp_ebm.networks.noise_level_features import NoiseLevelImages, coordinate_waves

SHAPE, SIZE, SIGMA_MAX = [2, 3, 1], 6, 8.0


def rows(number=2000, seed=0):
    """Six correlated coordinates in [−1.5, 2]."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(number, SIZE)) @ rng.normal(size=(SIZE, SIZE)) * 0.3 + 0.4
    return np.clip(z, -1.5, 2.0).reshape([-1, *SHAPE])


def adapted(**kwargs):
    settings = {"sigma_max": SIGMA_MAX, "num_components": 1, "dtype": "float64", "is_quadratic": True} | kwargs
    network = ebm.networks.noise_level_mlp(SHAPE, units=[8], **settings)
    network.adapt_to(rows())
    return network


def exact(y, sigma, v):
    """½ log det 2π(Σ + tI) + ½‖u + g v‖² − ½d, with eigenvalues by NumPy."""
    flat, data = y.reshape(-1, SIZE), rows().reshape(-1, SIZE)
    covariance = np.cov(data.T, bias=True) + sigma**2 * np.eye(SIZE)
    values, axes = np.linalg.eigh(covariance)
    u = (flat - data.mean(0)) @ (axes / np.sqrt(values)) @ axes.T
    u = np.concatenate([u, np.full([len(u), 1], np.sqrt(SIZE))], 1)
    gate = (1 / (1 + sigma**2) - 1 / (1 + SIGMA_MAX**2)) / (1 - 1 / (1 + SIGMA_MAX**2))
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return 0.5 * (log_det + np.sum((u + gate * v) ** 2, 1) - SIZE)


def energies(network, y, sigma):
    return network(tf.constant(y), tf.fill([len(y)], tf.constant(sigma, tf.float64))).numpy()


def head_of(network):
    return network.network.layers[-1]


def test_quadratic_residual_in_closed_form(monkeypatch):
    """For any outputs v, at levels where the floor is far below; with u·v alone, without the square, it fails."""
    network, y = adapted(), rows(50, seed=1)
    v = np.random.default_rng(2).normal(size=SIZE + 1)
    for sigma in (0.1, 1.0, 3.0):
        head_of(network).bias.assign(np.zeros(SIZE + 1))
        np.testing.assert_allclose(energies(network, y, sigma), exact(y, sigma, 0 * v), atol=1e-3)
        head_of(network).bias.assign(v)
        np.testing.assert_allclose(energies(network, y, sigma), exact(y, sigma, v), atol=2e-2)
    np.testing.assert_allclose(energies(network, y, SIGMA_MAX), exact(y, SIGMA_MAX, 0 * v), atol=1e-3)
    whitened = noise_levels.NoiseLevelEnergy.whitened
    monkeypatch.setattr(noise_levels.NoiseLevelEnergy, "whitened", lambda *args: 1.1 * whitened(*args))
    assert np.abs(energies(network, y, 1.0) - exact(y, 1.0, v)).max() > 0.1


def test_no_hole_deeper_than_half_a_nat_for_each_coordinate():
    """Whatever the weights are, E ≥ ½ log det 2π(Σ + tI) − ½d; the energy of one output falls far below that."""
    y, rng = rows(500, seed=3), np.random.default_rng(4)
    for is_quadratic in (True, False):
        network = adapted(is_quadratic=is_quadratic)
        for variable in network.trainable_variables:
            variable.assign(rng.normal(size=variable.shape) * 3)
        gap = float(energies(network, y, 0.1).min() - exact_floor(0.1))
        assert gap > -1e-3 if is_quadratic else gap < -3


def exact_floor(sigma):
    """½ log det 2π(Σ + tI) − ½d."""
    covariance = np.cov(rows().reshape(-1, SIZE).T, bias=True) + sigma**2 * np.eye(SIZE)
    return 0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] - SIZE)


def test_bounded_data():
    """With residuals of −10⁷, E outside of the range is at least its value on the rim plus ‖y − rim‖²/2t; without
    `is_bounded` it is flat there. The range is that of the rows of `adapt_to`, and is saved."""
    sigma = 0.1
    widest = np.argmax(rows().reshape(-1, SIZE).std(0))
    inside = np.mean(rows().reshape(-1, SIZE), 0)[None]
    outside = inside + (2.2 - inside[0, widest]) * np.eye(SIZE)[widest]
    for is_bounded in (True, False):
        network = adapted(is_quadratic=False, is_bounded=is_bounded)
        head_of(network).bias.assign([-1e7])
        ends = [energies(network, y.reshape(1, *SHAPE), sigma)[0] for y in (outside, inside)]
        expected = 0.2**2 / (2 * sigma**2) if is_bounded else 0.0
        rise = ends[0] - ends[1]
        assert abs(rise - expected) < 0.05 * max(expected, 1.0)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
        assert again.is_bounded == is_bounded
    bounds = adapted(is_bounded=True).bounds.numpy()
    np.testing.assert_allclose(bounds, [-1.5, 2.0])


def test_waves_are_those_of_noisy_data():
    """The mean of cos(b(x + σz)) over z is the wave at noise scale σ: 200 000 draws, 5 standard errors."""
    x, sigma = tf.constant([[0.3, -1.1]], tf.float64), 0.7
    z = np.random.default_rng(0).normal(size=(200_000, 2))
    at_zero = coordinate_waves(x + sigma * z, tf.zeros([1, 1], tf.float64), 2)
    noisy = coordinate_waves(x, tf.fill([1, 1], tf.constant(sigma**2, tf.float64)), 2)
    for draws, wave in zip(at_zero, noisy, strict=True):
        error = np.std(draws, 0) / np.sqrt(len(z))
        assert (np.abs(np.mean(draws, 0) - wave.numpy()[0]) < 5 * error).all()
    layer = NoiseLevelImages(3)
    output = layer(tf.ones([4, 5, 6, 2]), tf.ones([4]))
    assert output.shape == (4, 5, 6, 2 * 7 + 7) == layer.compute_output_shape((4, 5, 6, 2))
    assert NoiseLevelImages.from_config(layer.get_config()).num_waves == 3


def test_refusals_of_quadratic_networks():
    with pytest.raises(ValueError, match="`num_components` must be 1 for a network of 7 outputs"):
        ebm.networks.noise_level_mlp(SHAPE, units=[8], is_quadratic=True)
    y, sigma = keras.Input((2,)), keras.Input(())
    network = keras.Model([y, sigma], keras.layers.Dense(2)(keras.layers.Concatenate()([y, sigma[:, None]])))
    with pytest.raises(ValueError, match="`network` must return 1 or 3 numbers"):
        ebm.networks.NoiseLevelEnergy(network, 8.0)
    with pytest.raises(TypeError, match="`is_bounded`"):
        ebm.networks.noise_level_mlp([2], units=[8], is_bounded=1)
