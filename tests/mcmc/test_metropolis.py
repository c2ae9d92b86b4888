"""Metropolis-Hastings with any proposal, the independence sampler, and kernels in sequence."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from laws import quartic

from tfp_ebm import mcmc, serialization
from tfp_ebm.energy.base import fit_base
from tfp_ebm.random import fold_in

tfd = tfp.distributions
SEED = tf.constant([3, 14], tf.int32)


# --- a finite chain, entry by entry ----------------------------------------------------------------------------------

SIZE = 7
WEIGHTS = np.array([1.0, 5.0, 2.0, 0.5, 3.0, 4.0, 1.5])
P = WEIGHTS / WEIGHTS.sum()
# A proposal that drifts to the right and lingers at some states; every entry positive, no symmetry.
Q = np.random.default_rng(0).uniform(0.1, 1.0, size=[SIZE, SIZE]) + np.triu(np.ones([SIZE, SIZE]))
Q /= Q.sum(1, keepdims=True)


def lookup(table, *indices):
    return tf.gather_nd(tf.constant(table), tf.stack([tf.cast(i, tf.int32) for i in indices], -1))


def log_prob(x):
    return lookup(np.log(WEIGHTS), x)


def log_ratio(x, proposed):
    return lookup(np.log(Q), proposed, x) - lookup(np.log(Q), x, proposed)


def transition_matrix(ratio):
    """P(x'|x) of the chain, rows x: the acceptance of each pair of states, taken from the kernel itself."""
    start, end = (index.ravel().astype(float) for index in np.indices([SIZE, SIZE]))
    kernel = mcmc.MetropolisHastings(lambda x, seed: tf.constant(end), ratio)(log_prob)
    state = tf.constant(start)
    _, results = kernel.one_step(state, kernel.bootstrap_results(state), seed=SEED)
    matrix = Q * np.minimum(1.0, np.exp(results.log_accept_ratio.numpy())).reshape(SIZE, SIZE)
    np.fill_diagonal(matrix, 0.0)
    return matrix + np.diag(1 - matrix.sum(1))


def test_detailed_balance_entry_by_entry():
    """Eq. 15, P(x)P(x'|x) = P(x')P(x|x'), and eq. 14, the power of the matrix has P in every row."""
    matrix = transition_matrix(log_ratio)
    flow = P[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.linalg.matrix_power(matrix, 200), np.tile(P, [SIZE, 1]), rtol=1e-10)
    # control: the proposal without its ratio balances nothing and goes elsewhere
    wrong = transition_matrix(None)
    flow = P[:, None] * wrong
    assert np.abs(flow - flow.T).max() > 1e-3
    assert np.abs(np.linalg.matrix_power(wrong, 200) - P).max() > 1e-2


def choose_next(x, seed):
    """x* ~ Q(·|x), by inverting the distribution function."""
    u = tf.random.stateless_uniform(tf.shape(x), seed, dtype=tf.float64)
    below = tf.gather(tf.constant(np.cumsum(Q, 1)), tf.cast(x, tf.int32)) < u[:, None]
    return tf.minimum(tf.reduce_sum(tf.cast(below, tf.float64), -1), SIZE - 1.0)


def test_a_run_of_the_finite_chain():
    """Frequencies of 20 000 chains after 40 steps by χ², 6 degrees of freedom: p > 1e-3 (a false alarm in a thousand).

    Without the ratio the limit differs by a hundredth and more in some state, 4 SE of √(.1·.9/20 000) = .002: p < 2e-5.
    """

    def p_value(ratio):
        kernel = mcmc.MetropolisHastings(choose_next, ratio)
        samples = mcmc.sample(
            log_prob, np.zeros(20_000), kernel, num_results=1, num_burnin_steps=40, seed=0, jit_compile=False
        )
        assert samples.step_size is None
        counts = np.bincount(samples.states[0].numpy().astype(int), minlength=SIZE)
        return scipy.stats.chisquare(counts, P * counts.sum()).pvalue

    assert p_value(log_ratio) > 1e-3
    assert p_value(None) < 2e-5


# --- the independence sampler ----------------------------------------------------------------------------------------

COVARIANCE = np.array([[2.0, 0.5], [0.5, 1.0]])


def normal(x):
    return -0.5 * tf.reduce_sum((x - [1.0, 0.0]) ** 2, -1)


def test_acceptance_ratio_of_the_independence_sampler():
    base = tfd.MultivariateNormalTriL(np.zeros(2), np.linalg.cholesky(COVARIANCE))
    kernel = mcmc.IndependenceMetropolis(base)(normal)
    x = np.random.default_rng(0).normal(size=[50, 2])
    _, results = kernel.one_step(tf.constant(x), kernel.bootstrap_results(tf.constant(x)), seed=SEED)
    y = results.proposed_state.numpy()
    log_q = scipy.stats.multivariate_normal([0, 0], COVARIANCE).logpdf
    target = normal(y) - normal(x)
    np.testing.assert_allclose(results.log_accept_ratio, target + log_q(x) - log_q(y), rtol=1e-9, atol=1e-12)
    assert np.abs(results.log_accept_ratio - (target + log_q(y) - log_q(x))).max() > 0.1  # control: upside down
    assert len(np.unique(y)) == y.size  # every chain has a proposal of its own


def test_target_equal_to_the_base_accepts_everything():
    base = fit_base(np.random.default_rng(0).normal(size=[500, 4]) @ np.diag([1.0, 2.0, 3.0, 4.0]), dtype=tf.float64)
    samples = mcmc.sample(
        base.log_prob, np.zeros([300, 4]), mcmc.IndependenceMetropolis(base), num_results=3, seed=0, jit_compile=False
    )
    assert np.all(samples.is_accepted)
    np.testing.assert_allclose(samples.unnormalized_log_prob, base.log_prob(samples.states), rtol=1e-12)


def test_events_of_rank_0_and_3():
    """A scalar event, and an image whose base `fit_base` makes by reshaping a Gaussian."""
    scalar = mcmc.IndependenceMetropolis(tfd.Normal(np.float64(0.0), 2.0))
    samples = mcmc.sample(lambda x: -(x**2), np.zeros([5, 6]), scalar, num_results=3, seed=0, jit_compile=False)
    assert samples.states.shape == [3, 5, 6]
    base = fit_base(np.random.default_rng(0).normal(size=[500, 2, 2, 1]))
    image = mcmc.sample(
        base.log_prob,
        tf.zeros([9, 2, 2, 1]),
        mcmc.IndependenceMetropolis(base),
        num_results=3,
        seed=0,
        jit_compile=False,
    )
    assert image.states.shape == [3, 9, 2, 2, 1] and np.all(image.is_accepted)


def test_a_base_of_variables_is_followed():
    """Equal kernels are those of the same variables, and the compiled chain reads them as they are."""
    loc = tf.Variable([0.0, 0.0])
    calls = []

    def target(x):
        calls.append(x)
        return 0.0 * tf.reduce_sum(x, -1)

    def run(start):
        kernel = mcmc.IndependenceMetropolis(tfd.MultivariateNormalDiag(loc, [0.1, 0.1]))
        state = tf.fill([50, 2], start)
        samples = mcmc.sample(target, state, kernel, num_results=1, num_burnin_steps=5, seed=0, jit_compile=False)
        return samples.states[0].numpy()

    assert 0 < np.abs(run(0.0)).min() and np.abs(run(0.0)).max() < 1
    num_traces = len(calls)
    loc.assign([30.0, 30.0])
    assert np.all(run(0.0) == 0)  # where the base never is now: q(x)/q(y) = 0
    at_30 = run(30.0)
    assert np.all(at_30 != 30.0) and np.abs(at_30 - 30).max() < 1
    assert len(calls) == num_traces


def test_equality_of_bases():
    def kernel(loc, scale=(1.0, 2.0)):
        return mcmc.IndependenceMetropolis(tfd.MultivariateNormalDiag(loc, scale))

    assert kernel([0.0, 1.0]) == kernel([0.0, 1.0]) and hash(kernel([0.0, 1.0])) == hash(kernel([0.0, 1.0]))
    assert kernel([0.0, 1.0]) != kernel([0.0, 1.5])
    assert kernel(tf.constant([0.0, 1.0])) == kernel(tf.constant([0.0, 1.0]))
    first, second = tf.Variable([0.0, 1.0]), tf.Variable([0.0, 1.0])
    assert kernel(first) == kernel(first) != kernel(second)
    assert kernel([0.0, 1.0]).without_step_size == kernel([0.0, 1.0])
    assert serialization.fingerprint(tfd.Normal(0.0, 1.0)) != serialization.fingerprint(tfd.Laplace(0.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.long)])
