"""Layers and operations without the derivatives that a loss needs: each is refused by name, with a cure.

What is refused is really wrong, by central differences in float64, and its neighbours that pass are right.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from second_derivatives import STEP, energy_of, error_of_second_derivative, gradient, points, randomize, relative_error

import tfp_ebm as ebm
from tfp_ebm import derivatives
from tfp_ebm.derivatives import operations, reverse
from tfp_ebm.energy import rows

layers = keras.layers
IMAGE = (6, 6, 3)


def image_network(layer):
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            layers.Conv2D(3, 3, padding="same", activation="tanh"),
            layer,
            layers.Flatten(),
            layers.Dense(4, "tanh"),  # what is linear in a layer has no second derivative through it
            layers.Dense(1),
        ]
    )


class Calls(layers.Layer):
    """A layer of the user's own, around a function of images."""

    def __init__(self, function, **kwargs):
        super().__init__(name="own", **kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def crop_and_resize(x):
    boxes = tf.zeros([tf.shape(x)[0], 4], x.dtype) + tf.constant([0.0, 0.0, 1.0, 0.9], x.dtype)
    return tf.image.crop_and_resize(x, tf.cast(boxes, tf.float32), tf.range(tf.shape(x)[0]), [4, 4])


def warp(x):
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=x,
        transforms=tf.constant([[0.9, 0.1, 0.3, -0.1, 1.1, 0.2, 0.0, 0.0]]),
        output_shape=[6, 6],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def moments(x):
    mean, variance = tf.nn.moments(x, [1, 2, 3], keepdims=True)
    return (x - mean) / tf.sqrt(variance + 1e-3)


# ------------------------------------------------------------------------ first derivatives that are wrong (4)

AUGMENTING = {
    "RandomRotation": lambda: layers.RandomRotation(0.2),
    "RandomZoom": lambda: layers.RandomZoom(0.2),
    "RandomTranslation": lambda: layers.RandomTranslation(0.2, 0.2),
    "RandomShear": lambda: layers.RandomShear(0.2, 0.2),
    "RandomPerspective": layers.RandomPerspective,
    "RandomHue": lambda: layers.RandomHue(0.3),
    "RandomSaturation": lambda: layers.RandomSaturation(0.3),
    "RandomColorJitter": lambda: layers.RandomColorJitter(saturation_factor=0.5),
}
WRONG = {  # in every mode
    "affine_transform": lambda: Calls(
        lambda x: keras.ops.image.affine_transform(x, np.array([0.9, 0.1, 0.3, -0.1, 1.1, 0.2, 0.0, 0.0], "float32"))
    ),
    "raw operation": lambda: Calls(warp),
    "Lambda": lambda: layers.Lambda(warp, output_shape=IMAGE, name="own"),
    "hsv_to_rgb": lambda: Calls(lambda x: keras.ops.image.hsv_to_rgb(tf.sigmoid(x))),
    "fake quantisation": lambda: Calls(lambda x: tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0)),
    "in a loop": lambda: Calls(lambda x: tf.while_loop(lambda i, _: i < 2, lambda i, t: (i + 1, warp(t)), (0, x))[1]),
}


def first_order_error(function, x):
    """Relative error of the gradient of a scalar function, along a direction, against a central difference."""
    v = tf.cast(points(x.shape, 3), x.dtype)
    energy = energy_of(layers.Lambda(function, dtype=x.dtype.name), None)
    step = 1e-2 if x.dtype == tf.float32 else STEP
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = energy(x)
    by_tape = tf.reduce_sum(tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO) * v)
    by_difference = tf.reduce_sum(energy(x + step * v) - energy(x - step * v)) / (2 * step)
    return abs(float(by_tape) - float(by_difference)) / abs(float(by_difference))


@pytest.mark.parametrize("name", AUGMENTING)
def test_warps_and_colours_are_refused_in_training_by_losses_of_the_score(name):
    network = image_network(AUGMENTING[name]())
    model = ebm.EnergyModel(network)
    for loss in ("denoising_score_matching", "sliced_score_matching"):
        with pytest.raises(ValueError, match=rf"(?s)needs derivatives.*`.*` \({name}\) are wrong.*before `fit`"):
            model.compile("adam", loss)
    derivatives.score(network, tf.zeros([2, *IMAGE]))  # they do nothing in inference
    model.compile("adam", "noise_contrastive_estimation")  # which differentiates in the weights alone


