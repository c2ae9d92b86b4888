"""Maximum likelihood by MCMC against its closed forms (eqs. 6-10): gradients, what is learned, options, no leak."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import assert_same, diagonal_normal

import tfp_ebm as ebm
from tfp_ebm.losses import ImprovedContrastiveDivergence, MaximumLikelihood
from tfp_ebm.mcmc.running.steps import move, move_by_xla
from tfp_ebm.random import fold_in, normal, stateless_seed

tfd = tfp.distributions


class Scale(keras.layers.Layer):
    """E = ½λ‖x‖², one parameter."""

    def __init__(self, precision=1.0, **kwargs):
        super().__init__(dtype="float64", **kwargs)
        self.precision = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(precision), dtype="float64", name="precision"
        )

    def call(self, x):
        return 0.5 * self.precision * tf.reduce_sum(tf.square(x), -1)


class Form(keras.layers.Layer):
    """E = ½xᵀPx, every entry of P a parameter."""

    def __init__(self, precision, **kwargs):
        super().__init__(dtype="float64", **kwargs)
        self.precision = self.add_weight(shape=precision.shape, dtype="float64", name="precision")
        self.precision.assign(precision)

    def call(self, x):
        return 0.5 * tf.einsum("ni,ij,nj->n", x, self.precision.value, x)


def data(n, d=1, seed=0):
    return normal([n, d], tf.constant([seed, 1]), tf.float64)


def gradient_of(loss, layer, x, seed=0):
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(loss(layer, x, seed=seed, training=True).per_example)
    return tape.gradient(value, [weight.value for weight in layer.trainable_weights])


@pytest.mark.parametrize("d", [1, 2, 3])
def test_exact_negatives_give_the_gradient_of_the_likelihood(d):
    """ChainStart that start at exact draws stay exact: ∂/∂P = ½E_data[xxᵀ] − ½P⁻¹ within 4 standard errors per entry.

    The negatives' mean of ½x_i x_j has the error ½√(1 + δ_ij)·s/√n, s ≈ variances: .004 for n = 40 000. With negatives
    10 % too wide the diagonal is off by .05·P⁻¹, 12 errors.
    """
    n = 40_000
    rng = np.random.default_rng(d)
    factor = np.eye(d) + 0.3 * rng.normal(size=(d, d))
    precision = factor @ factor.T
    covariance = np.linalg.inv(precision)
    x = tf.constant(rng.normal(size=(n, d)))
    truth = 0.5 * (x.numpy().T @ x.numpy() / n - covariance)
    error = 0.5 * np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / n)
    layer = Form(precision)

    def deviation(width):
        base = tfd.MultivariateNormalTriL(tf.zeros([d], tf.float64), width * np.linalg.cholesky(covariance))
        loss = MaximumLikelihood(ebm.mcmc.MALA(0.3), 2, ebm.mcmc.FromBase(base), global_move=None)
        return np.abs(gradient_of(loss, layer, x, seed=d)[0].numpy() - truth) / error

    assert deviation(1.0).max() < 4
    assert np.diag(deviation(1.05)).max() > 8


def learned_precision(kernel, global_move="auto", steps=400):
    """λ and its standard error after persistent training on N(0, 1): mean of the last 3/4, error by 10 blocks."""
    n = 2000
    x = data(n)
    x = x / tf.math.reduce_std(x)  # variance exactly 1: what is left is the chains' error
    layer = Scale(0.8)
    loss = ebm.losses.PersistentContrastiveDivergence(
        kernel, num_steps=5, capacity=n, base=diagonal_normal(1), global_move=global_move
    )
    loss.build((1,), "float64")
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(layer.trainable_weights)

    @tf.function
    def step(seed):
        gradients = gradient_of(loss, layer, x, seed)
        optimizer.apply_gradients(zip(gradients, layer.trainable_weights, strict=True))
        return layer.precision.value

    path = np.array([step(tf.constant([7, i])).numpy() for i in range(steps)])[steps // 4 :]
    blocks = path.reshape(10, -1).mean(1)
    return path.mean(), blocks.std(ddof=1) / np.sqrt(10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", [ebm.mcmc.Adaptive(ebm.mcmc.MALA(0.3)), ebm.mcmc.HMC(0.8, 2), ebm.mcmc.RandomWalk(2.0)]
)
def test_calibrated_chains_learn_the_precision(kernel):
    """λ = 1/s² = 1 within 4 standard errors, which are below .01; the next test is where they are wrong by 25."""
    value, error = learned_precision(kernel)
    assert error < 0.01
    assert abs(value - 1.0) < 4 * error + 1e-3


@pytest.mark.slow
def test_unadjusted_chains_learn_their_own_bias():
    """Langevin of step ε = .8 learns 2(1 − √(1 − ε²))/ε² = 1.25; taken for calibrated it fails the test above."""
    value, error = learned_precision(ebm.mcmc.Langevin(0.8))
    assert error < 0.01
    assert abs(value - 1.25) < 4 * error + 1e-3
    assert abs(value - 1.0) > 20 * error


def test_no_gradient_flows_through_the_negatives():
    """The gradient is that of E(x) − E(x⁻) with x⁻ as numbers; with x⁻ a function of λ it would be another."""
    layer, x = Scale(1.3), data(100)
    loss = ebm.losses.ContrastiveDivergence(ebm.mcmc.Langevin(0.5), num_steps=3)
    (gradient,) = gradient_of(loss, layer, x, seed=3)
    seed = fold_in(stateless_seed(3), 1)
    negatives, _, _ = loss.negatives(layer, x, seed, training=False)
    explicit = 0.5 * tf.reduce_mean(tf.square(x) - tf.square(negatives))
    np.testing.assert_allclose(gradient, explicit, rtol=1e-12)

    # the same chain by hand, with the tape looking on
    with tf.GradientTape() as tape:
        state, z = x, tf.constant(0.0, tf.float64)
        for _ in range(3):
            state = state - 0.125 * layer.precision.value * state + 0.5 * z
        leaky = tf.reduce_mean(layer(x) - layer(state))
    fixed = 0.5 * tf.reduce_mean(tf.square(x) - tf.square(state))
    assert abs(float(tape.gradient(leaky, layer.precision.value) - fixed)) > 0.05


def naive(form, positive, negative, penalty):
    """The formulas row by row, in plain Python."""
    n, rows = len(positive), []
    weights = np.exp(-negative) / np.exp(-negative).sum()
    for i in range(n):
        gap = positive[i] - negative[i]
        value = {
            "difference": gap,
            "softplus": np.log1p(np.exp(gap)),
            "logsumexp": positive[i] - n * weights[i] * negative[i],
        }[form]
        rows.append(value + penalty * (positive[i] ** 2 + negative[i] ** 2))
    return np.array(rows)


@pytest.mark.parametrize("form", ["difference", "softplus", "logsumexp"])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_forms_equal_their_naive_twins(form, penalty):
    layer, x = Scale(1.3), data(7, 2)
    options = {"form": form, "kl_weight": 0.0, "energy_penalty": penalty, "global_move": None}
    loss = ImprovedContrastiveDivergence(ebm.mcmc.MALA(0.5), 2, ebm.mcmc.FromData(), **options)
    output = loss(layer, x, seed=5)
    seed = fold_in(stateless_seed(5), 1)
    negatives, weights, _ = loss.negatives(layer, x, seed, training=False)
    twin = naive(form, layer(x).numpy(), layer(negatives).numpy(), penalty)
    np.testing.assert_allclose(weights, 1.0)
    np.testing.assert_allclose(output.per_example, twin, rtol=1e-10)
    gap = np.mean(layer(negatives)) - np.mean(layer(x))
    np.testing.assert_allclose(output.metrics["energy_gap"], gap, rtol=1e-8)
    spread = np.std(np.concatenate([layer(x) - np.mean(layer(x)), layer(negatives) - np.mean(layer(negatives))]))
    np.testing.assert_allclose(output.metrics["energy_spread"], spread, rtol=1e-8)


def test_gradient_of_the_logsumexp_form_weighs_the_negatives():
    """∂/∂λ = mean ½x² − Σ wᵢ½x⁻ᵢ² with w = softmax(−E(x⁻)) held fixed."""
    layer, x = Scale(1.3), data(7)
    options = {"form": "logsumexp", "kl_weight": 0.0, "global_move": None}
    loss = ImprovedContrastiveDivergence(ebm.mcmc.MALA(0.5), 2, ebm.mcmc.FromData(), **options)
    (gradient,) = gradient_of(loss, layer, x, seed=5)
    seed = fold_in(stateless_seed(5), 1)
    negatives = loss.negatives(layer, x, seed, training=False)[0].numpy()[:, 0]
    w = np.exp(-layer(negatives[:, None]))
    truth = np.mean(0.5 * x.numpy() ** 2) - np.sum(w / w.sum() * 0.5 * negatives**2)
    np.testing.assert_allclose(gradient, truth, rtol=1e-8)


def test_kl_term_differentiates_the_last_step_only():
    """For E = ½λx² and x' = (1 − ½ε²λ)x⁻ + εz: ∂/∂λ sg(E)(x') = λx'·(−½ε²x⁻); the entropy's by finite differences."""
    layer, x, epsilon = Scale(1.3), data(6), 0.5
    loss = ImprovedContrastiveDivergence(ebm.mcmc.MALA(epsilon), 2, ebm.mcmc.FromData(), global_move=None)
    plain = MaximumLikelihood(ebm.mcmc.MALA(epsilon), 2, ebm.mcmc.FromData(), global_move=None)
    difference = gradient_of(loss, layer, x, seed=5)[0] - gradient_of(plain, layer, x, seed=5)[0]
    seed = stateless_seed(5)
    negatives = plain.negatives(layer, x, fold_in(seed, 1), training=False)[0].numpy()[:, 0]
    z = normal([6, 1], fold_in(seed, 2), tf.float64).numpy()[:, 0]

    def entropy(precision):
        after = (1 - 0.5 * epsilon**2 * precision) * negatives + epsilon * z
        distance = np.abs(after[:, None] - negatives[None]) + np.diag(np.full(6, np.inf))
        return np.mean(np.log(distance.min(1)))

    after = (1 - 0.5 * epsilon**2 * 1.3) * negatives + epsilon * z
    truth = np.mean(1.3 * after * (-0.5 * epsilon**2 * negatives))
    truth -= (entropy(1.3 + 1e-6) - entropy(1.3 - 1e-6)) / 2e-6
    np.testing.assert_allclose(difference, truth, rtol=1e-6)


def test_options_that_moved_are_read_from_files_of_version_0_1():
    config = MaximumLikelihood(ebm.mcmc.MALA(0.5), 2, ebm.mcmc.FromData()).get_config()
    assert MaximumLikelihood.from_config({**config, "form": "difference", "kl_weight": 0.0}).num_steps == 2
    with pytest.raises(ValueError, match="`form` and `kl_weight` moved to ImprovedContrastiveDivergence"):
        MaximumLikelihood.from_config({**config, "form": "softplus", "kl_weight": 0.0})
    improved = ImprovedContrastiveDivergence.from_config({**config, "form": "softplus", "kl_weight": 0.5})
    assert improved.get_config()["form"] == "softplus" and improved.kl_weight == 0.5


def test_noise_on_the_data():
    """Noise of standard deviation s adds s² to the mean square: 1 + .25 within 4 errors of √(2/n)·1.25."""
    seen = []
    loss = ebm.losses.ContrastiveDivergence(ebm.mcmc.RandomWalk(0.1), data_noise=0.5)
    loss(lambda x: seen.append(x) or tf.reduce_sum(tf.square(x), -1), data(20_000), seed=0)
    noised = seen[-1].numpy()[:20_000]
    assert abs(np.mean(noised**2) - 1.25) < 4 * 1.25 * np.sqrt(2 / 20_000)
    boxed = ebm.losses.ContrastiveDivergence(ebm.mcmc.Langevin(0.1, clamp=(-1.0, 0.5)), data_noise=0.5)
    boxed(lambda x: seen.append(x) or tf.reduce_sum(tf.square(x), -1), data(20_000), seed=0)
    np.testing.assert_array_equal(seen[-1][:20_000], np.clip(noised, -1.0, 0.5))


@pytest.mark.slow
def test_step_size_adapts_to_the_optimum_and_not_in_validation():
    layer, x = Scale(1.0), data(500, 3)
    loss = ebm.losses.PersistentContrastiveDivergence(num_steps=5, capacity=500, base=diagonal_normal(3))
    assert loss.kernel.kernel == ebm.mcmc.MALA(0.1)

    @tf.function
    def run(seed, training):
        return loss(layer, x, seed=seed, training=training).metrics["acceptance_rate"]

    loss(layer, x, seed=0)
    before = float(loss.step_size.numpy())
    run(tf.constant([0, 0]), False)
    assert float(loss.step_size.numpy()) == before
    rates = [float(run(tf.constant([1, i]), True)) for i in range(150)]
    assert rates[0] > 0.95
    assert np.mean(rates[-20:]) == pytest.approx(0.574, abs=0.02)
    fixed = ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.MALA(0.1), capacity=500, base=diagonal_normal(3))
    fixed(layer, x, seed=0, training=True)
    assert float(fixed.step_size.numpy()) == 0.1


@pytest.mark.slow
def test_the_global_move_carries_mass_between_modes():
    """ChainStart that all start in the left of two wells 10 sd apart: only the global move brings some to the right."""

    def energy(x):
        return 0.5 * tf.reduce_sum(tf.square(tf.abs(x) - 5.0), -1)

    def share_right(global_move):
        base = diagonal_normal(1, 30.0**0.5)
        loss = ebm.losses.PersistentContrastiveDivergence(
            ebm.mcmc.MALA(0.5), num_steps=1, capacity=200, base=base, global_move=global_move
        )
        loss.build((1,), "float64")
        loss.chains.states.assign(tf.fill([200, 1], tf.constant(-5.0, tf.float64)))
        loss.chains.ages.assign(tf.ones([200], tf.int32))
        step = tf.function(lambda seed: loss(energy, data(200), seed=seed, training=True).metrics)
        metrics = [step(tf.constant([0, i])) for i in range(60)][-1]
        return float(tf.reduce_mean(tf.cast(loss.chains.states.value > 0, tf.float64))), metrics

    share, metrics = share_right("auto")
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(200)
    assert 0.0 < metrics["global_acceptance_rate"] < 1.0
    share, metrics = share_right(None)
    assert share == 0.0 and "global_acceptance_rate" not in metrics


def test_uncalibrated_chains_get_no_global_move_unless_asked():
    """The metric of the global move is reported by losses that make it."""
    kernel = ebm.mcmc.Langevin(0.1)
    asked = MaximumLikelihood(kernel, 1, ebm.mcmc.ReplayBuffer(5), global_move="independence")
    assert "global_acceptance_rate" in asked.metric_names
    for loss in (ebm.losses.PersistentContrastiveDivergence(kernel), ebm.losses.ContrastiveDivergence()):
        assert "global_acceptance_rate" not in loss.metric_names


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [1, pytest.param(7, marks=pytest.mark.long), pytest.param(200, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("kernel", [ebm.mcmc.MALA(0.9), ebm.mcmc.Langevin(0.3)])
def test_compiled_chains_are_those_of_their_halves(kernel, number):
    """Their twin: each half by itself; the mean acceptance is that of all chains, for one chain too.

    Both by XLA, where TFP's Metropolis step draws other numbers than in graph mode.
    """
    states, seed = data(number, 2), tf.constant([4, 2])
    built = kernel(lambda x: -tf.reduce_sum(x**4, -1))
    run = tf.function(lambda half, seed: move(built, half, 6, seed), jit_compile=True)
    halved = tf.function(lambda states, seed: move_by_xla(built, states, 6, seed, halve=True))(states, seed)
    parts = (states[: number // 2], states[number // 2 :])
    moved = [run(part, fold_in(seed, i)) for i, part in enumerate(parts) if len(part)]
    np.testing.assert_allclose(halved.states, tf.concat([each.states for each in moved], 0), rtol=1e-9)
    np.testing.assert_allclose(halved.log_prob, tf.concat([each.log_prob for each in moved], 0), rtol=1e-9)
    total = sum(float(each.accept_prob) * len(each.states) for each in moved)
    assert float(halved.accept_prob) == pytest.approx(total / number, rel=1e-12)
    whole = tf.function(lambda states, seed: move_by_xla(built, states, 6, seed, halve=False))(states, seed)
    np.testing.assert_allclose(whole.states, run(states, seed).states, rtol=1e-9)
    assert number == 1 or not np.allclose(whole.states[: number // 2], halved.states[: number // 2])


@pytest.mark.long
def test_gradient_of_a_step_with_compiled_chains():
    """The energy's with the negatives as numbers, though a tape watches the compiled chains."""
    layer, x, seed = Scale(1.3), data(101, 2), fold_in(stateless_seed(3), 1)

    def drawn(**options):
        loss = ebm.losses.ContrastiveDivergence(ebm.mcmc.MALA(0.5), num_steps=3, **options)
        loss.build((2,), "float64")
        negatives = tf.function(lambda: loss.negatives(layer, x, seed, training=False)[0])()
        return loss, negatives

    loss, negatives = drawn(jit_compile=True)
    (gradient,) = tf.function(lambda: gradient_of(loss, layer, x, seed=3))()
    explicit = 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(x) - tf.square(negatives), -1))
    np.testing.assert_allclose(gradient, explicit, rtol=1e-9)
    # it does compile: without, the numbers are others, and so is the gradient
    others = 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(x) - tf.square(drawn()[1]), -1))
    assert abs(others - explicit) > 0.01


