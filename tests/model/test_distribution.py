"""`EnergyDistribution` does what TFP expects of a distribution, and its draws follow its density."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import Quadratic, functional

import tfp_ebm as ebm

tfd = tfp.distributions

MEAN, SD = np.array([3.0, -1.0]), np.array([2.0, 0.05])
KERNEL = ebm.mcmc.HMC(0.5, num_leapfrog_steps=4)


@pytest.fixture(scope="module")
def gaussian():
    """N(MEAN, SD²) as a unit quadratic in standardised units."""
    model = ebm.EnergyModel(Quadratic(), event_shape=(2,))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 2))
    model.adapt((x - x.mean(0)) / x.std(0) * SD + MEAN)
    return model


@pytest.fixture(scope="module")
def p(gaussian):
    return ebm.EnergyDistribution(gaussian, kernel=KERNEL, num_burnin_steps=20)


def test_contract(gaussian, p):
    assert isinstance(p, tfd.Distribution)
    assert p.event_shape == (2,) and p.batch_shape == () and p.dtype == tf.float32
    np.testing.assert_array_equal(p.event_shape_tensor(), [2])
    np.testing.assert_array_equal(p.batch_shape_tensor(), [])
    assert isinstance(p.experimental_default_event_space_bijector(), tfp.bijectors.Identity)
    assert "EnergyDistribution" in repr(p) and p.copy(name="q").name == "q"
    assert p.base.event_shape == (2,)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype("float32")
    assert p.unnormalized_log_prob(x).shape == (2, 3, 4)
    np.testing.assert_array_equal(p.unnormalized_log_prob(x), -gaussian.energy(x))
    np.testing.assert_array_equal(p.unnormalized_log_prob(x[0]), p.unnormalized_log_prob(x)[0])


def test_variables_are_the_network_s(gaussian, p):
    values = {id(v.value) for v in gaussian.network.trainable_variables}
    assert {id(v) for v in p.trainable_variables} == values and len(values) == 2
    x = tf.constant([[1.0, 1.0]])
    with tf.GradientTape() as tape:
        log_prob = p.unnormalized_log_prob(x)
    assert all(g is not None for g in tape.gradient(log_prob, p.trainable_variables))
    joint = tfd.JointDistributionSequential([p, tfd.Normal(0.0, 1.0)])
    assert values <= {id(v) for v in joint.trainable_variables}


def test_log_prob_needs_the_normaliser(p):
    with pytest.raises(NotImplementedError, match=r"log_prob needs log Z.*with_log_normalizer"):
        p.log_prob([0.0, 0.0])
    q = p.with_log_normalizer(np.log(2 * np.pi))  # of the unit quadratic: the same in z and in x
    truth = tfd.MultivariateNormalDiag(MEAN.astype("float32"), SD.astype("float32"))
    x = truth.sample(100, seed=[0, 0])
    # float32: x − loc loses 1e-7·|mean|/sd
    np.testing.assert_allclose(q.log_prob(x), truth.log_prob(x), atol=1e-3)
    np.testing.assert_allclose(q.prob(x), truth.prob(x), rtol=1e-3)
    assert p.log_normalizer is None and float(q.log_normalizer) == pytest.approx(1.8378770)


def test_samples_have_the_moments_of_the_target(p):
    """4000 independent chains of 20 HMC steps started at the base, which is the target: means within 4 standard errors
    and variances within 4 of theirs (√(2/n)); false once in 4000 seeds. A kernel that did not move would pass this, so
    the chains must have moved."""
    x = p.sample(4000, seed=1).numpy()
    assert x.shape == (4000, 2)
    assert np.all(np.abs(x.mean(0) - MEAN) < 4 * SD / np.sqrt(4000))
    assert np.all(np.abs(x.var(0) / SD**2 - 1) < 4 * np.sqrt(2 / 4000))
    chains = p.sample_chains(2, 100, seed=1, num_burnin_steps=0)
    assert np.mean(np.all(chains.states[0] != chains.states[1], -1)) > 0.5
    np.testing.assert_allclose(chains.unnormalized_log_prob, p.unnormalized_log_prob(chains.states), atol=1e-4)


@pytest.mark.slow
def test_seeds(p):
    first = p.sample(20, seed=1)
    np.testing.assert_array_equal(first, p.sample(20, seed=1))
    np.testing.assert_array_equal(first, p.sample(20, seed=tf.constant([0, 1])))
    assert not np.array_equal(first, p.sample(20, seed=2))
    assert not np.array_equal(p.sample(20), p.sample(20))
    assert p.sample(2, seed=-3).shape == (2, 2)
    assert p.sample(seed=1).shape == (2,) and p.sample([2, 3], seed=1).shape == (2, 3, 2)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda target: tfp.mcmc.RandomWalkMetropolis(target),
        lambda target: tfp.mcmc.HamiltonianMonteCarlo(target, step_size=0.05, num_leapfrog_steps=3),
        lambda target: tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(target, step_size=1e-3),
        lambda target: tfp.mcmc.NoUTurnSampler(target, step_size=0.05, max_tree_depth=3),
        lambda target: tfp.mcmc.ReplicaExchangeMC(
            target, inverse_temperatures=[1.0, 0.5, 0.2], make_kernel_fn=lambda t: tfp.mcmc.RandomWalkMetropolis(t)
        ),
    ],
    ids=["RandomWalkMetropolis", "HamiltonianMonteCarlo", "MALA", "NoUTurnSampler", "ReplicaExchangeMC"],
)
def test_every_kernel_of_tfp_takes_it_as_target(p, kernel):
    @tf.function
    def run(start):
        return tfp.mcmc.sample_chain(
            5, start, kernel=kernel(p.unnormalized_log_prob), trace_fn=None, seed=tf.constant([0, 1])
        )

    start = p.base.sample(6, seed=[0, 0])
    states = run(start)
    assert states.shape == (5, 6, 2) and np.isfinite(states).all()
    assert np.any(states[-1] != start)


def test_callables_and_plain_networks():
    base = tfd.MultivariateNormalDiag(np.zeros(2), 2 * np.ones(2))
    p = ebm.EnergyDistribution(
        lambda x: 0.5 * tf.reduce_sum(x**2, -1), event_shape=[2], base=base, kernel=KERNEL, num_burnin_steps=20
    )
    assert p.dtype == tf.float64
    np.testing.assert_allclose(p.unnormalized_log_prob(np.ones((3, 1, 2))), -np.ones((3, 1)))
    x = p.sample(1000, seed=0).numpy()
    assert np.all(np.abs(x.var(0) - 1) < 4 * np.sqrt(2 / 1000))
    network = functional()
    q = ebm.EnergyDistribution(network)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    np.testing.assert_allclose(q.unnormalized_log_prob(x), -network(x)[:, 0], rtol=1e-5)


@pytest.mark.slow
def test_prior_of_a_joint_distribution(p):
    """A Gaussian prior as an energy, a Gaussian likelihood of its first coordinate: the posterior is known.

    HMC on the joint's `unnormalized_log_prob`; the mean within 4 standard errors by ESS, and the prior's mean, which
    a joint that forgot the likelihood would give, is ruled out by more than 20."""
    noise, observed = 1.0, 6.0
    joint = tfd.JointDistributionNamed({"x": p, "y": lambda x: tfd.Normal(x[..., 0], noise)})

    def target(x):
        return joint.unnormalized_log_prob({"x": x, "y": tf.constant(observed)})

    samples = ebm.mcmc.sample(
        target, p.base.sample(50, seed=[0, 0]), ebm.mcmc.HMC(0.05, num_leapfrog_steps=20), num_results=200,
        num_burnin_steps=100, seed=3,
    )  # fmt: skip
    d = ebm.mcmc.diagnose(samples)
    precision = 1 / SD[0] ** 2 + 1 / noise**2
    truth = (MEAN[0] / SD[0] ** 2 + observed / noise**2) / precision
    assert abs(d.mean[0] - truth) < 4 * d.mcse[0] + 1e-3
    assert abs(MEAN[0] - truth) > 20 * d.mcse[0]
    assert abs(d.mean[1] - MEAN[1]) < 4 * d.mcse[1] + 1e-4


def test_auto_batched_joints_draw_different_samples(p):
    """TFP hands one int to every draw and takes it for stateful; as a stateless seed it would give equal draws."""
    joint = tfd.JointDistributionSequentialAutoBatched([p, lambda x: tfd.Normal(x[0], 0.5)])
    x = joint.sample(3, seed=1)[0].numpy()
    assert x.shape == (3, 2) and len(np.unique(x[:, 0])) == 3
    plain = tfd.JointDistributionSequential([p, lambda x: tfd.Normal(x[..., 0], 0.5)])
    np.testing.assert_array_equal(plain.sample(3, seed=[0, 1])[0], plain.sample(3, seed=[0, 1])[0])


def test_new_weights_are_sampled_without_tracing_again(gaussian):
    p = ebm.EnergyDistribution(gaussian, kernel=KERNEL, num_burnin_steps=20)
    p.sample(100, seed=0)
    before = p.sample(2000, seed=0).numpy().mean(0)
    gaussian.network.mean.assign([1.0, 0.0])
    after = p.sample(2000, seed=0).numpy().mean(0)
    gaussian.network.mean.assign([0.0, 0.0])
    assert abs(after[0] - before[0] - SD[0]) < 8 * SD[0] / np.sqrt(2000)


@pytest.mark.slow
def test_nothing_keeps_a_model_alive():
    model = ebm.EnergyModel(Quadratic(), event_shape=(2,))
    model.adapt(np.random.default_rng(0).normal(size=(10, 2)))
    p = ebm.EnergyDistribution(model, kernel=KERNEL, num_burnin_steps=1)
    p.sample(3, seed=0)
    dead = weakref.ref(model)
    del model, p
    gc.collect()
    assert dead() is None


def test_callables_may_have_one_column_and_nothing_else():
    def column(x):
        return tf.reduce_sum(x**2, -1, keepdims=True)

    p = ebm.EnergyDistribution(column, event_shape=[2])
    np.testing.assert_array_equal(p.unnormalized_log_prob(np.ones((3, 2, 2))), -2 * np.ones((3, 2)))
    for energy, shape in ((lambda x: x**2, r"\(4, 2\)"), (tf.reduce_sum, r"\(\)"), (lambda x: x[:2, 0], r"\(2,\)")):
        with pytest.raises(ValueError, match=rf"one number per row, shape \[batch\] or \[batch, 1\], got {shape}"):
            ebm.EnergyDistribution(energy, event_shape=[2]).unnormalized_log_prob(np.ones((4, 2)))


def make(**arguments):
    return ebm.EnergyDistribution(functional(), **arguments)


BAD = {
    "not callable": (lambda: ebm.EnergyDistribution(3.0), TypeError, "`energy` must be"),
    "no shape": (lambda: ebm.EnergyDistribution(lambda x: x), ValueError, "`event_shape` or `base` must be given"),
    "other shape": (lambda: make(event_shape=[2]), ValueError, r"`event_shape` must be .* \(3,\), got \(2,\)"),
    "base shape": (lambda: make(base=tfd.MultivariateNormalDiag([0.0])), ValueError, "`base` must have event shape"),
    "base dtype": (
        lambda: make(base=tfd.MultivariateNormalDiag(np.zeros(3))),
        TypeError,
        "`base` must have the energy's",
    ),
    "kernel": (lambda: make(kernel=3), TypeError, "`kernel` must map"),
    "burn-in": (lambda: make(num_burnin_steps=-1), ValueError, "`num_burnin_steps` must be"),
    "log Z": (lambda: make(log_normalizer=[1.0]), ValueError, "`log_normalizer` must be an Estimate or a number"),
    "an estimate for log Z": (
        lambda: make(log_normalizer=(1.0, 0.1)),
        TypeError,
        "`log_normalizer` must be an Estimate or a number, got",
    ),
    "no base": (
        lambda: ebm.EnergyDistribution(lambda x: x[..., 0], event_shape=[2]).sample(3, seed=0),
        ValueError,
        "`base` must be given",
    ),
    "base": (lambda: make(base="normal"), TypeError, "`base` must be a tfp.distributions.Distribution"),
    "batch of bases": (
        lambda: make(base=tfd.MultivariateNormalDiag(np.zeros((4, 3), "float32"))),
        ValueError,
        "got a batch of shape",
    ),
    "event int": (
        lambda: ebm.EnergyDistribution(lambda x: x, event_shape=2),
        TypeError,
        "`event_shape` must be a sequence",
    ),
    "base in place of a shape": (
        lambda: ebm.EnergyDistribution(lambda x: x, tfd.MultivariateNormalDiag([0.0])),
        TypeError,
        "`event_shape` must be a sequence",
    ),
    "kernel of chains": (
        lambda: make().sample_chains(1, 2, seed=0, kernel=KERNEL),
        TypeError,
        r"use p\.copy\(kernel=kernel\)",
    ),
    "nan log Z": (lambda: make(log_normalizer=np.nan), ValueError, "`log_normalizer` must be finite"),
    "chains": (lambda: make().sample_chains(1, 2.5, seed=0), ValueError, "`num_chains` must be a whole number"),
    "unadapted": (lambda: make().sample(3, seed=0), ValueError, "no base distribution yet"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_state_of_another_dtype_is_refused(p):
    with pytest.raises(TypeError, match="float64"):
        p.unnormalized_log_prob(tf.zeros([3, 2], tf.float64))


def test_the_event_shape_of_a_callable_is_that_of_its_base():
    base = tfd.MultivariateNormalDiag(np.zeros(3))
    p = ebm.EnergyDistribution(lambda x: tf.reduce_sum(x**2, -1), base=base)
    assert p.event_shape == (3,) and p.dtype == tf.float64


def test_a_base_may_be_the_energy_itself():
    """Its bijector remembers what it drew, and a chain that starts there needs the gradient at that very tensor."""
    base = tfd.MultivariateNormalTriL([1.0, 2.0], tf.linalg.cholesky([[2.0, 0.5], [0.5, 1.0]]))
    p = ebm.EnergyDistribution(lambda x: -base.log_prob(x), event_shape=[2], base=base, kernel=KERNEL)
    joint = tfd.JointDistributionNamed({"x": p, "y": lambda x: tfd.Normal(x[..., 0], 1.0)})
    assert np.isfinite(joint.unnormalized_log_prob(x=tf.zeros([3, 2]), y=tf.zeros([3]))).all()