@pytest.mark.parametrize("name", WRONG)
def test_operations_of_a_layer_of_ones_own_are_found(name):
    network = image_network(WRONG[name]())
    for call in (derivatives.score, derivatives.laplacian, lambda f, x: derivatives.hvp(f, x, x)):
        with pytest.raises(ValueError, match=r"(?s)needs derivatives of the network.*`own` \(\w+\) are wrong"):
            call(network, tf.zeros([2, *IMAGE]))
    with pytest.raises(ValueError, match="`own`"):
        ebm.EnergyModel(network).compile("adam", "denoising_score_matching")
    with pytest.raises(ValueError, match=r"The kernel of ContrastiveDivergence needs derivatives.*`own`"):
        ebm.EnergyModel(network).compile("adam", "contrastive_divergence")
    with pytest.raises(ValueError, match="`own`"):
        ebm.EnergyModel(network).score(tf.zeros([2, *IMAGE]))


def test_what_is_refused_is_really_wrong_and_neighbours_are_right():
    x = tf.constant(np.random.default_rng(0).normal(size=(2, *IMAGE)), tf.float32)
    assert first_order_error(warp, x) > 0.05
    assert first_order_error(lambda x: tf.image.hsv_to_rgb(tf.sigmoid(x)), x) > 0.5
    assert first_order_error(lambda x: tf.quantization.fake_quant_with_min_max_args(x, -1.0, 1.0), x) > 0.05
    for right in (tf.tanh, lambda x: tf.image.rgb_to_hsv(tf.sigmoid(x)), lambda x: tf.nn.avg_pool2d(x, 2, 2, "SAME")):
        assert first_order_error(right, tf.cast(x, tf.float64)) < 1e-5
        derivatives.score(image_network(Calls(right)), x)


def test_operations_that_do_not_depend_on_x_pass():
    """Also a mean that is held constant in a stable log-sum-exp, whose derivative is right."""

    def constant_part(x):
        return x + warp(tf.ones([1, *IMAGE]))

    for function in (constant_part, lambda x: x - tf.reduce_logsumexp(x, [1, 2, 3], keepdims=True)):
        network = image_network(Calls(function))
        assert derivatives.laplacian(network, tf.ones([1, *IMAGE]), "hutchinson", seed=0).shape == [1]


def test_planted_blindness_for_operations(monkeypatch):
    monkeypatch.setattr(operations, "_KINDS", {})
    assert derivatives.score(image_network(Calls(warp)), tf.zeros([2, *IMAGE])).shape == [2, *IMAGE]


# ------------------------------------------------------------------------ second derivatives that are missing (12)

SILENT = {
    "Resizing": lambda: layers.Resizing(4, 4),
    "tf.image.resize": lambda: Calls(lambda x: tf.image.resize(x, [4, 4])),
    "tf.nn.moments": lambda: Calls(moments),
}
MISSING = {
    "nearest": lambda: layers.Resizing(4, 4, interpolation="nearest"),
    "bicubic": lambda: layers.Resizing(4, 4, interpolation="bicubic"),
    "lanczos3": lambda: layers.Resizing(4, 4, interpolation="lanczos3"),
    "UpSampling2D": lambda: layers.UpSampling2D(2, interpolation="bicubic"),
    "rematerialised": None,
}
LOUD = {
    "crop_and_resize": lambda: Calls(crop_and_resize),
    "local response": lambda: Calls(tf.nn.local_response_normalization),
    "nearest in a layer": lambda: Calls(lambda x: tf.image.resize(x, [4, 4], "nearest")),
    "recompute_grad": lambda: Calls(tf.recompute_grad(tf.tanh)),
}
ALL = {**SILENT, **MISSING, **LOUD}


def network_of(name):
    if name != "rematerialised":
        return image_network(ALL[name]())
    with keras.RematScope(mode="full"):
        layer = layers.Conv2D(3, 3, activation="tanh")
    return image_network(layer)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("loss", ["denoising_score_matching", "score_matching"])
