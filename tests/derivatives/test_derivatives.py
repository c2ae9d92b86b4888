"""`tfp_ebm.derivatives`: closed forms, both methods against each other, chunks, compilation, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from keras import layers
from laws import rng

from tfp_ebm import derivatives
from tfp_ebm.derivatives import (
    directional_derivatives,
    energy_score_curvature,
    energy_score_laplacian,
    explain,
    forward_laplacian_rule,
    hvp,
    laplacian,
    score,
)
from tfp_ebm.derivatives.activations import CLOSED_FORMS, value_slope_bend
from tfp_ebm.derivatives.forward_laplacian import RULES
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.standardization import Standardization
from tfp_ebm.model.energy_model import EnergyModel


def mlp(size=5, activation="silu", dtype="float64", units=8):
    dense = [layers.Dense(units, activation=activation, dtype=dtype, bias_initializer="normal") for _ in range(2)]
    at = keras.Input((size,), dtype="float64" if dtype == "float64" else "float32")
    return keras.Sequential([at, *dense, layers.Dense(1, dtype=dtype)], name="mlp")


def as_float64(make):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        return make()
    finally:
        keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def network():
    return as_float64(mlp)


def energy_function(network, size, training=False):
    return EnergyFunction(network, (size,), Standardization((size,), "float32"), training=training)


class Subclassed(keras.Model):
    """A network whose graph cannot be read."""

    def __init__(self, inner):
        super().__init__(dtype=inner.dtype)
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def quadratic(size):
    """½ xᵀPx with a random symmetric P, over any leading dimensions."""
    root = rng().normal(size=(size, size))
    precision = root @ root.T + np.eye(size)
    return precision, lambda x: 0.5 * tf.einsum("...i,ij,...j->...", x, precision, x)


@pytest.mark.parametrize("size", [1, 2, 6, 12])
@pytest.mark.parametrize("leading", [(4,), (2, 3), ()])
def test_closed_forms_of_a_quadratic(size, leading):
    precision, energy = quadratic(size)
    x, v = rng().normal(size=(2, *leading, size))
    np.testing.assert_allclose(score(energy, x), -x @ precision, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(hvp(energy, x, v), v @ precision, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(laplacian(energy, x), np.full(leading, np.trace(precision)), rtol=1e-12)
    value, slope, bend = directional_derivatives(energy, x, v)
    np.testing.assert_allclose(value, energy(x), rtol=1e-12)
    np.testing.assert_allclose(slope, np.sum(v * (x @ precision), -1), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(bend, np.einsum("...i,ij,...j->...", v, precision, v), rtol=1e-10)


def test_slips_of_sign_and_scale_would_show():
    """Negative control of the closed forms: the usual slips are far outside the tolerance."""
    precision, energy = quadratic(3)
    trace = laplacian(energy, rng().normal(size=(4, 3)))
    for slip in (-np.trace(precision), 0.5 * np.trace(precision), np.trace(precision) / 3, 2 * np.trace(precision)):
        assert np.min(np.abs(trace - slip)) > 0.1


@pytest.mark.parametrize("method", ["forward", "reverse", "auto"])
def test_networks_take_leading_dimensions(network, method):
    x, v = rng().normal(size=(2, 2, 3, 5))
    flat = energy_score_laplacian(network, x.reshape(6, 5), method=method)
    for part, whole in zip(flat, energy_score_laplacian(network, x, method=method), strict=True):
        np.testing.assert_allclose(np.reshape(whole, part.shape), part, rtol=1e-12)
    assert energy_score_laplacian(network, x)[1].shape == (2, 3, 5)
    several = energy_score_curvature(network, x, np.stack([v, -2 * v]), method=method)
    np.testing.assert_allclose(several[2][1], 4 * several[2][0], rtol=1e-12)
    assert several[2].shape == (2, 2, 3)
    one = tf.function(
        lambda y: laplacian(network, y, method=method), input_signature=[tf.TensorSpec([None, 5], "float64")]
    )
    np.testing.assert_allclose(one(x[0]), laplacian(network, x[0]), rtol=1e-12)


def test_subclassed_network_takes_the_reverse_road(network):
    hidden = as_float64(lambda: Subclassed(network))
    x, v = rng().normal(size=(2, 4, 5))
    for ours, twin in zip(energy_score_laplacian(hidden, x), energy_score_laplacian(network, x), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-9)
    np.testing.assert_allclose(hvp(hidden, x, v), hvp(network, x, v), rtol=1e-9)
    with pytest.raises(ValueError, match=r"Subclassed.*has no rule.*forward_laplacian_rule"):
        laplacian(hidden, x, method="forward")


def test_unbuilt_networks_are_built_by_the_first_call():
    unbuilt = keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(1)])
    x = tf.constant(rng().normal(size=(3, 2)), tf.float32)
    np.testing.assert_allclose(laplacian(unbuilt, x, "forward"), laplacian(unbuilt, x, "reverse"), rtol=1e-4, atol=1e-6)


def parameter_gradient(energy_fn, weights, x, **options):
    with tf.GradientTape() as tape:
        _, s, trace = energy_score_laplacian(energy_fn, x, **options)
        loss = tf.reduce_mean(0.5 * tf.reduce_sum(s**2, -1) - trace)
    return tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forward", "reverse"])
def test_chunks_and_compilation_change_nothing(network, method):
    x = tf.constant(rng().normal(size=(3, 5)))
    weights = [variable.value for variable in network.trainable_variables]
    expected = parameter_gradient(network, weights, x, method="reverse")
    for chunk_size in (None, 1, 2, 5, 100):
        trace = laplacian(network, x, method=method, chunk_size=chunk_size)
        np.testing.assert_allclose(trace, laplacian(network, x), rtol=1e-12)
    for compiled, chunk_size in ((False, None), (False, 2), (True, None), (True, 2)):
        step = tf.function(
            lambda y, c=chunk_size: parameter_gradient(network, weights, y, method=method, chunk_size=c),
            jit_compile=compiled,
        )
        for ours, twin in zip(step(x), expected, strict=True):
            np.testing.assert_allclose(ours, twin, rtol=1e-8, atol=1e-12)


def _graphs(graph):
    yield graph
    for function in graph._functions.values():
        yield function.graph if hasattr(function, "graph") else function


def largest_tensor(function):
    """Number of elements of the largest tensor of a traced function, its loops included."""
    sizes, kinds = [0], set()
    for graph in _graphs(function.get_concrete_function().graph):
        for operation in graph.get_operations():
            kinds.add(operation.type)
            sizes += [out.shape.num_elements() or 0 for out in operation.outputs if out.shape.is_fully_defined()]
    return max(sizes), kinds


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forward", "reverse"])
def test_chunks_bound_the_memory_of_parameter_gradients(method):
    """Nothing in the traced step holds more than a chunk's rows, and no loop stacks up what its iterations computed."""
    wide = mlp(size=40, units=30, dtype="float32")
    weights = [variable.value for variable in wide.trainable_variables]
    x = tf.zeros([20, 40])

    def traced(chunk_size):
        return largest_tensor(
            tf.function(lambda: parameter_gradient(wide, weights, x, method=method, chunk_size=chunk_size))
        )

    size, kinds = traced(4)
    assert size <= 4 * 20 * 40
    assert not any("TensorList" in kind for kind in kinds)
    size, kinds = traced(None)
    if method == "forward":  # negative control: without chunks the same check sees all directions
        assert size >= 40 * 20 * 30
    else:  # takes chunks of its own
        assert size <= 8 * 20 * 40 and not any("TensorList" in kind for kind in kinds)


