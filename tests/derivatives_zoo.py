"""The zoo of `test_derivatives_zoo`: small float64 energies that together use every rule of the forward Laplacian."""

import keras
import numpy as np
from keras import layers, ops

from tfp_ebm import networks

VECTOR, SEQUENCE, IMAGE, VOLUME = (4,), (4, 2), (3, 3, 2), (3, 2, 2, 1)
ZOO = {}


def _input(shape):
    return keras.Input(shape, dtype="float64")


def _entry(name):
    def register(build):
        ZOO[name] = build
        return build

    return register


def _twice(name, shape, make):
    """The layer at the input, where slopes are the same for all rows, and again behind a nonlinearity."""

    @_entry(name)
    def build():
        inputs = _input(shape)
        hidden = make()(layers.Activation("tanh")(make()(inputs)))
        if len(hidden.shape) > 2:
            hidden = layers.Flatten()(hidden)
        return keras.Model(inputs, layers.Dense(1)(layers.Dense(3, activation="silu")(hidden)))


def _functional(name, shape=VECTOR):
    """A graph: the decorated function makes, from a symbolic input, tensors to be fed to a last Dense layer."""

    def register(function):
        @_entry(name)
        def build():
            inputs = _input(shape)
            return keras.Model(inputs, layers.Dense(1)(function(inputs)))

        return function

    return register


SMOOTH = (
    "silu gelu tanh sigmoid softplus softsign exponential elu selu celu mish log_sigmoid squareplus tanh_shrink linear"
)
PIECEWISE_QUADRATIC = "hard_silu sparse_plus"
PIECEWISE_LINEAR = "relu relu6 leaky_relu hard_sigmoid hard_tanh hard_shrink soft_shrink sparse_sigmoid"
for _name in f"{SMOOTH} {PIECEWISE_QUADRATIC} {PIECEWISE_LINEAR}".split():
    _twice(f"dense, {_name}", VECTOR, lambda name=_name: layers.Dense(5, activation=name))

_twice("dense without bias on a sequence", SEQUENCE, lambda: layers.Dense(3, use_bias=False))
for _layer in (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU):
    _twice(_layer.__name__, VECTOR, _layer)
_twice("layer as activation", VECTOR, lambda: layers.Dense(5, activation=layers.LeakyReLU()))

_conv = {
    "Conv1D": (SEQUENCE, lambda: layers.Conv1D(3, 3, padding="same", activation="gelu")),
    "Conv1D, causal, dilated": (SEQUENCE, lambda: layers.Conv1D(2, 2, padding="causal", dilation_rate=2)),
    "Conv2D": (IMAGE, lambda: layers.Conv2D(3, 2, activation="tanh")),
    "Conv2D, strides": (IMAGE, lambda: layers.Conv2D(3, 3, strides=2, padding="same")),
    "Conv2D, dilation": (IMAGE, lambda: layers.Conv2D(2, 2, dilation_rate=2, padding="same", use_bias=False)),
    "Conv2D, groups": ((2, 2, 2), lambda: layers.Conv2D(2, 2, groups=2, padding="same")),
    "Conv3D": (VOLUME, lambda: layers.Conv3D(2, 2, padding="same")),
    "DepthwiseConv1D": (SEQUENCE, lambda: layers.DepthwiseConv1D(2, depth_multiplier=2)),
    "DepthwiseConv2D": (IMAGE, lambda: layers.DepthwiseConv2D(2, depth_multiplier=2, padding="same")),
    "SeparableConv1D": (SEQUENCE, lambda: layers.SeparableConv1D(3, 2)),
    "SeparableConv2D": (IMAGE, lambda: layers.SeparableConv2D(3, 2, depth_multiplier=2, activation="silu")),
    "Conv1DTranspose": (SEQUENCE, lambda: layers.Conv1DTranspose(2, 2, padding="same")),
    "Conv2DTranspose": (IMAGE, lambda: layers.Conv2DTranspose(2, 3, strides=1, padding="same")),
    "Conv3DTranspose": (VOLUME, lambda: layers.Conv3DTranspose(1, 2, padding="same")),
}
for _name, (_shape, _make) in _conv.items():
    _twice(_name, _shape, _make)


