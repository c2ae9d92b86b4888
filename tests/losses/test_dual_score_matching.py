"""Dual score matching and its closed forms: E(y, t) = ½(y−m)ᵀ(Σ + tI)⁻¹(y−m) + ½ log det(Σ + tI) at every σ² = t."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conditional_energies import Blurred
from laws import gaussian_data

import tfp_ebm as ebm
from tfp_ebm.losses import dual_score_matching as module
from tfp_ebm.random import fold_in, normal

LOW, HIGH = 0.3, 4.0


def loss_of(**kwargs):
    return ebm.losses.DualScoreMatching(LOW, HIGH, **kwargs)


def moments(x):
    return x.mean(0), np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1])


def family(mean, covariance, precisions, constants):
    """The truth plus Σₖ φₖ(log t) (½(y−m)ᵀBₖ(y−m) + cₖ/k), φₖ = cos(kπu), u the place of log t; k = 0 has no c."""
    values, vectors = (tf.constant(part) for part in np.linalg.eigh(covariance))

    def energy(y, sigma):
        t = sigma**2
        place = tf.math.log(sigma / LOW) / np.log(HIGH / LOW)
        bumps = tf.cos(np.pi * tf.range(len(precisions), dtype=tf.float64) * place[:, None])
        along = tf.matmul(y - mean, vectors)
        widths = values + t[:, None]
        truth = 0.5 * tf.reduce_sum(along**2 / widths + tf.math.log(2 * np.pi * widths), -1)
        other = 0.5 * tf.einsum("bk,kij,bi,bj->b", bumps, precisions, y - mean, y - mean)
        return truth + other + tf.einsum("bk,k->b", bumps[:, 1:], constants)

    return energy


def t_values(loss, x, num_batches=40, negate=False):
    """The means of the gradient in B and c at B = c = 0, in standard errors, by independent batches."""
    mean, covariance = moments(x)
    size = x.shape[1]

    @tf.function
    def gradient(seed):
        precisions, constants = tf.zeros([3, size, size], tf.float64), tf.zeros([2], tf.float64)
        with tf.GradientTape() as tape:
            tape.watch([precisions, constants])
            energy = family(mean, covariance, precisions, constants)
            rows = tf.gather(x, tf.random.stateless_uniform([1000], fold_in(seed, 7), 0, len(x), tf.int32))
            value = tf.reduce_mean(loss(energy, rows, seed=seed).per_example)
        slopes = tape.gradient(value, [precisions, constants])
        return tf.concat([tf.reshape(slopes[0] + tf.linalg.matrix_transpose(slopes[0]), [-1]), slopes[1]], 0)

    draws = np.array([gradient(tf.constant([3, i])) for i in range(num_batches)])
    return np.abs(draws.mean(0)) / (draws.std(0, ddof=1) / np.sqrt(num_batches))


@pytest.mark.slow
@pytest.mark.parametrize("average_targets", [False, True])
@pytest.mark.parametrize("d", [1, 3])
def test_minimiser_at_every_level(d, average_targets, monkeypatch):
    """The gradient vanishes at the truth, in P(t) and in the constant along three waves of log t: within 4 standard
    errors of 40 batches, in at most 20 different entries (a false alarm once in 180 seeds by t₃₉'s tail). With the
    level's target of the other sign, without its d, or with the data blurred by twice t, it is over 12 away."""
    x = gaussian_data(d, 20_000)
    assert t_values(loss_of(average_targets=average_targets), x).max() < 4
    if average_targets:
        honest = module.averaged_targets
        wrong_targets = {
            "sign": lambda *a: (honest(*a)[0], -honest(*a)[1]),
            "d": lambda *a: (honest(*a)[0], honest(*a)[1] - 0.5 * d),
            "t": lambda x, y, sigma: honest(x, y, np.sqrt(2.0) * sigma),
        }
        name = "averaged_targets"
    else:
        own = module.own_targets
        wrong_targets = {"sign": lambda z: -own(z), "d": lambda e: own(e) - 0.5 * d, "half": lambda u: 2 * own(u)}
        name = "own_targets"
    for wrong in wrong_targets.values():
        monkeypatch.setattr(module, name, wrong)
        assert t_values(loss_of(average_targets=average_targets), x).max() > 12


def values_at_the_truth(covariance):
    """The expected two terms at the truth: (d − tr A)/d and (½ tr C² + tr AC)/(d/2), A = t(Σ + tI)⁻¹, C = I − A."""
    d = len(covariance)
    sigmas = np.exp(np.linspace(np.log(LOW), np.log(HIGH), 2001))
    terms = []
    for t in sigmas**2:
        a = t * np.linalg.inv(covariance + t * np.eye(d))
        c = np.eye(d) - a
        terms.append([1 - np.trace(a) / d, (0.5 * np.trace(c @ c) + np.trace(a @ c)) / (d / 2)])
    return np.trapezoid(terms, dx=1 / 2000, axis=0)


@pytest.mark.parametrize("d", [1, 4])
def test_values_and_weights_at_the_minimum(d):
    """Both terms and their sum by `level_weight`, within 4 standard errors of 20 batches; without the weights t/d or
    t²/(d/2) they would be off by far more than 20."""
    x = gaussian_data(d)
    mean, covariance = moments(x)
    energy = family(mean, covariance, np.zeros([1, d, d]), np.zeros([0]))
    outputs = [loss_of(level_weight=3.0)(energy, tf.constant(x[i::20]), seed=i) for i in range(20)]
    parts = np.array([[o.metrics["score_error"], o.metrics["level_error"]] for o in outputs])
    errors = parts.std(0, ddof=1) / np.sqrt(20)
    expected = values_at_the_truth(covariance)
    assert (np.abs(parts.mean(0) - expected) < 4 * errors).all()
    assert (expected > 20 * errors).all()  # a factor of two is far outside
    total = np.mean([o.per_example for o in outputs])
    np.testing.assert_allclose(total, parts.mean(0) @ [1.0, 3.0], rtol=1e-12)


@pytest.mark.slow
def test_averaged_targets_have_the_same_mean_and_less_variance():
    """By direct sums over the batch; and against rows of two points, where the posterior weights are known."""
    x = gaussian_data(2, 50)
    sigma = module.sigma_of_rows(LOW, HIGH, tf.constant(x), tf.constant([0, 1])).numpy()
    y = x + sigma[:, None] * np.random.default_rng(1).normal(size=x.shape)
    z = (y[:, None] - x) / sigma[:, None, None]
    weights = np.exp(-0.5 * (z**2).sum(-1))
    weights /= weights.sum(1, keepdims=True)
    score, level = module.averaged_targets(*map(tf.constant, (x, y, sigma)))
    np.testing.assert_allclose(score, np.einsum("ij,ijd->id", weights, z), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(level, (weights * (2 - (z**2).sum(-1)) / 2).sum(1), rtol=1e-9, atol=1e-9)
    energy = family(*moments(x), np.zeros([1, 2, 2]), np.zeros([0]))
    spread = [
        np.var([float(tf.reduce_mean(loss_of(average_targets=on)(energy, x, seed=i).per_example)) for i in range(30)])
        for on in (False, True)
    ]
    assert spread[1] < 0.7 * spread[0]  # an F ratio of 29 and 29 batches


@pytest.mark.slow
def test_levels_naive_twin_and_xla():
    """Levels are log-uniform for every place in a batch; row by row with finite differences, in images, under XLA."""
    x = np.random.default_rng(0).normal(size=(6, 2, 1))
    levels = np.array([module.sigma_of_rows(LOW, HIGH, tf.constant(x), tf.constant([0, i])) for i in range(400)])
    shares = np.log(levels / LOW) / np.log(HIGH / LOW)
    gaps = np.diff(np.sort(shares, 1), axis=1)
    np.testing.assert_allclose(gaps, 1 / 6, rtol=1e-9)
    assert (np.abs(shares.mean(0) - 0.5) < 4 * np.sqrt(1 / 12 / 400)).all() and shares.std(0).min() > 0.25

    def energy(y, sigma):
        return np.sin(y[..., 0, 0]) * y[..., 1, 0] / sigma + np.cosh(y[..., 0, 0]) + np.log(sigma)

    def tensor_energy(y, sigma):
        return tf.sin(y[:, 0, 0]) * y[:, 1, 0] / sigma + tf.cosh(y[:, 0, 0]) + tf.math.log(sigma)

    seed, h = tf.constant([0, 9]), 1e-6
    sigmas = module.sigma_of_rows(LOW, HIGH, tf.constant(x), seed).numpy()
    epsilon = normal(x.shape, fold_in(seed, 1), tf.float64).numpy()
    expected = []
    for row, z, sigma in zip(x, epsilon, sigmas, strict=True):
        y, t = row + sigma * z, sigma**2
        units = h * np.eye(2).reshape(2, 2, 1)
        slope = np.array([(energy(y + u, sigma) - energy(y - u, sigma)) / (2 * h) for u in units])
        in_t = (energy(y, np.sqrt(t + h)) - energy(y, np.sqrt(t - h))) / (2 * h)
        target = 2 / (2 * t) - np.sum((y - row) ** 2) / (2 * t**2)
        expected.append(t / 2 * np.sum((slope - (y - row).ravel() / t) ** 2) + t**2 * (in_t - target) ** 2)
    loss = loss_of()
    np.testing.assert_allclose(loss(tensor_energy, tf.constant(x), seed=9).per_example, expected, rtol=1e-6)
    compiled = tf.function(lambda y, s: loss(tensor_energy, y, seed=s).per_example, jit_compile=True)
    np.testing.assert_allclose(compiled(tf.constant(x), seed), expected, rtol=1e-6)


def test_fit_learns_the_family_and_refusals():
    """½‖x‖²/(a + bσ²) lacks the log determinant, so only denoising alone finds a = s², b = 1, in 300 steps."""
    x = np.random.default_rng(0).normal(size=(2000, 2))
    x *= 2.0 / np.sqrt(np.mean(x**2))
    network = Blurred(dtype="float64")
    model = ebm.EnergyModel(network, event_shape=(2,))
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 300)
    loss = ebm.losses.DualScoreMatching(1.0, 4.0, level_weight=0.0)
    model.compile(keras.optimizers.Adam(schedule), loss)
    network.factors.assign([1.0, 2.0])
    history = model.fit(tf.data.Dataset.from_tensors(x).repeat(), steps_per_epoch=300, verbose=0, shuffle=False)
    np.testing.assert_allclose(network.factors, [4.0, 1.0], atol=0.06)
    assert {"score_error", "level_error"} <= set(history.history)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert (again.sigma_min, again.sigma_max, again.level_weight, again.average_targets) == (1.0, 4.0, 0.0, False)
    for arguments, name in (
        ((0.0, 1.0), "`sigma_min`"),
        ((1.0, np.inf), "`sigma_max`"),
        ((1.0, 1.0), "`sigma_min` must be below"),
        ((1.0, 2.0, -1.0), "`level_weight`"),
        ((1.0, 2.0, 1.0, 1), "`average_targets`"),
    ):
        with pytest.raises((TypeError, ValueError), match=name):
            ebm.losses.DualScoreMatching(*arguments)
    with pytest.raises(ValueError, match="noise scale is None"):
        loss(lambda y, sigma: tf.reduce_sum(y**2, -1), x, seed=0)
    with pytest.raises(ValueError, match=r"DualScoreMatching.*`network` must take \(x, condition\)"):
        ebm.EnergyModel(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])).compile("adam", loss)
