"""Denoising score matching against its closed forms (eqs. 46-52).

For E = ½(x−μ)ᵀP(x−μ) and data of covariance Σ the minimiser is P = (Σ+σ²I)⁻¹, μ = m, and the loss there ½(d/σ² − tr P).
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from energies import Quadratic
from laws import gaussian_data

import tfp_ebm as ebm
from tfp_ebm.random import normal

SIGMA = 0.7
ROWS = 40_000


def least_squares(x, seed, sign=1.0):
    """The exact minimiser (P, Pμ) of the loss over quadratic energies for one draw of the noise, and its errors.

    s(x*) = −Px* + Pμ, so ½‖s + ε/σ‖² is a linear regression of ε/σ on (x*, −1).
    """
    d = x.shape[1]
    epsilon = normal(x.shape, tf.constant(seed), tf.float64).numpy()
    design = np.concatenate([x + SIGMA * epsilon, -np.ones((len(x), 1))], 1)
    target = sign * epsilon / SIGMA
    gram = np.linalg.inv(design.T @ design)
    solution = gram @ design.T @ target  # [d + 1, d]
    residual = target - design @ solution
    errors = np.sqrt(np.outer(np.diag(gram), residual.var(0)))
    return solution[:d].T, errors[:d].T, solution[d]


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_minimiser_is_the_precision_of_the_noised_data(d):
    """|P̂ − (Σ+σ²)⁻¹| within 4 standard errors in each of d² entries: a false alarm once in 16 000/d² seeds."""
    x = gaussian_data(d)
    precision = np.linalg.inv(np.cov(x.T, bias=True).reshape(d, d) + SIGMA**2 * np.eye(d))
    estimate, error, _ = least_squares(x, [d, 1])
    assert np.all(np.abs(estimate - precision) < 4 * error)
    flipped, error, _ = least_squares(x, [d, 1], sign=-1.0)
    assert np.any(np.abs(flipped - precision) > 40 * error)  # with the sign of the target flipped, −P is learned


@pytest.mark.parametrize("d", [1, 3, 5])
def test_fit_finds_that_minimiser(d):
    """The loss has zero gradient at the regression's solution, and `fit` goes there from the identity."""
    x = gaussian_data(d, 4000)
    estimate, _, offset = least_squares(x, [0, 0])
    symmetric = (estimate + estimate.T) / 2  # a quadratic form only sees the symmetric part
    quadratic = Quadratic(dtype="float64")
    model = ebm.EnergyModel(quadratic, event_shape=(d,))
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 400)),
        ebm.losses.DenoisingScoreMatching(SIGMA),
    )
    model.fit(tf.data.Dataset.from_tensors(x).repeat(), steps_per_epoch=400, epochs=1, verbose=0, shuffle=False)
    # 400 draws of the noise are averaged in effect over the last ~100 steps: 5 standard errors of one draw bound it
    _, error, _ = least_squares(x, [0, 0])
    np.testing.assert_allclose(quadratic.precision(), symmetric, atol=5 * error.max())
    np.testing.assert_allclose(
        quadratic.mean, np.linalg.solve(estimate, offset), atol=5 * error.max() * (1 + np.abs(offset).max())
    )


@pytest.mark.parametrize("d", [1, 3])
def test_value_at_the_minimum(d):
    """½(d/σ² − tr P) within 4 standard errors; without the ½ it would be twice that, dozens of errors away."""
    x = gaussian_data(d)
    precision = np.linalg.inv(np.cov(x.T, bias=True).reshape(d, d) + SIGMA**2 * np.eye(d))
    mean = x.mean(0)

    def energy(y):
        return 0.5 * tf.einsum("bi,ij,bj->b", y - mean, precision, y - mean)

    per_example = ebm.losses.DenoisingScoreMatching(SIGMA)(energy, tf.constant(x), seed=5).per_example.numpy()
    truth, error = 0.5 * (d / SIGMA**2 - np.trace(precision)), per_example.std() / np.sqrt(ROWS)
    assert abs(per_example.mean() - truth) < 4 * error
    assert abs(2 * per_example.mean() - truth) > 40 * error


