"""Networks of (x, condition) that many tests use."""

import keras
import tensorflow as tf


def functional(shape=(), dtype=None):
    """A functional model of [x, sigma]."""
    x, sigma = keras.Input((2,), dtype=dtype), keras.Input(shape, dtype=dtype)
    h = keras.layers.Concatenate(dtype=dtype)([x, keras.layers.Reshape((1,), dtype=dtype)(sigma)])
    h = keras.layers.Dense(8, "silu", dtype=dtype)(h)
    return keras.Model([x, sigma], keras.layers.Dense(1, dtype=dtype)(h))


@keras.saving.register_keras_serializable("tests")
class Conditioned(keras.Model):
    """A subclassed model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.out = keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)

    def call(self, x, sigma, training=False):
        return self.out(self.hidden(tf.concat([x, tf.math.log(sigma)[:, None]], -1))) * (2.0 if training else 1.0)


@keras.saving.register_keras_serializable("tests")
class Blurred(keras.layers.Layer):
    """A layer: the energy of N(0, aI) blurred, ½‖x‖²/(a + bσ²)."""

    def build(self, shape):
        self.factors = self.add_weight(shape=(2,), initializer="ones", name="factors")

    def call(self, x, sigma):
        return 0.5 * tf.reduce_sum(x**2, -1) / (self.factors[0] + self.factors[1] * sigma**2)


NETWORKS = {
    "functional": functional,
    "functional, column": lambda: functional((1,)),
    "subclassed": Conditioned,
    "layer": Blurred,
}
