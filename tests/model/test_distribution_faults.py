"""Faults found in public reports of people who put energies into TFP, save them and serve them."""

import copy
import functools
import pickle
import re
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import mcmc
from tfp_ebm.mcmc.running import stretches
from tfp_ebm.model import distribution, joint_draws

tfd, tfb = tfp.distributions, tfp.bijectors

BASE = tfd.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
DATA = np.random.default_rng(0).normal([1.0, -2.0], [3.0, 0.5], size=(500, 2)).astype("float32")


def energy(x):
    return 0.5 * tf.reduce_sum(x**2, -1)


def lennard_jones(x):
    squares = tf.reduce_sum(x**2, -1)
    return 4 / squares**6 - 4 / squares**3 + 0.05 * squares


def make(energy=energy, **arguments):
    return ebm.EnergyDistribution(energy, **{"event_shape": [2], "base": BASE, **arguments})


# --- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_default_kernel_leaves_a_hard_core():
    """No draw of 500 deep in the core (E > 60 has probability e⁻⁶⁰), and no warning; HMC alone leaves many, as the
    control shows and warns."""
    x = make(lennard_jones).sample(500, seed=0)
    assert np.all(lennard_jones(x) < 60)
    with pytest.warns(UserWarning, match=r"of 500 chains never moved in 301 steps") as record:
        stuck = make(lennard_jones, kernel=mcmc.Adaptive(mcmc.HMC(0.1, 10))).sample(500, seed=0)
    assert np.any(lennard_jones(stuck) > 60) and not any("R-hat" in str(w.message) for w in record)
    with pytest.warns(UserWarning, match="of 15 chains never moved"):
        make(lennard_jones, kernel=mcmc.HMC(0.05, 5)).sample(15, seed=5)


def test_starts_of_zero_density_are_drawn_again():
    def wall(x):
        return tf.where(x[..., 0] > 0, energy(x), np.inf)

    p = make(wall, kernel=mcmc.HMC(0.3, 3), num_burnin_steps=10)
    with pytest.warns(UserWarning, match=r"of 40 chains start at a state of zero or NaN density and are drawn again"):
        chains = p.sample_chains(20, 40, seed=0, jit_compile=False)
    assert np.all(chains.states[..., 0] > 0) and chains.num_nonfinite == 0


def test_the_default_kernel_starts_with_a_move_from_the_base():
    kinds = [type(part).__name__ for part in make().kernel.kernels]
    assert kinds == ["IndependenceMetropolis", "Adaptive"]
    without = ebm.EnergyDistribution(energy, event_shape=[2]).kernel
    chain = make(base=make()).kernel  # the base is an energy, whose draws are chains
    assert without == chain == mcmc.default_kernel()
    inside = make(bijector=tfb.Softplus()).kernel.kernels
    assert isinstance(inside[1], mcmc.Transformed)


@pytest.mark.slow
def test_two_modes_have_their_shares_by_default():
    """.3 and .7 of two Gaussians eight standard deviations apart, 2000 draws: within 4 standard errors of .0102, and no
    warning of R-hat. Control: the starts have .5."""
    target = ebm.targets.two_gaussians()
    x = make(lambda x: -target.log_prob(x)).sample(2000, seed=0)
    assert abs(np.mean(x[:, 0] < 0) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000) < 0.2


@pytest.mark.long
def test_counts_may_be_tensors():
    p = make(num_burnin_steps=3)
    traced = tf.function(lambda n: p.sample(n, seed=1))
    assert traced(tf.constant(5)).shape == (5, 2) and traced(tf.constant([2, 3])).shape == (2, 3, 2)
    assert tf.function(lambda n: p.sample([n, 2], seed=1))(tf.constant(3)).shape == (3, 2, 2)
    assert tf.function(lambda n: p.sample_chains(4, n, seed=1).states)(tf.constant(3, tf.int64)).shape == (4, 3, 2)
    np.testing.assert_array_equal(p.sample(tf.constant(5), seed=1), p.sample(5, seed=1))
    for jit_compile in (False, True):
        assert p.sample_chains(1, tf.constant(3), seed=0, jit_compile=jit_compile).states.shape == (1, 3, 2)
    assert make(event_shape=tf.constant([2])).event_shape == make(event_shape=tf.TensorShape([2])).event_shape
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[2], seed=0))
    assert ebm.EnergyDistribution(model, event_shape=tf.constant([2])).event_shape == (2,)
    assert tf.function(lambda n: ebm.targets.checkerboard().sample(n, seed=1))(tf.constant(4)).shape == (4, 2)
    for bad, error in ((tf.constant(2.0), TypeError), (tf.constant([1, 2]), TypeError), (tf.constant(0), ValueError)):
        with pytest.raises(error, match="num_chains"):
            p.sample_chains(1, bad, seed=0)


