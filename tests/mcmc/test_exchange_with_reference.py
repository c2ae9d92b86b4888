"""Replica exchange with a reference: shares, log Z, the barrier in closed form, round trips, and the ladder."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc, targets
from tfp_ebm.mcmc.kernels import exchange_with_reference as exchange
from tfp_ebm.mcmc.kernels.exchange_with_reference import equal_rejections

tfd = tfp.distributions


def mixture_base(d):
    """The modes of `two_widths` with scales 1.3 times theirs and wrong weights, and a broad part of a tenth."""
    locs, scales = np.zeros([3, d], np.float32), np.float32([1.3, 0.65, 5.0])
    locs[0, 0], locs[1, 0] = -5.0, 5.0
    return tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.float32([0.45, 0.45, 0.1])),
        tfd.MultivariateNormalTriL(locs, scales[:, None, None] * np.eye(d, dtype=np.float32)),
    )


def run(target, start, recipe, num_burnin, num, seed=0):
    """The last results of chains, their states `[num, chains, d]`, and the results of the middle."""
    kernel = recipe.with_burnin(num_burnin)(target)

    @tf.function(autograph=False)
    def chain():
        return tfp.mcmc.sample_chain(
            num,
            start,
            kernel=kernel,
            num_burnin_steps=num_burnin,
            trace_fn=None,
            return_final_kernel_results=True,
            seed=[0, seed],
        )

    done = chain()
    return done.final_kernel_results, done.all_states.numpy()


def two_widths(d, seed=0):
    """z-scores of the share and of log Z of 40 chains that all start in one mode, and the results."""
    target, base = targets.two_widths(d, 10.0, 0.5), mixture_base(d)
    start = tf.constant(np.tile([[-5.0] + (d - 1) * [0.0]], [40, 1]), tf.float32)
    recipe = mcmc.ReplicaExchange(mcmc.Adaptive(mcmc.HMC(0.3, 3)), [1.0, 0.6, 0.3, 0.1, 0.0], base=base)
    # log f shifted by 3, so that log Z is not 0
    results, states = run(lambda x: target.log_prob(x) + 3.0, start, recipe, 128, 300, seed)
    shares = (states[..., 0] > 0).mean(0)  # chains are independent
    error = shares.std(ddof=1) / np.sqrt(len(shares))
    return (shares.mean() - 0.7) / error, error, float(results.log_normalizer) - 3.0, results


@pytest.mark.long
@pytest.mark.parametrize("d", [2, 10])
def test_shares_and_log_z_of_two_widths(d):
    # four errors of 40 independent chains: a false alarm rate of 3·10⁻⁴; the share .45 of the base is 15 errors away
    score, error, log_z, results = two_widths(d)
    assert abs(score) < 4 and error < 0.02
    # 12 000 draws per stone, of ratios with a spread below 1.5: standard error about .015
    assert abs(log_z) < 0.05
    assert (results.num_round_trips.numpy() > 10).all()
    rejection = results.rejection.numpy()
    assert np.ptp(rejection) < 0.15 and float(results.barrier) == pytest.approx(rejection.sum())
    betas = results.inverse_temperatures.numpy()
    assert betas[0] == 1.0 and betas[-1] == 0.0 and (np.diff(betas) < 0).all()
    # adapted on the path, where the ladder at the start has very unequal rejections
    assert not np.allclose(betas, [1.0, 0.6, 0.3, 0.1, 0.0], atol=0.02)


@pytest.mark.slow
def test_a_wrong_swap_gives_wrong_shares(monkeypatch):
    original = exchange._along
    monkeypatch.setattr(
        exchange, "_along", lambda vector, like: original(-vector if vector.dtype == tf.float64 else vector, like)
    )
    score, _, log_z, _ = two_widths(2)
    assert abs(score) > 4 or abs(log_z) > 0.5


def test_rejections_and_log_z_have_their_closed_forms():
    """N(0, s²) to N(0, 1) in one coordinate: p_k is normal with precision τ_k = β + (1 − β)/s².

    h = c + ½(1/s² − 1) x² decreases with |x|, so a swap with the wider neighbour is accepted at once if its |x'| < |x|,
    and by detailed balance as often otherwise: 2 P(|x'| < |x|).
    """
    betas, s = (1.0, 0.5, 0.0), 3.0
    base = tfd.MultivariateNormalDiag(tf.zeros([1], tf.float64), tf.fill([1], tf.constant(s, tf.float64)))
    recipe = mcmc.ReplicaExchange(mcmc.HMC(0.9, 3), betas, base=base, num_adaptation_steps=0)
    results, states = run(lambda x: -0.5 * x[..., 0] ** 2, tf.zeros([500, 1], tf.float64), recipe, 0, 200)
    precision = np.array(betas) + (1 - np.array(betas)) / s**2
    # |x'|/|x| < 1 has probability (2/π) atan(√(τ'/τ)); by detailed balance the acceptance is twice that
    expected = 1 - 2 * (2 / np.pi) * np.arctan(np.sqrt(precision[1:] / precision[:-1]))
    # 500 chains, 100 swaps each: a standard error below .004
    np.testing.assert_allclose(results.rejection, expected, atol=0.02)
    assert float(results.barrier) == pytest.approx(expected.sum(), abs=0.03)
    assert float(results.log_normalizer) == pytest.approx(0.5 * np.log(2 * np.pi), abs=0.02)
    last = states[50:].reshape(-1)
    assert abs(last.var() - 1) < 0.05 and abs(last.mean()) < 0.05
    assert np.abs(states[-1] - results.states[0]).max() == 0.0


@pytest.mark.long
def test_in_the_driver_under_xla_and_in_files():
    base = mixture_base(2)
    recipe = mcmc.ReplicaExchange(mcmc.MALA(0.4), base=base)
    assert len(recipe.inverse_temperatures) == 10 and recipe.inverse_temperatures[-1] == 0.0
    target = targets.two_widths(2, 10.0, 0.5)
    call = functools.partial(mcmc.sample, target.log_prob, tf.zeros([20, 2]), recipe, num_results=4, seed=0)
    for jit_compile in (False, True):
        samples = call(num_burnin_steps=40, jit_compile=jit_compile)
        again = call(num_burnin_steps=40, jit_compile=jit_compile)
        np.testing.assert_array_equal(samples.states, again.states)
        np.testing.assert_allclose(samples.unnormalized_log_prob, target.log_prob(samples.states), rtol=1e-4, atol=1e-4)
        assert samples.num_nonfinite == 0 and np.mean(samples.states[..., 0] > 0) > 0.2
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(recipe))
    assert restored == recipe and hash(restored) == hash(recipe)
    assert mcmc.ReplicaExchange(mcmc.MALA(0.4), base=mixture_base(3)) != recipe
    equal = equal_rejections(tf.constant([1.0, 0.2, 0.0], tf.float64), tf.constant([0.3, 0.3], tf.float64))
    np.testing.assert_allclose(equal, [1.0, 0.2, 0.0])


def test_bad_arguments():
    base = mixture_base(2)
    with pytest.raises(ValueError, match="`inverse_temperatures` must be given"):
        mcmc.ReplicaExchange(mcmc.MALA(0.1))
    with pytest.raises(ValueError, match="`inverse_temperatures` must decrease from 1 to 0"):
        mcmc.ReplicaExchange(mcmc.MALA(0.1), [1.0, 0.5], base=base)
    with pytest.raises(TypeError, match="`base`"):
        mcmc.ReplicaExchange(mcmc.MALA(0.1), base=lambda x: x)
    with pytest.raises(ValueError, match="`num_adaptation_steps`"):
        mcmc.ReplicaExchange(mcmc.MALA(0.1), base=base, num_adaptation_steps=-1)
    with pytest.raises(ValueError, match="`base`"):
        mcmc.sample(
            lambda x: -(x[..., 0] ** 2),
            tf.zeros([3, 1]),
            mcmc.ReplicaExchange(mcmc.MALA(0.1), base=base),
            num_results=2,
            seed=0,
        )
