"""Draws of the classes of a joint energy, and refinement: exact for Gaussian classes in float64; recipes of papers."""

import functools

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow_probability as tfp
from energies import CLASS_MEANS, CLASS_PROBS, GaussianClasses

import tfp_ebm as ebm
from tfp_ebm import recipes

tfd = tfp.distributions
NUM_CHAINS = 3000


def gaussian_classes(base_measure=None, loc=1.0, scale=2.0):
    """A model whose classes are N(μᵧ, I) in z = (x − 1)/2, and whose buffer holds exact draws of the mixture."""
    network = ebm.networks.JointEnergy(GaussianClasses())
    model = ebm.EnergyModel(network, event_shape=(2,), base_measure=base_measure)
    model.standardization.loc.assign(np.full(2, loc))
    model.standardization.scale.assign(np.full(2, scale))
    base = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    density = ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.MALA(0.9), 1, NUM_CHAINS, base=base)
    model.compile(keras.optimizers.SGD(0.0), ebm.losses.JointEnergyLoss(density))
    rng = np.random.default_rng(0)
    draws = CLASS_MEANS[rng.choice(3, NUM_CHAINS, p=CLASS_PROBS)] + rng.normal(size=(NUM_CHAINS, 2))
    density.chains.states.assign(draws)
    density.chains.ages.assign(np.ones(NUM_CHAINS))
    return model


@pytest.fixture(scope="module")
def model():
    return gaussian_classes()


def deviations(draws, mean, number, variance=1.0):
    """Mean and variance of z less the class's, in standard errors of so many independent draws, the largest."""
    z = (np.asarray(draws) - 1.0) / 2.0
    of_mean = (z.mean(0) - mean) / np.sqrt(variance / number)
    return max(np.abs(of_mean).max(), (np.abs(z.var(0) - variance) / (variance * np.sqrt(2 / number))).max())


@pytest.mark.parametrize("num_steps", [0, 20])
def test_draws_of_a_class_have_its_distribution(model, num_steps):
    """2000 draws of each class, within 4.5 standard errors of 500 draws: class 2 has about 600 chains.

    Twelve comparisons: false alarm rate 10⁻⁴. Chains that are chosen for the next class are 40 errors away.
    """
    labels = np.tile([0, 1, 2], 2000)
    draws = recipes.class_samples(model, labels, num_steps=num_steps, seed=3).numpy()
    assert draws.dtype == np.float64
    for label in range(3):
        assert deviations(draws[labels == label], CLASS_MEANS[label], 500) < 4.5
        assert deviations(draws[labels == label], CLASS_MEANS[label - 1], 500) > 20
    again = recipes.class_samples(model, labels, num_steps=num_steps, seed=3).numpy()
    np.testing.assert_array_equal(again, draws)
    assert not np.array_equal(recipes.class_samples(model, labels, num_steps=num_steps, seed=4), draws)
    # draws that start at one chain move apart
    assert (len(np.unique(draws, axis=0)) > 5900) == (num_steps > 0)


def test_refinement_reaches_the_class(model):
    """Many steps from one far point end in p(x|y), and without labels in the mixture; KS tests, false alarm 10⁻⁴."""
    start, labels = np.full((1500, 2), 2.0), np.full(1500, 1)
    for given, is_class in ((labels, True), (None, False)):
        z = (recipes.refine(model, start, given, num_steps=60, seed=1).numpy() - 1.0) / 2.0
        pvalue = scipy.stats.kstest(z[:, 0], "norm", (CLASS_MEANS[1, 0], 1.0)).pvalue
        assert (pvalue > 1e-4) == is_class


