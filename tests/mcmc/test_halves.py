"""Many chains run as two halves at the same time: their law, their bits, and when it must not be done."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_ebm import mcmc
from tfp_ebm.mcmc.running import halves
from tfp_ebm.mcmc.running import stretches as run

START = tf.random.stateless_normal([257, 2], [0, 1], dtype=tf.float64)
SD = np.array([1.0, 0.5])


def normal(x):
    return -0.5 * tf.reduce_sum((x / SD) ** 2, -1)


def draw(kernel, state=START, target=normal, **kwargs):
    kwargs = {"num_results": 50, "num_burnin_steps": 10, "seed": 3, "jit_compile": False, **kwargs}
    return mcmc.sample(target, state, kernel, **kwargs)


def loop_of(kernel, state=START, target=normal):
    """What `sample` runs."""
    groups = run.Run(target, state, kernel, num_results=1, num_burnin_steps=0, seed=0, jit_compile=False).num_groups
    return {1: "Chain", 2: "Halves"}[groups]


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("kernel", [mcmc.MALA(0.5), mcmc.HMC(0.4, 3)], ids=["mala", "hmc"])
def test_law(kernel, jit_compile):
    """R̂ near 1 and the mean square of 257 × 400 draws, of which each chain gives at least 60 independent ones: its
    standard error is below sd²·√(2/15000) = .012 sd²; 4 of them are false once in 16 000. Control: 10 % off."""
    samples = draw(kernel, num_results=400, jit_compile=jit_compile)
    squares = np.mean(samples.states.numpy() ** 2, (0, 1)) / SD**2
    assert samples.states.shape == (400, 257, 2) and samples.is_accepted.shape == (400, 257)
    np.testing.assert_allclose(squares, 1, atol=0.048)
    assert np.abs(1.1 * squares - 1).max() > 0.048
    np.testing.assert_allclose(samples.unnormalized_log_prob, normal(samples.states), rtol=1e-12)


def test_halves_share_no_noise():
    """Equal starts, other draws."""
    samples = draw(mcmc.Langevin(0.5), tf.tile(START[:128], [2, 1]))
    ours, theirs = samples.states[:, :128], samples.states[:, 128:]
    assert np.abs(np.corrcoef(ours.numpy().ravel(), theirs.numpy().ravel())[0, 1]) < 4 / np.sqrt(50 * 128 / 10)
    assert not np.any(ours.numpy() == theirs.numpy())


@pytest.mark.long
def test_bits_depend_on_neither_order_nor_stretches(monkeypatch):
    """One half after the other, and in stretches of other lengths."""
    together = draw(mcmc.MALA(0.5), num_results=300)

    class InTurn:
        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def submit(self, call, *given):
            value = call(*given)
            return type("Done", (), {"result": lambda self: value})()

    monkeypatch.setattr(halves, "ThreadPoolExecutor", InTurn)
    monkeypatch.setattr(run, "_SECONDS", 1e-3)
    in_turn = draw(mcmc.MALA(0.5), num_results=300)
    np.testing.assert_array_equal(together.states, in_turn.states)
    assert not np.array_equal(together.states, draw(mcmc.MALA(0.5), num_results=300, seed=4).states)


def test_summary_is_that_of_the_draws():
    """Mean, covariance and R̂ over both halves, of unequal size."""
    kwargs = {"num_results": 31, "seed": 5, "jit_compile": False}
    summary = mcmc.summarize(normal, START, mcmc.MALA(0.5), covariance=True, **kwargs)
    states = mcmc.sample(normal, START, mcmc.MALA(0.5), **kwargs).states.numpy()
    flat = states.reshape(-1, 2)
    np.testing.assert_allclose(summary.mean, flat.mean(0), atol=1e-13)
    np.testing.assert_allclose(summary.covariance, np.cov(flat.T), rtol=1e-11, atol=1e-14)
    chain_means = states.mean(0)
    np.testing.assert_allclose(summary.mcse, chain_means.std(0, ddof=1) / np.sqrt(257), rtol=1e-11)
    np.testing.assert_array_equal(summary.last_state, states[-1])


def test_targets_that_know_the_chain_run_whole():
    """Data of each chain's own: halves raise an error, or silently take the data of other chains."""
    centers = tf.reshape(tf.range(257.0, dtype=tf.float64), [257, 1])
    by_shape = lambda x: -0.5 * tf.reduce_sum((x - centers) ** 2, -1)  # noqa: E731
    by_index = lambda x: -0.5 * tf.reduce_sum((x - tf.gather(centers, tf.range(x.shape[0]))) ** 2, -1)  # noqa: E731
    by_batch = lambda x: -0.5 * tf.reduce_sum((x - tf.reduce_mean(x, 0)) ** 2, -1)  # noqa: E731
    for target in (by_shape, by_index, by_batch):
        assert loop_of(mcmc.MALA(0.5), target=target) == "Chain"
    assert loop_of(mcmc.MALA(0.5)) == "Halves"
    means = draw(mcmc.MALA(0.5), START + centers, by_index, num_results=200).states.numpy().mean(0)
    assert np.abs(means - centers).max() < 2  # a mean of 200 draws has sd .3: 4e-9 for 514 of them beyond 2


@pytest.mark.parametrize(
    "kernel",
    [
        mcmc.Adaptive(mcmc.MALA(0.5)),
        mcmc.ReplicaExchange(mcmc.MALA(0.5), [1.0, 0.5]),
        lambda target: mcmc.MALA(0.5)(target),
    ],
    ids=["adaptive", "tempered", "foreign"],
)
def test_kernels_that_pool_chains_or_are_not_known_run_whole(kernel):
    assert loop_of(kernel) == "Chain"


def test_few_chains_run_whole():
    assert loop_of(mcmc.MALA(0.5), START[:127]) == "Chain" and loop_of(mcmc.MALA(0.5), START[:128]) == "Halves"


def test_a_single_number_is_a_state():
    samples = draw(mcmc.MALA(0.5), tf.constant(0.0, tf.float64), lambda x: -0.5 * x**2)
    assert samples.states.shape == (50,)


def test_nothing_is_traced_again():
    count = 0

    def target(x):
        nonlocal count
        count += 1
        return normal(x)

    draw(mcmc.MALA(0.5), START[:256], target)
    traced = count
    draw(mcmc.MALA(0.6), START[:256], target, seed=8)
    assert count == traced > 0


@pytest.mark.slow
def test_where_xla_fails_the_halves_run_in_graph_mode():
    def target(x):
        return normal(x) + tf.ensure_shape(tf.numpy_function(np.zeros_like, [x[:, 0]], tf.float64), x.shape[:1])

    with pytest.warns(UserWarning, match="graph mode"):
        samples = draw(mcmc.RandomWalk(0.5), START, target, num_results=2000, jit_compile="auto")
    np.testing.assert_array_equal(samples.states, draw(mcmc.RandomWalk(0.5), START, target, num_results=2000).states)