def test_layers_without_second_derivatives_are_refused_by_name_before_training(name, loss):
    x = np.random.default_rng(0).normal(size=(200, *IMAGE)).astype("float32")
    model = ebm.EnergyModel(network_of(name)) if name != "rematerialised" else None
    with pytest.raises(ValueError, match=r"(?s)needs second derivatives of.*layer `.*` \(\w+\).*(instead|Replace)"):
        model = model or ebm.EnergyModel(network_of(name))
        model.compile("adam", loss)
        before = model.network.get_weights()
        try:
            model.fit(x, batch_size=100, verbose=0)
        finally:
            for a, b in zip(before, model.network.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", LOUD)
def test_every_second_derivative_names_the_layer(name):
    network, x = image_network(LOUD[name]()), tf.zeros([1, *IMAGE])
    for call in (
        lambda: derivatives.hvp(network, x, x),
        lambda: derivatives.laplacian(network, x, "hutchinson", seed=0),
        lambda: derivatives.directional_derivatives(network, x, x),
    ):
        with pytest.raises(ValueError, match=r"needs second derivatives of the energy, .*`own` \(Calls\)"):
            call()


class Nested(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = image_network(layers.Resizing(4, 4, interpolation="nearest", name="culprit"))

    def call(self, x):
        return self.inner(x)


AREA = {
    "Resizing": lambda: layers.Resizing(4, 4, interpolation="area", name="own"),
    "tf.image.resize": lambda: Calls(lambda x: tf.image.resize(x, [4, 4], "area")),
}


@pytest.mark.parametrize("name", AREA)
def test_layers_without_any_derivative_are_named(name):
    """Resizing by areas has no gradient in x; noise contrastive estimation needs none below the first weights."""
    network = keras.Sequential([keras.Input(IMAGE), AREA[name](), layers.Flatten(), layers.Dense(1)])
    model = ebm.EnergyModel(network)
    x = np.random.default_rng(0).normal(size=(200, *IMAGE)).astype("float32")
    model.adapt(x)
    for call in (lambda: model.score(x[:2]), lambda: derivatives.score(network, x[:2])):
        with pytest.raises(
            ValueError, match=r"The score needs derivatives of the network, .*`own`.*by ResizeArea, which has no"
        ):
            call()
    with pytest.raises(ValueError, match=r"needs derivatives of the network, .*`own`.*by ResizeArea"):
        model.compile("adam", "contrastive_divergence")
    model.compile("adam", "noise_contrastive_estimation")
    model.fit(x, verbose=0)


def test_a_layer_in_a_subclassed_model_is_named_too():
    model = ebm.EnergyModel(Nested(), event_shape=IMAGE)
    with pytest.raises(ValueError, match="`culprit`"):
        model.compile("adam", "denoising_score_matching")


def test_other_errors_are_left_as_they_are():
    def broken(x):
        raise LookupError("something else")

    with pytest.raises(LookupError, match="something else"):
        derivatives.hvp(broken, [[1.0]], [[1.0]])


def test_written_out_moments_are_right_and_pass():
    def written_out(x):
        mean = tf.reduce_mean(x, [1], keepdims=True)
        return (x - mean) / tf.sqrt(tf.reduce_mean((x - mean) ** 2, [1], keepdims=True) + 1e-3)

    x = points((3, 6))
    layer = Calls(written_out, dtype="float64")
    assert error_of_second_derivative(layer, x) < 1e-6
    derivatives.laplacian(keras.Sequential([keras.Input((6,)), Calls(written_out), layers.Dense(1)]), tf.ones([2, 6]))

    def by_moments(x):
        mean, variance = tf.nn.moments(x, [1], keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-3)

    assert error_of_second_derivative(Calls(by_moments, dtype="float64"), x) > 1e-3


# ------------------------------------------------------------- many directions in reverse mode, under XLA (8)


class Swap(layers.Layer):
    """Transposes each row as a matrix; it has no forward rule."""

    def call(self, x):
        side = int(x.shape[-1] ** 0.5)
        return keras.ops.reshape(keras.ops.swapaxes(keras.ops.reshape(x, (-1, side, side)), 1, 2), (-1, side**2))


def swapping(size, dtype="float64"):
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((size,), dtype=dtype),
            layers.Dense(16, "tanh", dtype=dtype),
            Swap(dtype=dtype),
            layers.Dense(4, "softplus", dtype=dtype),
            layers.Dense(1, dtype=dtype),
        ]
    )
    randomize(network)
    return network


def trace_by_differences(network, x):
    energy = lambda x: network(x)[:, 0]  # noqa: E731
    total = 0.0
    for i in range(x.shape[1]):
        e = tf.one_hot([i], x.shape[1], dtype=x.dtype)
        total += (gradient(energy, x + STEP * e) - gradient(energy, x - STEP * e))[:, i] / (2 * STEP)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 9, 20])
