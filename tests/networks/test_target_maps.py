"""Maps of bounded targets: their inverse, their slope by differences, their support, and files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfp_ebm.networks.target_maps import KINDS, TargetMap
from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy


def made():
    return TargetMap(KINDS, [0.3, -0.2, 0.1, 0.4], [1.5, 0.7, 2.0, 0.9], dtype="float64")


def rows(number=50):
    """Targets inside: on the line, from 0 to 1, positive, negative."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(number, 4))
    return np.stack([z[:, 0], 1 / (1 + np.exp(-z[:, 1])), np.exp(z[:, 2]), -np.exp(z[:, 3])], 1)


def test_forward_and_inverse_and_slope():
    layer, y = made(), rows()
    v, log_slope = layer.forward(tf.constant(y))
    np.testing.assert_allclose(layer.inverse(v), y, rtol=1e-10)
    step = 1e-6
    slopes = [
        (layer.forward(tf.constant(y + step * unit))[0] - layer.forward(tf.constant(y - step * unit))[0])[:, i]
        / (2 * step)
        for i, unit in enumerate(np.eye(4))
    ]
    np.testing.assert_allclose(log_slope, np.log(slopes).sum(0), rtol=1e-6)


def test_there_is_nothing_outside_and_draws_stay_inside():
    layer = made()
    inside = np.array([0.0, 0.5, 1.0, -1.0])
    for place, value in ((1, -0.01), (1, 1.01), (2, -0.01), (3, 0.01)):
        y = inside.copy()
        y[place] = value
        assert layer.forward(tf.constant(y[None]))[1][0] == -np.inf
    far = layer.inverse(tf.constant(np.outer([-1e3, 1e3], np.ones(4)))).numpy()
    assert (0 < far[:, 1]).all() and (far[:, 1] < 1).all() and (far[:, 2] > 0).all() and (far[:, 3] < 0).all()
    for edge in (0.0, 1.0):  # rows on a bound have a finite density
        assert np.isfinite(TargetMap(["interval"]).forward(tf.constant([[edge]]))[1]).all()


def test_a_density_between_bounds_is_normalised_and_its_file_is_the_same(tmp_path):
    """∫ p(y | x) dy over (0, 1) by the midpoint rule; without the slope it would not be 1."""
    network = TargetEnergy(1, 1, units=(8, 8), num_components=2, seed=0)
    for weight in network.trainable_variables:
        weight.assign(weight + 0.1 * np.random.default_rng(1).normal(size=weight.shape))
    energy = RegressionEnergy([network], target_map=TargetMap(["interval"], [0.2], [1.3]))
    y = ((np.arange(4000) + 0.5) / 4000)[:, None].astype("float32")
    x = np.full_like(y, 0.7)
    density = np.exp(-np.float64(energy(tf.constant(y), tf.constant(x))))
    assert density.mean() == pytest.approx(1.0, abs=1e-3)
    v, log_slope = energy.target_map.forward(tf.constant(y))
    assert abs(np.mean(density * np.exp(-log_slope.numpy())) - 1.0) > 0.1
    drawn = energy.draw_given(tf.constant(x), tf.constant([0, 1])).numpy()
    assert drawn.mean() == pytest.approx((density * y[:, 0]).mean(), abs=4 * float(drawn.std()) / 4000**0.5)
    energy.save(tmp_path / "bounded.keras")
    loaded = keras.saving.load_model(tmp_path / "bounded.keras")
    np.testing.assert_array_equal(loaded(tf.constant(y), tf.constant(x)), energy(tf.constant(y), tf.constant(x)))
    places, masses = energy.first_target(tf.constant(x[:1]))
    assert 0 < places.numpy().min() and places.numpy().max() < 1
    assert float(tf.reduce_sum(masses * places)) == pytest.approx((density * y[:, 0]).mean(), abs=2e-3)
    assert v.shape == y.shape


def test_a_kind_must_be_known():
    with pytest.raises(ValueError, match="`kinds`"):
        TargetMap(["circle"])
