"""Replica exchange: TFP's kernel behind our recipe, modes that local moves never join, closed-form acceptance."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import normal, quartic

from tfp_ebm import mcmc, targets
from tfp_ebm.mcmc.kernels.hamiltonian import HamiltonianMonteCarlo

SEED = tf.constant([3, 14], tf.int32)
LADDER = (1.0, 0.4, 0.15, 0.05)
SHORT = {"num_results": 1, "num_burnin_steps": 100, "seed": 0}
graph = functools.partial(mcmc.sample, jit_compile=False)


@pytest.mark.parametrize("mass", [None, [1.0, 2.0]])
def test_it_is_replica_exchange_of_tfp(mass):
    """Three steps of TFP's kernel, its step sizes written out by hand; momenta from this package's noise, as ours."""
    ours = mcmc.ReplicaExchange(mcmc.HMC(0.3, 2, mass=mass), LADDER)(quartic)
    step_sizes = 0.3 / np.sqrt(np.array(LADDER))[:, None, None] / np.sqrt([1.0, 1.0] if mass is None else mass)

    def theirs(step_sizes):
        return tfp.mcmc.ReplicaExchangeMC(
            quartic,
            np.array(LADDER),
            lambda target: HamiltonianMonteCarlo(target, step_sizes, num_leapfrog_steps=2),
            swap_proposal_fn=tfp.mcmc.even_odd_swap_proposal_fn(1.0),
        )

    def run(kernel):
        state = tf.constant(np.random.default_rng(0).normal(size=[30, 2]))
        results = kernel.bootstrap_results(state)
        for step in range(3):
            state, results = kernel.one_step(state, results, seed=SEED + step)
        return state.numpy(), results

    state, results = run(ours)
    np.testing.assert_allclose(state, run(theirs(step_sizes))[0], rtol=1e-9, atol=1e-12)
    assert results.is_swap_accepted_adjacent.shape == [3, 30]
    recipe = mcmc.ReplicaExchange(mcmc.HMC(0.3, 2, mass=mass), LADDER)
    np.testing.assert_allclose(recipe.log_prob_after(results), quartic(state), rtol=1e-10)
    # control: one step size for all temperatures
    assert np.abs(state - run(theirs(0.3))[0]).max() > 1e-2


@pytest.mark.slow
def test_shares_of_separated_modes():
    """.3 N((−2, 0), .5²I) + .7 N((2, 0), .5²I), every chain started in the left mode.

    2000 independent chains after 150 steps: the share on the right has a standard error of √(.3·.7/2000) = .010; 4 SE
    raise a false alarm once in 16 000. Control: MALA alone, of the same step and length, is more than 20 SE away.
    """
    target = targets.two_gaussians()
    start = tf.tile([[-2.0, 0.0]], [2000, 1])
    run = functools.partial(graph, target.log_prob, start, num_results=1, num_burnin_steps=150, seed=0)
    error = np.sqrt(0.3 * 0.7 / 2000)
    tempered = run(mcmc.ReplicaExchange(mcmc.MALA(0.4), [1.0, 0.3, 0.1]))
    local = run(mcmc.MALA(0.4))
    assert abs(np.mean(tempered.states[..., 0] > 0) - 0.7) < 4 * error
    assert abs(np.mean(local.states[..., 0] > 0) - 0.7) > 20 * error
    np.testing.assert_allclose(tempered.unnormalized_log_prob, target.log_prob(tempered.states), rtol=1e-4, atol=1e-4)


def test_swap_acceptance():
    """2β/(1 + β) for N(0, I₂) and its p^β: with energies E₁ ~ Exp(1) and E₂ ~ Exp(β) the trade is accepted if E₁ > E₂,
    probability β/(1 + β), and otherwise with exp((1 − β)(E₁ − E₂)), which by detailed balance gives as much again.

    4000 chains, 20 steps after 30: their means are independent, and give the standard error (about .002). 4 SE raise a
    false alarm once in 16 000; .58, and √β in the place of β, are beyond 20 SE.
    """
    beta = 0.5
    kernel = mcmc.ReplicaExchange(mcmc.HMC(0.7, 2), [1.0, beta])(normal)

    @tf.function
    def swaps():
        return tfp.mcmc.sample_chain(
            20,
            tf.random.stateless_normal([4000, 2], [0, 3]),
            kernel=kernel,
            num_burnin_steps=30,
            trace_fn=lambda _, results: (results.is_swap_proposed_adjacent, results.is_swap_accepted_adjacent),
            seed=[0, 1],
        )[1]

    proposed, accepted = (np.asarray(swap) for swap in swaps())
    assert proposed.all() and accepted.shape == (20, 1, 4000)  # with two replicas every step proposes the only trade
    per_chain = accepted[:, 0].mean(0)
    error = per_chain.std() / np.sqrt(len(per_chain))
    assert abs(per_chain.mean() - 2 * beta / (1 + beta)) < 4 * error
    for wrong in (0.58, 2 * np.sqrt(beta) / (1 + np.sqrt(beta))):
        assert abs(per_chain.mean() - wrong) > 20 * error


@pytest.mark.slow
def test_in_the_driver():
    """Step sizes are arguments, and the state is the cold replica's."""
    num_traces = []

    def target(x):
        num_traces.append(x)
        return quartic(x)

    def run(step_size, **kwargs):
        kernel = mcmc.ReplicaExchange(mcmc.MALA(step_size), LADDER)
        return mcmc.sample(target, tf.zeros([5, 40, 2], tf.float64), kernel, num_results=4, seed=0, **kwargs)

    first = run(0.5, jit_compile=False)
    traced = len(num_traces)
    second = run(0.4, jit_compile=False)
    assert len(num_traces) == traced and second.step_size == 0.4
    assert first.states.shape == [4, 5, 40, 2] and first.is_accepted.shape == [4, 5, 40]
    assert first.step_size == 0.5 and np.any(second.states != first.states)
    scalars = graph(
        lambda x: -(x**2),
        np.zeros(7),
        mcmc.ReplicaExchange(mcmc.Adaptive(mcmc.MALA(0.5)), LADDER),
        num_results=3,
        seed=0,
    )
    assert scalars.states.shape == [3, 7] and scalars.step_size == 0.5


