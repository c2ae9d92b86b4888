"""The compiled driver: which steps are kept, what is compiled when, seeds, segments, errors."""

import functools
import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import assert_same, normal

from tfp_ebm import mcmc
from tfp_ebm.mcmc.running import compiled, stretches
from tfp_ebm.mcmc.running.recorders import KeepDraws

graph = functools.partial(mcmc.sample, jit_compile=False)


class Energy:
    """A target that counts how often it is traced, with weights that can change."""

    def __init__(self, dtype=tf.float32):
        self.location = tf.Variable(tf.zeros([2], dtype))
        self.num_traces = 0

    def log_prob(self, x):
        self.num_traces += 1
        return -0.5 * tf.reduce_sum((x - self.location) ** 2, -1)


class Counter(tfp.mcmc.TransitionKernel):
    """The state counts the steps, and keeps the seed of the last one beside it."""

    def __init__(self, target_log_prob_fn):
        self._parameters = {"target_log_prob_fn": target_log_prob_fn}

    is_calibrated = True
    parameters = property(lambda self: self._parameters)

    def bootstrap_results(self, init_state):
        del init_state
        return ()

    def one_step(self, current_state, previous_kernel_results, seed=None):
        noise = tf.random.stateless_uniform(tf.shape(current_state[:, 0]), seed, alg="philox")
        return tf.stack([current_state[:, 0] + 1, noise], -1), previous_kernel_results


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(("num_results", "burnin", "between"), [(4, 0, 0), (3, 5, 0), (3, 0, 2), (4, 7, 3), (1, 60, 0)])
def test_kept_steps_are_those_of_tfp(num_results, burnin, between, progress, capsys):
    samples = graph(
        normal,
        tf.zeros([2, 2]),
        Counter,
        num_results=num_results,
        num_burnin_steps=burnin,
        num_steps_between_results=between,
        seed=0,
        progress=progress,
    )
    expected = tfp.mcmc.sample_chain(
        num_results,
        tf.zeros([2, 2]),
        kernel=Counter(normal),
        num_burnin_steps=burnin,
        num_steps_between_results=between,
        trace_fn=None,
        seed=[0, 0],
    )
    np.testing.assert_array_equal(samples.states[..., 0], expected[..., 0])
    shown = capsys.readouterr().out
    assert ("step" in shown) == progress
    assert samples.step_size is None


KERNELS = {
    "langevin": mcmc.Langevin(0.3),
    "mala": mcmc.MALA(0.8),
    "random_walk": mcmc.RandomWalk(1.0),
    "hmc": mcmc.Adaptive(mcmc.HMC(0.5, 3)),
    "partial": functools.partial(tfp.mcmc.HamiltonianMonteCarlo, step_size=0.5, num_leapfrog_steps=2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "jit_compile"), [*((name, False) for name in KERNELS), ("mala", True), ("hmc", True)], ids=str
)
def test_second_call_traces_nothing(name, jit_compile, capsys):
    """Seed, state, step size, burn-in, thinning, weights and the progress bar are arguments of the compiled chain."""
    energy, kernel = Energy(), KERNELS[name]
    run = functools.partial(mcmc.sample, num_results=20, jit_compile=jit_compile)
    first = run(energy.log_prob, tf.zeros([5, 2]), kernel, num_burnin_steps=30, seed=1)
    num_traces = energy.num_traces
    again = run(energy.log_prob, tf.zeros([5, 2]), kernel, num_burnin_steps=30, seed=1)
    with_bar = run(energy.log_prob, tf.zeros([5, 2]), kernel, num_burnin_steps=30, seed=1, progress=True)
    other = run(energy.log_prob, tf.zeros([5, 2]), kernel, num_burnin_steps=30, seed=tf.constant([0, 2]))
    moved = run(energy.log_prob, tf.ones([5, 2]), kernel, num_burnin_steps=30, seed=1)
    energy.location.assign([50.0, 50.0])
    reweighted = run(energy.log_prob, tf.zeros([5, 2]), kernel, num_burnin_steps=30, seed=1)
    assert energy.num_traces == num_traces

    for same in (again, with_bar):
        assert_same(first, same)
    for different in (other, moved, reweighted):
        assert np.any(different.states != first.states)
    np.testing.assert_allclose(
        reweighted.unnormalized_log_prob, -0.5 * np.sum((reweighted.states - 50.0) ** 2, -1), rtol=1e-4
    )
    np.testing.assert_allclose(first.unnormalized_log_prob, normal(first.states), rtol=1e-4, atol=1e-5)
    if not jit_compile:  # control: another shape is traced
        run(energy.log_prob, tf.zeros([6, 2]), kernel, num_burnin_steps=30, seed=1)
        assert energy.num_traces > num_traces


