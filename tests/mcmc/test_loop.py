"""The loop over a kernel, its recorders, the bridge step, and what a kernel reports of its adaptation."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments, mcmc
from tfp_ebm.mcmc import arrival, diagnostics
from tfp_ebm.mcmc.kernels.adaptive import log_step_size_change
from tfp_ebm.mcmc.kernels.bridge import bridge_step
from tfp_ebm.mcmc.running.chain import Chain, Plan
from tfp_ebm.mcmc.running.loop import iterate, run_steps, seeds_of
from tfp_ebm.mcmc.running.moments import zero_moments
from tfp_ebm.mcmc.running.recorders import KeepDraws, KeepMoments
from tfp_ebm.mcmc.running.steps import last_state
from tfp_ebm.random import chain_key, stateless_seed

START = tf.constant(np.random.default_rng(0).normal(size=(5, 2)))
KEY = chain_key(stateless_seed(4))


def normal(x):
    return -0.5 * tf.reduce_sum(x**2, -1)


def plain_loop(kernel, state, steps):
    """The twin: one step after the other, in Python."""
    results, path = kernel.bootstrap_results(state), []
    for t in range(steps):
        state, results = kernel.one_step(state, results, seed=tf.stack([KEY, t]))
        path.append(state.numpy())
    return np.stack(path)


def test_iterate_counts_from_the_first_to_before_the_last():
    total, last = iterate(lambda t, total, _: (total + t, t), (tf.constant(3), 7), tf.constant(0), tf.constant(-1))
    assert (int(total), int(last)) == (3 + 4 + 5 + 6, 6)
    assert int(iterate(lambda t, total: (total + t,), (5, 5), tf.constant(1))[0]) == 1


@pytest.mark.parametrize("cut", [0, 1, 6, 11])
def test_steps_are_those_of_a_plain_loop_wherever_it_is_cut(cut):
    """Control: seeds that begin anew after the cut."""
    kernel = mcmc.MALA(0.8)(normal)
    path = plain_loop(kernel, START, 11)
    run = functools.partial(run_steps, lambda _: kernel)
    state, results, _ = run(START, kernel.bootstrap_results(START), (0, cut), seeds_of(KEY))
    last, _, _ = run(state, results, (cut, 11), seeds_of(KEY))
    np.testing.assert_allclose(last, path[-1], rtol=1e-12)
    if 0 < cut < 11:
        assert np.any(np.abs(run(state, results, (0, 11 - cut), seeds_of(KEY))[0] - path[-1]) > 1e-3)


@pytest.mark.parametrize(("burnin", "stride"), [(0, 1), (3, 2), (2, 4)])
def test_recorders_keep_the_results_and_nothing_else(burnin, stride):
    """Of the plain loop's path, in two stretches. Control: a burn-in that is one step longer."""
    kernel = mcmc.MALA(0.8)
    path = plain_loop(kernel(normal), START, 12)
    expected = path[burnin::stride]

    def record(recorder, burnin):
        chain = Chain(lambda: normal, kernel, recorder)
        position = chain.start(START, tf.constant(0.8, tf.float64))
        plan = Plan(tf.constant(0.8, tf.float64), KEY, tf.constant(burnin), tf.constant(stride))
        kept, records = chain.init(position), []
        for first, last in ((0, 5), (5, 12)):
            position, kept = chain.advance(position, plan, (tf.constant(first), tf.constant(last)), kept)
            number = len(range(burnin, last, stride)) - len(range(burnin, first, stride))
            records.append((number, kept))
        np.testing.assert_allclose(position.state, path[-1], rtol=1e-12)
        return records

    draws = record(KeepDraws(12), burnin)
    states = np.concatenate([kept.state[:number] for number, kept in draws])
    np.testing.assert_allclose(states, expected, rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([kept.log_prob[:number] for number, kept in draws]), normal(expected))
    _, moments = record(KeepMoments(), burnin)[-1]
    assert int(moments.number) == len(expected)
    np.testing.assert_allclose(moments.mean[0], expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.squares[0], expected.var(0) * len(expected), rtol=1e-9, atol=1e-12)
    _, later = record(KeepMoments(), burnin + 1)[-1]
    assert np.any(np.abs(later.mean[0] - expected.mean(0)) > 1e-3)