# --- warnings --------------------------------------------------------------------------------------------------------


def line_of(call):
    """The number of the line below the one that ends in this marker."""
    with open(__file__, encoding="utf-8") as file:
        return 1 + next(number for number, text in enumerate(file, 1) if text.endswith(f"# marker {call}\n"))


@pytest.mark.slow
def test_warnings_point_to_the_user_s_line():
    """Through TFP's `sample`, through `sample_chains`, `mcmc.sample`, `fit_base` and `adapt`."""
    p = make(lambda x: 1e6 * energy(x), kernel=mcmc.HMC(10.0, 2), num_burnin_steps=20)
    with pytest.warns(UserWarning, match="never moved") as record:  # marker sample
        p.sample(100, seed=0)
    assert {(w.filename, w.lineno) for w in record} == {(__file__, line_of("sample"))}
    with pytest.warns(UserWarning, match="never moved") as record:  # marker shape
        p.sample([10, 10], seed=0)
    assert {(w.filename, w.lineno) for w in record} == {(__file__, line_of("shape"))}
    with pytest.warns(UserWarning, match="never moved") as record:  # marker chains
        p.sample_chains(2, 30, seed=0)
    assert {(w.filename, w.lineno) for w in record} == {(__file__, line_of("chains"))}
    joint = tfd.JointDistributionSequential([p, lambda x: tfd.Normal(x[..., 0], 1.0)])
    joint.sample(1, seed=[0, 1])
    with pytest.warns(UserWarning, match="never moved") as record:  # marker joint
        joint.sample(100, seed=[0, 1])
    assert {(w.filename, w.lineno) for w in record} == {(__file__, line_of("joint"))}
    with pytest.warns(UserWarning, match="singular") as record:  # marker base
        ebm.fit_base(np.tile(DATA[:, :1], 2))
    assert {(w.filename, w.lineno) for w in record} == {(__file__, line_of("base"))}


# --- log Z -----------------------------------------------------------------------------------------------------------

SCALES = np.linspace(0.01, 14.0, 4001).astype("float32")
LOG_ROOT = np.float32(0.5 * np.log(2 * np.pi))


def scaled(s, log_normalizer):
    return ebm.EnergyDistribution(
        lambda x: x[..., 0] ** 2 / (2 * s**2), event_shape=[1], base=tfd.MultivariateNormalDiag([0.0], [1.0]),
        log_normalizer=log_normalizer(s),
    )  # fmt: skip


def posterior_mean(log_weights):
    weights = np.exp(np.asarray(log_weights, np.float64) - np.max(log_weights))
    return np.sum(SCALES * weights) / np.sum(weights)