@pytest.mark.long
@pytest.mark.parametrize("as_a_whole", [False, True])
def test_fit_with_compiled_chains(as_a_whole):
    """Batches of two sizes, the last one of 3 rows, are traced in the first epoch only, and the same seed gives the
    same bits, though two threads make them; also in a step that XLA compiles as a whole."""
    x = np.random.default_rng(0).normal(size=[64 if as_a_whole else 67, 2]).astype("float32")
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x

    network = keras.Sequential([keras.Input((2,)), Counted(), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    rng = np.random.default_rng(1)
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    model = ebm.EnergyModel(network, base_measure=ebm.fit_base(x), seed=0)
    loss = ebm.losses.PersistentContrastiveDivergence(num_steps=3, capacity=64, jit_compile=True)
    model.compile("sgd", loss, jit_compile=as_a_whole)
    model.fit(x, batch_size=32, epochs=1, verbose=0, shuffle=False)
    count, start = len(traces), model.get_weights()  # buffer, step sizes and step counter too

    def trained():
        model.set_weights(start)
        history = model.fit(x, batch_size=32, epochs=2, verbose=0, shuffle=False).history
        assert len(traces) == count > 0
        assert np.isfinite(history["loss"]).all() and max(history["num_restarted"]) == 0.0
        return model.get_weights()

    first = trained()
    assert_same(first, trained())
    assert np.abs(first[0] - start[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel": 3}, TypeError, "`kernel`"),
        ({"num_steps": 0}, ValueError, "`num_steps`"),
        ({"chains": "data"}, TypeError, "`chains`"),
        ({"form": "hinge"}, ValueError, "'softplus'"),
        ({"global_move": "jump"}, ValueError, "'independence'"),
        ({"energy_penalty": -1.0}, ValueError, "`energy_penalty`"),
        ({"data_noise": float("nan")}, ValueError, "`data_noise`"),
        ({"jit_compile": "auto"}, ValueError, "`jit_compile` must be True or False, got 'auto'"),
        ({"kernel": ebm.mcmc.RandomWalk(1.0), "kl_weight": 1.0}, ValueError, "`kl_weight`"),
    ],
)
def test_bad_arguments(arguments, error, message):
    kind = ImprovedContrastiveDivergence if {"form", "kl_weight"} & set(arguments) else MaximumLikelihood
    with pytest.raises(error, match=message):
        kind(**{"kernel": ebm.mcmc.MALA(0.1), "num_steps": 1, "chains": ebm.mcmc.FromData(), **arguments})


def test_a_base_that_is_missing_or_does_not_fit():
    layer, x = Scale(), data(5, 2)
    with pytest.raises(ValueError, match="`base` must be given"):
        ebm.losses.PersistentContrastiveDivergence(capacity=10)(layer, x, seed=0)
    with pytest.raises(ValueError, match=r"`base` must have event shape \(2,\)"):
        ebm.losses.PersistentContrastiveDivergence(capacity=10, base=diagonal_normal(3))(layer, x, seed=0)
    with pytest.raises(TypeError, match="`base`"):
        ebm.mcmc.FromBase("base")
    with pytest.raises(ValueError, match=r"`loss` 'maximum_likelihood'.*kernel, num_steps, chains"):
        ebm.losses.get("maximum_likelihood")