@pytest.mark.parametrize("compiled", [False, True])
def test_traces_and_their_gradients_in_any_dimension_also_under_xla(size, compiled):
    network, x = swapping(size), points((3, size))
    weights = [w.value for w in network.trainable_variables]

    def loss(x, method="reverse"):
        with tf.GradientTape() as tape:
            _, s, trace = derivatives.energy_score_laplacian(network, x, method)
            value = tf.reduce_mean(0.5 * tf.reduce_sum(s**2, -1) - trace)
        return trace, tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    trace, gradients = tf.function(loss, jit_compile=compiled)(x)
    assert relative_error(trace, trace_by_differences(network, x)) < 1e-6
    # the twin: every direction by its own Hessian-vector product
    with tf.GradientTape() as tape:
        s = derivatives.score(network, x)
        unit = tf.eye(size, dtype=x.dtype)
        twin = sum(derivatives.hvp(network, x, tf.tile(unit[i : i + 1], [3, 1]))[:, i] for i in range(size))
        value = tf.reduce_mean(0.5 * tf.reduce_sum(s**2, -1) - twin)
    for a, b in zip(gradients, tape.gradient(value, weights, unconnected_gradients="zero"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_many_directions_of_the_users_own(compiled):
    """vᵀHv for 11 directions and its gradient in the weights and in v."""
    network, x, v = swapping(9), points((3, 9)), points((11, 3, 9), 4)
    weights = [w.value for w in network.trainable_variables]

    def bends(v, method):
        with tf.GradientTape() as tape:
            tape.watch(v)
            _, _, bend = derivatives.directional_derivatives(network, x, v, method)
            value = tf.reduce_sum(bend**2)
        return bend, tape.gradient(value, [v, *weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)

    bend, gradients = tf.function(lambda v: bends(v, "reverse"), jit_compile=compiled)(v)
    single = [bends(v[k : k + 1], "reverse") for k in range(11)]
    np.testing.assert_allclose(bend, tf.concat([b for b, _ in single], 0), rtol=1e-9)
    np.testing.assert_allclose(gradients[0], tf.concat([g[0] for _, g in single], 0), rtol=1e-8, atol=1e-10)
    for i in range(len(weights)):
        np.testing.assert_allclose(gradients[1 + i], sum(g[1 + i] for _, g in single), rtol=1e-8, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    "loss", [ebm.losses.ScoreMatching(), ebm.losses.SlicedScoreMatching(num_projections=10)], ids=["exact", "sliced"]
)
def test_score_matching_compiles_beyond_eight_coordinates(loss):
    x = np.random.default_rng(0).normal(size=(64, 9)).astype("float32")
    losses = []
    for compiled in (True, False):
        model = ebm.EnergyModel(swapping(9, "float32"))
        model.compile(keras.optimizers.SGD(1e-2), type(loss).from_config(loss.get_config()), jit_compile=compiled)
        losses.append(model.fit(x, verbose=0, shuffle=False, epochs=2).history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_dropout_and_plain_callables_share_one_pass_of_all_directions():
    """Noise drawn again for each chunk would make the trace that of another energy."""
    network = keras.Sequential(
        [keras.Input((9,)), layers.Dense(9, "tanh"), layers.Dropout(0.5), Swap(), layers.Dense(1)]
    )
    model = ebm.EnergyModel(network)
    energy = model.energy_function.in_mode(True)
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 9)), tf.float32)
    assert derivatives.laplacian(energy, x, "reverse").shape == [4]
    scale = tf.constant(2.0)  # captured, and differentiated
    with tf.GradientTape() as tape:
        tape.watch(scale)
        trace = derivatives.laplacian(lambda x: scale * tf.reduce_sum(x**2, -1), tf.ones([1, 20]), "reverse")
    assert float(tape.gradient(trace, scale)) == pytest.approx(40.0)


def test_planted_loop_over_directions(monkeypatch):
    """Control: the loop that was there does not pass XLA."""
    from tfp_ebm.derivatives import engine

    monkeypatch.setattr(engine, "UNROLLED", 100)
    monkeypatch.setattr(reverse, "MAX_UNROLLED", 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="compile-time constant"):
        test_traces_and_their_gradients_in_any_dimension_also_under_xla(9, True)


# ---------------------------------------------------------------------------------- networks that mix rows (13)


class MinibatchDeviation(layers.Layer):
    def call(self, x):
        deviation = keras.ops.mean(keras.ops.std(x, axis=0))
        return keras.ops.concatenate([x, deviation * keras.ops.ones_like(x[:, :1])], -1)


class Groups(layers.Layer):
    def call(self, x):
        grouped = tf.reshape(x, [-1, 4, x.shape[-1]])
        return tf.reshape(grouped - tf.reduce_mean(grouped, 1, keepdims=True), [-1, x.shape[-1]])


class Ranks(layers.Layer):
    """Adds each row's rank in the batch, which has no gradient."""

    def call(self, x):
        order = tf.argsort(tf.argsort(x[:, 0]))
        return x + tf.cast(order, x.dtype)[:, None]


def below(function):
    """A layer that passes to each row what comes of the rows above it; the first row has none."""
    return layers.Lambda(function, output_shape=(4,), name="culprit")


def mixing(layer):
    return keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh"), layer, layers.Dense(1)])


MIXING = {
    "minibatch deviation": lambda: MinibatchDeviation(name="culprit"),
    "mean of the batch": lambda: layers.Lambda(lambda x: x - tf.reduce_mean(x, 0), output_shape=(4,), name="culprit"),
    "softmax over rows": lambda: layers.Softmax(axis=0, name="culprit"),
    "attention between rows": lambda: layers.Lambda(
        lambda x: tf.nn.softmax(x @ tf.transpose(x)) @ x, output_shape=(4,), name="culprit"
    ),
    "ranks": lambda: Ranks(name="culprit"),
    "sum of the rows above": lambda: below(lambda x: tf.cumsum(x, 0)),
    "largest of the rows above": lambda: below(lambda x: tf.stop_gradient(tf.math.cumulative_logsumexp(x, 0))),
    "number of the row": lambda: below(lambda x: x + tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None]),
    "shift": lambda: layers.Lambda(lambda x: x + tf.roll(x, 1, 0), output_shape=(4,), name="culprit"),
}


