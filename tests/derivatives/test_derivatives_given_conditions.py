"""The forward mode of derivatives for networks of (x, condition): one condition for each row, and a fixed one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.derivatives import NoForwardRule, laplacian

RNG = np.random.default_rng(0)
CONDITIONS = {
    "vector": ({"condition_shape": (3,)}, RNG.normal(size=(5, 3))),
    "label": ({"num_labels": 4}, np.arange(5) % 4),
    "image": ({"condition_shape": (3, 3, 2)}, RNG.normal(size=(5, 3, 3, 2))),
}
BUILDERS = {
    "mlp": lambda **options: ebm.networks.mlp([2], units=[4, 5], dtype="float64", **options),
    "fourier": lambda **options: ebm.networks.mlp([2], [4, 5], fourier_features=3, dtype="float64", **options),
    "convnet": lambda **options: ebm.networks.convnet([3, 3, 1], [3, 4], units=[5], dtype="float64", **options),
}


@pytest.mark.parametrize(
    ("build", "kind", "conditioning"),
    [
        ("mlp", "vector", "concatenation"),
        ("mlp", "label", "film"),
        ("fourier", "label", "concatenation"),
        ("convnet", "image", "concatenation"),
        ("convnet", "vector", "film"),
    ],
)
def test_forward_mode_equals_reverse_mode(build, kind, conditioning):
    """Laplacians within 1e-9; with the conditions of other rows they differ."""
    options, c = CONDITIONS[kind]
    model = ebm.EnergyModel(BUILDERS[build](conditioning=conditioning, **options))
    function = model.energy_function
    x = tf.constant(RNG.normal(size=(5, *model.event_shape)))
    given, other = (function.with_condition(function.condition_of_rows(rows, x)) for rows in (c, np.roll(c, 1, 0)))
    forward, reverse = (laplacian(given, x, method=method) for method in ("forward", "reverse"))
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-9)
    assert np.abs(laplacian(other, x, method="forward") - forward).max() > 1e-4
    one = model.given(c[2])
    forward, reverse = (laplacian(one, x, method=method) for method in ("forward", "reverse"))
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(forward[2], laplacian(given, x)[2], rtol=1e-9)


def test_conditions_repeat_where_a_loss_stacks_batches():
    """Rows [x; x'] have the conditions [c; c]."""
    options, c = CONDITIONS["vector"]
    model = ebm.EnergyModel(BUILDERS["mlp"](**options))
    x = tf.constant(RNG.normal(size=(5, 2)))
    given = model.energy_function.with_condition(tf.constant(c))
    twice = laplacian(given, tf.concat([x, x], 0), method="forward")
    np.testing.assert_allclose(twice, tf.tile(laplacian(given, x, method="reverse"), [2]), rtol=1e-9)


def test_a_condition_in_training_mode_is_seen():
    """Dropout on the branch of the condition has no rule in training mode, as on that of x."""
    x, c = keras.Input((2,), dtype="float64"), keras.Input((3,), dtype="float64")
    h = keras.layers.Concatenate(dtype="float64")([x, keras.layers.Dropout(0.5, dtype="float64")(c)])
    h = keras.layers.Dense(4, "silu", dtype="float64")(h)
    network = keras.Model([x, c], keras.layers.Dense(1, dtype="float64")(h))
    given = ebm.EnergyModel(network).energy_function.with_condition(tf.ones([5, 3], tf.float64))
    states = tf.ones([5, 2], tf.float64)
    assert laplacian(given, states, method="forward").shape == (5,)
    with pytest.raises(NoForwardRule, match="training mode"):
        laplacian(given.in_mode(True), states, method="forward")


def test_a_subclass_falls_back_to_reverse_mode():
    class Joined(keras.layers.Layer):
        def build(self, x_shape, c_shape):
            self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

        def call(self, x, c):
            return self.factor.value * tf.reduce_sum(x**3 * c, -1)

    model = ebm.EnergyModel(Joined(), event_shape=[2], condition_shape=[2])
    given = model.energy_function.with_condition(tf.ones([5, 2]))
    np.testing.assert_allclose(laplacian(given, tf.ones([5, 2])), np.full(5, 12.0), rtol=1e-5)
    with pytest.raises(NoForwardRule, match="condition"):
        laplacian(given, tf.ones([5, 2]), method="forward")
