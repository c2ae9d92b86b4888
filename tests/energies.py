"""Networks of x that many tests use."""

import keras
import numpy as np
import tensorflow as tf

CLASS_MEANS, CLASS_PROBS = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]]), np.array([0.5, 0.3, 0.2])


@keras.saving.register_keras_serializable("tests")
class Quadratic(keras.layers.Layer):
    """½(z − μ)ᵀA(z − μ) with A = LLᵀ, as a layer that is not a model; `[batch]`."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1], shape[-1]), initializer="identity", name="factor")
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", name="mean")

    def call(self, z):
        return 0.5 * tf.reduce_sum(tf.square(tf.matmul(z - self.mean.value, self.factor.value)), -1)

    def precision(self):
        factor = self.factor.numpy()
        return factor @ factor.T


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.out = keras.layers.Dense(8, "tanh"), keras.layers.Dense(1, use_bias=False)

    def call(self, x):
        return self.out(self.hidden(x))


@keras.saving.register_keras_serializable("tests")
class GaussianClasses(keras.layers.Layer):
    """Logits log πᵧ + log N(x; μᵧ, I), up to a constant, so that p(x) is the mixture; float64."""

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float64", **kwargs})

    def build(self, shape):
        self.means = self.add_weight(shape=(3, 2), initializer=lambda *_, **__: tf.constant(CLASS_MEANS), name="means")
        log_probs = tf.constant(np.log(CLASS_PROBS))
        self.log_probs = self.add_weight(shape=(3,), initializer=lambda *_, **__: log_probs, name="log_probs")

    def call(self, x):
        return self.log_probs - 0.5 * tf.reduce_sum((x[:, None] - self.means) ** 2, -1)


def functional(dtype="float32"):
    x = keras.Input((3,), dtype=dtype)
    h = keras.layers.Dense(8, "silu", dtype=dtype)(x)
    return keras.Model(x, keras.layers.Dense(1, use_bias=False, dtype=dtype)(h), dtype=dtype)


NETWORKS = {
    "functional": functional,
    "sequential": lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]),
    "sequential without input": lambda: keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]),
    "subclassed": Subclassed,
    "layer": Quadratic,
    "flat output": lambda: keras.Sequential(
        [keras.layers.Dense(1), keras.layers.Reshape(()), keras.layers.Activation("softplus")]
    ),
}
