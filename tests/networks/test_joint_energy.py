"""Classifiers as energies: closed forms in float64, the loss of both terms, `fit` with metrics, files, and refusals."""

import keras
import numpy as np
import pytest
import scipy.special
import sklearn.datasets
import tensorflow as tf
import tensorflow_probability as tfp
from energies import CLASS_MEANS as MEANS
from energies import CLASS_PROBS as PROBS
from energies import GaussianClasses

import tfp_ebm as ebm
from tfp_ebm.losses.base import LossOutput

tfd = tfp.distributions


def classifier(dtype="float32"):
    x = keras.Input([2], dtype=dtype)
    normal = keras.initializers.RandomNormal
    h = keras.layers.Dense(8, "tanh", dtype=dtype, kernel_initializer=normal(stddev=1.0, seed=1))(x)
    logits = keras.layers.Dense(3, dtype=dtype, kernel_initializer=normal(stddev=1.0, seed=2))(h)
    network = keras.Model(x, logits)
    network.dtype_policy = keras.DTypePolicy(dtype)
    return network


def rows(number, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.choice(3, number, p=PROBS)
    return MEANS[y] + rng.normal(size=(number, 2)), y


def test_energies_probabilities_and_curvature_are_those_of_the_logits():
    joint = ebm.networks.JointEnergy(classifier("float64"))
    x, y = rows(20)
    logits = joint.classifier(x).numpy()
    np.testing.assert_allclose(joint(x), -scipy.special.logsumexp(logits, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(joint.energy(x), joint(x))
    np.testing.assert_allclose(joint.energy(x, y), -logits[np.arange(20), y], rtol=1e-12)
    np.testing.assert_allclose(joint.predict_proba(x), scipy.special.softmax(logits, axis=1), rtol=1e-12)
    assert joint.dtype == "float64" and joint.num_classes == 3

    model = ebm.EnergyModel(joint, seed=1)
    model.adapt(100.0 * x + 7.0)
    wide = 100.0 * x + 7.0
    z = model.standardization.to_z(wide)
    shift = np.log(model.standardization.scale.numpy()).sum()
    np.testing.assert_allclose(model.energy(wide), joint(z) + shift, rtol=1e-12)
    np.testing.assert_allclose(model.class_probabilities(wide), joint.predict_proba(z), rtol=1e-12)
    for label in range(3):
        np.testing.assert_allclose(model.given(label).energy(wide), -joint.classifier(z)[:, label] + shift, rtol=1e-12)
    # log Σ_y p(x|y)-like terms is the marginal: energies of the classes add up to that of x
    parts = np.stack([-model.given(label).energy(wide) for label in range(3)], 1)
    np.testing.assert_allclose(scipy.special.logsumexp(parts, axis=1), -model.energy(wide), rtol=1e-12)
    for energy in (model, model.given(1)):
        forward, reverse = (ebm.derivatives.laplacian(energy, wide, method=way) for way in ("forward", "reverse"))
        np.testing.assert_allclose(forward, reverse, rtol=1e-9)
    with pytest.raises(TypeError, match="JointEnergy"):
        ebm.EnergyModel(ebm.networks.mlp([2], units=[4])).class_probabilities(x)


class WithoutLabels(ebm.losses.JointEnergyLoss):
    """A planted mistake: the labels of the next row."""

    def call(self, energy_fn, x, condition, **kwargs):
        return super().call(energy_fn, x, tf.roll(condition, 1, 0), **kwargs)


class Negated(ebm.losses.NoiseContrastiveEstimation):
    """A planted mistake: a density loss that counts with the wrong sign."""

    def call(self, *args, **kwargs):
        output = super().call(*args, **kwargs)
        return LossOutput(-output.per_example, output.metrics)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_class", "density", "is_right"),
    [
        (ebm.losses.JointEnergyLoss, ebm.losses.ScoreMatching, True),
        (ebm.losses.JointEnergyLoss, ebm.losses.NoiseContrastiveEstimation, True),
        (WithoutLabels, ebm.losses.ScoreMatching, False),
        (ebm.losses.JointEnergyLoss, Negated, False),
    ],
)
def test_the_gradient_vanishes_at_the_truth(loss_class, density, is_right):
    """The mean gradient over 60 batches of 200 rows is within 4 standard errors of 0 at the true parameters.

    Nine parameters and log Z of two losses: false alarm rate 1e-3. With labels of other rows the gradient is 100
    standard errors away. The negated density loss changes only the sign of a gradient that vanishes, so it is noticed
    by the curvature: the loss falls when the parameters move.
    """
    joint = ebm.networks.JointEnergy(GaussianClasses())
    model = ebm.EnergyModel(joint, event_shape=(2,), base_measure=None)
    noise = tfd.MultivariateNormalDiag([0.0, 0.0], np.array([2.5, 2.5]))
    inner = density() if density is ebm.losses.ScoreMatching else density(noise, 2.0)
    loss = loss_class(inner)
    model.compile(keras.optimizers.SGD(0.0), loss)
    if density is not ebm.losses.ScoreMatching:
        inner.log_normalizer.assign(np.log(2 * np.pi))
        inner._begun.assign(1)
    weights = [weight.value for weight in model.trainable_variables]
    x, y = rows(12_000)

    @tf.function
    def gradient(x, y, i):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(model.energy_function, x, y, seed=tf.stack([i, 1]), training=True).per_example)
        parts = tape.gradient(value, weights, unconnected_gradients="zero")
        return value, tf.concat([tf.reshape(part, [-1]) for part in parts], 0)

    batches = [(tf.constant(x[i::60]), tf.constant(y[i::60], tf.int32), tf.constant(i)) for i in range(60)]
    slopes = np.array([gradient(*batch)[1] for batch in batches])
    errors = slopes.std(0, ddof=1) / np.sqrt(60)
    deviation = np.abs(slopes.mean(0)) / np.maximum(errors, 1e-12)
    at_truth = np.array([gradient(*batch)[0] for batch in batches])
    joint.classifier.means.assign(MEANS + 0.5)
    moved = np.array([gradient(*batch)[0] for batch in batches])
    rise = (moved - at_truth).mean() / ((moved - at_truth).std(ddof=1) / np.sqrt(60))
    assert (deviation.max() < 4.0 and rise > 4.0) == is_right, (deviation, rise)


def test_the_loss_is_the_sum_of_its_terms():
    x, y = (part[:50] for part in rows(50))
    model = ebm.EnergyModel(ebm.networks.JointEnergy(classifier("float64")))
    logits = model.network.logits(x).numpy()
    entropy = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(50), y]
    inner = ebm.losses.DenoisingScoreMatching(0.3)
    density = inner(model.energy_function, x, seed=3).per_example
    output = ebm.losses.JointEnergyLoss(inner, 0.7)(model.energy_function, x, y, seed=3)
    np.testing.assert_allclose(output.per_example, entropy + 0.7 * density, rtol=1e-10)
    np.testing.assert_allclose(output.metrics["cross_entropy"], entropy.mean(), rtol=1e-10)
    np.testing.assert_allclose(output.metrics["density_loss"], np.mean(density), rtol=1e-10)
    np.testing.assert_array_equal(output.predictions, logits)