def test_a_recorder_joins_groups_of_chains():
    """In the order of the groups. Control: the other order."""
    recorder, kernel = KeepMoments(covariance=True), mcmc.MALA(0.8)
    chain = Chain(lambda: normal, kernel, recorder)
    step_size = tf.constant(0.8, tf.float64)
    plan = Plan(step_size, KEY, tf.constant(0), tf.constant(1))
    records, paths = [], []
    for group in (START[:2], START[2:]):
        position = chain.start(group, step_size)
        records.append(chain.advance(position, plan, (tf.constant(0), tf.constant(6)), chain.init(position))[1])
        paths.append(plain_loop(kernel(normal), group, 6))
    flat = np.concatenate(paths, 1)
    joined = recorder.join_chains(records)
    np.testing.assert_allclose(joined.mean[0], flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(joined.scatter, np.cov(flat.reshape(-1, 2).T) * (flat.size / 2 - 1), rtol=1e-9)
    assert np.any(np.abs(recorder.join_chains(records[::-1]).mean[0] - flat.mean(0)) > 1e-3)
    assert zero_moments(START, START[:, 0], True, False).scatter == ()


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_last_state_is_that_of_sample(jit_compile):
    """Control: one step more. A kernel that adapts its step size is given with a definite number of steps."""
    kernel = mcmc.HMC(0.4, 2)
    run = tf.function(
        lambda n: last_state(normal, kernel, START, tf.constant(0.4, tf.float64), stateless_seed(4), n),
        jit_compile=jit_compile,
    )
    kept = mcmc.sample(normal, START, kernel, num_results=1, num_burnin_steps=6, seed=4, jit_compile=jit_compile)
    np.testing.assert_allclose(run(tf.constant(7)), kept.states[0], rtol=1e-9)
    assert np.any(np.abs(run(tf.constant(8)) - kept.states[0]) > 1e-3)
    with pytest.raises(ValueError, match="`step_size`"):
        last_state(normal, mcmc.HMC([0.1] * 3, 2), START, tf.ones([3], tf.float64), stateless_seed(4), tf.constant(1))


def test_a_bridge_step_is_one_on_the_density_between():
    """b = N(0, 4) and p = N(0, 1) at β = ¼: precision ¼·1 + ¾·¼ = 7/16. Control: β and 1 − β exchanged."""
    seed = stateless_seed(2)
    step = functools.partial(bridge_step, mcmc.MALA(0.1), normal, lambda x: normal(x / 2))
    for beta, is_equal in ((0.25, True), (0.75, False)):
        state, results = step(tf.constant(beta, tf.float64), tf.constant(0.9, tf.float64), START, seed)
        kernel = mcmc.MALA(0.9)(lambda x: 7 / 16 * normal(x))
        expected, expected_results = kernel.one_step(START, kernel.bootstrap_results(START), seed=seed)
        assert np.allclose(state, expected, rtol=1e-12) == is_equal
        assert np.allclose(results.log_accept_ratio, expected_results.log_accept_ratio, atol=1e-12) == is_equal
    foreign = functools.partial(tfp.mcmc.RandomWalkMetropolis)
    state, _ = bridge_step(foreign, normal, normal, tf.constant(0.5, tf.float64), (), START, seed)
    assert state.shape == START.shape
    with pytest.raises(TypeError, match="returns a float"):
        bridge_step(lambda target: 1.0, normal, normal, tf.constant(0.5, tf.float64), (), START, seed)


def test_a_step_size_grows_with_the_acceptance():
    """The change is zero at the target acceptance and has the gain as its slope."""
    accept = tf.constant([0.2, 0.574, 1.0], tf.float64)
    np.testing.assert_allclose(log_step_size_change(0.1, accept, 0.574), [-0.0374, 0.0, 0.0426], atol=1e-15)


BASE = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
ADAPTIVE = mcmc.Adaptive(mcmc.MALA(0.1), target_accept_prob=0.6)


@pytest.mark.parametrize(
    ("kernel", "is_adaptive", "target"),
    [
        (mcmc.MALA(0.1), False, None),
        (ADAPTIVE, True, 0.6),
        (mcmc.Transformed(ADAPTIVE, tfp.bijectors.Exp()), True, 0.6),
        (mcmc.Transformed(mcmc.MALA(0.1), tfp.bijectors.Exp()), False, None),
        (mcmc.ReplicaExchange(ADAPTIVE, [1.0, 0.5]), True, 0.6),
        (mcmc.Sequential([mcmc.IndependenceMetropolis(BASE), ADAPTIVE]), True, None),
        (mcmc.Sequential([mcmc.IndependenceMetropolis(BASE), mcmc.MALA(0.1)]), False, None),
        (mcmc.Adaptive(mcmc.MALA(0.1), num_adaptation_steps=0), True, 0.574),
    ],
)
def test_a_kernel_knows_whether_it_adapts(kernel, is_adaptive, target):
    assert kernel.is_adaptive is is_adaptive and kernel.target_accept_prob == target
    assert kernel.unadapted.is_adaptive is False and kernel.unadapted.target_accept_prob is None
    assert (kernel.unadapted != kernel) is is_adaptive


def test_one_scale_of_rhat():
    """Chains in modes at ±.5 of sd 1: √1.25 = 1.118 by both. With 400 chains and windows of 200 independent draws each
    differs from it by less than .02 (standard error .007 by simulation). Control: the square is .13 away."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=[400, 400, 1]) + 0.5 * rng.choice([-1.0, 1.0], [400, 1])
    windows = []
    for part in np.split(x, 2):
        moments = zero_moments(tf.constant(part[0]), tf.constant(part[0, :, 0]), False, False)
        mean, squares = (tf.constant(part.mean(0)),), (tf.constant(part.var(0) * len(part)),)
        windows.append(moments._replace(number=tf.constant(200.0, tf.float64), mean=mean, squares=squares))
    ours, theirs = arrival.judge(*windows).rhat, float(mcmc.diagnose(tf.constant(x)).rhat[0])
    assert abs(ours - np.sqrt(1.25)) < 0.02 and abs(theirs - np.sqrt(1.25)) < 0.02
    assert abs(ours**2 - np.sqrt(1.25)) > 0.1
    assert diagnostics.MAX_RHAT < min(ours, theirs)


def test_checks_name_their_argument():
    assert arguments.check_kernel(mcmc.MALA(0.1), hashable=True) == mcmc.MALA(0.1)
    with pytest.raises(TypeError, match=r"`kernel` must map a target to a tfp\.mcmc\.TransitionKernel, got 3"):
        arguments.check_kernel(3)
    with pytest.raises(TypeError, match="have a hash"):
        arguments.check_kernel(
            type("Unhashable", (), {"__call__": lambda self, f: f, "__hash__": None})(), hashable=True
        )
    assert [arguments.check_jit_compile(value) for value in (True, False, "auto")] == [True, False, "auto"]
    for value, choices, words in (
        ("yes", (True, False, "auto"), "True, False or 'auto'"),
        ("auto", (True, False), "True or False"),
    ):
        with pytest.raises(ValueError, match=f"`jit_compile` must be {words}, got '{value}'"):
            arguments.check_jit_compile(value, choices)
