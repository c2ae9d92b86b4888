"""`model.given(c)` for a batch of conditions: TFP's shape rules, log Z and draws of each condition, joints."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.model.given_conditions import GivenConditions

tfd = tfp.distributions


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.Model):
    """The energy ½‖(x − m)/s‖² of x in two coordinates for c = (m, s): log Z = 2 log s + log 2π; float64."""

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float64", **kwargs})

    def build(self, x_shape, c_shape):
        self.weight = self.add_weight(shape=(), initializer="ones", name="weight")
        self.built = True

    def call(self, x, c):
        return 0.5 * self.weight.value * tf.reduce_sum(tf.square((x - c[:, :1]) / c[:, 1:]), -1)


C = np.array([[0.0, 1.0], [1.0, 0.5], [-2.0, 0.8]])


@pytest.fixture(scope="module")
def model():
    model = ebm.EnergyModel(Scaled(), event_shape=(2,), condition_shape=(2,))
    model._fitted_base.assign(DataMoments.of([np.random.default_rng(0).normal(size=(500, 2)) * 2.0]))
    return model


def truth(x, c):
    """−E(x; c) where the leading axes of x broadcast with the batch axes of c."""
    return -0.5 * np.square((x - c[..., :1]) / c[..., 1:]).sum(-1)


@pytest.mark.parametrize(
    ("batch", "leading"),
    [
        ((3,), ()),
        ((3,), (3,)),
        ((3,), (7, 1)),
        ((3,), (5, 3)),
        ((1,), (4,)),
        ((), ()),
        ((), (4, 2)),
        ((2, 3), (5, 1, 3)),
    ],
)
def test_shapes_broadcast_as_those_of_a_normal(model, batch, leading):
    c = np.resize(C, (*batch, 2))
    p = model.given(c, as_distribution=True)
    like = tfd.MultivariateNormalDiag(np.repeat(c[..., :1], 2, -1), np.repeat(c[..., 1:], 2, -1))
    assert isinstance(p, ebm.EnergyDistribution)
    assert p.batch_shape == like.batch_shape and p.event_shape == like.event_shape
    np.testing.assert_array_equal(p.batch_shape_tensor(), batch)
    x = np.random.default_rng(1).normal(size=(*leading, 2))
    np.testing.assert_allclose(p.unnormalized_log_prob(x), truth(x, c), rtol=1e-9)
    q = p.with_log_normalizer(2 * np.log(c[..., 1]) + np.log(2 * np.pi))
    np.testing.assert_allclose(q.log_prob(x), like.log_prob(x), rtol=1e-9)
    np.testing.assert_allclose(q.unnormalized_log_prob(x), like.log_prob(x), rtol=1e-9)
    assert q.log_normalizer.shape == batch


def test_what_given_returns(model):
    assert isinstance(model.given(C[0]), ebm.EnergyModel)
    assert model.given(C[:1]).batch_shape == (1,)
    p = model.given(C)
    assert p.log_normalizer is None and p.energy_model is model
    with pytest.raises(NotImplementedError, match="log_prob needs log Z"):
        p.log_prob(np.zeros(2))
    for part, c in ((p[1], C[1]), (p[1:], C[1:]), (p[..., tf.newaxis], C[:, None]), (p[::-1], C[::-1])):
        np.testing.assert_array_equal(part.conditions, c)
    known = p.with_log_normalizer([0.0, 1.0, 2.0])
    np.testing.assert_array_equal(known[1:].log_normalizer, [1.0, 2.0])
    np.testing.assert_array_equal(p.copy(condition=C[:2]).conditions, C[:2])


class Shifted(keras.layers.Layer):
    """E(x; c) = Σ (x − c)²/2 with a number c."""

    def call(self, x, c):
        return 0.5 * tf.reduce_sum(tf.square(x - c[:, None]), -1)


def test_numbers_are_taken_in_a_column_and_in_lists():
    model = ebm.EnergyModel(Shifted(), event_shape=(2,))
    x = np.ones((2, 2), "float32")
    for condition in ([0.5, 1.0], [[0.5], [1.0]], np.array([[0.5], [1.0]])):
        np.testing.assert_allclose(model.energy(x, condition), [0.25, 0.0])


@pytest.mark.slow
def test_draws_and_log_z_of_each_condition(model):
    """Means within 4.5 standard errors of 2000 draws (12 of them: false alarm 1e-4), log Z within 4 of its own.

    Planted: against the conditions of the neighbours both are far off.
    """
    p = model.given(C)
    drawn = p.draw(2000, seed=1)
    assert drawn.states.shape == (2000, 3, 2) and drawn.trouble == () and len(drawn.parts) == 3
    for c, alike in ((C, True), (np.roll(C, 1, 0), False)):
        error = np.abs(np.mean(drawn.states, 0) - c[:, :1]) / (c[:, 1:] / np.sqrt(2000))
        spread = np.abs(np.std(drawn.states, 0) / c[:, 1:] - 1.0) * np.sqrt(4000)
        value, deviation = drawn.log_normalizer.value, drawn.log_normalizer.standard_error
        of_z = np.abs(value - 2 * np.log(c[:, 1]) - np.log(2 * np.pi)) / deviation
        assert bool(max(error.max(), spread.max()) < 4.5) is alike
        assert bool(of_z.max() < 4.0) is alike
    estimated = p.with_log_normalizer(drawn.log_normalizer)
    np.testing.assert_allclose(estimated.log_normalizer, drawn.log_normalizer.value)
    assert p[1].sample(4, seed=3).shape == (4, 2)
    np.testing.assert_allclose(p.quantile(0.9), C[:, :1] + 1.2816 * C[:, 1:] * np.ones((1, 2)), atol=0.2)


@pytest.mark.slow
def test_chains_keep_their_conditions_also_in_graphs(model):
    """Means within 4.5 standard errors of 400 chains; in a graph, conditions are tensors of it."""
    p = GivenConditions(model, C, kernel=ebm.mcmc.HMC(0.4, 3), num_burnin_steps=60)

    @tf.function
    def draw(c):
        return GivenConditions(model, c, kernel=ebm.mcmc.HMC(0.4, 3), num_burnin_steps=60).sample(400, seed=4)

    for states in (p.sample(400, seed=4), draw(tf.constant(C)), p.sample_chains(2, 400, seed=5).states[1]):
        error = np.abs(np.mean(states, 0) - C[:, :1]) / (C[:, 1:] / np.sqrt(400))
        assert states.shape == (400, 3, 2) and error.max() < 4.5
        assert np.abs(np.mean(states, 0) - np.roll(C, 1, 0)[:, :1]).max() > 0.5  # control


def test_gradients_reach_the_condition(model):
    c = tf.constant(C)
    with tf.GradientTape() as tape:
        tape.watch(c)
        value = tf.reduce_sum(model.given(c).unnormalized_log_prob(tf.ones([3, 2], tf.float64)))
    slope = (2.0 - 2.0 * C[:, 0]) / C[:, 1] ** 2
    np.testing.assert_allclose(tape.gradient(value, c)[:, 0], slope, rtol=1e-9)


@pytest.mark.slow
def test_a_joint_distribution_conditions_it(model):
    """p(m) p(x | m) with a known log Z: log density in closed form, shapes of batches of samples."""
    prior = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))

    def likelihood(m):
        c = tf.concat([m, tf.ones_like(m)], -1)
        p = GivenConditions(model, c, kernel=ebm.mcmc.HMC(0.4, 3), num_burnin_steps=2)
        return p.with_log_normalizer(tf.fill(p.batch_shape_tensor(), tf.constant(np.log(2 * np.pi))))

    joint = tfd.JointDistributionNamed({"m": prior, "x": likelihood})
    m, x = np.array([[0.5], [-1.0]]), np.array([[1.0, 0.0], [0.3, 0.2]])
    expected = prior.log_prob(m) + truth(x, np.c_[m, np.ones(2)]) - np.log(2 * np.pi)
    np.testing.assert_allclose(joint.log_prob(m=m, x=x), expected, rtol=1e-9)
    np.testing.assert_allclose(joint.log_prob(m=m[0], x=x[0]), expected[0], rtol=1e-9)
    drawn = joint.sample(3, seed=1)
    assert drawn["m"].shape == (3, 1) and drawn["x"].shape == (3, 2)


def test_labels_and_what_the_loss_learned():
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4], num_labels=3))
    p = model.given([0, 2])
    assert p.batch_shape == (2,) and p.unnormalized_log_prob(tf.zeros([5, 1, 2])).shape == (5, 2)
    np.testing.assert_allclose(p.unnormalized_log_prob(tf.ones([2]))[1], -model.energy(np.ones(2), 2), rtol=1e-6)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    model.compile(loss="noise_contrastive_estimation")
    model.fit(x, np.arange(64) % 3, verbose=0)
    learned = float(model.log_normalizer)
    np.testing.assert_allclose(model.given([0, 2]).log_normalizer, [learned, learned])
    assert float(model.given(1).log_normalizer) == learned
    assert model.given([0, 2]).log_prob(x[:, None]).shape == (64, 2)


BAD = {
    "shape": (lambda m: m.given(C[:, :1]), ValueError, "`condition` must have shape"),
    "nan": (lambda m: m.given(C * np.nan), ValueError, "`condition` must be finite"),
    "log Z": (
        lambda m: m.given(C).with_log_normalizer([0.0, 1.0]),
        ValueError,
        "`log_normalizer` must have the batch shape",
    ),
    "log Z nan": (lambda m: m.given(C).with_log_normalizer(np.nan), ValueError, "`log_normalizer` must be finite"),
    "none": (
        lambda m: ebm.EnergyModel(ebm.networks.mlp([2], units=[4])).given(1.0, as_distribution=True),
        ValueError,
        "`condition` must not be given",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, model):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(model)