@pytest.mark.slow
@pytest.mark.parametrize("pinned", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_known_log_normalizer_counts_in_joint_densities(pinned):
    """s ~ Gamma(4, 2), x ~ N(0, s²) seen at .5: E(s | x) by the same grid from TFP's own Normal. Control: without log Z
    it is off by .4."""
    truth = posterior_mean(tfd.Gamma(4.0, 2.0).log_prob(SCALES) + tfd.Normal(0.0, SCALES).log_prob(0.5))

    def mean(log_normalizer):
        joint = tfd.JointDistributionNamedAutoBatched(
            {"s": tfd.Gamma(4.0, 2.0), "x": lambda s: scaled(s, log_normalizer)}
        )
        if pinned:
            return posterior_mean(joint.experimental_pin(x=[0.5]).unnormalized_log_prob(s=tf.constant(SCALES)))
        x = tf.fill([len(SCALES), 1], 0.5)
        return posterior_mean(joint.unnormalized_log_prob(s=tf.constant(SCALES), x=x))

    assert abs(mean(lambda s: tf.math.log(s) + LOG_ROOT) - truth) < 1e-4
    assert abs(mean(lambda s: None) - truth) > 0.4


def test_a_known_log_normalizer_everywhere_in_tfp():
    value = np.float32(np.log(2 * np.pi))
    p, truth = make(log_normalizer=value), tfd.MultivariateNormalDiag(tf.zeros(2))
    x = tf.constant(DATA[:6])
    triples = tf.reshape(x, [2, 3, 2])
    for name in ("log_prob", "unnormalized_log_prob"):
        np.testing.assert_allclose(getattr(p, name)(x), truth.log_prob(x), rtol=1e-5)
        many, truths = getattr(tfd.Sample(p, 3), name)(triples), tfd.Sample(truth, 3).log_prob(triples)
        np.testing.assert_allclose(many, truths, rtol=1e-5)
        np.testing.assert_allclose(getattr(tfd.Independent(p, 0), name)(x), truth.log_prob(x), rtol=1e-5)
    np.testing.assert_allclose(p.negative_energy(x), -energy(x))
    mixture = tfd.Mixture(tfd.Categorical(probs=[0.5, 0.5]), [p, p])
    np.testing.assert_allclose(mixture.log_prob(x), truth.log_prob(x), rtol=1e-5)
    chains = p.sample_chains(2, 3, seed=0, num_burnin_steps=2)
    np.testing.assert_allclose(chains.unnormalized_log_prob, p.unnormalized_log_prob(chains.states), rtol=1e-5)
    # the energy itself stays: the estimate does not get the answer
    grid = ebm.evaluation.grid_log_normalizer(p, [-9, -9], [9, 9], num=64)
    assert abs(grid.value - value) < 1e-3


def test_a_log_normalizer_may_be_a_variable():
    variable = tf.Variable(1.0)
    p = make(log_normalizer=variable)
    before = p.log_prob([0.0, 0.0])
    variable.assign(3.0)
    assert float(before) == -1.0 and float(p.log_prob([0.0, 0.0])) == -3.0
    assert variable.ref() in {v.ref() for v in p.trainable_variables}
    assert float(make(log_normalizer=keras.Variable(2.0)).log_prob([0.0, 0.0])) == -2.0
    with pytest.raises(TypeError, match="log_normalizer"):
        make(log_normalizer=tf.Variable(1.0, dtype=tf.float64))
    with pytest.raises(ValueError, match=r"`log_normalizer` must be .* number"):
        make(log_normalizer=tf.zeros([3]))


def test_the_error_without_log_normalizer_names_a_way_out():
    sample = tfd.Sample(make(), 3)
    with pytest.raises(NotImplementedError, match=re.escape("p.with_log_normalizer(0.0)")):
        sample.unnormalized_log_prob(tf.ones([3, 2]))
    way_out = tfd.Sample(make().with_log_normalizer(0.0), 3)
    assert float(way_out.unnormalized_log_prob(tf.ones([3, 2]))) == -3.0


# --- Keras's freeze --------------------------------------------------------------------------------------------------


def network():
    return ebm.networks.mlp([2], units=[8], seed=0)


def fitted(target):
    """A surrogate posterior after ten steps, and whether the loss is finite."""
    q = tfd.MultivariateNormalDiag(tf.Variable([0.0, 0.0]), tfp.util.TransformedVariable([1.0, 1.0], tfb.Softplus()))
    return tfp.vi.fit_surrogate_posterior(
        target, q, optimizer=tf.optimizers.Adam(0.1), num_steps=10, seed=tf.constant([0, 1])
    )


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["model", "network", "layer"])
def test_frozen_weights_are_not_trained_by_tfp(freeze):
    """As they are when unfrozen, the control; values and gradients in x are the same either way."""
    model = ebm.EnergyModel(network(), base_measure=BASE)
    p = ebm.EnergyDistribution(model)
    x = tf.constant(DATA[:5])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = p.unnormalized_log_prob(x)
    gradient = tape.gradient(value, x)
    part = {"model": model, "network": model.network, "layer": model.network.layers[1]}[freeze]
    part.trainable = False
    before = [weight.numpy() for weight in part.weights]
    num_trainable = len(model.network.trainable_weights)
    assert len(p.trainable_variables) == num_trainable < len(model.network.weights)
    joint = tfd.JointDistributionSequential([p, tfd.Normal(0.0, 1.0)])
    assert len(joint.trainable_variables) == num_trainable
    losses = fitted(p.unnormalized_log_prob)
    assert np.isfinite(losses).all()
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before, part.weights, strict=True))
    with tf.GradientTape() as tape:  # a tape around a compiled function
        tf.function(p.unnormalized_log_prob)(x)
    assert len(tape.watched_variables()) == num_trainable
    part.trainable = True
    if freeze == "model":  # the weights have not changed
        part.trainable = False
        with tf.GradientTape() as tape:
            tape.watch(x)
            frozen = p.unnormalized_log_prob(x)
        np.testing.assert_allclose(frozen, value, rtol=1e-6)
        np.testing.assert_allclose(tape.gradient(frozen, x), gradient, rtol=1e-5)
        part.trainable = True
    assert len(p.trainable_variables) == len(model.network.weights)
    fitted(p.unnormalized_log_prob)
    assert not all(np.array_equal(old, new.numpy()) for old, new in zip(before, part.weights, strict=True))


