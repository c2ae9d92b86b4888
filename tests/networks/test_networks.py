"""Builders, Fourier features, and the check that refuses faulty layers; the layers' own tests are beside this."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from second_derivatives import error_of_second_derivative, points

from tfp_ebm import derivatives, networks
from tfp_ebm.model.energy_model import EnergyModel

ours = networks
theirs = keras.layers

# Keras's save reads its variables in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def rows(shape, dtype="float32", n=5):
    return points((n, *shape)).numpy().astype(dtype)


# ---------------------------------------------------------------------------------------------------- mlp, convnet


@pytest.mark.parametrize("event_shape", [[], [1], [2], [3, 4], [2, 3, 2]])
@pytest.mark.parametrize("fourier_features", [0, 3])
def test_mlp_maps_any_event_to_one_energy(event_shape, fourier_features):
    network = networks.mlp(event_shape, units=[4, 5], fourier_features=fourier_features, seed=0)
    assert isinstance(network, keras.Model) and network.input_shape == (None, *event_shape)
    assert network(rows(event_shape)).shape == (5, 1)


def test_mlp_is_the_formula_of_its_docstring():
    network = networks.mlp([2], units=[4, 5], activation="tanh", fourier_features=3, dtype="float64", seed=0)
    frequencies, w1, b1, w2, b2, w3 = [w.numpy() for w in network.weights]
    x = rows([2], "float64")
    h = np.concatenate([x, np.cos(x @ frequencies), np.sin(x @ frequencies)], axis=1)
    expected = np.tanh(np.tanh(h @ w1 + b1) @ w2 + b2) @ w3
    np.testing.assert_allclose(network(x), expected, rtol=1e-13)


def test_initial_weights_are_uniform_on_one_over_root_fan_in():
    # |w|·√fan_in is uniform on [0, gain]. Its mean over n weights has standard error gain/√(12 n); 5 of them give a
    # false alarm once in 10^6 and notice a gain that is 5 % off with certainty (n >= 8000).
    network = networks.mlp([2], units=[8000, 8], seed=0)
    first, second = network.get_layer("hidden_0"), network.get_layer("hidden_1")
    for weight, fan_in, gain in [(first.kernel, 2, 3), (first.bias, 2, 3), (second.kernel, 8000, 1)]:
        scaled = np.abs(weight.numpy()) * fan_in**0.5
        tolerance = 5 * gain / (12 * scaled.size) ** 0.5
        assert scaled.max() <= gain * (1 + 1e-6)
        assert abs(scaled.mean() - gain / 2) < tolerance < 0.05 * gain / 2
    assert np.abs(second.bias).max() <= 8000**-0.5 and np.abs(second.bias).min() > 0


@pytest.mark.parametrize("event_shape", [[8, 8, 1], [28, 28, 1], [5, 7, 3], [1, 1, 1]])
def test_convnet_takes_images_of_any_size(event_shape):
    network = networks.convnet(event_shape, filters=[3, 4, 5], units=[6], seed=0)
    x = tf.constant(rows(event_shape))
    with tf.GradientTape() as tape:
        tape.watch(x)
        energies = network(x)
    assert energies.shape == (5, 1)
    assert np.all(tape.gradient(energies, x).numpy().any(axis=0)), "a pixel has no influence"


def test_strides_are_of_each_convolution_or_of_all_but_the_first():
    def sides(filters, strides):
        network = networks.convnet([8, 8, 1], filters=filters, kernel_size=4, strides=strides, units=[3], seed=0)
        return [layer.output.shape[1] for layer in network.layers if isinstance(layer, theirs.Conv2D)]

    assert sides([2, 2, 2], 2) == sides([2, 2, 2], [1, 2, 2]) == [8, 4, 2]
    assert sides([2], [2]) == [4] and sides([2, 2], [2, 1]) == [4, 4] and sides([2], 2) == [8]


BUILDERS = {
    "mlp": lambda **options: networks.mlp([2, 2, 1], units=[4, 5], **options),
    "fourier": lambda **options: networks.mlp([2, 2, 1], units=[4, 5], fourier_features=3, **options),
    "convnet": lambda **options: networks.convnet([2, 2, 1], filters=[3, 4], units=[5], **options),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_seed_fixes_the_weights_and_none_follows_keras(build):
    def weights(**options):
        return [w.numpy() for w in build(**options).weights]

    def equal(a, b):
        return all(np.array_equal(v, w) for v, w in zip(a, b, strict=True))

    assert equal(weights(seed=3), weights(seed=(0, 3)))
    assert not any(np.array_equal(v, w) for v, w in zip(weights(seed=3), weights(seed=4), strict=True))
    assert not equal(weights(seed=None), weights(seed=None))
    assert equal(weights(), weights(seed=0))  # the default is a seed too
    keras.utils.set_random_seed(5)
    first = weights(seed=None)
    keras.utils.set_random_seed(5)
    assert equal(first, weights(seed=None))


def test_layers_of_equal_shape_start_differently():
    network = networks.mlp([4], units=[4, 4], seed=0)
    kernels = [network.get_layer(f"hidden_{i}").kernel.numpy() for i in range(2)]
    assert np.abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.9  # equal draws: exactly 1
    bias = network.get_layer("hidden_1").bias.numpy()
    assert not any(np.allclose(bias, row) for row in kernels[1])


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_policy_reaches_every_layer_and_energies_keep_precision(build, dtype, tmp_path):
    network = build(dtype=dtype, seed=0)
    assert network.dtype_policy.name == dtype
    hidden = [layer for layer in network.layers if layer.weights and layer.name != "energy"]
    assert hidden and all(layer.dtype_policy.name == dtype for layer in hidden)
    energy_dtype = "float64" if dtype == "float64" else "float32"
    assert all(w.dtype == energy_dtype for w in network.weights)
    x = rows([2, 2, 1], energy_dtype)
    energies = network(x)
    assert energies.dtype == energy_dtype

    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(x), energies)
    clone = keras.models.clone_model(network)
    clone.set_weights(network.get_weights())
    np.testing.assert_array_equal(clone(x), energies)
    assert [layer.dtype_policy.name for layer in loaded.layers] == [layer.dtype_policy.name for layer in network.layers]


def test_phases_keep_float32_under_a_mixed_policy():
    x = rows([2]) * 10
    exact = networks.FourierFeatures(64, seed=0)(x)
    mixed = networks.FourierFeatures(64, seed=0, dtype="mixed_bfloat16")(x)
    # one rounding of a number below 1 to 8 bits costs at most 2^-9; a phase of 30 rounded like that, up to 2^-4
    assert mixed.dtype == "bfloat16"
    assert np.abs(tf.cast(mixed, "float32") - exact)[:, 2:].max() <= 2**-9
    rounded = tf.cast(tf.cast(x, "bfloat16"), "float32")
    assert np.abs(networks.FourierFeatures(64, seed=0)(rounded) - exact)[:, 2:].max() > 2**-9  # the check can fail


def test_the_energy_has_no_constant_of_its_own():
    for build in BUILDERS.values():
        assert build().get_layer("energy").bias is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: networks.mlp(2), TypeError, "`event_shape` must be a list of whole numbers, got 2"),
        (lambda: networks.mlp("28"), TypeError, "`event_shape`.*got '28'"),
        (lambda: networks.mlp([None]), TypeError, r"`event_shape\[0\]`.*got None"),
        (lambda: networks.mlp([0]), ValueError, r"`event_shape\[0\]`.*at least 1, got 0"),
        (lambda: networks.mlp([2], units=[8, -1]), ValueError, r"`units\[1\]`.*got -1"),
        (lambda: networks.mlp([2], units=8), TypeError, "`units`.*got 8"),
        (lambda: networks.mlp([2], activation="silo"), ValueError, "`activation`.*got 'silo'"),
        (lambda: networks.mlp([2], fourier_features=-1), ValueError, "`fourier_features`.*got -1"),
        (lambda: networks.mlp([2], dtype="floaty"), ValueError, "`dtype`.*got 'floaty'"),
        (lambda: networks.mlp([2], dtype="int32"), ValueError, "`dtype` must be a floating-point.*got 'int32'"),
        (lambda: networks.mlp([2], seed=0.5), TypeError, "`seed`.*got 0.5"),
        (lambda: networks.convnet([8, 8]), ValueError, r"`event_shape` must be \[height, width, ch.*got \[8, 8\]"),
        (lambda: networks.convnet([8, 8, 1], filters=[]), ValueError, "`filters`.*empty"),
        (lambda: networks.convnet([8, 8, 1], kernel_size=0), ValueError, "`kernel_size`.*got 0"),
        (lambda: networks.convnet([8, 8, 1], strides=1.5), ValueError, "`strides`.*got 1.5"),
        (lambda: networks.convnet([8, 8, 1], [4, 4], strides=[2]), ValueError, r"`strides`.*2 convolutions, got \[2\]"),
        (lambda: networks.convnet([8, 8, 1], [4], strides=[0]), ValueError, r"`strides\[0\]`.*got 0"),
        (lambda: networks.FourierFeatures(0), ValueError, "`num_features`.*got 0"),
        (lambda: networks.FourierFeatures(3, stddev=-1.0), ValueError, "`stddev`.*got -1.0"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ------------------------------------------------------------------------------------------- refuse_faulty_layers


def normalization_of_a_functional_model(operation, shape=(4,)):
    x = keras.Input(shape, dtype="float64")
    return keras.Model(x, operation(x))


def _moments(x):
    mean, variance = keras.ops.moments(x, axes=[1], keepdims=True)
    return (x - mean) / keras.ops.sqrt(variance + 1e-3)


def _resize(x):
    return keras.ops.image.resize(x, (7, 7))


IMAGE = (4, 4, 6)
FAULTY = {  # name in the message: (layer, event shape, training)
    "LayerNormalization": (lambda: theirs.LayerNormalization(dtype="float64"), (6,), None),
    "GroupNormalization": (lambda: theirs.GroupNormalization(2, dtype="float64"), IMAGE, None),
    "BatchNormalization": (lambda: theirs.BatchNormalization(dtype="float64"), (6,), True),
    "SpectralNormalization": (lambda: theirs.SpectralNormalization(theirs.Dense(3, dtype="float64")), (6,), True),
    "UpSampling2D": (lambda: theirs.UpSampling2D(2, interpolation="bilinear", dtype="float64"), IMAGE, None),
    "Resizing": (lambda: theirs.Resizing(7, 7, dtype="float64"), IMAGE, None),
    "Resize": (lambda: normalization_of_a_functional_model(_resize, IMAGE), IMAGE, None),
    "Moments": (lambda: normalization_of_a_functional_model(_moments, (6,)), (6,), None),
    "LayerNorm": (lambda: normalization_of_a_functional_model(keras.ops.layer_normalization, (6,)), (6,), None),
}
SOUND = {
    "LayerNormalization": (lambda: ours.LayerNormalization(dtype="float64"), (6,), None),
    "GroupNormalization": (lambda: ours.GroupNormalization(2, dtype="float64"), IMAGE, None),
    "SpectralNormalization": (lambda: ours.SpectralNormalization(theirs.Dense(3, dtype="float64")), (6,), False),
    "RMSNormalization": (lambda: theirs.RMSNormalization(dtype="float64"), (6,), None),
    "UnitNormalization": (lambda: theirs.UnitNormalization(dtype="float64"), (6,), None),
    "frozen BatchNormalization": (lambda: theirs.BatchNormalization(trainable=False, dtype="float64"), (6,), True),
    "nearest UpSampling2D": (lambda: theirs.UpSampling2D(2, dtype="float64"), IMAGE, None),
    "AveragePooling2D": (lambda: theirs.AveragePooling2D(2, dtype="float64"), IMAGE, None),
    "Softmax": (lambda: theirs.Softmax(dtype="float64"), (6,), None),
    "LSTM": (lambda: theirs.LSTM(3, dtype="float64"), (4, 3), None),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FAULTY)
def test_every_refused_layer_is_really_wrong(name):
    """When Keras repairs one, this fails and the table can lose it."""
    make, shape, training = FAULTY[name]
    layer = make()
    with pytest.raises(ValueError, match=f"Some loss needs.*`.*` .{name}. are wrong.* instead"):
        derivatives.refuse_faulty_layers(layer, "Some loss")
    assert error_of_second_derivative(layer, points((3, *shape)), training=training) > 1e-3


@pytest.mark.parametrize("name", SOUND)
def test_their_allowed_neighbours_are_right(name):
    make, shape, training = SOUND[name]
    layer = make()
    derivatives.refuse_faulty_layers(layer, "Some loss")
    assert error_of_second_derivative(layer, points((3, *shape)), training=training) < 1e-6


def _calls(energy_fn, x):
    """Every function that takes a second derivative."""
    yield lambda: derivatives.laplacian(energy_fn, x)
    yield lambda: derivatives.laplacian(energy_fn, x, "hutchinson", seed=0)
    yield lambda: derivatives.energy_score_laplacian(energy_fn, x, chunk_size=1)
    yield lambda: derivatives.hvp(energy_fn, x, x)
    yield lambda: derivatives.directional_derivatives(energy_fn, x, x)
    yield lambda: derivatives.energy_score_curvature(energy_fn, x, x, method="reverse")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FAULTY)
def test_second_derivatives_refuse_them_too(name):
    """As a network, and in an `EnergyModel`; what is wrong in training only is refused there only, scores never are."""
    make, shape, training = FAULTY[name]
    inputs = keras.Input(shape, dtype="float64")
    hidden = theirs.Flatten(dtype="float64")(make()(inputs))
    network = keras.Model(inputs, theirs.Dense(1, dtype="float64")(hidden), dtype="float64")
    model, x = EnergyModel(network), points((2, *shape))
    trained = model.energy_function.in_mode(True)
    for energy_fn in (trained,) if training else (network, model, model.energy_function, trained):
        for call in _calls(energy_fn, x):
            with pytest.raises(ValueError, match=f"curvature of the energy needs second.*`.*` .{name}. are wrong"):
                call()
        assert derivatives.score(energy_fn, x).shape == x.shape
    if training:
        assert derivatives.laplacian(network, x).shape == [2]


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = {"first": [theirs.Dense(3), theirs.LayerNormalization(name="culprit")]}

    def call(self, x):
        return x


class _OwnNormalization(theirs.LayerNormalization):
    pass


@pytest.mark.parametrize(
    "network",
    [
        lambda: keras.Sequential(
            [keras.Input((3, 2)), theirs.TimeDistributed(theirs.LayerNormalization(name="culprit"))]
        ),
        lambda: keras.Sequential([keras.Sequential([theirs.GroupNormalization(1, name="culprit")])]),
        lambda: normalization_of_a_functional_model(theirs.LayerNormalization(name="culprit")),
        lambda: keras.Sequential([theirs.RNN([theirs.LSTMCell(2)]), theirs.BatchNormalization(name="culprit")]),
        _Subclassed,
        lambda: _OwnNormalization(name="culprit"),
    ],
    ids=["TimeDistributed", "nested", "functional", "RNN", "subclassed", "subclass of Keras's"],
)
def test_hidden_faulty_layers_are_found(network):
    with pytest.raises(ValueError, match="`culprit`"):
        derivatives.refuse_faulty_layers(network(), "Some loss")


def test_a_frozen_model_may_hold_batch_normalization_and_callables_pass():
    network = keras.Sequential([keras.Input((3,)), theirs.BatchNormalization()])
    network.trainable = False
    derivatives.refuse_faulty_layers(network, "Some loss")
    derivatives.refuse_faulty_layers(lambda x: x, "Some loss")


def test_builders_pass_the_door():
    for build in BUILDERS.values():
        derivatives.refuse_faulty_layers(build(), "Some loss")