def test_slope_at_zero_is_negative():
    """∂/∂λ of the loss of E = ½λ‖x‖² at λ = 0 is −d: more curvature is better (+d: the negated energy)."""
    x = tf.constant(gaussian_data(3))
    weight = tf.Variable(0.0, dtype=tf.float64)
    with tf.GradientTape() as tape:
        output = ebm.losses.DenoisingScoreMatching(SIGMA)(lambda y: 0.5 * weight * tf.reduce_sum(y**2, -1), x, seed=0)
        loss = tf.reduce_mean(output.per_example)
    slope = tape.gradient(loss, weight)
    # the slope is −E[x*·ε/σ], of variance about d(1 + ‖x‖²/σ²)/n: sd .03
    assert abs(float(slope) + 3.0) < 0.2


def test_naive_twin():
    """Row by row, with finite differences for the score."""
    x, h = np.random.default_rng(0).normal(size=(5, 2)), 1e-6

    def energy(y):
        return np.sin(y[..., 0]) * y[..., 1] + np.cosh(y[..., 0])

    epsilon = normal(x.shape, tf.constant([0, 9]), tf.float64).numpy()
    expected = []
    for row, e in zip(x, epsilon, strict=True):
        star = row + SIGMA * e
        score = [-(energy(star + h * u) - energy(star - h * u)) / (2 * h) for u in np.eye(2)]
        expected.append(0.5 * sum((s + f / SIGMA) ** 2 for s, f in zip(score, e, strict=True)))

    def tensor_energy(y):
        return tf.sin(y[..., 0]) * y[..., 1] + tf.cosh(y[..., 0])

    actual = ebm.losses.DenoisingScoreMatching(SIGMA)(tensor_energy, tf.constant(x), seed=9).per_example
    np.testing.assert_allclose(actual, expected, rtol=1e-7)


def test_images_sum_over_all_axes():
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3, 3, 2)))
    image = ebm.losses.DenoisingScoreMatching(SIGMA)(lambda y: tf.reduce_sum(y**4, [1, 2, 3]), x, seed=0).per_example
    flat = ebm.losses.DenoisingScoreMatching(SIGMA)(lambda y: tf.reduce_sum(y**4, 1), tf.reshape(x, [4, 18]), seed=0)
    np.testing.assert_allclose(image, flat.per_example, rtol=1e-12)


def test_a_constant_in_the_energy_changes_nothing():
    x = tf.constant(gaussian_data(2, 10))
    loss = ebm.losses.DenoisingScoreMatching(SIGMA)
    first, second = (loss(lambda y, c=c: tf.reduce_sum(y**4, -1) + c, x, seed=0).per_example for c in (0.0, 7.0))
    np.testing.assert_array_equal(first, second)


def test_seeds_and_xla():
    x = tf.constant(gaussian_data(2, 50))
    loss = ebm.losses.DenoisingScoreMatching(SIGMA)

    def value(seed):
        return loss(lambda y: tf.reduce_sum(tf.tanh(y), -1), x, seed=seed).per_example

    np.testing.assert_array_equal(value(3), value((0, 3)))
    assert not np.array_equal(value(3), value(4))
    np.testing.assert_allclose(tf.function(value, jit_compile=True)(tf.constant([0, 3])), value(3), rtol=1e-10)


@pytest.mark.parametrize("sigma", [0, -1.0, float("nan"), float("inf"), "a", None, [0.1], True])
def test_bad_sigma(sigma):
    with pytest.raises((ValueError, TypeError), match="`sigma` must be a positive number, got"):
        ebm.losses.DenoisingScoreMatching(sigma)


def test_config_and_contract():
    loss = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(ebm.losses.DenoisingScoreMatching(0.3))
    )
    assert loss.sigma == 0.3 and ebm.losses.get("denoising_score_matching").sigma == 0.1
    x = tf.zeros([4, 2])
    with pytest.raises(TypeError, match="`seed` must be an int or two ints"):
        loss(lambda y: tf.reduce_sum(y, -1), x, seed=None)
    with pytest.raises(ValueError, match="takes no labels"):
        loss(lambda y: tf.reduce_sum(y, -1), x, tf.zeros([4]), seed=0)

    class Undeclared(ebm.losses.Loss):
        def call(self, energy_fn, x, condition, *, seed, training):
            return ebm.losses.LossOutput(energy_fn(x), {"surprise": 0.0})

    with pytest.raises(ValueError, match="declares metric_names"):
        Undeclared()(lambda y: tf.reduce_sum(y, -1), x, seed=0)
