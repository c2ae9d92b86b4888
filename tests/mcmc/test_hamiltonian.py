"""Our HMC is TFP's but for where its momenta come from."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import quartic

from tfp_ebm import random
from tfp_ebm.mcmc.kernels.hamiltonian import HamiltonianMonteCarlo

START = tf.constant(np.random.default_rng(0).normal(size=[50, 3]))
SEED = tf.constant([1, 2])


@pytest.mark.parametrize("step_size", [0.2, [0.1, 0.2, 0.3]], ids=["number", "per_coordinate"])
def test_two_steps_are_those_of_tfp(step_size, monkeypatch):
    """Given the same momenta: states, acceptance and all results. Control: other momenta."""
    momenta = tf.constant(np.random.default_rng(1).normal(size=START.shape))
    monkeypatch.setattr("tfp_ebm.random.normal", lambda *args, **kwargs: momenta)
    monkeypatch.setattr("tensorflow_probability.python.mcmc.hmc.samplers.normal", lambda *args, **kwargs: momenta)

    def run(make):
        kernel = make(quartic, step_size=tf.constant(step_size, tf.float64), num_leapfrog_steps=4)
        state, results = START, kernel.bootstrap_results(START)
        for step in range(2):
            state, results = kernel.one_step(state, results, seed=SEED + step)
        return state, results

    (ours, our_results), (theirs, their_results) = run(HamiltonianMonteCarlo), run(tfp.mcmc.HamiltonianMonteCarlo)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert our_results._fields == their_results._fields
    proposed, theirs_proposed = our_results.proposed_results, their_results.proposed_results
    assert proposed._fields == (*theirs_proposed._fields, "gradient_failed") and not np.any(proposed.gradient_failed)
    for name in ("log_accept_ratio", "is_accepted"):
        np.testing.assert_allclose(getattr(our_results, name), getattr(their_results, name), rtol=1e-9, atol=1e-12)
    for name in ("final_momentum", "grads_target_log_prob", "target_log_prob"):
        pairs = zip(
            tf.nest.flatten(getattr(proposed, name)), tf.nest.flatten(getattr(theirs_proposed, name)), strict=True
        )
        for part, their_part in pairs:
            np.testing.assert_allclose(part, their_part, rtol=1e-11)
    momenta = -momenta
    assert np.abs(run(HamiltonianMonteCarlo)[0] - theirs).max() > 0.1


def test_an_adapting_kernel_of_tfp_sets_its_step_size():
    """TFP's wrappers copy the kernel and keep the step size in its results: at four times the step, another chain."""
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
        HamiltonianMonteCarlo(quartic, step_size=np.float64(0.01), num_leapfrog_steps=3), num_adaptation_steps=40
    )
    state, results = START, kernel.bootstrap_results(START)
    for step in range(40):
        state, results = kernel.one_step(state, results, seed=SEED + step)
    accept = tf.exp(tf.minimum(results.inner_results.log_accept_ratio, 0.0))
    assert results.new_step_size > 0.1 and 0.5 < np.mean(accept) < 0.95


def test_momenta_are_normal():
    """4 standard errors, false once in 8000: of the mean 1/√n, of the variance √(2/n). Control: uniform ones."""
    kernel = HamiltonianMonteCarlo(lambda x: -0.5 * tf.reduce_sum(x**2, -1), 0.1, 1)
    state = tf.zeros([20_000, 1], tf.float64)
    results = kernel.one_step(state, kernel.bootstrap_results(state), seed=SEED)[1].proposed_results
    p = results.initial_momentum[0].numpy()
    n = p.size
    assert abs(p.mean()) < 4 / np.sqrt(n) and abs(p.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(random.uniform([n], SEED).numpy().var() - 1) > 4 * np.sqrt(2 / n)