@_functional("Conv2DTranspose, strides", (2, 2, 1))
def _upconv(x):
    return layers.Flatten()(layers.Conv2DTranspose(2, 3, strides=2, output_padding=1, activation="tanh")(x))


_linear = {
    "AveragePooling1D": (SEQUENCE, lambda: layers.AveragePooling1D(2, strides=1)),
    "AveragePooling2D": (IMAGE, lambda: layers.AveragePooling2D(2, strides=1, padding="same")),
    "Flatten": (VECTOR, layers.Flatten),
    "Reshape": (VECTOR, lambda: layers.Reshape((2, 2))),
    "Permute": (IMAGE, lambda: layers.Permute((3, 1, 2))),
    "Cropping1D": (SEQUENCE, lambda: layers.Cropping1D((1, 0))),
    "Cropping2D": (IMAGE, lambda: layers.Cropping2D(((1, 0), (0, 1)))),
    "Cropping3D": ((4, 2, 4, 1), lambda: layers.Cropping3D(((1, 0), (0, 0), (0, 1)))),
    "ZeroPadding1D": (SEQUENCE, lambda: layers.ZeroPadding1D(1)),
    "ZeroPadding2D": (IMAGE, lambda: layers.ZeroPadding2D(1)),
    "ZeroPadding3D": ((2, 2, 2, 1), lambda: layers.ZeroPadding3D(1)),
    "UpSampling1D": (SEQUENCE, lambda: layers.UpSampling1D(2)),
    "UpSampling2D": ((2, 2, 2), lambda: layers.UpSampling2D(2)),
    "UpSampling3D": ((2, 2, 1, 1), lambda: layers.UpSampling3D(2)),
    "Identity": (VECTOR, layers.Identity),
    "ActivityRegularization": (VECTOR, lambda: layers.ActivityRegularization(0.1)),
    "Dropout": (VECTOR, lambda: layers.Dropout(0.5)),
    "SpatialDropout1D": (SEQUENCE, lambda: layers.SpatialDropout1D(0.5)),
    "SpatialDropout2D": (IMAGE, lambda: layers.SpatialDropout2D(0.5)),
    "SpatialDropout3D": (VOLUME, lambda: layers.SpatialDropout3D(0.5)),
    "AlphaDropout": (VECTOR, lambda: layers.AlphaDropout(0.5)),
    "GaussianDropout": (VECTOR, lambda: layers.GaussianDropout(0.5)),
    "GaussianNoise": (VECTOR, lambda: layers.GaussianNoise(0.5)),
    "Rescaling": (VECTOR, lambda: layers.Rescaling(0.5, offset=0.2)),
    "Normalization": (VECTOR, lambda: layers.Normalization(mean=[0.3, 0.0, 0.1, 0.2], variance=[1.0, 2.0, 0.5, 1.5])),
    "Normalization, inverted": (VECTOR, lambda: layers.Normalization(mean=0.3, variance=2.0, invert=True)),
    "BatchNormalization": (IMAGE, layers.BatchNormalization),
    "BatchNormalization, bare": (IMAGE, lambda: layers.BatchNormalization(axis=1, scale=False, center=False)),
    "RMSNormalization": (VECTOR, layers.RMSNormalization),
    "RMSNormalization, two axes": (SEQUENCE, lambda: layers.RMSNormalization(axis=[1, 2])),
}
for _name, (_shape, _make) in _linear.items():
    _twice(_name, _shape, _make)

_pooled = {
    "GlobalAveragePooling1D": (SEQUENCE, lambda: layers.Conv1D(3, 2, activation="tanh"), layers.GlobalAveragePooling1D),
    "GlobalAveragePooling2D": (IMAGE, lambda: layers.Conv2D(3, 2, activation="tanh"), layers.GlobalAveragePooling2D),
    "GlobalAveragePooling3D": (VOLUME, lambda: layers.Conv3D(3, 2, activation="tanh"), layers.GlobalAveragePooling3D),
    "RepeatVector": (VECTOR, lambda: layers.Dense(3, activation="tanh"), lambda: layers.RepeatVector(2)),
}
for _name, (_shape, _before, _make) in _pooled.items():
    _entry(_name)(
        lambda shape=_shape, before=_before, make=_make: keras.Sequential(
            [_input(shape), before(), make(), layers.Flatten(), layers.Dense(3, "silu"), layers.Dense(1)]
        )
    )


