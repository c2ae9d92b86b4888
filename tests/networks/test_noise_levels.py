"""Networks of (y, σ) that are Gaussian at the largest level: values, floor, growth, precision, files, known log Z."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.networks import noise_levels

SIGMA_MAX = 8.0


def data(rows=4000, seed=0):
    """Two correlated coordinates of unequal spread, away from the origin."""
    z = np.random.default_rng(seed).normal(size=(rows, 2))
    return z @ np.array([[2.0, 1.0], [0.0, 0.5]]) + [3.0, -1.0]


def adapted(dtype="float64", **kwargs):
    network = ebm.networks.noise_level_mlp(
        [2], units=[16, 16], sigma_max=SIGMA_MAX, dtype=dtype, **({"num_components": 1} | kwargs)
    )
    model = ebm.EnergyModel(network)
    model.adapt(data())
    return model


def perturb(network, scale, seed=0):
    """Gives all trained weights random values, so that the residual is whatever it likes."""
    rng = np.random.default_rng(seed)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * scale)


def gaussian_energy(x, sigma):
    """−log N(x; m, Σ + σ²D), D the variances of the coordinates (σ is in standard deviations)."""
    mean, covariance = data().mean(0), np.cov(data().T, bias=True)
    blurred = covariance + sigma**2 * np.diag(np.diag(covariance))
    centred = x - mean
    square = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(blurred), centred)
    return 0.5 * (square + np.linalg.slogdet(2 * np.pi * blurred)[1])


@pytest.mark.slow
def test_initial_energy_is_the_gaussian_and_the_last_level_stays_it():
    """At every level before training; at σ_max whatever the weights are, and beyond, within exp(−c)."""
    model = adapted()
    x = data(200, seed=1)
    for sigma in (0.01, 0.3, 2.0, SIGMA_MAX):
        np.testing.assert_allclose(model.energy(x, sigma), gaussian_energy(x, sigma), atol=1e-3)
    perturb(model.network, 1.0)
    assert np.abs(model.energy(x, 1.0) - gaussian_energy(x, 1.0)).max() > 0.1
    for sigma in (SIGMA_MAX, 2 * SIGMA_MAX):
        np.testing.assert_allclose(model.energy(x, sigma), gaussian_energy(x, sigma), atol=1e-3)
    wide = 12 * SIGMA_MAX
    log_z = ebm.evaluation.grid_log_normalizer(model.given(SIGMA_MAX), [-wide, -wide], [wide, wide], num=160)
    assert abs(log_z.value) < noise_levels.NoiseLevelEnergy.ANCHOR_ERROR


@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0])
def test_growth_far_from_the_data_whatever_the_network_returns(sigma, monkeypatch):
    """Far out, E ≥ α of the Gaussian's square plus its constant, for residuals of ±10⁷; without the floor it fails."""
    model = adapted()
    directions = np.random.default_rng(2).normal(size=(50, 2))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    far = data().mean(0) + 100.0 * directions

    def margin():
        mean_energy = gaussian_energy(data().mean(0)[None], sigma)
        square = gaussian_energy(far, sigma) - mean_energy
        return (np.asarray(model.energy(far, sigma)) - mean_energy - 0.8 * square).min()

    for seed in range(3):
        perturb(model.network, 10.0, seed)
        head = model.network.network.layers[-1]
        head.bias.assign([-1e7])
        assert margin() > -1e-3
        head.bias.assign([1e7])
        assert margin() > -1e-3
    head.bias.assign([-1e7])
    weights, model = model.network.get_weights(), adapted()  # whose functions are not traced yet
    model.network.set_weights(weights)
    monkeypatch.setattr(tf.nn, "softplus", tf.identity)
    assert margin() < -100


def test_floor_never_forbids_a_density_of_noisy_data():
    """Every p_t lies below (2πt)^(−d/2), and the floor is exp(−c) below that, where the data are: a point mass fits."""
    model = adapted()
    network = model.network
    z = tf.constant(model.standardization.to_z(data(500, seed=3)))
    head = network.network.layers[-1]
    for sigma in (0.01, 0.1, 1.0):
        head.bias.assign([-1e6])
        floor = network(z, tf.fill([500], tf.constant(sigma, tf.float64))).numpy()
        assert (floor < np.log(2 * np.pi * sigma**2) - 4.0).all()


