"""The forward Laplacian on a zoo of networks, against finite differences of the score and against reverse mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from derivatives_zoo import PIECEWISE_LINEAR, ZOO, build, states

from tfp_ebm.derivatives import activations, directional_derivatives, energy_score_laplacian, explain, score
from tfp_ebm.derivatives import forward_laplacian as engine

# TensorFlow has no second derivative of softsign, so the reverse method cannot be a twin where it occurs.
# Grouped convolutions run there through XLA, too slowly to compile for a test; `test_grouped_convolutions` has a twin.
NO_REVERSE = ("dense, softsign", "elementwise operations", "Conv2D, groups")


@pytest.fixture(autouse=True)
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


class _Recorder(dict):
    """The table of rules, noting which are used."""

    def __init__(self, table):
        super().__init__(table)
        self.used = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)


def finite_difference_laplacian(network, x, step=1e-5):
    """−Σᵢ ∂ᵢ scoreᵢ by central differences, all coordinates in one batch."""
    batch, size = len(x), x[0].size
    shifts = step * np.eye(size).reshape(size, 1, *x.shape[1:])
    rows = np.concatenate([x + shifts, x - shifts]).reshape(-1, *x.shape[1:])
    scores = score(network, tf.constant(rows)).numpy().reshape(2, size, batch, size)
    return -np.einsum("ibi->b", scores[0] - scores[1]) / (2 * step)


def laplacian_error(network, x):
    """Largest error of the forward Laplacian against finite differences, relative to the largest value."""
    exact = energy_score_laplacian(network, tf.constant(x), method="forward")[2].numpy()
    numeric = finite_difference_laplacian(network, x)
    return np.max(np.abs(exact - numeric)) / np.max(np.abs(numeric))


def with_score_matching_gradient(network, x, method):
    """E, score and Laplacian, and the parameter gradient of mean ½‖score‖² − tr ∇²E (eq. 44) as one vector."""
    weights = [variable.value for variable in network.trainable_variables]
    with tf.GradientTape() as tape:
        derivatives = energy_score_laplacian(network, tf.constant(x), method=method)
        square = tf.reduce_sum(tf.reshape(derivatives[1], [len(x), -1]) ** 2, 1)
        loss = tf.reduce_mean(0.5 * square - derivatives[2])
    gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return derivatives, np.concatenate([np.ravel(gradient) for gradient in gradients] + [np.zeros(1)])


@pytest.mark.parametrize("name", ZOO)
def test_forward_laplacian_is_right(name):
    network = build(name)
    x = states(network)
    forward, gradient = with_score_matching_gradient(network, x, "forward")
    np.testing.assert_allclose(forward[0], np.reshape(network(x), -1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(forward[1], score(network, x), rtol=1e-9, atol=1e-10)
    numeric = finite_difference_laplacian(network, x)
    scale = np.max(np.abs(numeric))
    np.testing.assert_allclose(forward[2], numeric, rtol=0, atol=1e-5 * max(scale, 1e-3))
    assert scale > 1e-3, "a zoo network whose Laplacian vanishes tests nothing"

    if name not in NO_REVERSE:
        reverse, expected = with_score_matching_gradient(network, x, "reverse")
        np.testing.assert_allclose(forward[2], reverse[2], rtol=0, atol=1e-9 * scale)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8 * max(np.max(np.abs(expected)), 1.0))


@pytest.mark.slow
def test_grouped_convolutions():
    """A grouped convolution is one convolution for each group: parameter gradients of the exact loss equal those of
    that twin by the reverse method, and with the two groups' kernels exchanged they do not."""

    def network(convolve):
        inputs = keras.Input((3, 3, 4), dtype="float64")
        hidden = convolve(keras.layers.Activation("tanh")(inputs))
        return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(3, "silu")(keras.layers.Flatten()(hidden))))

    layer = keras.layers.Conv2D(4, 2, groups=2, padding="same", activation="tanh")
    parts = [keras.layers.Conv2D(2, 2, padding="same", activation="tanh") for _ in range(2)]
    grouped = network(layer)
    twin = network(
        lambda x: keras.layers.Concatenate()([part(x[..., 2 * i : 2 * i + 2]) for i, part in enumerate(parts)])
    )

    def of_parts(weights):
        """A gradient or weights of the grouped network, as those of the twin's: kernels and biases cut in two."""
        kernel, bias, *others = weights
        halves = [array[..., 2 * i : 2 * i + 2] for i in range(2) for array in (kernel, bias)]
        return [*halves, *others]

    rng = np.random.default_rng(0)
    grouped.set_weights([0.5 * rng.normal(size=weight.shape) for weight in grouped.get_weights()])
    x = rng.normal(size=(3, 3, 3, 4))

    derivatives, gradient = with_score_matching_gradient(grouped, x, "forward")
    shapes = [weight.shape for weight in grouped.weights]
    pieces = np.split(gradient[:-1], np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    pieces = of_parts([piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)])
    gradient = np.concatenate([np.ravel(piece) for piece in pieces])

    def error(weights):
        twin.set_weights(weights)
        expected_derivatives, expected = with_score_matching_gradient(twin, x, "reverse")
        return max(np.max(np.abs(derivatives[2] - expected_derivatives[2])), np.max(np.abs(gradient - expected[:-1])))

    right = of_parts(grouped.get_weights())
    assert error(right) < 1e-8
    assert error([*right[2:4], *right[:2], *right[4:]]) > 1e-2