def test_third_and_fourth_derivatives_of_closed_forms():
    """Parameter gradients need s''', Hessians in the parameters s''''; each form against plain differentiation."""
    a = tf.constant(np.linspace(-3.1, 3.07, 23))
    for function in set(CLOSED_FORMS) - {keras.activations.softsign}:
        ours, twin = [value_slope_bend(function, a)[0]], [function(a)]

        def differentiate(f, times, at=a):
            if times == 0:
                return f(at)
            with tf.GradientTape() as tape:
                tape.watch(at)
                y = differentiate(f, times - 1, at)
            return tape.gradient(y, at, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        for order in range(1, 5):
            ours.append(differentiate(lambda t, f=function: value_slope_bend(f, t)[0], order))
            twin.append(differentiate(function, order))
        for ours_n, twin_n in zip(ours, twin, strict=True):
            np.testing.assert_allclose(ours_n, twin_n, rtol=1e-9, atol=1e-12 * max(1, np.max(np.abs(twin_n))))


def test_hutchinson():
    precision, energy = quadratic(4)
    x = np.zeros((20_000, 4))
    estimates = laplacian(energy, x, method="hutchinson", seed=3).numpy()
    # Variance of a draw is 2 Σ_{i≠j} P_ij²; five standard errors: false alarms 6e-7. The slip of leaving out the
    # off-diagonal draws (or of a scale off by 1 %) is over 5 standard errors away.
    deviation = np.sqrt(2 * (np.sum(precision**2) - np.sum(np.diag(precision) ** 2)))
    assert abs(estimates.mean() - np.trace(precision)) < 5 * deviation / np.sqrt(len(x))
    np.testing.assert_allclose(estimates.std(), deviation, rtol=0.05)  # sd of a sample sd here is below 1 %
    many = laplacian(energy, x, method="hutchinson", num_probes=4, seed=3).numpy()
    np.testing.assert_allclose(many.std(), deviation / 2, rtol=0.05)
    diagonal = laplacian(
        lambda y: tf.reduce_sum(y**2 * [1.0, 2.0, 3.0, 4.0], -1), tf.zeros([5, 4]), "hutchinson", seed=1
    )
    np.testing.assert_allclose(diagonal, 20.0, rtol=1e-6)  # exact for every draw


def test_hutchinson_is_stateless_and_chunks_agree(network):
    x = tf.constant(rng().normal(size=(3, 5)))
    options = {"method": "hutchinson", "num_probes": 5, "seed": 7}
    first = energy_score_laplacian(network, x, **options)
    for part, again in zip(first, energy_score_laplacian(network, x, chunk_size=2, **options), strict=True):
        np.testing.assert_allclose(part, again, rtol=1e-12)
    np.testing.assert_allclose(first[1], score(network, x), rtol=1e-12)
    assert not np.allclose(first[2], laplacian(network, x, **{**options, "seed": 8}))
    compiled = tf.function(lambda y: laplacian(network, y, chunk_size=2, **options), jit_compile=True)
    np.testing.assert_allclose(compiled(x), first[2], rtol=1e-12)


def model_with_units(base):
    model = EnergyModel(mlp(2, dtype="float32"), base_measure=base)
    model.adapt((rng().normal(size=(500, 2)) * [0.1, 30.0] + [5.0, -3.0]).astype("float32"))
    return model


@pytest.mark.parametrize("tilted", [False, True])
def test_energy_model_and_its_tilt(tilted):
    base = tfp.distributions.MultivariateNormalDiag([4.0, 0.0], [0.2, 50.0]) if tilted else None
    model = model_with_units(base)
    x = tf.constant([[5.1, 20.0], [4.9, -40.0], [5.0, 0.0]])
    energy, s, trace = energy_score_laplacian(model, x)
    np.testing.assert_allclose(energy, model.energy(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(s, model.score(x), rtol=1e-3, atol=1e-4)
    twin = energy_score_laplacian(lambda y: model(y), x, method="reverse")
    np.testing.assert_allclose(trace, twin[2], rtol=1e-3)
    assert np.min(np.abs(trace)) > 0.1
    # in the model's own coordinates, as a loss sees it
    inner = model.energy_function
    z = model.standardization.to_z(x)
    for ours, plain in zip(energy_score_laplacian(inner, z), energy_score_laplacian(inner.__call__, z), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(laplacian(inner, z, chunk_size=1), laplacian(inner, z), rtol=1e-4)


def test_training_mode_is_respected():
    noisy = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dropout(0.5), layers.Dense(1)])
    x = tf.constant(rng().normal(size=(6, 3)), tf.float32)
    still, training = energy_function(noisy, 3), energy_function(noisy, 3, training=True)
    np.testing.assert_allclose(laplacian(still, x, "forward"), laplacian(noisy, x, "reverse"), rtol=1e-4)
    assert not np.allclose(laplacian(training, x), laplacian(still, x))
    with pytest.raises(ValueError, match="training mode"):
        laplacian(training, x, method="forward")
    with pytest.raises(ValueError, match="`chunk_size` must be None"):
        laplacian(training, x, chunk_size=2)


def test_half_precision_networks():
    half = mlp(dtype="mixed_bfloat16")
    exact = mlp(dtype="float32")
    exact.set_weights(half.get_weights())
    x = tf.constant(rng().normal(size=(4, 5)), tf.float32)
    ours, twin = laplacian(energy_function(half, 5), x, method="forward"), laplacian(exact, x)
    assert ours.dtype == tf.float32
    np.testing.assert_allclose(ours, twin, atol=0.1 * np.max(np.abs(twin)))


@pytest.mark.parametrize("kind", ["functional", "sequential", "nested"])
def test_inputs_are_cast_as_keras_casts_them(kind):
    """Layers of float64 in a model of another policy: the dtype of the input decides, not that of the model."""
    at, dense = keras.Input((3,), dtype="float64"), layers.Dense(8, "tanh", dtype="float64")
    last = layers.Dense(1, dtype="float64")
    if kind == "sequential":
        network = keras.Sequential([at, dense, last])
    else:
        inner = keras.Model(at, dense(at))
        network = keras.Model(at, last(inner(at) if kind == "nested" else dense(at)))
    x = tf.constant(rng().normal(size=(5, 3)))
    energy, slope, _ = energy_score_laplacian(network, x, method="forward")
    np.testing.assert_allclose(energy, network(x)[:, 0], rtol=1e-13)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(network(x))
    np.testing.assert_allclose(slope, -tape.gradient(total, x), rtol=1e-12)
    np.testing.assert_allclose(laplacian(network, x, "forward"), laplacian(network, x, "reverse"), rtol=1e-11)


def test_rules_can_be_added(monkeypatch):
    monkeypatch.setattr("tfp_ebm.derivatives.forward_laplacian.RULES", dict(RULES))

    class Wave(keras.layers.Layer):
        def call(self, x):
            return keras.ops.sin(x) * x

    def bump(x):
        return tf.exp(-(x**2))

    network = as_float64(
        lambda: keras.Sequential([keras.Input((3,), dtype="float64"), layers.Dense(4, bump), Wave(), layers.Dense(1)])
    )
    assert explain(network).method == "reverse"
    assert explain(network).reasons == ("bump has no rule", f"Wave '{network.layers[1].name}' has no rule")
    forward_laplacian_rule(Wave)(lambda layer, jet: jet.elementwise(tf.sin) * jet)
    forward_laplacian_rule(bump)(lambda function, jet: jet.elementwise(function))
    assert explain(network).method == "forward"
    x = rng().normal(size=(4, 3))
    np.testing.assert_allclose(laplacian(network, x, "forward"), laplacian(network, x, "reverse"), rtol=1e-9)
    with pytest.raises(TypeError, match=r"`targets`.*'silu'"):
        forward_laplacian_rule("silu")


def test_explain():
    assert str(explain(mlp())) == "method='auto' takes forward mode."
    bent = explain(keras.Sequential([keras.Input((2,)), layers.Dense(3, "relu"), layers.LeakyReLU(), layers.Dense(1)]))
    assert bent.method == "forward"
    assert bent.piecewise_linear[0] == "relu"
    assert bent.piecewise_linear[1].startswith("LeakyReLU")
    assert "zero almost everywhere: relu, LeakyReLU" in str(bent)
    unbuilt = explain(keras.Sequential([layers.Dense(1)]))
    assert unbuilt.method == "reverse"
    assert "not built" in unbuilt.reasons[0]
    inputs = keras.Input((3,))
    mixing = keras.Model(inputs, keras.ops.sum(inputs, axis=0, keepdims=True) * inputs)
    assert "works along the batch axis" in explain(mixing).reasons[0]
    normalised = keras.Sequential([keras.Input((3,)), layers.LayerNormalization(name="norm"), layers.Dense(1)])
    assert explain(normalised).reasons == ("LayerNormalization 'norm' has no rule",)
    assert explain(energy_function(mlp(), 5)).method == "forward"


def test_a_subclass_of_a_known_layer_is_not_that_layer():
    class Doubled(layers.Dense):
        def call(self, inputs, training=None):
            return 2.0 * super().call(inputs)

    network = keras.Sequential([keras.Input((3,)), Doubled(4, "tanh"), layers.Dense(1)])
    assert explain(network).method == "reverse"
    x = tf.constant(rng().normal(size=(4, 3)), tf.float32)
    np.testing.assert_allclose(laplacian(network, x), laplacian(network, x, method="reverse"), rtol=1e-6)


def test_gradients_reach_tensors_that_a_callable_captures():
    scale = tf.Variable(2.0)
    x = tf.constant([[1.0, 2.0]])
    for options in ({}, {"chunk_size": 1}):
        with tf.GradientTape() as tape:
            doubled = 2.0 * scale
            trace = laplacian(lambda y, s=doubled: s * tf.reduce_sum(y**2, -1), x, **options)
        assert float(tape.gradient(trace, scale)) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: laplacian(net, x, method="exact"), ValueError, "`method` must be one of 'auto', 'forward'"),
        (lambda net, x: directional_derivatives(net, x, x, method="hutchinson"), ValueError, "`method` must be one of"),
        (
            lambda net, x: laplacian(net, x, chunk_size=0),
            ValueError,
            "`chunk_size` must be a whole number of at least 1",
        ),
        (lambda net, x: laplacian(net, x, method="hutchinson"), TypeError, "`seed` must be an int"),
        (lambda net, x: laplacian(net, x, method="hutchinson", num_probes=0, seed=1), ValueError, "`num_probes`"),
        (lambda net, x: laplacian(net, x[:, :4]), ValueError, r"`x` must have shape \[..., 5\], got \(3, 4\)"),
        (
            lambda net, x: score(net, tf.ones((3, 5), tf.int64)),
            TypeError,
            "`x` must hold floating-point numbers, got .* int64",
        ),
        (lambda net, x: hvp(net, x, x[:2]), ValueError, r"`v` must have the shape of `x`, \(3, 5\), got \(2, 5\)"),
        (lambda net, x: hvp(net, x, x[None]), ValueError, r"`v` must have the shape of `x`, \(3, 5\), got \(1, 3, 5\)"),
        (
            lambda net, x: directional_derivatives(net, x, x[:, :2]),
            ValueError,
            "or that shape with one more leading axis",
        ),
        (
            lambda net, x: hvp(net, tf.constant(x), tf.constant(x, tf.float32)),
            TypeError,
            "`v` must have the dtype of `x`",
        ),
        (lambda net, x: score(lambda y: tf.constant([1.0] * 3), x), ValueError, "differentiable in x"),
        (lambda net, x: laplacian(lambda y: y[:, :1], x), ValueError, r"must map \[..., \*event\] to \[...\]"),
        (lambda net, x: laplacian(3.0, x), TypeError, "`energy_fn` must be a callable"),
        (lambda net, x: laplacian(net.layers[0], x), ValueError, r"shape \[batch\] or \[batch, 1\], got .*\(3, 8\)"),
        (lambda net, x: laplacian(lambda y: tf.reduce_sum(y, -1), x, "forward"), ValueError, "forward_laplacian_rule"),
    ],
)
def test_bad_input_is_named(network, call, error, message):
    with pytest.raises(error, match=message):
        call(network, rng().normal(size=(3, 5)))


def test_nothing_is_hidden(network):
    x = np.array([[np.nan, 0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5]])
    for method in ("forward", "reverse"):
        assert np.isnan(laplacian(network, x, method=method)).tolist() == [True, False]


def test_public_names():
    assert all(getattr(derivatives, name).__doc__ for name in derivatives.__all__)