# --- support ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_support_of_the_base_reaches_variational_inference():
    """Gamma(2, 1), Gamma(3, 1) as an energy: the surrogate's loss is finite, and infinite on the real line."""
    base = tfd.Independent(tfd.Gamma([2.0, 3.0], 1.0), 1)

    def positive(x):
        return tf.where(tf.reduce_all(x > 0, -1), -base.log_prob(tf.maximum(x, 1e-6)), np.inf)

    p = make(positive, base=base)
    bijector = p.experimental_default_event_space_bijector()
    assert np.all(bijector(tf.constant([[-3.0, 2.0]])) > 0)
    tf.random.set_seed(0)  # the surrogates start at random
    surrogate = tfp.experimental.vi.build_affine_surrogate_posterior([2], bijector=bijector)
    arguments = {"num_steps": 5, "sample_size": 100, "seed": tf.constant([0, 1])}
    loss = tfp.vi.fit_surrogate_posterior(
        p.unnormalized_log_prob, surrogate, optimizer=tf.optimizers.Adam(0.1), **arguments
    )
    assert np.isfinite(loss).all()
    wrong = tfp.experimental.vi.build_affine_surrogate_posterior([2], bijector=tfb.Identity())
    loss = tfp.vi.fit_surrogate_posterior(
        p.unnormalized_log_prob, wrong, optimizer=tf.optimizers.Adam(0.1), **arguments
    )
    assert not np.isfinite(loss).all()


@pytest.mark.parametrize(
    ("base", "inside"),
    [
        (tfd.Independent(tfd.Beta([2.0, 2.0], 2.0), 1), lambda x: (x > 0) & (x < 1)),
        (tfd.Independent(tfd.Uniform([-1.0, -1.0], [2.0, 2.0]), 1), lambda x: (x > -1) & (x < 2)),
        (tfd.Independent(tfd.LogNormal([0.0, 0.0], 1.0), 1), lambda x: x > 0),
    ],
    ids=["beta", "uniform", "lognormal"],
)
def test_the_default_bijector_is_the_base_s(base, inside):
    bijector = make(base=base).experimental_default_event_space_bijector()
    size = int(bijector.inverse_event_shape([2])[0])
    assert np.all(inside(bijector(tf.random.stateless_normal([50, size], [0, 1])).numpy()))


def test_gaussian_bases_and_none_leave_the_whole_space():
    image = ebm.fit_base(DATA[:, :, None])
    for p in (make(), make(event_shape=[2, 1], base=image), ebm.EnergyDistribution(energy, event_shape=[2])):
        assert isinstance(p.experimental_default_event_space_bijector(), tfb.Identity)