@pytest.mark.parametrize(("scale", "is_right"), [(1.0, True), (1.1, False)])
def test_noise_on_classified_rows(scale, is_right):
    """Logits linear in x have standard deviation σ‖w‖: of 8000 rows within 4 standard errors; 10 % more is 12 away."""
    joint = ebm.networks.JointEnergy(keras.layers.Dense(2, dtype="float64"))
    model, x, y = ebm.EnergyModel(joint, event_shape=(2,)), tf.zeros([8000, 2], "float64"), tf.zeros([8000], tf.int32)
    inner = ebm.losses.DenoisingScoreMatching(0.3)
    loss = ebm.losses.JointEnergyLoss(inner, 0.7, label_noise=0.5 * scale)
    output = loss(model.energy_function, x, y, seed=3, training=True)
    plain = inner(model.energy_function, x, seed=3, training=True)
    deviation = 0.5 * np.linalg.norm(joint.classifier.kernel.numpy(), axis=0)
    errors = (np.std(output.predictions, 0) - deviation) / (deviation / np.sqrt(2 * 8000))
    assert (np.abs(errors).max() < 4) == is_right, errors
    # neither the density loss nor an evaluation has this noise
    np.testing.assert_allclose(output.metrics["density_loss"], np.mean(plain.per_example))
    assert np.std(loss(model.energy_function, x, y, seed=3).predictions, 0).max() == 0.0
    assert ebm.losses.JointEnergyLoss.from_config(loss.get_config()).label_noise == 0.5 * scale


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_evaluate_and_files(jit_compile, tmp_path):
    x, y = rows(256)
    x = (30.0 * x + 5.0).astype("float32")
    model = ebm.EnergyModel(ebm.networks.JointEnergy(classifier()), seed=2)
    model.adapt(x)
    chains = ebm.losses.PersistentContrastiveDivergence(num_steps=2, capacity=64)
    density = ebm.losses.DenoisingScoreMatching(0.5) if jit_compile else chains  # XLA compiles chains for a minute
    loss = ebm.losses.JointEnergyLoss(density, 0.1)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"], jit_compile=jit_compile)
    history = model.fit(x, y, batch_size=64, epochs=3, validation_data=(x[:64], y[:64]), verbose=0, shuffle=False)
    assert {"accuracy", "val_accuracy", "cross_entropy", "density_loss"} <= set(history.history)
    assert history.history["accuracy"][-1] > 0.8
    result = model.evaluate(x, y, verbose=0, return_dict=True)
    right = np.mean(np.argmax(model.class_probabilities(x), 1) == y)
    assert result["accuracy"] == pytest.approx(right) and result["accuracy"] > 0.8
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    assert model.evaluate(batches, verbose=0, return_dict=True)["accuracy"] == pytest.approx(right)
    weight = (y == 0).astype("float32")
    assert np.isfinite(model.evaluate(x, y, sample_weight=weight, verbose=0)[0])
    if jit_compile:
        return
    model.save(tmp_path / "joint.keras")
    loaded = keras.saving.load_model(tmp_path / "joint.keras")
    np.testing.assert_array_equal(loaded.class_probabilities(x), model.class_probabilities(x))
    again = [m.fit(x, y, batch_size=64, verbose=0, shuffle=False).history for m in (model, loaded)]
    assert again[0] == again[1] and "accuracy" in again[0]
    given = model.given(2)
    given.save(tmp_path / "class.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "class.keras").energy(x), given.energy(x))
    given.export(tmp_path / "class", kernel=ebm.mcmc.MALA(0.3), verbose=False)
    served = tf.saved_model.load(tmp_path / "class")
    np.testing.assert_array_equal(served.energy(x), given.energy(x))


@pytest.mark.slow
def test_draws_of_a_class_have_its_mean():
    """Means of 2000 draws of p(x|y) within 4 standard errors, .022 each; the classes' means are 2 apart or more."""
    base = tfd.MultivariateNormalDiag([0.0, 0.0], np.array([3.0, 3.0]))
    model = ebm.EnergyModel(ebm.networks.JointEnergy(GaussianClasses()), event_shape=(2,))
    for label in (0, 2):
        draws = ebm.EnergyDistribution(model.given(label), base=base).draw(2000, seed=label)
        assert np.abs(np.mean(draws.states, 0) - MEANS[label]).max() < 4 / np.sqrt(2000) and not draws.trouble


X, Y = rows(12)
X = X.astype("float32")
BAD = {
    "no labels": (lambda m: m.fit(X, verbose=0), ValueError, "`y` must be given"),
    "too few": (lambda m: m.fit(X, Y[:5], verbose=0), ValueError, r"`y` must have shape \(12,\)"),
    "beyond": (lambda m: m.fit(X, Y + 3, verbose=0), ValueError, "`y` must be below the number of classes, 3"),
    "negative": (lambda m: m.fit(X, Y - 3, verbose=0), ValueError, "`y` must be labels"),
    "fractions": (lambda m: m.evaluate(X, X[:, 0], verbose=0), TypeError, "`y` must be labels"),
    "validation": (
        lambda m: m.fit(X, Y, validation_data=(X, Y + 3), verbose=0),
        ValueError,
        r"`validation_data\[1\]` must be below",
    ),
    "label": (lambda m: m.given(3), ValueError, "`label` must be below the number of classes, 3"),
    "weights of losses": (
        lambda m: m.compile(loss=ebm.losses.JointEnergyLoss(ebm.losses.ScoreMatching()), loss_weights=[2.0]),
        ValueError,
        "`loss_weights` must not be given",
    ),
    "loss": (lambda m: ebm.losses.JointEnergyLoss("score_matching"), TypeError, "`density_loss` must be"),
    "noise": (
        lambda m: ebm.losses.JointEnergyLoss(ebm.losses.ScoreMatching(), label_noise=-1.0),
        ValueError,
        "`label_noise`",
    ),
    "conditional loss": (
        lambda m: ebm.losses.JointEnergyLoss(ebm.losses.NoiseConditionalDenoisingScoreMatching([1.0])),
        ValueError,
        "`density_loss` must be a loss of x alone",
    ),
    "nested": (
        lambda m: ebm.losses.JointEnergyLoss(m.loss),
        ValueError,
        "`density_loss` must be a loss of x alone",
    ),
    "network": (
        lambda m: ebm.EnergyModel(ebm.networks.mlp([2], units=[4])).compile(loss=m.loss),
        ValueError,
        "`network` must be a networks.JointEnergy",
    ),
    "one output": (
        lambda m: ebm.networks.JointEnergy(ebm.networks.mlp([2], units=[4]))(X),
        ValueError,
        "`classifier` must return logits",
    ),
    "function": (lambda m: ebm.networks.JointEnergy(lambda x: x), TypeError, "`classifier` must be a Keras"),
    "alias": (lambda m: ebm.losses.get("joint_energy_loss"), ValueError, "needs density_loss"),
}


@pytest.fixture(scope="module")
def compiled():
    model = ebm.EnergyModel(ebm.networks.JointEnergy(classifier()))
    model.compile(loss=ebm.losses.JointEnergyLoss(ebm.losses.ScoreMatching()), metrics=["accuracy"])
    return model


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, compiled):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(compiled)