def test_base_measure_tilts_the_classes():
    """exp(f(z)[y]) N(x; 1, 2²I) is, in z, a Gaussian of half the mean and half the variance."""
    base = tfd.MultivariateNormalDiag(np.ones(2), np.full(2, 2.0))
    model = gaussian_classes(base_measure=base)
    draws = recipes.refine(model, np.ones((1500, 2)), np.full(1500, 1), num_steps=60, seed=1)
    assert deviations(draws, CLASS_MEANS[1] / 2, 1000, variance=0.5) < 4.5
    assert deviations(draws, CLASS_MEANS[1], 1000) > 20


def classifier(num_classes=2):
    convolution = keras.layers.Conv2D(4, 4, 2, activation="silu")
    layers = [convolution, keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    return keras.Sequential([keras.Input([8, 8, 1]), *layers])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipes.jem, functools.partial(recipes.small_images, kernel_steps=2, capacity=64)])
def test_recipes_train_the_classifier_too(recipe):
    x = ebm.datasets.digits(images=True)[:128]
    y = (x.mean((1, 2, 3)) > np.median(x.mean((1, 2, 3)))).astype("int32")
    keras.utils.set_random_seed(0)
    model = recipe(ebm.networks.JointEnergy(classifier()), pixels=(0, 1))
    assert isinstance(model.loss, ebm.losses.JointEnergyLoss)
    assert (model.loss.weight, model.loss.label_noise) == ((1.0, 0.03) if recipe is recipes.jem else (0.1, 2.0))
    model.compile(model.optimizer, model.loss, metrics=["accuracy"])  # as it is, but in graph mode
    history = model.fit(x, y, batch_size=64, epochs=2, verbose=0).history
    assert {"accuracy", "cross_entropy", "density_energy_gap"} <= set(history)
    draws = recipes.class_samples(model, [0, 1, 1], num_steps=3, seed=0)
    assert draws.shape == (3, 8, 8, 1) and np.isfinite(draws).all()
    refined = recipes.refine(model, x[:3], num_steps=3, seed=0)
    assert np.isfinite(refined).all() and 0 < np.abs(refined - x[:3]).max()
    if isinstance(recipe, functools.partial):  # the chains stay in the open box of the pixels
        assert 0 < np.min(draws) and np.max(refined) < 1
        with pytest.raises(ValueError, match="`initial_state` must lie inside"):
            recipes.refine(model, np.zeros([3, 8, 8, 1]), seed=0)


def test_larger_images_have_a_smaller_weight_and_less_noise_per_pixel():
    network = keras.Sequential([keras.Input([16, 16, 1]), keras.layers.Flatten(), keras.layers.Dense(2)])
    loss = recipes.small_images(ebm.networks.JointEnergy(network)).loss
    assert (loss.weight, loss.label_noise) == (0.1 / 4, 1.0)  # four times the pixels of 8×8


def test_few_chains_of_a_class_are_warned_of():
    model = gaussian_classes()
    states = np.tile(CLASS_MEANS[0] + [0.0, 30.0], (NUM_CHAINS, 1))
    states[0] = CLASS_MEANS[1]
    model.loss.density_loss.chains.states.assign(states)
    with pytest.warns(UserWarning, match="few chains belong to a class"):
        recipes.class_samples(model, [1], num_steps=0, seed=0)


def test_chains_that_become_infinite_are_warned_of():
    model = without_chains(ebm.losses.MaximumLikelihood(ebm.mcmc.Langevin(0.1), 1, ebm.mcmc.FromBase()))
    model.network.classifier.means.assign(np.full((3, 2), np.nan))
    with pytest.warns(UserWarning, match="3 of 3 chains became NaN"):
        recipes.refine(model, np.zeros((3, 2)), num_steps=1, seed=0)


def untrained():
    model = ebm.EnergyModel(ebm.networks.JointEnergy(GaussianClasses()), event_shape=(2,))
    model.compile(loss=ebm.losses.JointEnergyLoss(ebm.losses.PersistentContrastiveDivergence()))
    return model


def without_chains(loss):
    model = ebm.EnergyModel(ebm.networks.JointEnergy(GaussianClasses()), event_shape=(2,))
    model.compile(loss=ebm.losses.JointEnergyLoss(loss))
    return model