def test_several_proposals_are_single_ones_in_a_row(jit_compile):
    """Twin: the kernel of one proposal, stepped in a plain loop; accepted if any proposal was."""
    base = tfd.MultivariateNormalDiag(np.zeros(2), np.array([2.0, 2.0]))
    single, kernel = mcmc.IndependenceMetropolis(base)(normal), mcmc.IndependenceMetropolis(base, 3)(normal)
    start = tf.constant(np.random.default_rng(0).normal(size=[200, 2]))
    step, single_step = (tf.function(part.one_step, jit_compile=jit_compile) for part in (kernel, single))
    state, results = step(start, kernel.bootstrap_results(start), seed=SEED)
    twin, twin_results, accepted = start, single.bootstrap_results(start), []
    for i in range(3):
        twin, twin_results = single_step(twin, twin_results, seed=fold_in(SEED, i))
        accepted.append(twin_results.is_accepted)
        if i == 1:  # control: one proposal fewer leads elsewhere
            assert np.abs(state - twin).max() > 0.1
    np.testing.assert_allclose(state, twin, rtol=1e-12)
    np.testing.assert_array_equal(results.is_accepted, np.any(accepted, 0))
    assert np.any(results.is_accepted != accepted[-1]) and not np.all(results.is_accepted)
    recipe = mcmc.Sequential([mcmc.IndependenceMetropolis(base, 3), mcmc.MALA(0.5)])
    assert recipe.evaluations_per_step == 3 + 1 + 1 + 1
    samples = mcmc.sample(normal, start, recipe, num_results=2, seed=0, jit_compile=jit_compile)
    np.testing.assert_allclose(samples.unnormalized_log_prob, normal(samples.states), rtol=1e-9)


