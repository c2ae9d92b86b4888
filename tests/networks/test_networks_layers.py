"""The normalisation layers: Keras's outputs, right second derivatives, and no weight changed by a sampler."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from laws import assert_same
from second_derivatives import STEP, energy_of, error_of_second_derivative, gradient, points, randomize, relative_error

from tfp_ebm import networks

ours = networks
theirs = keras.layers

# Keras's save reads its variables in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

NORMALIZATIONS = [  # class name, arguments, event shape
    ("LayerNormalization", {}, (6,)),
    ("LayerNormalization", {"center": False}, (6,)),
    ("LayerNormalization", {"scale": False, "epsilon": 0.1}, (6,)),
    ("LayerNormalization", {"center": False, "scale": False}, (6,)),
    ("LayerNormalization", {"axis": 1}, (5, 4)),
    ("LayerNormalization", {"axis": [-1, 1]}, (5, 4)),
    ("LayerNormalization", {"axis": [1, 2, 3]}, (3, 2, 4)),
    ("GroupNormalization", {"groups": 1}, (3, 2, 4)),
    ("GroupNormalization", {"groups": 2}, (3, 2, 4)),
    ("GroupNormalization", {"groups": 4}, (3, 2, 4)),
    ("GroupNormalization", {"groups": -1}, (3, 2, 4)),
    ("GroupNormalization", {"groups": 3}, (6,)),
    ("GroupNormalization", {"groups": 2, "axis": 1}, (4, 3, 2)),
    ("GroupNormalization", {"groups": 2, "axis": -2}, (3, 4, 2)),
    ("GroupNormalization", {"groups": 2, "center": False, "epsilon": 0.1}, (5, 4)),
    ("GroupNormalization", {"groups": 2, "scale": False}, (5, 4)),
]
IDS = [f"{name}-{options}" for name, options, _ in NORMALIZATIONS]
SPECTRAL = {  # a layer to wrap, event shape
    "Dense": (lambda **k: theirs.Dense(3, **k), (6,)),
    "Dense without bias": (lambda **k: theirs.Dense(3, activation="tanh", use_bias=False, **k), (2, 6)),
    "Conv1D": (lambda **k: theirs.Conv1D(3, 2, **k), (5, 4)),
    "Conv2D": (lambda **k: theirs.Conv2D(3, 2, strides=2, padding="same", **k), (3, 4, 2)),
    "Conv1DTranspose": (lambda **k: theirs.Conv1DTranspose(3, 2, **k), (5, 4)),
    "Conv2DTranspose": (lambda **k: theirs.Conv2DTranspose(3, 2, strides=2, **k), (3, 3, 2)),
    "DepthwiseConv2D": (lambda **k: theirs.DepthwiseConv2D(2, depth_multiplier=2, **k), (3, 3, 2)),
}


def spectral(name, power_iterations=1, dtype="float64", **options):
    """A built wrapper with a generic kernel, and points to call it on."""
    make, shape = SPECTRAL[name]
    keras.utils.set_random_seed(0)  # else a kernel may come out with a norm near one
    layer = ours.SpectralNormalization(make(dtype=dtype), power_iterations, **options)
    x = tf.cast(points((3, *shape)), layer.layer.variable_dtype)
    layer(x)
    randomize(layer)
    return layer, x


def as_matrix(name, kernel):
    """The kernel in NumPy as `[inputs, outputs]`, the axes of each kind of layer written out."""
    kernel = np.asarray(kernel, "float64")
    if "Transpose" in name:
        kernel = np.swapaxes(kernel, -1, -2)
    columns = kernel.shape[-1] if "Depthwise" not in name else kernel.shape[-1] * kernel.shape[-2]
    return kernel.reshape(-1, columns)


def settle(name, layer):
    """Puts u where the power iteration rests."""
    layer.u.assign(np.linalg.svd(as_matrix(name, layer.layer.kernel))[2][0])


# ------------------------------------------------------------------------------------ layer and group normalisation


@pytest.mark.parametrize(("name", "options", "shape"), NORMALIZATIONS, ids=IDS)
def test_outputs_and_weights_are_those_of_keras(name, options, shape):
    own, other = getattr(ours, name)(**options, dtype="float64"), getattr(theirs, name)(**options, dtype="float64")
    x = points((3, *shape)) * 4 + 2
    own(x), other(x)
    randomize(own)
    assert [w.name for w in own.weights] == [w.name for w in other.weights]
    other.set_weights(own.get_weights())
    np.testing.assert_allclose(own(x), other(x), rtol=1e-12, atol=1e-12)
    assert own.compute_output_shape(x.shape) == x.shape
    assert type(own).from_config(own.get_config()).get_config() == own.get_config()


@pytest.mark.parametrize(("name", "options", "shape"), NORMALIZATIONS, ids=IDS)
def test_second_derivative_is_right_where_keras_is_wrong(name, options, shape):
    x = points((3, *shape))
    assert error_of_second_derivative(getattr(ours, name)(**options, dtype="float64"), x) < 1e-6
    assert error_of_second_derivative(getattr(theirs, name)(**options, dtype="float64"), x) > 1e-3


@pytest.mark.parametrize("layers", [ours, theirs], ids=["ours", "keras"])
@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [("LayerNormalization", {}, (4,)), ("GroupNormalization", {"groups": 2}, (2, 4))],
)
def test_full_hessian(layers, name, options, shape):
    layer, x, size = getattr(layers, name)(**options, dtype="float64"), points((1, *shape)), int(np.prod(shape))
    energy = energy_of(layer)
    energy(x)
    randomize(layer)
    with tf.GradientTape() as tape:
        tape.watch(x)
        slopes = tf.reshape(gradient(energy, x), [size])
    by_tape = tf.reshape(tape.jacobian(slopes, x), [size, size])
    directions = tf.reshape(tf.eye(size, dtype=tf.float64), [size, 1, *shape])
    by_difference = tf.stack(
        [
            tf.reshape(gradient(energy, x + STEP * e) - gradient(energy, x - STEP * e), [size]) / (2 * STEP)
            for e in tf.unstack(directions)
        ]
    )
    error = relative_error(by_tape, by_difference)
    assert error < 1e-6 if layers is ours else error > 1e-3
    # E is a sum over one example's units, so a Hessian that is right is symmetric too
    if layers is ours:
        np.testing.assert_allclose(by_tape, tf.transpose(by_tape), atol=1e-12)


def error_of_score_loss_gradient(layer, x):
    """Relative error of the gradient of mean ‖∇E + v‖² in all weights, along a random direction, by differences."""
    network = keras.Sequential([keras.Input(x.shape[1:], dtype="float64"), theirs.Dense(4, dtype="float64"), layer])
    energy, v = energy_of(network), points(x.shape, 3)
    randomize(network)
    weights = network.trainable_weights
    directions = [points(w.shape, 4) for w in weights]

    def loss():
        return tf.reduce_mean(tf.reduce_sum((gradient(energy, x) + v) ** 2, axis=-1))

    with tf.GradientTape() as tape:
        value = loss()
    by_tape = sum(
        tf.reduce_sum(g * d) for g, d in zip(tape.gradient(value, [w.value for w in weights]), directions, strict=True)
    )
    start = [tf.identity(w.value) for w in weights]
    ends = []
    for sign in (1, -1):
        for w, s, d in zip(weights, start, directions, strict=True):
            w.assign(s + sign * STEP * d)
        ends.append(loss())
    return relative_error(by_tape, (ends[0] - ends[1]) / (2 * STEP))


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (lambda: ours.LayerNormalization(dtype="float64"), lambda: theirs.LayerNormalization(dtype="float64")),
        (lambda: ours.GroupNormalization(2, dtype="float64"), lambda: theirs.GroupNormalization(2, dtype="float64")),
    ],
    ids=["LayerNormalization", "GroupNormalization"],
)
def test_weight_gradient_of_a_score_loss(own, other):
    x = points((3, 5, 6))
    assert error_of_score_loss_gradient(own(), x) < 1e-6
    assert error_of_score_loss_gradient(other(), x) > 1e-3


@pytest.mark.parametrize(
    "make", [lambda **k: ours.LayerNormalization(**k), lambda **k: ours.GroupNormalization(2, **k)]
)
def test_statistics_are_taken_in_float32_under_a_mixed_policy(make):
    # about 200 the half precision numbers are .125 apart: an own mean and variance in them would be worthless
    x = tf.cast(tf.round(points((3, 64)) * 8) / 8 + 200, tf.float16)
    layer, exact = make(dtype="mixed_float16"), make(dtype="float64")
    assert layer(x).dtype == "float16"
    np.testing.assert_allclose(tf.cast(layer(x), tf.float64), exact(tf.cast(x, tf.float64)), atol=4 * 2**-11)


def test_unknown_height_and_width():
    network = keras.Sequential([keras.Input((None, None, 4)), ours.GroupNormalization(2), ours.LayerNormalization()])
    assert network.output_shape == (None, None, None, 4)
    assert network(np.ones([2, 5, 3, 4], "float32")).shape == (2, 5, 3, 4)


# -------------------------------------------------------------------------------------------- spectral normalisation


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_effective_kernel_has_norm_one_and_only_u_changes(name):
    layer, x = spectral(name, power_iterations=20)
    kernel = layer.layer.kernel.numpy()
    sigma = np.linalg.norm(as_matrix(name, kernel), 2)
    assert abs(sigma - 1) > 0.05  # else there is nothing to normalise
    iterate = tf.function(lambda: layer.normalized_kernel(training=True))
    for _ in range(10):
        iterate()
    assert np.linalg.norm(as_matrix(name, layer.normalized_kernel()), 2) == pytest.approx(1, rel=1e-8)
    np.testing.assert_array_equal(layer.layer.kernel, kernel)
    plain = type(layer.layer).from_config(layer.layer.get_config())
    plain.build(x.shape)
    plain.set_weights([kernel / sigma, *layer.layer.get_weights()[1:]])
    np.testing.assert_allclose(layer(x), plain(x), rtol=1e-8, atol=1e-10)
    plain.kernel.assign(kernel)
    assert not np.allclose(layer(x), plain(x), rtol=1e-2)


def test_power_iteration_is_that_of_the_paper():
    layer, x = spectral("Dense", power_iterations=2)
    w, u = layer.layer.kernel.numpy(), layer.u.numpy()
    for _ in range(2):
        v = w @ u / np.linalg.norm(w @ u)
        u = w.T @ v / np.linalg.norm(w.T @ v)
    np.testing.assert_allclose(layer.normalized_kernel(), w / (v @ w @ u), rtol=1e-12)
    layer(x, training=True)
    np.testing.assert_allclose(layer.u, u, rtol=1e-12)


def test_calls_outside_training_change_no_weight():
    layer, x = spectral("Conv2D")
    before, u = layer.get_weights(), layer.u.numpy()
    layer(x), layer(x, training=False), tf.function(layer)(x, training=False)
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))
    layer.trainable = False
    layer(x, training=True)
    np.testing.assert_array_equal(layer.u, u)
    layer.trainable = True
    outputs = layer(x)
    np.testing.assert_array_equal(layer(x, training=True), outputs)  # the same u, the same function
    assert not np.array_equal(layer.u, u)  # the check can fail

    faulty = theirs.SpectralNormalization(theirs.Dense(3, dtype="float64"))
    faulty(points((2, 6)))
    before = faulty.layer.kernel.numpy()
    faulty(points((2, 6)), training=True)
    assert not np.array_equal(faulty.layer.kernel, before)


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("training", [False, True])
def test_second_derivative_of_a_spectral_layer(name, training):
    layer, x = spectral(name)
    settle(name, layer)  # in training every call moves u: only where it rests is there one function to differentiate
    u = layer.u.numpy()

    class Frozen:  # `error_of_second_derivative` would randomise the weights away from the fixed point
        trainable_weights = ()

        def __call__(self, x, **options):
            return layer(x, **options)

    assert error_of_second_derivative(Frozen(), x, training) < 1e-6
    np.testing.assert_allclose(layer.u, u, atol=1e-12)


def test_the_gradient_reaches_the_kernel_through_sigma():
    """d/dt of the loss along kernel + t·direction; u converged, where holding it constant is exact."""
    layer, x = spectral("Dense", power_iterations=40)
    settle("Dense", layer)
    energy, kernel = energy_of(layer), layer.layer.kernel
    direction = points((6, 3), 5) + kernel.value  # along the kernel itself W/σ does not change at all
    v = points(x.shape, 6)

    def loss():
        return tf.reduce_sum((gradient(energy, x) + v) ** 2)

    with tf.GradientTape() as tape:
        value = loss()
    by_tape = tf.reduce_sum(tape.gradient(value, kernel.value) * direction)
    start = tf.identity(kernel.value)
    sigma = tf.linalg.svd(start, compute_uv=False)[0]
    ends = []
    for sign in (1, -1):
        kernel.assign(start + sign * STEP * direction)
        ends.append(loss())
    by_difference = (ends[0] - ends[1]) / (2 * STEP)
    assert relative_error(by_tape, by_difference) < 1e-6

    layer.layer.kernel.assign(start / sigma)  # W/σ with σ held constant, as without a gradient through it
    plain = energy_of(layer.layer)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum((gradient(plain, x) + v) ** 2)
    held = tf.reduce_sum(tape.gradient(value, kernel.value) * direction) / sigma
    assert relative_error(held, by_difference) > 1e-2


def test_scaling_the_kernel_changes_nothing():
    layer, x = spectral("Conv2D")
    layer.layer.bias.assign(tf.zeros_like(layer.layer.bias))
    outputs = layer(x)
    layer.layer.kernel.assign(1e-3 * layer.layer.kernel)
    np.testing.assert_allclose(layer(x), outputs, rtol=1e-12)


def test_a_zero_kernel_stays_zero():
    layer = ours.SpectralNormalization(theirs.Dense(3, kernel_initializer="zeros"))
    u = layer(np.ones([2, 4], "float32"), training=True) * 0 + layer.u
    assert not layer(np.ones([2, 4], "float32")).numpy().any() and np.isfinite(u).all()


def test_losses_of_the_wrapped_layer_survive():
    layer = ours.SpectralNormalization(theirs.Dense(3, activity_regularizer="l2", kernel_regularizer="l2"))
    x = np.ones([2, 4], "float32")
    outputs = layer(x)
    losses = sorted(float(loss) for loss in layer.losses)
    keras_penalty = theirs.ActivityRegularization(l2=0.01)
    keras_penalty(outputs)  # releases of Keras differ in whether they divide it by the number of rows
    expected = sorted([float(keras_penalty.losses[0]), 0.01 * float(tf.reduce_sum(layer.layer.kernel**2))])
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_norms_are_taken_of_the_stored_weights_under_a_mixed_policy():
    exact, _ = spectral("Dense", dtype="float32")
    mixed, x = spectral("Dense", dtype="mixed_bfloat16")
    mixed.set_weights(exact.get_weights())
    np.testing.assert_array_equal(mixed.normalized_kernel(), exact.normalized_kernel())
    outputs = mixed(x)
    assert outputs.dtype == "bfloat16"
    np.testing.assert_allclose(tf.cast(outputs, "float32"), exact(x), atol=0.1)
    in_model = keras.Sequential([keras.Input((6,)), theirs.Dense(6, dtype="mixed_bfloat16"), mixed])
    assert in_model(tf.ones([2, 6])).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ours.SpectralNormalization(theirs.Flatten()), TypeError, "`layer` must be one of.*got Flatten"),
        (lambda: ours.SpectralNormalization("dense"), TypeError, "`layer` must be one of.*got str"),
        (lambda: ours.SpectralNormalization(theirs.Dense(2), 0), ValueError, "`power_iterations`.*got 0"),
        (lambda: ours.LayerNormalization(rms_scaling=True), ValueError, "`rms_scaling`.*RMSNormalization"),
        (lambda: ours.GroupNormalization(0), ValueError, "`groups`"),
        (lambda: ours.GroupNormalization(3)(np.ones([2, 4])), ValueError, "groups.*3.*channels.*4"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ----------------------------------------------------------------------------------------------- all of them at once


@pytest.fixture(scope="module")
def network():
    inputs = keras.Input((4, 4, 2))
    x = ours.SpectralNormalization(theirs.Conv2D(4, 3, activation="silu"), name="spectral")(inputs)
    x = ours.GroupNormalization(2)(x)
    x = ours.LayerNormalization(axis=[1, 2, 3])(x)
    x = ours.FourierFeatures(3)(theirs.Flatten()(x))
    network = keras.Model(inputs, theirs.Dense(1, use_bias=False)(x))
    randomize(network)
    return network


def test_save_and_load_are_bit_equal(network, tmp_path):
    x = tf.cast(points((3, 4, 4, 2)), tf.float32)
    network(x, training=True)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(x), network(x))
    assert_same(loaded.weights, network.weights)


@pytest.mark.slow
def test_graph_and_xla_agree_to_second_order_and_store_u(network):
    x = tf.cast(points((3, 4, 4, 2)), tf.float32)
    weights = [w.value for w in network.trainable_variables]
    u = network.get_layer("spectral").u

    def step(x):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                energy = network(x, training=True)
            loss = tf.reduce_mean(inner.gradient(energy, x) ** 2)
        return energy, outer.gradient(loss, weights)

    start, results = u.numpy(), []
    for compiled in (False, True):
        u.assign(start)
        energy, gradients = tf.function(step, jit_compile=compiled)(x)
        assert not np.array_equal(u, start)
        results.append([energy, u.numpy(), *gradients])
    for by_graph, by_xla in zip(*results, strict=True):
        scale = np.abs(by_graph).max()
        # second derivatives in float32, each program with its own order of sums: 2.03e-5 was seen
        np.testing.assert_allclose(by_graph / scale, by_xla / scale, atol=1e-4)