def test_step_size_burnin_and_thinning_are_arguments():
    energy = Energy()
    run = functools.partial(graph, energy.log_prob, tf.zeros([5, 2]), num_results=20, seed=1)
    run(mcmc.HMC(0.1, 3))
    num_traces = energy.num_traces
    assert np.all(run(mcmc.HMC(0.2, 3)).step_size == np.float32(0.2))
    run(mcmc.HMC(0.3, 3), num_burnin_steps=7, num_steps_between_results=2)
    assert energy.num_traces == num_traces
    run(mcmc.HMC(0.3, 4))
    assert energy.num_traces > num_traces


def test_step_size_argument_reaches_the_kernel():
    """A chain compiled at one step size and run at another equals one compiled at the other."""
    run = functools.partial(graph, initial_state=tf.zeros([5, 2]), num_results=5, seed=1)
    shared, fresh = Energy(), Energy()
    run(shared.log_prob, kernel=mcmc.HMC([0.1, 0.2], 3, mass=[1.0, 3.0]))
    swapped = run(shared.log_prob, kernel=mcmc.HMC([0.5, 0.1], 3, mass=[1.0, 3.0]))
    compiled = run(fresh.log_prob, kernel=mcmc.HMC([0.5, 0.1], 3, mass=[1.0, 3.0]))
    np.testing.assert_array_equal(swapped.states, compiled.states)


def test_seeds():
    def run(seed):
        return graph(normal, tf.zeros([50, 2]), mcmc.MALA(0.8), num_results=4, seed=seed).states.numpy()

    np.testing.assert_array_equal(run(7), run(tf.constant([0, 7])))
    np.testing.assert_array_equal(run(7), run(np.array([0, 7])))
    assert np.all(run(7)[-1] != run(8)[-1])
    # chains and steps do not share their noise
    noise = np.diff(np.concatenate([np.zeros([1, 50, 2]), run(7)]), axis=0)
    noise = noise[noise != 0]
    assert len(np.unique(noise)) == len(noise)


def test_states_of_many_shapes():
    image = graph(
        lambda x: normal(tf.reshape(x, [2, 3, 12])), tf.zeros([2, 3, 4, 3]), mcmc.MALA(0.1), num_results=2, seed=0
    )
    assert image.states.shape == [2, 2, 3, 4, 3] and image.is_accepted.shape == [2, 2, 3]
    scalars = graph(lambda x: -0.5 * x**2, tf.zeros([7], tf.float64), mcmc.RandomWalk(1.0), num_results=2, seed=0)
    assert scalars.states.shape == [2, 7] and scalars.states.dtype == tf.float64
    one = graph(normal, tf.zeros([2]), mcmc.HMC(0.1, 2), num_results=2, seed=0)
    assert one.states.shape == [2, 2] and one.unnormalized_log_prob.shape == [2]
    assert graph(normal, [[0.0, 1.0]], mcmc.MALA(0.1), num_results=2, seed=0).states.shape == [2, 1, 2]


def test_foreign_kernels():
    """The log density is the target's, not that of the space in which a kernel of TFP's works."""

    def positive(x):
        return -tf.reduce_sum(x, -1)

    def transformed(target):
        inner = tfp.mcmc.HamiltonianMonteCarlo(target, step_size=0.5, num_leapfrog_steps=2)
        return tfp.mcmc.TransformedTransitionKernel(inner, tfp.bijectors.Exp())

    samples = graph(positive, tf.ones([20, 2]), transformed, num_results=5, seed=0)
    np.testing.assert_allclose(samples.unnormalized_log_prob, positive(samples.states), rtol=1e-6)
    stayed = np.all(np.diff(np.concatenate([np.ones([1, 20, 2]), samples.states]), axis=0) == 0, axis=-1)
    np.testing.assert_array_equal(samples.is_accepted, ~stayed)
    assert stayed.any()
    # a kernel whose results lack it: whether the chain moved
    counted = graph(normal, tf.zeros([3, 2]), Counter, num_results=2, seed=0)
    assert np.all(counted.is_accepted)


def test_uncalibrated_kernels_accept_everything():
    samples = graph(normal, tf.zeros([3, 2]), mcmc.Langevin(0.5), num_results=4, seed=0)
    assert samples.is_accepted.shape == [4, 3] and np.all(samples.is_accepted)


