"""Central differences of the gradient: the one judge of second derivatives that shares no code with them."""

import tensorflow as tf

STEP = 1e-5  # truncation STEP² and rounding 1e-16/STEP, both 1e-10 of a derivative of order one


def points(shape, seed=0):
    """float64 normal points."""
    return tf.random.stateless_normal(shape, [seed, 7], dtype=tf.float64, alg="philox")


def energy_of(layer, training=None):
    """A scalar function with curvature of its own on top of `layer`, `[batch, *event] -> [batch]`."""
    options = {} if training is None else {"training": training}

    def energy(x):
        y = layer(x, **options)
        y = tf.reshape(tf.cast(y, tf.float64), [tf.shape(x)[0], -1])
        weights = tf.linspace(tf.constant(0.5, tf.float64), 1.5, tf.shape(y)[1])
        return tf.reduce_sum(tf.sin(weights * y) + 0.2 * weights * y**2, axis=1)

    return energy


def gradient(function, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x)


def relative_error(value, truth):
    return float(tf.norm(value - truth) / tf.norm(truth))


def error_of_second_derivative(layer, x, training=None, seed=1):
    """Relative error of Hv by nested tapes, for a random direction v, against central differences of the gradient."""
    energy, v = energy_of(layer, training), points(x.shape, seed)
    energy(x)  # builds the layer
    randomize(layer, seed)
    with tf.GradientTape() as tape:
        tape.watch(x)
        slope = tf.reduce_sum(gradient(energy, x) * v)
    by_tape = tape.gradient(slope, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    by_difference = (gradient(energy, x + STEP * v) - gradient(energy, x - STEP * v)) / (2 * STEP)
    return relative_error(by_tape, by_difference)


def randomize(layer, seed=1):
    """Moves factors and offsets off their 1 and 0, where mistakes about them could hide."""
    for i, weight in enumerate(layer.trainable_weights):
        weight.assign_add(tf.cast(0.3 * points(weight.shape, seed + i), weight.dtype))
