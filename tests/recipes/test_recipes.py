"""The papers' configurations: their constants, their steps written out in NumPy, training, files, bad input."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import assert_same

import tfp_ebm as ebm
from tfp_ebm import random, recipes
from tfp_ebm.energy.base import draw
from tfp_ebm.random import fold_in, stateless_seed
from tfp_ebm.recipes.li_chen_sommer import _temperatures
from tfp_ebm.recipes.short_run import DuMordatchAdam

SEED = tf.constant([3, 4])
RECIPES = {
    "du_mordatch_2019": recipes.du_mordatch_2019,
    "uva_mnist": recipes.uva_mnist,
    "jem": recipes.jem,
    "li_chen_sommer_2019": recipes.li_chen_sommer_2019,
}


@keras.saving.register_keras_serializable("test_recipes")
class Bowl(keras.layers.Layer):
    """E = Σ aₖ(xₖ⁴ − xₖ)/4 in float64: gradients aₖ(xₖ³ − ¼), some within the papers' bounds, some out of the box."""

    def __init__(self, **kwargs):
        super().__init__(dtype="float64", **kwargs)
        self.slopes = self.add_weight(shape=(3,), dtype="float64", name="slopes")
        self.slopes.assign(SLOPES)

    def call(self, x):
        return tf.reduce_sum(self.slopes * (x**4 - x) / 4, -1)


SLOPES = np.array([0.02, -0.2, 2.0])


def slope(x):
    return SLOPES * (x**3 - 0.25)


def tiny(activation="silu"):
    return ebm.networks.convnet([8, 8, 1], filters=[2], units=[4], activation=activation, seed=0)


def digits(rows):
    return ebm.datasets.load("digits").astype("float32").reshape(-1, 8, 8, 1)[:rows]


# --- constants ------------------------------------------------------------------------------------------------------


def test_constants_of_the_chains():
    """η = ½ε², and the rest as the papers and their code print it."""
    table = {
        #                    η   τ      clip  first box          both  steps chains  α    noise of the data
        "du_mordatch_2019": (10, 0.005, 0.01, True, (0.0, 1.0), False, 60, 10_000, 1.0, 0.0),
        "uva_mnist": (10, 0.005, 0.03, True, (-1.0, 1.0), True, 60, 8192, 0.1, 0.005),
        "jem": (1, 0.01, None, False, None, False, 20, 10_000, 0.0, 0.03),
    }
    for name, (eta, tau, clip, first, box, both, num_steps, capacity, alpha, data_noise) in table.items():
        loss = RECIPES[name](tiny()).loss
        kernel, chains = loss.kernel, loss.chains
        np.testing.assert_allclose(kernel.step_size**2 / 2, eta, rtol=1e-12)
        assert (kernel.noise_scale, kernel.gradient_clip, kernel.clamp) == (tau, clip, box)
        assert (kernel.noise_first, kernel.clamp_noised) == (first, both)
        assert (loss.num_steps, chains.capacity, chains.restart_probability) == (num_steps, capacity, 0.05)
        assert (loss.energy_penalty, loss.data_noise) == (alpha, data_noise)
        assert type(loss) is not ebm.losses.ImprovedContrastiveDivergence
        assert "global_acceptance_rate" not in loss.metric_names


def test_constants_of_the_optimizers():
    def rate(model, step):
        model.optimizer.iterations.assign(step)
        return float(model.optimizer.learning_rate)

    def moments(model):
        return model.optimizer.beta_1, model.optimizer.beta_2, model.optimizer.epsilon

    du, uva, jem, li = (recipe(tiny()) for recipe in RECIPES.values())
    assert moments(du) == moments(uva) == (0.0, 0.999, 1e-8)
    assert moments(jem) == (0.9, 0.999, 1e-8) and moments(li) == (0.9, 0.95, 1e-8)
    assert rate(du, 0) == pytest.approx(1e-4) and isinstance(du.optimizer, DuMordatchAdam)
    assert uva.optimizer.global_clipnorm == 0.1
    np.testing.assert_allclose([rate(uva, step) for step in (0, 467, 468, 936)], 1e-4 * 0.97 ** np.array([0, 0, 1, 2]))
    np.testing.assert_allclose([rate(jem, step) for step in (0, 500, 1000, 9000)], [0, 5e-5, 1e-4, 1e-4], rtol=1e-5)
    cosine = 1e-6 + 0.5 * (5e-5 - 1e-6) * (1 + np.cos(np.pi * np.array([0, 0.3, 1])))
    np.testing.assert_allclose([rate(li, step) for step in (0, 90_000, 300_000)], cosine, rtol=1e-5)
    np.testing.assert_allclose(li.loss.sigmas, np.linspace(0.05, 1.2, 128), rtol=1e-12)
    assert li.loss.sigma0 == 0.1