class Owner:
    """Holds what a model holds: weights, and a network."""

    def __init__(self):
        self.network = keras.Sequential([keras.layers.Input([2]), keras.layers.Dense(3, "silu"), keras.layers.Dense(1)])

    def log_prob(self, x):
        return -self.network(x)[..., 0] - 0.5 * tf.reduce_sum(x**2, -1)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.long)])
def test_nothing_keeps_the_target_alive(jit_compile):
    owner = Owner()
    local = (lambda owner: lambda x: owner.log_prob(x))(owner)
    watched = [weakref.ref(owner), weakref.ref(owner.network), weakref.ref(local)]
    names = {(id(owner), Owner.log_prob), (id(local), None)}
    for target in (owner.log_prob, local):
        mcmc.sample(target, tf.zeros([3, 2]), mcmc.Langevin(0.1), num_results=2, seed=0, jit_compile=jit_compile)
    assert names <= compiled._COMPILED.keys()
    del owner, local, target
    gc.collect()
    assert [reference() for reference in watched] == [None] * 3
    assert not names & compiled._COMPILED.keys()


def test_number_of_chains_kept_is_bounded():
    energy = Energy()
    for num_results in range(1, compiled._MAX_COMPILED + 4):
        stretches.find_chain(energy.log_prob, mcmc.MALA(1.0), KeepDraws(num_results), (5, 2), False)
    _, chains = compiled._COMPILED[id(energy), Energy.log_prob]
    assert len(chains) == compiled._MAX_COMPILED


def test_many_shapes_in_a_row_are_no_reason_to_warn(caplog):
    with caplog.at_level("WARNING", "tensorflow"):
        for num_chains in range(1, 8):
            graph(normal, tf.zeros([num_chains, 2]), mcmc.RandomWalk(1.0), num_results=2, seed=0)
    assert not caplog.records


def test_targets_without_weak_references():
    class Slotted:
        __slots__ = ()

        def __call__(self, x):
            return normal(x)

    samples = graph(Slotted(), tf.zeros([3, 2]), mcmc.MALA(0.5), num_results=2, seed=0)
    assert samples.states.shape == [2, 3, 2]


def test_inside_a_function():
    energy = Energy()

    @tf.function(input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([2], tf.int32)])
    def outer(x, seed):
        return mcmc.sample(energy.log_prob, x, mcmc.MALA(0.8), num_results=3, num_burnin_steps=2, seed=seed)

    before = len(compiled._COMPILED)
    inner = outer(tf.zeros([5, 2]), tf.constant([0, 1]))
    assert len(compiled._COMPILED) == before
    direct = graph(energy.log_prob, tf.zeros([5, 2]), mcmc.MALA(0.8), num_results=3, num_burnin_steps=2, seed=1)
    np.testing.assert_allclose(inner.states, direct.states, rtol=1e-6)
    assert inner.num_nonfinite == 0


def test_no_gradient_flows_through_a_chain():
    energy = Energy()

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            x = mcmc.sample(energy.log_prob, tf.zeros([5, 2]), mcmc.Langevin(0.5), num_results=1, seed=0).states
            value = tf.reduce_sum(x)
        return tape.gradient(value, energy.location)

    assert gradient() is None


def test_nonfinite_chains_are_counted_and_reported():
    def half_line(x):
        return tf.where(x[..., 0] > 0, normal(x), -np.inf)

    start = tf.constant([[1.0, 0.0], [-1.0, 0.0], [np.nan, 0.0], [2.0, 0.0]])
    with pytest.warns(UserWarning, match="2 of 4 chains start"):
        samples = graph(half_line, start, mcmc.RandomWalk(1e-3), num_results=3, seed=0)
    assert samples.num_nonfinite == 2
    assert np.all(samples.states[:, 1] == start[1]) and np.isnan(samples.states[:, 2, 0]).all()

    with pytest.warns(UserWarning, match="4 of 4 chains became NaN"):  # ε²·x² grows without bound
        samples = graph(
            lambda x: -tf.reduce_sum(x**4, -1), 10 * tf.ones([4, 2]), mcmc.Langevin(1.0), num_results=9, seed=0
        )
    assert samples.num_nonfinite == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graph(normal, tf.zeros([4, 2]), mcmc.MALA(1.0), num_results=3, seed=0).num_nonfinite == 0