@pytest.mark.parametrize("standardized", [False, True])
def test_a_bijector_keeps_the_chains_on_the_support(standardized):
    """E = 3x on the positive half line: mean ⅓ within 4 standard errors of ⅓/√2000; also of a model in other units."""
    slope = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    slope.layers[0].set_weights([np.array([[3.0]], "float32")])
    model = slope
    if standardized:
        model = ebm.EnergyModel(slope)
        model.adapt(np.random.default_rng(0).normal(5.0, 2.0, size=(1000, 1)))  # E(x) = 3(x − loc)/scale
    start = tfd.Independent(tfd.Exponential([1.0]), 1)
    p = ebm.EnergyDistribution(model, base=start, bijector=tfb.Exp(), num_burnin_steps=100)
    x = p.sample(2000, seed=0).numpy()
    scale = float(model.standardization.scale.value[0]) / 3 if standardized else 1 / 3
    assert x.min() > 0 and abs(x.mean() - scale) < 4 * scale / np.sqrt(2000)
    for bad in (3, tf.exp):
        with pytest.raises(TypeError, match="`bijector`"):
            make(bijector=bad)


# --- slices ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_slices():
    p = make(log_normalizer=0.5, num_burnin_steps=2)
    x = tf.constant(DATA[:4])
    for sliced, shape in ((p[..., tf.newaxis], (1,)), (p[None], (1,)), (p[..., None, None], (1, 1))):
        assert tuple(sliced.batch_shape) == shape and sliced.event_shape == (2,)
        assert sliced.sample(3, seed=[0, 1]).shape == (3, *shape, 2)
        spread = tf.reshape(x, [4, *[1] * len(shape), 2])
        expected = tf.reshape(p.log_prob(x), [4, *shape])
        np.testing.assert_allclose(sliced.log_prob(spread), expected, rtol=1e-6)
        np.testing.assert_allclose(sliced.unnormalized_log_prob(spread), expected, rtol=1e-6)
    assert make()[..., None].unnormalized_log_prob(x[:, None]).shape == (4, 1)  # without log Z
    assert p[...] is p and p[()] is p
    for index in (0, slice(None), (0, ...), (..., 0), (..., ...)):
        with pytest.raises(IndexError, match=r"batch shape \(\)"):
            p[index]


# --- compiled chains are those of the energy -------------------------------------------------------------------------


@pytest.fixture
def traces(monkeypatch):
    """The chains made since."""
    made = []
    make_chain = stretches.Chain

    def counting(*arguments, **options):
        made.append(arguments)
        return make_chain(*arguments, **options)

    monkeypatch.setattr(stretches, "Chain", counting)
    return made


class Callable:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * energy(x)

    def method(self, x):
        return self.factor * energy(x)


def scaled_energy(x, factor):
    return factor * energy(x)


@pytest.mark.slow
def test_copies_share_compiled_chains(traces):
    """Of functions, bound methods, objects, partial functions, networks and models; the control: another energy."""
    one, instance = functools.partial(scaled_energy, factor=2.0), Callable(2.0)
    model, kept = ebm.EnergyModel(network(), base_measure=BASE), []
    for given in (energy, instance.method, instance, one, model, model.network):
        event_shape = None if isinstance(given, keras.layers.Layer) else [2]
        p = ebm.EnergyDistribution(given, event_shape, base=BASE, num_burnin_steps=0, kernel=mcmc.MALA(0.1))
        kept.append(p)  # compiled chains live as long as a distribution of their energy
        first = p.sample(20, seed=0)
        number = len(traces)
        for other in (p.copy(name="w"), p.with_log_normalizer(1.0), p.copy(num_burnin_steps=0), p[...], copy.copy(p)):
            np.testing.assert_array_equal(other.sample(20, seed=0), first)
        assert len(traces) == number, given
    number = len(traces)
    make(functools.partial(scaled_energy, factor=2.0), num_burnin_steps=0, kernel=mcmc.MALA(0.1)).sample(20, seed=0)
    assert len(traces) == number  # an equal partial function, made anew
    make(energy, num_burnin_steps=0, kernel=mcmc.MALA(0.1)).sample(20, seed=0)
    assert len(traces) == number  # a distribution made anew for the same function
    make(Callable(2.0), num_burnin_steps=0, kernel=mcmc.MALA(0.1)).sample(20, seed=0)
    assert len(traces) > number