BAD = {
    "network": (
        lambda m: recipes.class_samples(ebm.EnergyModel(ebm.networks.mlp([2], units=[4])), [0], seed=0),
        TypeError,
        "`model` must be an EnergyModel of a networks.JointEnergy, got Functional",
    ),
    "a network": (lambda m: recipes.refine(m.network, [[0.0, 0.0]], seed=0), TypeError, "`model` must be an EnergyMod"),
    "loss": (
        lambda m: recipes.refine(without_chains(ebm.losses.ScoreMatching()), [[0.0, 0.0]], seed=0),
        ValueError,
        "`model` must have a density loss with chains, got ScoreMatching",
    ),
    "untrained": (lambda m: recipes.class_samples(untrained(), [0], seed=0), ValueError, "`model` must be trained"),
    "buffer": (
        lambda m: recipes.class_samples(without_chains(ebm.losses.ContrastiveDivergence()), [0], seed=0),
        ValueError,
        "`model` must have been trained with a ReplayBuffer, got FromData",
    ),
    "label": (lambda m: recipes.class_samples(m, [3], seed=0), ValueError, "`labels` must be below the number of cl"),
    "one label": (lambda m: recipes.class_samples(m, 1, seed=0), ValueError, r"`labels` must have shape \[n\]"),
    "fractions": (lambda m: recipes.class_samples(m, [0.5], seed=0), TypeError, "`labels` must be labels"),
    "steps": (lambda m: recipes.class_samples(m, [0], num_steps=-1, seed=0), ValueError, "`num_steps`"),
    "seed": (lambda m: recipes.class_samples(m, [0], seed=None), TypeError, "`seed`"),
    "rows": (lambda m: recipes.refine(m, [[0.0, 0.0]], [0, 1], seed=0), ValueError, r"`labels` must have shape \(1,\)"),
    "x": (lambda m: recipes.refine(m, [[np.nan, 0.0]], seed=0), ValueError, "`x`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, model):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(model)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_calibration_finds_the_temperature_of_the_labels(temperature, tmp_path):
    """Labels of softmax f(x)/T: T within 5 standard errors, by the curvature of the likelihood; energies as before."""
    keras.utils.set_random_seed(0)
    classifier = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    model = ebm.EnergyModel(ebm.networks.JointEnergy(classifier))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20_000, 2)).astype("float32") * 2.0
    model.adapt(x)
    logits = model.network.logits(model.standardization.to_z(x)).numpy().astype(np.float64) / temperature
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), 1)
    energies = model.energy(x[:10])
    found = recipes.calibrate(model, x, labels)
    probs = scipy.special.softmax(logits, 1)
    variance = (probs * logits**2).sum(1) - (probs * logits).sum(1) ** 2  # information on log T, per row
    assert abs(np.log(found / temperature)) < 5.0 / np.sqrt(variance.sum())
    np.testing.assert_allclose(model.class_probabilities(x), probs, atol=0.05)
    np.testing.assert_array_equal(model.energy(x[:10]), energies)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.class_probabilities(x[:10]), model.class_probabilities(x[:10]))


def test_calibration_needs_a_joint_energy_and_a_label_for_each_row():
    x = np.zeros([4, 2], "float32")
    with pytest.raises(TypeError, match=r"`model` must be an EnergyModel of a networks.JointEnergy"):
        recipes.calibrate(ebm.EnergyModel(ebm.networks.mlp([2], units=[4])), x, [0, 1, 0, 1])
    network = ebm.networks.JointEnergy(keras.Sequential([keras.Input([2]), keras.layers.Dense(2)]))
    for labels, words in (([0, 1], "one for each row"), ([0, 1, 2, 0], "below the number of classes")):
        with pytest.raises(ValueError, match=words):
            recipes.calibrate(ebm.EnergyModel(network), x, labels)