# --- sequences -------------------------------------------------------------------------------------------------------

BASE = tfd.MultivariateNormalDiag(np.zeros(2), np.array([2.0, 2.0]))
GLOBAL = mcmc.IndependenceMetropolis(BASE)
SCALE = tfp.bijectors.Scale(np.float64(2.0))
PARTS = {
    "global_local": (GLOBAL, mcmc.MALA(0.7)),
    "local_global": (mcmc.MALA(0.7), GLOBAL),
    "same_fields": (mcmc.MALA(0.7), mcmc.HMC([0.3, 0.4], 3, mass=2.0), mcmc.RandomWalk(0.9), GLOBAL),
    "uncalibrated": (mcmc.Langevin(0.3), GLOBAL, mcmc.Langevin(0.2, noise_first=True)),
    "adaptive": (GLOBAL, mcmc.Adaptive(mcmc.MALA(0.7), num_adaptation_steps=0)),
    "two_spaces": (mcmc.MALA(0.7), mcmc.Transformed(mcmc.MALA(0.5), SCALE), GLOBAL),
    "within": (GLOBAL, mcmc.Transformed(mcmc.Sequential([mcmc.MALA(0.5), mcmc.RandomWalk(0.3)]), SCALE)),
}


def run_by_hand(parts, state, num_steps):
    """Each part from scratch at each step, by `bootstrap_results`: what the sequence must equal."""
    accepted = []
    for step in range(num_steps):
        for i, part in enumerate(parts):
            kernel = part(quartic)
            seed = tf.random.experimental.stateless_fold_in(tf.stack([SEED[0], step]), i, alg="philox")
            moved, _ = kernel.one_step(state, kernel.bootstrap_results(state), seed=seed)
            accepted.append(np.any(moved != state, -1))
            state = moved
    return state, accepted


def run_sequence(parts, state, num_steps):
    kernel = mcmc.Sequential(parts)(quartic)
    results, accepted = kernel.bootstrap_results(state), []
    for step in range(num_steps):
        state, results = kernel.one_step(state, results, seed=tf.stack([SEED[0], step]))
        accepted += [part.numpy() for part in results.part_is_accepted]
    return state, accepted, results


@pytest.mark.parametrize("name", PARTS)
def test_a_sequence_is_its_parts(name, monkeypatch):
    state = tf.constant(np.random.default_rng(0).normal(size=[20, 2]))
    by_hand, moved = run_by_hand(PARTS[name], state, 3)
    end, accepted, results = run_sequence(PARTS[name], state, 3)
    np.testing.assert_allclose(end, by_hand, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(accepted, moved)
    np.testing.assert_array_equal(results.is_accepted, np.any(accepted[-len(PARTS[name]) :], 0))
    # control: parts that do not see where the others have moved
    monkeypatch.setattr("tfp_ebm.mcmc.kernels.sequential._moved", lambda part, results, state, last: results)
    assert np.abs(run_sequence(PARTS[name], state, 3)[0] - by_hand).max() > 1e-2


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((mcmc.MALA(0.5), mcmc.MALA(0.5)), 2),
        ((GLOBAL, mcmc.RandomWalk(0.5)), 2),
        ((GLOBAL, mcmc.MALA(0.5)), 3),  # MALA needs the gradient at the point that the global move left
        ((mcmc.MALA(0.5), GLOBAL, mcmc.RandomWalk(0.5)), 4),
    ],
)
def test_evaluations_of_a_step(parts, expected):
    """Counted while tracing: one call of the target in the program is one evaluation."""
    calls = []

    def target(x):
        calls.append(x)
        return quartic(x)

    kernel = mcmc.Sequential(parts)
    built = kernel(target)
    state = tf.zeros([5, 2], tf.float64)
    results = built.bootstrap_results(state)
    calls.clear()
    tf.function(lambda: built.one_step(state, results, seed=SEED)[0]).get_concrete_function()
    assert len(calls) == expected <= kernel.evaluations_per_step