@pytest.mark.slow
def test_auto_batched_joints_take_their_draws_from_chains_run_at_once():
    """Draws differ, follow the target (mean of 300 within 4 standard errors) and the children follow them; the traced
    chain takes 20 times as long. Stateless seeds still work."""
    p = make(num_burnin_steps=50)
    p.sample(64, seed=0)
    joint = tfd.JointDistributionSequentialAutoBatched([p, lambda x: tfd.Normal(x[0], 0.01)])
    begin = time.process_time()
    x, y = joint.sample(300, seed=1)
    assert time.process_time() - begin < 10
    assert x.shape == (300, 2) and len(np.unique(x.numpy(), axis=0)) == 300
    assert np.abs(x[:, 0] - y).max() < 0.06 and np.all(np.abs(np.mean(x, 0)) < 4 / np.sqrt(300))
    assert not np.array_equal(x, joint.sample(300, seed=2)[0])


@pytest.mark.slow
@pytest.mark.parametrize("planted", [False, True])
def test_auto_batched_joints_need_no_draw_before(planted, monkeypatch):
    """The chains are compiled at the first draw of the joint. Control: no tape records in `tf.init_scope`."""
    taken, next_draw = [], distribution.next_draw
    monkeypatch.setattr(distribution, "next_draw", lambda *arguments: taken.append(next_draw(*arguments)) or taken[-1])
    if planted:

        def in_init_scope(function):
            with tf.init_scope():
                return function(), []

        monkeypatch.setattr(joint_draws, "_in_eager_thread", in_init_scope)
    p = make(lambda x: energy(x), num_burnin_steps=30, kernel=mcmc.HMC(0.5, 3))
    joint = tfd.JointDistributionSequentialAutoBatched([p, lambda x: tfd.Normal(x[0], 0.01)])
    assert joint.sample(20, seed=1)[0].shape == (20, 2)
    assert taken and all((draw is None) == planted for draw in taken)


def test_draws_within_an_auto_batched_joint_warn_at_the_user_s_line():
    """Of R-hat: no chain of such a small step crosses between N(±30, 1)."""
    far = tfd.MultivariateNormalDiag([0.0, 0.0], [30.0, 1.0])
    p = make(lambda x: energy(tf.abs(x) - 30.0), base=far, num_burnin_steps=20, kernel=mcmc.MALA(0.1))
    joint = tfd.JointDistributionSequentialAutoBatched([p, lambda x: tfd.Normal(x[0], 0.01)])
    with pytest.warns(UserWarning, match="R-hat is") as caught:
        joint.sample(20, seed=1)
    assert {warning.filename for warning in caught if "R-hat" in str(warning.message)} == {__file__}


@pytest.mark.slow
def test_energies_that_depend_on_another_part_are_still_vectorised():
    """x | m ~ N(m, 1): the difference has variance 1, within 4 standard errors √(2/20)."""
    joint = tfd.JointDistributionSequentialAutoBatched(
        [
            tfd.Normal(0.0, 100.0),
            lambda m: ebm.EnergyDistribution(
                lambda x: 0.5 * (x[..., 0] - m) ** 2, event_shape=[1], base=tfd.MultivariateNormalDiag([m], [1.0]),
                kernel=mcmc.HMC(0.5, 3), num_burnin_steps=5,
            ),
        ]
    )  # fmt: skip
    m, x = joint.sample(20, seed=3)
    assert abs(np.var(x[:, 0] - m) - 1) < 4 * np.sqrt(2 / 20)


# --- copies and pickles ----------------------------------------------------------------------------------------------