@pytest.mark.slow
def test_every_rule_lives_in_the_zoo(monkeypatch):
    """A rule that no network of the zoo passes through is a rule that nothing tests."""
    recorder = _Recorder(engine.RULES)
    monkeypatch.setattr(engine, "RULES", recorder)
    assert {name: explain(build(name)).reasons for name in ZOO} == dict.fromkeys(ZOO, ())
    packages = ("keras.", "tensorflow.", "tfp_ebm.networks.")
    keras_rules = {key for key in engine.RULES if getattr(key, "__module__", "").startswith(packages)}
    assert keras_rules - recorder.used - {tf.square, tf.math.reciprocal} == set()


def test_zoo_is_large_enough():
    assert len(ZOO) >= 40
    smooth = set(activations.ELEMENTWISE) - {tf.square, tf.math.reciprocal}
    assert {f"dense, {function.__name__}" for function in smooth} <= set(ZOO)
    assert {function.__name__ for function in activations.PIECEWISE_LINEAR} == set(PIECEWISE_LINEAR.split())


@pytest.mark.parametrize("factor", [0.0, 2.0, -1.0])
def test_planted_mistakes_are_found(factor, monkeypatch):
    """Negative control: a rule that bends wrongly fails the very check above."""
    network, x = build("dense, elu"), states(build("dense, elu"))
    assert laplacian_error(network, x) < 1e-5
    right = engine.RULES[keras.activations.elu]

    def wrong(function, jet):
        result = right(function, jet)
        value, bend = result._bends.steps.pop()
        result._bends.steps.append((value, factor * bend))
        return result

    monkeypatch.setitem(engine.RULES, keras.activations.elu, wrong)
    assert laplacian_error(network, x) > 1e-3


@pytest.mark.parametrize("name", ["residual convolutions", "nested models"])
def test_xla_agrees(name):
    network = build(name)
    x = tf.constant(states(network))
    compiled = tf.function(lambda y: energy_score_laplacian(network, y, method="forward"), jit_compile=True)
    for ours, twin in zip(compiled(x), energy_score_laplacian(network, x, method="forward"), strict=True):
        np.testing.assert_allclose(ours, twin, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dense, silu", "squeeze and excitation", "Add, residual", "Concatenate"])
def test_directional_derivatives_on_both_roads(name):
    network = build(name)
    x = states(network)
    v = np.random.default_rng(3).normal(size=(2, *x.shape))
    step = 1e-4
    moved = [np.reshape(network((x + t * v).reshape(-1, *x.shape[1:])), v.shape[:2]) for t in (-step, 0.0, step)]
    for method in ("forward", "reverse"):
        energy, slope, bend = directional_derivatives(network, tf.constant(x), tf.constant(v), method=method)
        np.testing.assert_allclose(energy, moved[1][0], rtol=1e-12)
        np.testing.assert_allclose(slope, (moved[2] - moved[0]) / (2 * step), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(bend, (moved[2] - 2 * moved[1] + moved[0]) / step**2, rtol=1e-5, atol=1e-6)
    several = directional_derivatives(network, tf.constant(x), tf.constant(v))
    for k in range(2):
        for part, single in zip(several[1:], directional_derivatives(network, x, v[k])[1:], strict=True):
            np.testing.assert_allclose(part[k], single, rtol=1e-12)