@pytest.mark.long
def test_xla_failure_falls_back_or_raises():
    def not_for_xla(x):
        tf.debugging.check_numerics(x, "x")
        y = tf.numpy_function(lambda a: a, [x], x.dtype)
        y.set_shape(x.shape)
        return normal(x) + 0.0 * tf.stop_gradient(tf.reduce_sum(y, -1))

    run = functools.partial(mcmc.sample, not_for_xla, tf.zeros([3, 2]), mcmc.MALA(0.5), seed=0)
    with pytest.warns(UserWarning, match="graph mode.*PyFunc"):
        fallen = run(num_results=2500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is one warning
        again = run(num_results=2500)
        short = run(num_results=2)  # a short run does not try
    np.testing.assert_array_equal(fallen.states, again.states)
    np.testing.assert_array_equal(fallen.states[:2], short.states)
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        run(num_results=2500, jit_compile=True)


@pytest.mark.parametrize(
    ("kernel", "num_steps", "event_size", "expected"),
    [
        (mcmc.MALA(0.1), 1999, 2, False),
        (mcmc.MALA(0.1), 2000, 2, True),
        (mcmc.HMC(0.1, 10), 199, 2, False),
        (mcmc.HMC(0.1, 10), 200, 2, True),
        (mcmc.Adaptive(mcmc.HMC(0.1, 10)), 200, 2, True),
        (mcmc.NUTS(0.1), 2, 2, True),
        (mcmc.MALA(0.1), 10_000, 784, False),
        (Counter, 2000, 2, True),
    ],
)
def test_rule_of_auto(kernel, num_steps, event_size, expected):
    from tfp_ebm.mcmc.running.compiled import xla_pays

    assert xla_pays(kernel, num_steps, tf.zeros([5, event_size])) is expected


class Unhashable:
    __hash__ = None

    def __call__(self, target):
        return Counter(target)


GOOD = {"target_log_prob_fn": normal, "initial_state": np.zeros([3, 2], np.float32), "kernel": mcmc.MALA(0.5)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_results": 0}, ValueError, "`num_results`"),
        ({"num_results": 2.5}, ValueError, "`num_results`"),
        ({"num_burnin_steps": -1}, ValueError, "`num_burnin_steps`"),
        ({"num_steps_between_results": -1}, ValueError, "`num_steps_between_results`"),
        ({"seed": None}, TypeError, "`seed`"),
        ({"seed": [1, 2, 3]}, ValueError, "`seed`"),
        ({"jit_compile": "always"}, ValueError, "`jit_compile`.*always"),
        ({"kernel": 0.1}, TypeError, "`kernel`"),
        ({"kernel": Unhashable()}, TypeError, "`kernel`.*hash"),
        ({"kernel": lambda target: 3}, TypeError, "`kernel`.*int"),
        ({"target_log_prob_fn": 3}, TypeError, "`target_log_prob_fn`"),
        ({"initial_state": np.zeros([3, 2], int)}, TypeError, "`initial_state`.*int64"),
        ({"initial_state": [np.zeros(2), np.zeros(3)]}, TypeError, "`initial_state`.*list"),
        ({"initial_state": np.zeros([3, 2])}, TypeError, "`initial_state`.*float64.*float32"),
        ({"initial_state": np.zeros([0, 2], np.float32)}, ValueError, r"`initial_state`.*\(0, 2\)"),
        ({"target_log_prob_fn": lambda x: normal(x)[..., None]}, ValueError, r"`target_log_prob_fn`.*\(3, 1\)"),
        ({"target_log_prob_fn": lambda x: tf.zeros([3])}, ValueError, "`target_log_prob_fn`.*differentiable.*MALA"),
        ({"kernel": mcmc.MALA([0.1, 0.2, 0.3])}, ValueError, r"`step_size`.*\(2,\).*\(3,\)"),
        ({"kernel": mcmc.HMC(0.1, 2, mass=[1.0, 2.0, 3.0])}, ValueError, r"`mass`.*\(2,\).*\(3,\)"),
        ({"kernel": mcmc.RandomWalk([[0.1], [0.2], [0.3]])}, ValueError, r"`scale`.*\(2,\).*\(3, 1\)"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(change, error, message):
    def target(x):  # a float32 network
        return tf.cast(normal(x), tf.float32)

    with pytest.raises(error, match=message):
        graph(**{**GOOD, "target_log_prob_fn": target, "num_results": 2, "seed": 0, **change})


def test_random_walk_needs_no_gradient():
    samples = graph(lambda x: tf.zeros([3]), tf.zeros([3, 2]), mcmc.RandomWalk(1.0), num_results=2, seed=0)
    assert np.all(samples.is_accepted)