def test_temperatures_are_those_of_the_paper():
    temperatures = _temperatures()
    assert temperatures.shape == (2700,) and (temperatures[:501] == 100.0).all()
    np.testing.assert_allclose(temperatures[500 + np.array([0, 1000, 1999])], [100.0, 10.0, 100 ** (1 / 2000)])
    np.testing.assert_allclose(temperatures[2500:], np.linspace(1, 0, 200))


# --- steps, against the papers' written out ---------------------------------------------------------------------------


def paper_step(name, x, z):
    """The papers' updates, on their pixels, with their η and τ."""
    if name == "du_mordatch_2019":
        x = x + 0.005 * z
        return np.clip(x - 10 * np.clip(slope(x), -0.01, 0.01), 0, 1)
    if name == "uva_mnist":
        x = np.clip(x + 0.005 * z, -1, 1)
        return np.clip(x - 10 * np.clip(slope(x), -0.03, 0.03), -1, 1)
    return x - slope(x) + 0.01 * z


def one_step(kernel, target, x, seed=SEED):
    built, x = kernel(target), tf.constant(x)
    return built.one_step(x, built.bootstrap_results(x), seed=seed)[0].numpy()


@pytest.mark.parametrize("name", ["du_mordatch_2019", "uva_mnist", "jem"])
def test_a_step_is_the_papers(name):
    """In x, of a user whose pixels are bytes; half of them black or white, so that every clip and clamp has work."""
    low, high = (0.0, 1.0) if name == "du_mordatch_2019" else (-1.0, 1.0)
    rng = np.random.default_rng(0)
    paper = np.where(rng.random((200, 3)) < 0.5, rng.choice([low, high], (200, 3)), rng.uniform(low, high, (200, 3)))
    model = RECIPES[name](Bowl(), pixels=(0, 255), event_shape=[3])
    user = (paper - low) / (high - low) * 255
    energy_function, kernel = model.energy_function, model.loss.kernel
    z = model.standardization.to_z(tf.constant(user)).numpy()
    np.testing.assert_allclose(z, paper, atol=1e-14)
    draws = random.normal([200, 3], SEED, tf.float64).numpy()
    expected = paper_step(name, paper, draws)
    target = energy_function.unnormalized_log_prob
    np.testing.assert_allclose(one_step(kernel, target, z), expected, atol=1e-13)
    # what each paper leaves out of the other's step is seen, and a step size that is η instead of √(2η)
    mistakes = {"noise_scale": 0.004, "step_size": np.sqrt(kernel.step_size**2 / 2)}
    if name != "jem":
        mistakes |= {"gradient_clip": 0.02, "clamp": (-9.0, 9.0), "clamp_noised": not kernel.clamp_noised}
    config = kernel.get_config()
    for argument, value in mistakes.items():
        wrong = ebm.mcmc.Langevin(**{**config, argument: value})
        assert np.abs(one_step(wrong, target, z) - expected).max() > 1e-4, argument


@pytest.mark.parametrize("scaled", [True, False])
def test_steps_in_other_units(scaled):
    """z = (x − loc)/s: ε/s, τ/s, c·s and the box moved alike are the same step. Without the scaling they are not."""
    loc, s = 0.3, 0.25
    x = np.random.default_rng(0).uniform(0, 1, (100, 3))
    expected = paper_step("du_mordatch_2019", x, random.normal([100, 3], SEED, tf.float64).numpy())
    k = s if scaled else 1.0
    box = ((0 - loc) / s, (1 - loc) / s)
    kernel = ebm.mcmc.Langevin(np.sqrt(20) / k, 0.005 / k, gradient_clip=0.01 * k, noise_first=True, clamp=box)
    bowl = Bowl()
    z = one_step(kernel, lambda z: -bowl(loc + s * z), (x - loc) / s)
    assert np.allclose(loc + s * z, expected, atol=1e-13) == scaled


def test_loss_of_li_chen_and_sommer_is_half_the_papers():
    """Σ‖(x − x*)/(σᵢσ₀²) + ∇E(x*)/σᵢ‖²/B of their code. In a batch of 128 each of the scales comes once."""
    model = recipes.li_chen_sommer_2019(Bowl(), event_shape=[3])
    x, seen = random.normal([128, 3], SEED, tf.float64), []

    def energy_fn(x):
        seen.append(x)
        return model.network(x)

    per_example = model.loss(energy_fn, x, seed=0, training=True).per_example.numpy()
    noised = seen[-1].numpy()
    for start in range(128):  # any row may be the first scale
        sigma = np.roll(np.linspace(0.05, 1.2, 128), start)[:, None]
        paper = np.sum(((x - noised) / sigma / 0.1**2 + slope(noised) / sigma) ** 2, -1)
        if np.allclose(2 * per_example, paper, rtol=1e-9):
            return
    raise AssertionError("no assignment of the 128 scales to the rows gives the paper's loss")