@pytest.mark.long
def test_digits_are_classified_as_well_and_better_calibrated():
    """scikit-learn's digits, 1000 rows to train on and 797 to judge, two seeds: accuracy and calibration.

    The joint energy's accuracy is within .01 of the plain classifier's, and its calibration error and its
    cross-entropy are lower. (Three seeds: accuracy .980, .977, .977 against .975, .977, .970; ECE .006, .011,
    .009 against .010, .014, .017. The standard error of an accuracy is .006, of a difference on equal rows .003.)
    """
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x = ((x + np.random.default_rng(0).uniform(size=x.shape)) / 8.5 - 1.0).astype("float32")
    scores = {"plain": [], "joint": []}
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(len(x))
        train, test = order[:1000], order[1000:]
        for kind in scores:
            keras.utils.set_random_seed(seed)
            layers = [keras.layers.Dense(256, "silu"), keras.layers.Dense(256, "silu"), keras.layers.Dense(10)]
            network = keras.Sequential([keras.Input([64]), *layers])
            joint = ebm.EnergyModel(ebm.networks.JointEnergy(network), seed=seed)
            weight = 0.01 if kind == "joint" else 0.0
            schedule = keras.optimizers.schedules.CosineDecay(1e-3, 960)
            loss = ebm.losses.JointEnergyLoss(ebm.losses.DenoisingScoreMatching(0.3), weight)
            joint.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"], steps_per_execution=16)
            joint.fit(x[train], y[train], batch_size=64, epochs=60, verbose=0)
            probs = joint.class_probabilities(x[test]).numpy()
            right = np.mean(probs.argmax(1) == y[test])
            error = ebm.evaluation.expected_calibration_error(probs, y[test])
            scores[kind].append((right, error, -np.log(probs[np.arange(len(test)), y[test]]).mean()))
    plain, with_density = (np.mean(scores[kind], 0) for kind in ("plain", "joint"))
    assert with_density[0] > plain[0] - 0.01, scores
    assert with_density[1] < plain[1] and with_density[2] < plain[2], scores
