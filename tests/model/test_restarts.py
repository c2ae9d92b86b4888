"""Chains that never moved are restarted from the base, and reported; other chains keep their draws to the last bit."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import mcmc
from tfp_ebm.model import restarts

BASE = tfp.distributions.MultivariateNormalDiag([0.0], [1.0])


def broken(x):
    """½x² + max(1 − x, 0), with a NaN gradient where x > 1."""
    x = x[..., 0]
    return 0.5 * x**2 + tf.sqrt(tf.nn.relu(1 - x) ** 2)


def chains(energy=broken, num_chains=200):
    p = ebm.EnergyDistribution(energy, event_shape=[1], base=BASE, kernel=mcmc.HMC(0.3, 3), num_burnin_steps=15)
    return p.sample_chains(5, num_chains, seed=0, jit_compile=False, num_steps_between_results=1)


@pytest.mark.slow
def test_chains_that_never_moved_are_restarted(monkeypatch):
    """About 16 % of the chains start where the gradient is NaN, and as many of the restarted ones."""
    with pytest.warns(UserWarning) as record:
        found = chains()
    messages = [str(one.message) for one in record]
    restarted = [message for message in messages if "were restarted" in message]
    assert len(restarted) == 1 and any("gradient of the target was NaN or infinite" in message for message in messages)
    num_stuck = int(restarted[0].split()[0])
    assert 15 < num_stuck < 50 and 0 <= int(found.num_stuck) < num_stuck / 2
    assert f"{num_stuck - int(found.num_stuck)} of them then moved" in restarted[0]
    assert {one.filename for one in record} == {__file__}
    monkeypatch.setattr(restarts, "is_implausible", lambda *args: False)
    with pytest.warns(UserWarning, match="never moved|gradient"):
        first = chains()
    assert int(first.num_stuck) == num_stuck
    same = np.all(first.states.numpy() == found.states.numpy(), (0, 2))
    moved = np.ptp(first.states.numpy()[..., 0], 0) > 0
    assert same[moved].all() and not same[~moved].any() and (~moved).sum() == num_stuck
    value = -broken(found.states).numpy()
    np.testing.assert_allclose(found.unnormalized_log_prob, value, rtol=1e-5)
    assert np.array_equal(np.ptp(found.states.numpy()[..., 0], 0) == 0, ~found.is_accepted.numpy().any(0))


def test_healthy_chains_and_chains_that_all_stay_are_not_restarted(recwarn):
    chains(lambda x: 0.5 * x[..., 0] ** 2, 30)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="30 of 30 chains never moved") as record:
        chains(lambda x: 1e9 * x[..., 0] ** 2, 30)
    assert not any("restarted" in str(one.message) for one in record)