def test_mixture_of_several_components():
    """Before training the energy is that of the mixture plus noise: log Z = 0 at every level on a grid, the same as
    `reference` as a distribution, growth in the gap, files, and fewer components for few rows."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(3000, 2)) * 0.2 + np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]])[rng.integers(3, size=3000)]
    network = ebm.networks.noise_level_mlp([2], units=[8], num_components=6, sigma_max=SIGMA_MAX, dtype="float64")
    model = ebm.EnergyModel(network)
    model.adapt(x)
    z = tf.constant(model.standardization.to_z(rng.normal(size=(100, 2)) * 2))
    for sigma in (0.05, 0.5, SIGMA_MAX):
        exact = network.reference(sigma).log_prob(z)
        np.testing.assert_allclose(
            network.unnormalized_log_prob(z, tf.fill([100], tf.constant(sigma, z.dtype))), exact, atol=0.02
        )
    log_z = ebm.evaluation.grid_log_normalizer(model.given(0.05), [-6, -6], [6, 6], num=300)
    assert abs(log_z.value) < 1e-3
    assert float(tf.reduce_mean(network(z * 0 + 0.1, tf.fill([100], tf.constant(0.02, z.dtype))))) > 5  # in the gap
    few = ebm.networks.noise_level_mlp([2], units=[8], num_components=6, sigma_max=SIGMA_MAX)
    small = ebm.EnergyModel(few)
    small.adapt(x[:40])
    assert len(np.unique(few.mixture.locs.numpy().round(4), axis=0)) == 1


@pytest.mark.slow
def test_precision_xla_images_and_unknown_statistics():
    """float32 follows float64; XLA the graph; half precision trains; images and more than 512 coordinates work."""
    exact, single = adapted("float64"), adapted("float32")
    perturb(exact.network, 0.5)
    perturb(single.network, 0.5)
    x, sigma = data(64, seed=4), np.geomspace(0.02, SIGMA_MAX, 64)
    np.testing.assert_allclose(single.energy(x, sigma), exact.energy(x, sigma), rtol=1e-4, atol=1e-3)
    compiled = tf.function(lambda x, s: single.energy(x, s), jit_compile=True)
    x32, s32 = tf.constant(x, tf.float32), tf.constant(sigma, tf.float32)
    np.testing.assert_allclose(compiled(x32, s32), single.energy(x32, s32), rtol=1e-4, atol=1e-4)
    half = adapted("mixed_bfloat16")
    assert half.dtype == "float32" and half.energy(x, sigma).dtype == tf.float32
    half.compile("adam", ebm.losses.DualScoreMatching(0.1, SIGMA_MAX), jit_compile=False)
    assert np.isfinite(half.train_on_batch(x.astype("float32"))).all()
    images = np.random.default_rng(0).normal(size=(40, 24, 24, 1)).astype("float32")
    network = ebm.networks.noise_level_convnet([24, 24, 1], filters=[4, 8], units=[8], sigma_max=SIGMA_MAX)
    model = ebm.EnergyModel(network)
    model.adapt(images)  # 576 coordinates: a diagonal covariance
    square = 0.5 * np.sum(np.square((images - images.mean(0)) / images.std(0)), (1, 2, 3)) / 5.0
    expected = square + 0.5 * 576 * np.log(2 * np.pi * 5.0) + np.sum(np.log(images.std(0)))
    np.testing.assert_allclose(model.energy(images, 2.0), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="`x` must be data that can be read twice"):
        ebm.EnergyModel(network).adapt(iter([images[:20], images[20:]]))


@pytest.mark.slow
def test_log_z_is_known_once_its_constants_are_learned(tmp_path):
    """Not before training, not after denoising alone; then log_prob = −E, also after saving; no base may tilt it."""
    model = adapted("float32")
    x = data(64, seed=5).astype("float32")
    assert model.given(0.1).log_normalizer is None
    z = tf.constant(model.standardization.to_z(x))
    for level_weight, training, is_known in ((0.0, True, False), (1.0, False, False), (1.0, True, True)):
        loss = ebm.losses.DualScoreMatching(0.1, SIGMA_MAX, level_weight=level_weight)
        loss(model.energy_function, z, seed=0, training=training)
        assert (model.given(0.1).log_normalizer is not None) == is_known
    sharp = model.given(0.1)
    assert float(sharp.log_normalizer) == 0.0 and model.log_normalizer is None
    assert model.given(2 * SIGMA_MAX).log_normalizer is None  # never trained there
    p = ebm.EnergyDistribution(sharp)
    np.testing.assert_array_equal(p.log_prob(x), -sharp.energy(x))
    model.save(tmp_path / "all.keras")
    sharp.save(tmp_path / "one.keras")
    again = keras.saving.load_model(tmp_path / "all.keras")
    np.testing.assert_array_equal(again.energy(x, 0.3), model.energy(x, 0.3))
    one = keras.saving.load_model(tmp_path / "one.keras")
    np.testing.assert_array_equal(one.energy(x), sharp.energy(x))
    assert float(again.given(0.1).log_normalizer) == float(one.log_normalizer) == 0.0


def test_refusals():
    for arguments, name in (
        ({"event_shape": 2}, "`event_shape`"),
        ({"event_shape": [2], "units": [0]}, r"`units\[0\]`"),
        ({"event_shape": [2], "sigma_max": 0.0}, "`sigma_max`"),
        ({"event_shape": [2], "fourier_features": -1}, "`fourier_features`"),
        ({"event_shape": [2], "activation": "none"}, "`activation`"),
    ):
        with pytest.raises((TypeError, ValueError), match=name):
            ebm.networks.noise_level_mlp(**arguments)
    with pytest.raises(ValueError, match="`event_shape` must be"):
        ebm.networks.noise_level_convnet([4, 4])
    with pytest.raises(ValueError, match="`filters`"):
        ebm.networks.noise_level_convnet([4, 4, 1], filters=[])
