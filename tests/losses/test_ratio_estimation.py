"""Contrastive ratio estimation against a loop in NumPy, and its minimum: the true ratio, for every K and γ."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.losses import ContrastiveRatioEstimation

NOISE = 0.7


def pairs(rows, seed):
    """θ ~ N(0, 1) and x ~ N(θ, .7²), `[rows, 1]` each."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(rows, 1))
    return theta, theta + NOISE * rng.normal(size=(rows, 1))


def features(theta, x):
    """φ with log r = w·φ."""
    theta, x = theta[..., 0], x[..., 0]
    return tf.stack([theta**2, theta * x, x**2, tf.ones_like(theta)], -1)


# log N(x; θ, s²) − log N(x; 0, 1 + s²)
TRUTH = np.array([-0.5, 1.0, -0.5, 0.0]) / NOISE**2 + np.array(
    [0.0, 0.0, 0.5 / (1 + NOISE**2), 0.5 * np.log((1 + NOISE**2) / NOISE**2)]
)


def energy_of(w, x, seen=None):
    """−w·φ of blocks of θ, of which row i has the condition of row i."""

    def energy(theta):
        if seen is not None:
            seen.append(theta.numpy())
        return -tf.linalg.matvec(features(theta, tf.tile(x, [theta.shape[0] // len(x), 1])), w)

    return energy


@pytest.mark.parametrize(("count", "gamma"), [(1, 1.0), (3, 0.5), (4, 6.0)])
def test_agrees_with_a_loop(count, gamma):
    theta, x = pairs(6, 0)
    seen = []
    loss = ContrastiveRatioEstimation(count, gamma)
    output = loss(energy_of(tf.constant(TRUTH), tf.constant(x), seen), theta, seed=3)
    blocks = seen[0].reshape(count + 1, 6)
    np.testing.assert_array_equal(blocks[0], theta[:, 0])
    for i in range(6):
        own, others = blocks[0, i], blocks[1:, i]
        assert own not in others and len(set(others)) == count and set(others) < set(theta[:, 0])
        ratio = [np.exp(TRUTH @ features(np.array([[t]]), x[i : i + 1])[0].numpy()) for t in (own, *others)]
        none = count / (count + gamma * sum(ratio[1:]))
        of_own = gamma * ratio[0] / (count + gamma * sum(ratio[:-1]))
        expected = -(np.log(none) + gamma * np.log(of_own)) / (1 + gamma)
        assert float(output.per_example[i]) == pytest.approx(expected, rel=1e-10)
    other = loss(energy_of(tf.constant(TRUTH), tf.constant(x)), theta, seed=[3, 9])
    assert not np.allclose(other.per_example, output.per_example)  # other contrasts


def slopes(loss, w, shuffled=False, batches=40, rows=500):
    """The mean of the loss's gradient in w over batches, in standard errors."""
    gradients = []
    for number in range(batches):
        theta, x = pairs(rows, [number, 1])
        x = np.roll(x, 1, 0) if shuffled else x
        weights = tf.constant(w)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = tf.reduce_mean(loss(energy_of(weights, tf.constant(x)), theta, seed=number).per_example)
        gradients.append(tape.gradient(value, weights).numpy())
    return np.mean(gradients, 0) / (np.std(gradients, 0, ddof=1) / np.sqrt(batches))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "gamma"), [(1, 1.0), (5, 1.0), (3, 8.0)])
def test_the_true_ratio_is_the_minimum(count, gamma):
    """Four slopes within 4.5 standard errors of 0 (false alarms .0003 for Student's t of 39 degrees of freedom)."""
    loss = ContrastiveRatioEstimation(count, gamma)
    assert np.abs(slopes(loss, TRUTH)).max() < 4.5
    constant = np.array([0.0, 0.0, 0.0, 1.0])
    for planted in (TRUTH + np.log(2) * constant, TRUTH - np.log(2) * constant, 0.8 * TRUTH):  # K or γ left out, scaled
        assert np.abs(slopes(loss, planted)).max() > 6
    assert np.abs(slopes(loss, TRUTH, shuffled=True)).max() > 6  # θ and x do not belong together


def test_a_row_alone_has_nothing_to_contrast_with():
    output = ContrastiveRatioEstimation(4)(lambda theta: theta[:, 0], tf.ones([1, 1]), seed=0)
    assert float(output.per_example[0]) == 0.0


@pytest.mark.slow
def test_the_prior_is_no_part_of_the_ratio_and_the_model_is_saved(tmp_path):
    """The loss of a model with the prior as base measure is that of its network."""
    import tensorflow_probability as tfp

    theta, x = (part.astype("float32") for part in pairs(64, 2))
    inputs = [keras.Input((1,)), keras.Input((1,))]
    network = keras.Model(inputs, ebm.networks.mlp([2], [8], seed=0)(keras.layers.Concatenate()(inputs)))
    prior = tfp.distributions.MultivariateNormalDiag([0.0], [1.0])
    losses = []
    for base in (None, prior):
        model = ebm.EnergyModel(network, base_measure=base)
        model.compile(loss=ContrastiveRatioEstimation(3))
        losses.append(model.evaluate(theta, x, verbose=0))
    assert losses[0] == pytest.approx(losses[1])
    history = model.fit(theta, x, batch_size=32, epochs=2, verbose=0).history
    assert set(history) == {"loss", "accuracy", "mean_log_ratio"}
    model.save(tmp_path / "ratio.keras")
    loaded = keras.saving.load_model(tmp_path / "ratio.keras")
    np.testing.assert_array_equal(loaded.energy(theta, x), model.energy(theta, x))
    assert (loaded.loss.num_contrasts, loaded.loss.gamma) == (3, 1.0)
    # the energy of the posterior: minus the log ratio minus the log prior
    expected = network([theta, x])[:, 0] - prior.log_prob(theta)
    np.testing.assert_allclose(model.energy(theta, x), expected, rtol=1e-4, atol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`num_contrasts`"):
        ContrastiveRatioEstimation(0)
    with pytest.raises(ValueError, match="`gamma`"):
        ContrastiveRatioEstimation(2, gamma=0.0)
    with pytest.raises(ValueError, match="num_contrasts"):
        ebm.losses.get("contrastive_ratio_estimation")