@pytest.mark.long
def test_under_xla():
    kernel = mcmc.ReplicaExchange(mcmc.RandomWalk(0.5), [1.0, 0.3])
    samples = mcmc.sample(quartic, tf.zeros([50, 2]), kernel, num_results=3, seed=0, jit_compile=True)
    assert samples.num_nonfinite == 0 and 0.5 < np.mean(samples.is_accepted) <= 1
    np.testing.assert_allclose(samples.unnormalized_log_prob, quartic(samples.states), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_each_replica_adapts():
    """Every replica accepts .574, to .08 (200 chains × 100 steps: SE < .01), from a step far below."""
    step_size = [0.01, 0.02]
    adaptive = mcmc.ReplicaExchange(mcmc.Adaptive(mcmc.MALA(step_size), num_adaptation_steps=300), LADDER)
    kernel = adaptive(quartic)

    @tf.function
    def run():
        return tfp.mcmc.sample_chain(
            100,
            tf.zeros([200, 2], tf.float64),
            kernel=kernel,
            num_burnin_steps=300,
            trace_fn=lambda _, results: mcmc.results.find(results.pre_swap_replica_results, "is_accepted"),
            return_final_kernel_results=True,
            seed=[0, 1],
        )

    accepted, results = run()[1:]
    np.testing.assert_allclose(np.mean(accepted, axis=(0, 2)), 0.574, atol=0.08)
    cold = adaptive.step_size_after(results, tf.constant(step_size, tf.float64))
    assert cold.shape == [2] and np.all(cold > 0.1)
    samples = graph(
        quartic, np.zeros([50, 2]), mcmc.ReplicaExchange(mcmc.Adaptive(mcmc.MALA(0.01)), [1.0, 0.5]), **SHORT
    )
    assert samples.step_size.shape == [] and samples.step_size > 0.1


@pytest.mark.slow
def test_other_kernels_inside():
    """A proposal of one's own and a global move, both of which TFP's replica exchange has to know how to trade."""
    base = tfp.distributions.MultivariateNormalDiag(np.zeros(2), np.full(2, 2.0))
    for kernel in (mcmc.IndependenceMetropolis(base), mcmc.MetropolisHastings(lambda x, seed: -x)):
        samples = graph(quartic, np.ones([20, 2]), mcmc.ReplicaExchange(kernel, [1.0, 0.5]), num_results=3, seed=0)
        np.testing.assert_allclose(samples.unnormalized_log_prob, quartic(samples.states), rtol=1e-9)
        assert samples.step_size is None


@pytest.mark.parametrize("kernel", [mcmc.HMC([0.1, 0.2], 3), mcmc.Adaptive(mcmc.MALA(0.1), 10)])
def test_kernels_are_values(kernel):
    kernel = mcmc.ReplicaExchange(kernel, LADDER)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(kernel))
    assert restored == kernel and hash(restored) == hash(kernel)
    assert kernel == mcmc.ReplicaExchange(kernel.kernel, np.array(LADDER))
    assert kernel.without_step_size == kernel.without_step_size.without_step_size != kernel
    assert kernel.unadapted.kernel == kernel.kernel.unadapted


@pytest.mark.parametrize(
    ("kernel", "ladder", "error", "message"),
    [
        (mcmc.MALA(0.1), [0.9, 0.5], ValueError, "`inverse_temperatures`"),
        (mcmc.MALA(0.1), [1.0, 0.5, 0.5], ValueError, "`inverse_temperatures`"),
        (mcmc.MALA(0.1), [0.5, 1.0], ValueError, "`inverse_temperatures`"),
        (mcmc.MALA(0.1), [1.0, 0.0], ValueError, r"`inverse_temperatures\[1\]`"),
        (mcmc.MALA(0.1), [1.0], ValueError, "`inverse_temperatures`"),
        (mcmc.MALA(0.1), 0.5, ValueError, "`inverse_temperatures`"),
        (mcmc.Langevin(0.1), [1.0, 0.5], TypeError, "`kernel`"),
        (mcmc.NUTS(0.1), [1.0, 0.5], TypeError, "`kernel`"),
        (mcmc.Transformed(mcmc.MALA(0.1), tfp.bijectors.Exp()), [1.0, 0.5], TypeError, "`kernel`"),
    ],
)
def test_bad_arguments(kernel, ladder, error, message):
    with pytest.raises(error, match=message):
        mcmc.ReplicaExchange(kernel, ladder)