@pytest.mark.slow
def test_an_adaptive_part_tunes_to_its_own_acceptance():
    """Within .05 of .574 for the local part (10 000 moves: SE .005); the global part accepts another share."""
    kernel = mcmc.Sequential([GLOBAL, mcmc.Adaptive(mcmc.MALA(0.01), num_adaptation_steps=200)])
    start = tf.zeros([100, 2], tf.float64)
    adapted = mcmc.sample(quartic, start, kernel, num_results=1, num_burnin_steps=200, seed=0, jit_compile=False)
    assert adapted.step_size.shape == [] and adapted.step_size > 0.1
    settled = mcmc.Sequential([GLOBAL, mcmc.MALA(adapted.step_size)])

    @tf.function
    def acceptance():
        return tfp.mcmc.sample_chain(
            100, adapted.states[0], kernel=settled(quartic), trace_fn=lambda _, r: r.part_is_accepted, seed=[0, 1]
        )[1]

    in_global, in_local = acceptance()
    assert in_local.shape == [100, 100]
    assert abs(np.mean(in_local) - 0.574) < 0.05 < abs(np.mean(in_global) - 0.574)


@pytest.mark.long
def test_sequences_in_the_driver():
    """Equal kernels are compiled once, whatever their step sizes; any part accepted is the step accepted."""
    traces = []

    def target(x):
        traces.append(x)
        return quartic(x)

    def run(step_size, **kwargs):
        kernel = mcmc.Sequential([GLOBAL, mcmc.MALA(step_size), mcmc.RandomWalk(0.2)])
        return mcmc.sample(target, tf.zeros([200, 2], tf.float64), kernel, num_results=10, **kwargs)

    samples = run(0.5, seed=0, jit_compile=False)
    num_traces = len(traces)
    again = run(0.4, seed=0, jit_compile=False)
    assert len(traces) == num_traces and np.any(again.states != samples.states)
    assert [float(step) for step in again.step_size] == [0.4, 0.2]
    moved = np.any(np.diff(np.concatenate([np.zeros([1, 200, 2]), samples.states]), axis=0) != 0, -1)
    np.testing.assert_array_equal(samples.is_accepted, moved)
    np.testing.assert_allclose(samples.unnormalized_log_prob, quartic(samples.states), rtol=1e-10)
    inside = tf.function(lambda: run(0.5, seed=0))()
    np.testing.assert_allclose(inside.states, samples.states, rtol=1e-8, atol=1e-10)


@pytest.mark.long
def test_a_sequence_under_xla():
    """The same chain, but for the uniforms of TFP's acceptance step; the first proposal of the global move is ours."""
    base = mcmc.IndependenceMetropolis(tfd.MultivariateNormalDiag(tf.zeros([2]), 2.0 * tf.ones([2])))
    kernel = mcmc.Sequential([base, mcmc.MALA(0.5)])
    samples = mcmc.sample(quartic, tf.zeros([200, 2]), kernel, num_results=4, seed=0, jit_compile=True)
    assert 0.5 < np.mean(samples.is_accepted) < 1 and samples.num_nonfinite == 0 and samples.step_size == 0.5
    np.testing.assert_allclose(samples.unnormalized_log_prob, quartic(samples.states), rtol=1e-4, atol=1e-5)


# --- kernels as values, errors ---------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
def shift(x, seed):
    return x + 1.0


@keras.saving.register_keras_serializable("tests")
def no_ratio(x, proposed):
    return tf.zeros_like(x[..., 0])