def test_annealed_samples_are_the_papers():
    """The chain of their `Annealed_Langevin_E` and `SS_denoise`, from .5 + Z, in x of a user with bytes."""
    model = recipes.li_chen_sommer_2019(Bowl(), pixels=(0, 255), event_shape=[3])
    temperatures = [100.0, 30.0, 1.0, 0.25, 0.0]
    samples = recipes.li_chen_sommer_2019_samples(model, 6, temperatures=temperatures, seed=5)
    seed = stateless_seed(5)
    x = 0.5 + random.normal([6, 3], fold_in(seed, 0), tf.float64).numpy()
    for i, temperature in enumerate(temperatures):
        z = random.normal([6, 3], fold_in(fold_in(seed, 1), i), tf.float64).numpy()
        x = x - 0.5 * 0.02**2 * slope(x) + np.sqrt(temperature) * 0.02 * z
    np.testing.assert_allclose(samples, 255 * (x - 0.1**2 * slope(x)), rtol=1e-10)
    again = recipes.li_chen_sommer_2019_samples(model, 6, temperatures=temperatures, seed=5)
    np.testing.assert_array_equal(samples, again)
    model.network.slopes.assign(np.full(3, 1e6))
    with pytest.warns(UserWarning, match="6 of 6 chains became NaN"):
        recipes.li_chen_sommer_2019_samples(model, 6, temperatures=np.full(50, 100.0), seed=5)


def test_du_mordatch_adam_clips_to_three_deviations():
    rng, weight = np.random.default_rng(0), keras.Variable(np.zeros(5), dtype="float64")
    optimizer = DuMordatchAdam(0.1, beta_1=0.0, beta_2=0.9, epsilon=1e-8)
    optimizer.build([weight])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [weight]), jit_compile=True)
    x, v, clipped = np.zeros(5), np.zeros(5), 0
    for t in range(1, 7):
        gradient = rng.normal(size=5) * np.array([0.01, 0.1, 1.0, 10.0, 0.0])
        step(tf.constant(gradient))
        bound = 3 * np.sqrt(v / (1 - 0.9**t)) + 0.1
        clipped += (np.abs(gradient) > bound).sum()
        g = np.clip(gradient, -bound, bound)
        v = 0.9 * v + 0.1 * g**2
        x -= 0.1 * np.sqrt(1 - 0.9**t) * g / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(weight, x, rtol=1e-5)  # Keras keeps its constants in float32
    assert 0 < clipped < 20


# --- training and files -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the covariance is singular")  # of 16 images; the base that `fit` fits is not used
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_comes_back_from_its_file(name, tmp_path):
    """Two steps in graph mode, then a file that brings all back: losses, optimizer, buffer, units. XLA agrees with the
    steps; it is tested on the two recipes that between them have every option."""
    x = digits(32)
    model = RECIPES[name](tiny(), pixels=(0, 16))
    before = [weight.numpy() for weight in model.network.trainable_weights]
    history = [model.train_on_batch(x[i : i + 16], return_dict=True) for i in (0, 16)]
    assert all(np.isfinite(value) for logs in history for value in logs.values())
    moved = [np.abs(a.numpy() - b).max() for a, b in zip(model.network.trainable_weights, before, strict=True)]
    assert max(moved) > 0 and max(moved) < 1e-3
    if name in ("du_mordatch_2019", "uva_mnist"):
        states, used = model.loss.chains.states.numpy(), model.loss.chains.ages.numpy() > 0
        assert used.sum() == 32 and states.min() >= model.loss.kernel.clamp[0] and states.max() <= 1.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert json.dumps(loaded.loss.get_config()) == json.dumps(model.loss.get_config())
    assert len(loaded.weights) == len(model.weights)
    assert_same(loaded.weights, model.weights)
    if name not in ("uva_mnist", "li_chen_sommer_2019"):
        return
    compiled = RECIPES[name](tiny(), pixels=(0, 16))
    compiled.compile(compiled.optimizer, compiled.loss, jit_compile=True)
    fast = [compiled.train_on_batch(x[i : i + 16], return_dict=True) for i in (0, 16)]
    for i in range(2):
        found, expected = ({key: float(value) for key, value in logs.items()} for logs in (fast[i], history[i]))
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_uniform_starts_are_the_same_under_xla():
    """And uniform: the mean of 4·10⁴ draws on (−1, 3) is 1 within 4 errors of 4/√12/200."""
    tfd = tfp.distributions
    base = tfd.Independent(tfd.Uniform(tf.fill([2, 2], -1.0), tf.fill([2, 2], 3.0)), 2)
    x = draw(base, [10_000], SEED)
    assert x.shape == (10_000, 2, 2) and float(tf.reduce_min(x)) > -1 and float(tf.reduce_max(x)) < 3
    assert abs(float(tf.reduce_mean(x)) - 1) < 4 * 4 / np.sqrt(12) / 200
    compiled = tf.function(lambda: draw(base, [10_000], SEED), jit_compile=True)()
    np.testing.assert_allclose(compiled, x, atol=1e-6)