@_functional("Add, residual")
def _residual(x):
    h = layers.Dense(4, activation="silu")(x)
    h = layers.Add()([x, layers.Dense(4)(layers.Activation("tanh")(h)), h])
    return layers.Dense(3, activation="tanh")(h)


@_functional("Average and Subtract")
def _average(x):
    h = layers.Dense(4, activation="silu")(x)
    return layers.Dense(3, activation="tanh")(layers.Subtract()([layers.Average()([h, x]), layers.Dense(4)(h)]))


@_functional("Multiply, gated")
def _gated(x):
    return layers.Multiply()([layers.Dense(4)(x), layers.Dense(4, activation="sigmoid")(x), x])


@_functional("Multiply, slopes of both factors the same for all rows")
def _quadratic(x):
    return layers.Dense(3, activation="silu")(layers.Multiply()([layers.Dense(4)(x), x]))


@_functional("Concatenate")
def _concatenated(x):
    h = layers.Dense(3, activation="gelu")(x)
    return layers.Dense(3, activation="tanh")(layers.Concatenate()([layers.Concatenate()([x, layers.Dense(2)(x)]), h]))


@_functional("residual convolutions", IMAGE)
def _residual_image(x):
    h = layers.Conv2D(2, 3, padding="same", activation="silu")(x)
    h = h + layers.Conv2D(2, 3, padding="same", activation="silu")(h)
    return layers.GlobalAveragePooling2D()(layers.Activation("softplus")(layers.AveragePooling2D(2)(h)))


@_functional("squeeze and excitation", IMAGE)
def _excited(x):
    h = layers.Conv2D(3, 2, activation="silu")(x)
    gate = layers.Reshape((1, 1, 3))(layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(h)))
    return layers.Flatten()(layers.Add()([layers.Multiply()([h, gate]), gate]))


@_functional("operators with numbers")
def _numbers(x):
    h = layers.Dense(4, activation="tanh")(2.0 * x - 1.0)
    return 1.0 - ops.divide(3.0 - h, 2.0) + 0.3 / (h + 2.0) - (-h) * x * 0.5


@_functional("operators with tensors")
def _tensors(x):
    scale = np.linspace(0.5, 2.0, 4)
    h = layers.Dense(4, activation="tanh")(x * scale + ops.convert_to_tensor(scale))
    return (h - x) * h / (2.0 + x * x)


@_functional("a number becomes a row")
def _broadcast(x):
    h = layers.Dense(1, activation="tanh")(x)
    return (h + np.linspace(0.5, 2.0, 4)) * x + h * np.ones(4)


@_functional("powers")
def _powers(x):
    return (x**2 + 1.0) ** 1.5 + ops.square(x) ** 3 + ops.reciprocal(x * x + 1.0)


@_functional("elementwise operations")
def _elementwise(x):
    positive = ops.exp(0.5 * x) + 0.5
    h = ops.sqrt(positive) + ops.rsqrt(positive) + ops.log(positive) + ops.log1p(positive) + ops.expm1(0.3 * x)
    h += ops.sin(x) + ops.cos(x) + ops.sinh(0.3 * x) + ops.cosh(0.3 * x) + ops.arctan(x) + ops.erf(x) + ops.tanh(x)
    h += ops.sigmoid(x) + ops.silu(x) + ops.softplus(x) + ops.softsign(x) + ops.gelu(x) + ops.elu(x) + ops.selu(x)
    h += ops.celu(x) + ops.log_sigmoid(x) + ops.squareplus(x) + ops.tanh_shrink(x)
    return h + ops.relu(x) * 0.1 + ops.leaky_relu(x) * 0.1 + ops.absolute(x) * 0.1