@pytest.mark.parametrize(
    "kernel",
    [
        mcmc.MetropolisHastings(shift),
        mcmc.MetropolisHastings(shift, no_ratio),
        mcmc.IndependenceMetropolis(tfd.MultivariateNormalDiag(tf.constant([0.0, 1.0]), tf.constant([1.0, 2.0]))),
        mcmc.IndependenceMetropolis(tfd.Normal(tf.constant(0.0), tf.constant(1.0)), num_proposals=4),
        mcmc.Sequential([mcmc.Adaptive(mcmc.MALA(0.2), 10), mcmc.MetropolisHastings(shift), mcmc.HMC([0.1, 0.2], 3)]),
    ],
    ids=lambda kernel: type(kernel).__name__,
)
def test_kernels_are_values(kernel):
    config = keras.saving.serialize_keras_object(kernel)
    restored = keras.saving.deserialize_keras_object(config)
    assert restored is not kernel and type(restored) is type(kernel) and isinstance(kernel, mcmc.Kernel)
    assert restored == kernel and hash(restored) == hash(kernel)
    assert kernel.without_step_size == kernel.without_step_size.without_step_size
    assert kernel.unadapted == kernel.unadapted.unadapted


def test_unregistered_functions_cannot_be_saved():
    with pytest.raises(TypeError, match=r"`propose`.*register"):
        mcmc.MetropolisHastings(lambda x, seed: x).get_config()


def test_a_sequence_in_a_sequence_is_its_parts():
    nested = mcmc.Sequential([mcmc.Sequential([GLOBAL, mcmc.RandomWalk(0.5)]), mcmc.HMC(0.4, 2)])
    assert nested == mcmc.Sequential([GLOBAL, mcmc.RandomWalk(0.5), mcmc.HMC(0.4, 2)])


def test_calibration_of_a_sequence():
    assert mcmc.Sequential([GLOBAL, mcmc.MALA(0.5)])(quartic).is_calibrated
    assert not mcmc.Sequential([GLOBAL, mcmc.Langevin(0.5)])(quartic).is_calibrated


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mcmc.MetropolisHastings(3), TypeError, "`propose`"),
        (lambda: mcmc.MetropolisHastings(shift, 3), TypeError, "`log_proposal_ratio`"),
        (lambda: mcmc.IndependenceMetropolis(3), TypeError, "`base`"),
        (lambda: mcmc.IndependenceMetropolis(tfd.Normal([0.0, 1.0], 1.0)), ValueError, r"`base`.*\(2,\).*Independent"),
        (lambda: mcmc.IndependenceMetropolis(tfd.Normal(0.0, 1.0), 0), ValueError, "`num_proposals`"),
        (lambda: mcmc.Sequential([]), ValueError, "`kernels`"),
        (lambda: mcmc.Sequential(mcmc.MALA(0.1)), TypeError, "`kernels`"),
        (lambda: mcmc.Sequential([mcmc.MALA(0.1), lambda target: None]), TypeError, r"`kernels\[1\]`"),
        (
            lambda: mcmc.Sequential([mcmc.ReplicaExchange(mcmc.MALA(0.1), [1.0, 0.5])]),
            TypeError,
            r"`kernels\[0\]`.*ReplicaExchange",
        ),
        (lambda: mcmc.Adaptive(mcmc.Sequential([mcmc.MALA(0.1)])), ValueError, "`kernel`.*adapt those instead"),
        (lambda: mcmc.Adaptive(mcmc.MetropolisHastings(shift)), ValueError, "`kernel`"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (mcmc.MetropolisHastings(lambda x, seed: x[..., :1]), ValueError, r"`propose.*\(3, 2\).*\(3, 1\)"),
        (mcmc.MetropolisHastings(lambda x, seed: tf.cast(x, tf.float32)), TypeError, "`propose.*float64.*float32"),
        (mcmc.MetropolisHastings(shift, lambda x, y: x - y), ValueError, r"`log_proposal_ratio.*\(3,\).*\(3, 2\)"),
        (mcmc.MetropolisHastings(shift, lambda x, y: tf.zeros([], x.dtype)), ValueError, "`log_proposal_ratio"),
        (
            mcmc.MetropolisHastings(shift, lambda x, y: tf.zeros([3])),
            TypeError,
            "`log_proposal_ratio.*float64.*float32",
        ),
        (mcmc.IndependenceMetropolis(tfd.MultivariateNormalDiag(np.zeros(3))), ValueError, r"`base`.*\(2,\).*\(3,\)"),
        (mcmc.Sequential([GLOBAL, mcmc.MALA([0.1, 0.1, 0.1])]), ValueError, r"`step_size`.*\(3,\)"),
    ],
)
def test_bad_functions(kernel, error, message):
    with pytest.raises(error, match=message):
        mcmc.sample(quartic, np.zeros([3, 2]), kernel, num_results=1, seed=0, jit_compile=False)