@pytest.mark.parametrize("name", MIXING)
def test_networks_that_mix_rows_are_refused_by_name(name):
    with pytest.raises(ValueError, match=r"`network` must give each row an energy of its own.*`culprit`.*no density"):
        ebm.EnergyModel(mixing(MIXING[name]()))


def test_networks_that_need_several_rows_are_refused():
    with pytest.raises(ValueError, match="`network` must take batches of any size, but fails on two rows"):
        ebm.EnergyModel(mixing(Groups()))


@pytest.mark.parametrize("loss", ["noise_contrastive_estimation", "contrastive_divergence"])
def test_batch_normalization_in_training_is_refused_by_every_loss(loss):
    """In inference it is an affine map, and the model can be made; frozen, it can be trained."""
    model = ebm.EnergyModel(mixing(layers.BatchNormalization(name="culprit")))
    moving = [weight.numpy() for weight in model.network.non_trainable_weights]
    with pytest.raises(ValueError, match=r"but in training mode the energy.*`culprit` \(BatchNormalization\)"):
        model.compile("adam", loss)
    for a, b in zip(moving, model.network.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    model.network.get_layer("culprit").trainable = False
    model.compile("adam", loss)


def test_networks_of_single_rows_pass():
    sequence = keras.Sequential(
        [keras.Input((3, 4)), layers.MultiHeadAttention(2, 2) if False else layers.LSTM(3), layers.Dense(1)]
    )
    for network in (
        mixing(ebm.networks.LayerNormalization()),
        mixing(layers.Dropout(0.5)),
        mixing(layers.UnitNormalization()),
        mixing(layers.GaussianNoise(1.0)),
        ebm.networks.mlp([4], dtype="mixed_float16"),
        ebm.networks.mlp([4], dtype="float64"),
        ebm.networks.convnet([8, 8, 1], filters=[4], units=[4]),
        sequence,
    ):
        model = ebm.EnergyModel(network)
        model.compile("adam", "noise_contrastive_estimation")


def test_planted_look_at_the_first_row_alone(monkeypatch):
    """Control: the energy of a first row is the same, whatever follows."""
    network = mixing(below(lambda x: tf.cumsum(x, 0)))
    monkeypatch.setattr(rows, "_mixes", lambda *args: False)
    model = ebm.EnergyModel(network)
    x = tf.constant(np.random.default_rng(0).normal(size=(8, 4)), tf.float32)
    assert float(model.energy(x)[0]) == pytest.approx(float(model.energy(x[:1])[0]), abs=1e-6)
    assert abs(float(model.energy(x)[1]) - float(model.energy(x[1:2])[0])) > 1e-3


def test_planted_blindness_for_rows(monkeypatch):
    monkeypatch.setattr(rows, "_mixes", lambda *args: False)
    model = ebm.EnergyModel(mixing(MinibatchDeviation()))
    x = tf.constant(np.random.default_rng(0).normal(size=(8, 4)), tf.float32)
    assert abs(float(model.energy(x)[0]) - float(model.energy(x[:1])[0])) > 1e-3