@_functional("shapes by operations", SEQUENCE)
def _shapes(x):
    h = layers.Dense(3, activation="tanh")(x)
    parts = [ops.sum(h, axis=1), ops.mean(h[:, 1:3], axis=(1,)), ops.squeeze(h[..., 0:1], axis=-1)]
    h = ops.tanh(ops.concatenate(parts, axis=1))
    return ops.sum(ops.expand_dims(h, 1) * np.ones((1, 2, 10)), axis=1) @ np.linspace(-1, 1, 20).reshape(10, 2)


@_entry("energy without a last layer")
def _bare():
    inputs = _input(VECTOR)
    h = layers.Dense(4, activation="tanh")(inputs)
    return keras.Model(inputs, ops.sum(ops.square(h), axis=-1) + 0.5 * ops.mean(inputs**2, axis=-1))


@_entry("quadratic")
def _pure_quadratic():
    inputs = _input(VECTOR)
    return keras.Model(inputs, layers.Dense(1)(ops.square(inputs)))


@_entry("nested models")
def _nested():
    block = keras.Sequential([_input(VECTOR), layers.Dense(4, "silu"), layers.Dense(4)], name="block")
    inputs = _input(VECTOR)
    inner = keras.Model(inputs, inputs + block(inputs), name="inner")
    outer = _input(VECTOR)
    return keras.Model(outer, layers.Dense(1)(layers.Activation("tanh")(inner(inner(outer)))))


@_entry("shared layers")
def _shared():
    dense = layers.Dense(4, activation="gelu")
    return keras.Sequential([_input(VECTOR), dense, dense, dense, layers.Dense(1)])


_twice("our LayerNormalization", VECTOR, networks.LayerNormalization)
_twice("our LayerNormalization over two axes", SEQUENCE, lambda: networks.LayerNormalization([1, 2], center=False))
_twice("our GroupNormalization", IMAGE, lambda: networks.GroupNormalization(2))
_twice("our GroupNormalization along axis 1", IMAGE, lambda: networks.GroupNormalization(3, axis=1, scale=False))
_twice("FourierFeatures", VECTOR, lambda: networks.FourierFeatures(3, seed=0))
_twice("SpectralNormalization of Dense", VECTOR, lambda: networks.SpectralNormalization(layers.Dense(5, "silu")))
_twice("SpectralNormalization of Conv2D", IMAGE, lambda: networks.SpectralNormalization(layers.Conv2D(2, 2)))


def _classifier():
    return keras.Sequential([_input(VECTOR), layers.Dense(4, "tanh"), layers.Dense(3)])


@_entry("JointEnergy")
def _joint_energy():
    inputs = _input(VECTOR)
    return keras.Model(inputs, networks.JointEnergy(_classifier(), dtype="float64")(inputs))


@_entry("ClassEnergy")
def _class_energy():
    inputs = _input(VECTOR)
    return keras.Model(inputs, networks.JointEnergy(_classifier(), dtype="float64").given(1)(inputs))


@_entry("FixedCondition")
def _fixed_condition():
    network = networks.mlp(VECTOR, units=[5, 4], condition_shape=[2], dtype="float64", seed=0)
    inputs = _input(VECTOR)
    return keras.Model(inputs, networks.FixedCondition(network, [0.5, -1.0], dtype="float64")(inputs))


_entry("mlp")(lambda: networks.mlp([2, 2], units=[5, 4], dtype="float64", seed=0))
_entry("mlp with Fourier features")(lambda: networks.mlp([2], units=[5], fourier_features=3, dtype="float64", seed=0))
_entry("convnet")(lambda: networks.convnet([4, 3, 2], filters=[2, 3], units=[4], dtype="float64", seed=0))


def build(name):
    """The network of that name, its weights and moving variances set to generic values."""
    network = ZOO[name]()
    rng = np.random.default_rng(len(name))
    for variable in network.weights:
        if variable.dtype == "float64":  # not the states of random generators
            value = 0.5 * rng.normal(size=variable.shape)
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.name else value)
    return network


def states(network, batch=3, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, *network.input_shape[1:]))