def test_a_classifier_gives_its_energy():
    """E(x) = −log Σ exp f(x)[y], whatever the dtype; a network of one output is left as it is."""
    for dtype, atol in (("float64", 1e-12), ("float32", 1e-5)):
        layers = [keras.layers.Flatten(dtype=dtype), keras.layers.Dense(7, dtype=dtype)]
        classifier = keras.Sequential([keras.Input([8, 8, 1], dtype=dtype), *layers])
        classifier.dtype_policy = keras.dtype_policies.get(dtype)
        model = recipes.jem(classifier)
        x = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(dtype)
        logits = np.asarray(classifier(x), "float64")
        assert model.dtype == dtype
        np.testing.assert_allclose(model.energy(x), -np.log(np.exp(logits).sum(-1)), atol=atol)
    network = tiny()
    assert recipes.jem(network).network is network


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(
    ("network", "arguments", "error", "message"),
    [
        (tiny, {"pixels": (1.0, 0.0)}, ValueError, r"`pixels` must be a pair .low, high. .* got \(1.0, 0.0\)"),
        (tiny, {"pixels": 255}, ValueError, "`pixels` must be a pair"),
        (tiny, {"pixels": (0, np.inf)}, ValueError, r"`pixels\[1\]`"),
        (tiny, {"pixels": ("a", "b")}, TypeError, r"`pixels\[0\]`"),
        (tiny, {"event_shape": [3]}, ValueError, "`event_shape` must be"),
        (tiny, {"seed": None}, TypeError, "`seed`"),
        (Bowl, {}, ValueError, "`event_shape`"),
        (lambda: len, {}, TypeError, "`network` must be a Keras"),
    ],
)
def test_bad_arguments(recipe, network, arguments, error, message):
    with pytest.raises(error, match=message):
        recipe(network(), **arguments)


def test_more_bad_arguments():
    with pytest.raises(ValueError, match="`steps_per_epoch`"):
        recipes.uva_mnist(tiny(), steps_per_epoch=0)
    for arguments in ({"sigmas": [1.0, 0.1, 0.5]}, {"num_steps": 0}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
            recipes.li_chen_sommer_2019(tiny(), **arguments)
    model = recipes.li_chen_sommer_2019(tiny())
    for temperatures in ([1.0, -1.0], [[1.0]], "hot", [np.nan]):
        with pytest.raises(ValueError, match="`temperatures`"):
            recipes.li_chen_sommer_2019_samples(model, 2, temperatures=temperatures, seed=0)
    with pytest.raises(ValueError, match="`num_samples`"):
        recipes.li_chen_sommer_2019_samples(model, 0, seed=0)
    with pytest.raises(TypeError, match="`seed`"):
        recipes.li_chen_sommer_2019_samples(model, 2, temperatures=[1.0], seed=None)
    with pytest.raises(TypeError, match=r"`model`.*Multiscale"):
        recipes.li_chen_sommer_2019_samples(recipes.jem(tiny()), 2, seed=0)


def test_small_images_see_grey_levels(tmp_path):
    """Pixels in [−L/2, L/2], one level a unit; chains in the open box, exact for E = 0: uniform by a KS test of 6400
    numbers (false alarm 10⁻⁴), which notices chains in a narrower box."""
    from scipy import stats

    model = recipes.small_images(tiny(), pixels=(0, 16), num_levels=4, kernel_steps=3, capacity=100)
    np.testing.assert_allclose(
        model.standardization.to_z(tf.constant([0.0, 8.0, 16.0])[:, None, None, None])[:, 0, 0, 0], [-2, 0, 2]
    )
    assert model.optimizer.beta_1 == 0.5 and model.loss.chains.restart_probability == 0.0 and model.jit_compile
    model.compile(keras.optimizers.SGD(0.0), model.loss)
    for weight in model.network.trainable_weights:
        weight.assign(tf.zeros_like(weight.value))
    for _ in range(3):
        model.train_on_batch(digits(100))
    states = model.standardization.to_x(model.loss.chains.states.value).numpy().ravel()
    assert states.min() > 0 and states.max() < 16 and model.loss.chains.ages.numpy().min() == 3
    assert stats.kstest(states / 16, "uniform").pvalue > 1e-4 > stats.kstest(states / 17, "uniform").pvalue
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert json.dumps(loaded.loss.get_config()) == json.dumps(model.loss.get_config())
    assert_same(loaded.weights, model.weights)
    with pytest.raises(ValueError, match="`num_levels`"):
        recipes.small_images(tiny(), num_levels=0)
