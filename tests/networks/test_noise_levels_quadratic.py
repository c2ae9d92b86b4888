"""Energies over noise levels of many coordinates: quadratic residuals, their floor, bounded data, waves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.networks import noisy_mixture
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
    sums = noisy_mixture._sums
    monkeypatch.setattr(noisy_mixture, "_sums", lambda a, w, v: sums(a, w, None if v is None else 1.1 * v))
    assert np.abs(energies(network, y, 1.0) - exact(y, 1.0, v)).max() > 0.1


def components(mixture, sigma):
    """Weights, means and covariances Σₖ + tI of all coordinates, put together by NumPy."""
    leading, basis = mixture.num_leading, np.eye(SIZE) if mixture.basis is None else mixture.basis.numpy()
    for weight, loc, variances, axes in zip(
        *(value.numpy() for value in (mixture.log_weights, mixture.locs, mixture.variances, mixture.axes)), strict=True
    ):
        inner = np.diag(np.concatenate([np.zeros(leading), mixture.other_variances.numpy()]))
        inner[:leading, :leading] = axes @ np.diag(variances) @ axes.T
        mean = np.concatenate([loc, np.zeros(SIZE - leading)])
        covariance = basis @ inner @ basis.T + sigma**2 * np.eye(SIZE)
        yield weight, mixture.center.numpy() + basis @ mean, covariance


def exact_of_mixture(mixture, y, sigma, v):
    """−log Σₖ wₖ exp(−½ log det 2π(Σₖ + tI) − ½‖uₖ + g v‖² + ½d)."""
    flat, logs = y.reshape(-1, SIZE), []
    gate = (1 / (1 + sigma**2) - 1 / (1 + SIGMA_MAX**2)) / (1 - 1 / (1 + SIGMA_MAX**2))
    for weight, mean, covariance in components(mixture, sigma):
        values, axes = np.linalg.eigh(covariance)
        u = np.pad((flat - mean) @ (axes / np.sqrt(values)) @ axes.T, [(0, 0), (0, 1)], constant_values=np.sqrt(SIZE))
        square = np.sum((u + gate * v) ** 2, 1) - SIZE
        logs.append(weight - 0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + square))
    return -np.logaddexp.reduce(logs, axis=0)


@pytest.mark.parametrize("num_leading", [SIZE, 2])
def test_quadratic_residual_of_several_components(num_leading, monkeypatch):
    """All coordinates in the mixture, or the two first principal ones; the anchor, and its distribution, fit too."""
    monkeypatch.setattr(noisy_mixture, "_LEADING", num_leading)
    network, y = adapted(num_components=3), rows(50, seed=1)
    mixture = network.mixture
    assert (mixture.basis is None) == (num_leading == SIZE) and len(np.unique(mixture.locs.numpy(), axis=0)) == 3
    v = np.random.default_rng(2).normal(size=SIZE + 1)
    for sigma in (0.1, 1.0, 3.0):
        head_of(network).bias.assign(v)
        np.testing.assert_allclose(energies(network, y, sigma), exact_of_mixture(mixture, y, sigma, v), atol=2e-2)
        head_of(network).bias.assign(0 * v)
        np.testing.assert_allclose(energies(network, y, sigma), exact_of_mixture(mixture, y, sigma, 0 * v), atol=1e-3)
        reference = network.reference(sigma)
        np.testing.assert_allclose(-reference.log_prob(y), exact_of_mixture(mixture, y, sigma, 0 * v), atol=1e-9)
    _, means, covariances = zip(*components(mixture, SIGMA_MAX), strict=True)
    weights, means = np.exp(mixture.log_weights.numpy()), np.stack(means)
    draws = reference.sample(200_000, seed=[0, 1]).numpy().reshape(-1, SIZE)  # at σ = 3
    mean = weights @ means
    shift = (SIGMA_MAX**2 - 9.0) * np.eye(SIZE)
    parts = zip(weights, means, covariances, strict=True)
    covariance = sum(w * (c - shift + np.outer(m - mean, m - mean)) for w, m, c in parts)
    error = np.sqrt(np.diag(covariance) / len(draws))
    assert (np.abs(draws.mean(0) - mean) < 5 * error).all()
    spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / len(draws))
    assert (np.abs(np.cov(draws.T) - covariance) < 6 * spread).all()
    assert (np.abs(np.cov(draws.T) - covariance - np.eye(SIZE)) > 6 * spread).any()  # the test has the power


def test_few_rows_get_one_component_of_the_leading_coordinates(monkeypatch):
    """The other coordinates have the variances of the data along the last principal axes."""
    monkeypatch.setattr(noisy_mixture, "_LEADING", 2)
    network = ebm.networks.noise_level_mlp(SHAPE, units=[8], sigma_max=SIGMA_MAX, num_components=3, dtype="float64")
    few = rows(11)
    network.adapt_to(few)
    mixture, flat = network.mixture, few.reshape(-1, SIZE)
    assert len(np.unique(mixture.locs.numpy().round(9), axis=0)) == 1
    values = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1]
    np.testing.assert_allclose(mixture.other_variances.numpy(), values[2:], rtol=1e-9)
    np.testing.assert_allclose(mixture.center.numpy(), flat.mean(0), rtol=1e-9)
    network.adapt_to(rows())
    assert len(np.unique(mixture.locs.numpy().round(9), axis=0)) == 3


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
    y, sigma = keras.Input((2,)), keras.Input(())
    network = keras.Model([y, sigma], keras.layers.Dense(2)(keras.layers.Concatenate()([y, sigma[:, None]])))
    with pytest.raises(ValueError, match="`network` must return 1 or 3 numbers"):
        ebm.networks.NoiseLevelEnergy(network, 8.0)
    with pytest.raises(TypeError, match="`is_bounded`"):
        ebm.networks.noise_level_mlp([2], units=[8], is_bounded=1)