PICKLED = {
    "fit_base": lambda: ebm.fit_base(DATA),
    "fit_base of images": lambda: ebm.fit_base(DATA[:, :, None]),
    "diagonal": lambda: BASE,
    "mixture": lambda: tfd.MixtureSameFamily(tfd.Categorical([0.0, 1.0]), tfd.Normal([0.0, 1.0], 1.0)),
    "independent": lambda: tfd.Independent(tfd.Normal([0.0, 1.0], 1.0), 1),
    "sample": lambda: tfd.Sample(tfd.Normal(0.0, 1.0), 2),
    "two_moons": lambda: ebm.targets.two_moons(),
    "checkerboard": lambda: ebm.targets.checkerboard(tf.float64),
    "renamed target": lambda: ebm.targets.rings().copy(name="other"),
    "callable": lambda: make(log_normalizer=1.0, kernel=mcmc.IndependenceMetropolis(BASE)),
    "fitted base": lambda: make(base=ebm.fit_base(DATA)),
    "model": lambda: ebm.EnergyDistribution(ebm.EnergyModel(network(), base_measure=ebm.fit_base(DATA))),
    "slice": lambda: make()[..., None],
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("model", "fitted base") else n for n in PICKLED]
)
def test_distributions_copy_and_pickle(name):
    """All copies are made before the first draw, and compared with one draw of the original."""
    p = PICKLED[name]()
    copies = {"deepcopy": copy.deepcopy(p), "copy": copy.copy(p), "pickle": pickle.loads(pickle.dumps(p))}
    draws = p.sample(3, seed=[0, 1])
    x = np.reshape(draws, [3, *p.batch_shape, *p.event_shape])
    log_prob = p.unnormalized_log_prob(x)
    for how, q in copies.items():
        np.testing.assert_array_equal(q.unnormalized_log_prob(x), log_prob, err_msg=how)
        np.testing.assert_array_equal(q.sample(3, seed=[0, 1]), draws, err_msg=how)
        assert q is not p and q.name == p.name and type(q) is type(p), how


def test_deep_copies_of_closures_share_their_function():
    factor = 2.0
    p = make(lambda x: factor * energy(x))
    assert copy.deepcopy(p).negative_energy is p.negative_energy
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(p)


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_served_model_checks_shapes_at_each_call(tmp_path):
    model = ebm.EnergyModel(network())
    model.adapt(DATA)
    model.export(tmp_path / "m", verbose=False, kernel=ebm.mcmc.HMC(0.1, 2))
    signatures = tf.saved_model.load(str(tmp_path / "m")).signatures
    good = tf.constant(DATA[:5])
    served = next(iter(signatures["serving_default"](x=good).values()))
    np.testing.assert_array_equal(served, model.energy(good))
    for name in ("serving_default", "energy", "score", "unnormalized_log_prob"):
        for shape in ([5, 1], [1, 1], [5, 3], [5], [2, 5, 2], []):
            with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
                signatures[name](x=tf.ones(shape))
    seed, steps = tf.constant([0, 1]), tf.constant(1)
    sample = signatures["sample"]
    assert next(iter(sample(initial_state=good, seed=seed, num_steps=steps).values())).shape == (5, 2)
    for bad in ({"initial_state": tf.ones([5, 1])}, {"seed": tf.constant([0, 1, 2])}, {"num_steps": tf.constant([1])}):
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
            sample(**{"initial_state": good, "seed": seed, "num_steps": steps, **bad})


KERAS_WRITES_LITERT = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 13)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2,), pytest.param((2, 1), marks=pytest.mark.long)])
def test_a_litert_file_runs_and_agrees(tmp_path, shape):
    """Of a tilt by a full Gaussian in other units; float32 rounding. Control: with the solve the file is refused."""
    x = DATA.reshape(-1, *shape)
    model = ebm.EnergyModel(ebm.networks.mlp(list(shape), units=[8], seed=0), base_measure=ebm.fit_base(x))
    model.adapt(x)
    path = str(tmp_path / "m.tflite")
    if not KERAS_WRITES_LITERT:
        with pytest.raises(ValueError, match="litert"):
            model.export(path, format="litert", verbose=False)
        return
    model.export(path, format="litert", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[:1])
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, model.energy(x[:1]), rtol=1e-5)


@pytest.mark.long
@pytest.mark.skipif(not KERAS_WRITES_LITERT, reason="needs Keras 3.13, which writes LiteRT files")
def test_a_litert_file_that_does_not_run_is_refused(tmp_path, monkeypatch):
    model = ebm.EnergyModel(network(), base_measure=ebm.fit_base(DATA))
    monkeypatch.setattr("tfp_ebm.energy.function._unreshaped", lambda base: None)
    path = tmp_path / "m.tflite"
    with pytest.raises(RuntimeError, match=r"`format` 'litert' cannot hold this energy.*MatrixTriangularSolve"):
        model.export(str(path), format="litert", verbose=False)
    assert not path.exists()
