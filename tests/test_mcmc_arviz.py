"""Bulk ESS, effective draws per gradient, and ArviZ's form of the draws."""

import functools
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from test_mcmc_diagnostics import autoregressive

from tfp_ebm import mcmc


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_bulk_ess_sees_ranks_only(rho):
    """Of Gaussian draws it is that of the mean but for the loss by ranks: 10 % covers that and the error, below 2 % for
    the mean of 20 coordinates. exp(3x) has the same ranks; its ESS of the mean, the control, is another."""
    x = autoregressive(rho, 500, 40, 20)
    plain, heavy = mcmc.diagnose(x), mcmc.diagnose(np.exp(3 * x))
    truth = x[..., 0].size * (1 - rho) / (1 + rho)
    assert abs(plain.ess_bulk.mean() / truth - 1) < 0.1
    np.testing.assert_allclose(heavy.ess_bulk, plain.ess_bulk, rtol=1e-9)
    assert rho == 0 or abs(heavy.ess.mean() / plain.ess.mean() - 1) > 0.1


def test_bulk_ess_where_it_cannot_be_known():
    x = autoregressive(0.0, 20, 6, 3)
    x[3, 2, 1] = np.nan
    x[..., 2] = 1.0
    assert np.isnan(mcmc.diagnose(x).ess_bulk).tolist() == [False, True, True]
    assert np.isnan(mcmc.diagnose(x[:7]).ess_bulk).all()


def test_ess_per_gradient():
    """Evaluations from result to result: leapfrog steps times the steps between. The burn-in costs nothing here."""

    def normal(x):
        return -0.5 * tf.reduce_sum(x**2, -1)

    run = functools.partial(mcmc.sample, normal, np.zeros([8, 2]), num_results=30, seed=0, jit_compile=False)
    samples = run(mcmc.Adaptive(mcmc.HMC(0.3, 5)), num_burnin_steps=20, num_steps_between_results=2)
    assert samples.evaluations_per_result == 15
    result = mcmc.diagnose(samples)
    np.testing.assert_allclose(result.ess_per_gradient, result.ess_bulk / (30 * 8 * 15))
    foreign = run(functools.partial(tfp.mcmc.HamiltonianMonteCarlo, step_size=0.3, num_leapfrog_steps=5))
    assert foreign.evaluations_per_result is None and mcmc.diagnose(foreign).ess_per_gradient is None
    assert mcmc.diagnose(samples.states).ess_per_gradient is None


STATES = np.arange(5 * 2 * 3 * 4.0).reshape(5, 2, 3, 4)
SAMPLES = mcmc.Samples(STATES, STATES.sum(-1), STATES[..., 0] > 7, None, 0)


def test_arviz_gets_chains_first(monkeypatch):
    """A stub in its place takes what ArviZ would."""
    stub = types.SimpleNamespace(from_dict=lambda **groups: groups)
    monkeypatch.setitem(sys.modules, "arviz", stub)
    for groups in (SAMPLES.to_arviz(), mcmc.to_arviz(SAMPLES)):
        x, stats = groups["posterior"]["x"], groups["sample_stats"]
        assert x.shape == (6, 5, 4) and stats["lp"].shape == stats["accepted"].shape == (6, 5)
        for chain in range(6):
            np.testing.assert_array_equal(x[chain], STATES[:, chain // 3, chain % 3])
            np.testing.assert_array_equal(stats["lp"][chain], STATES[:, chain // 3, chain % 3].sum(-1))
        assert stats["accepted"].dtype == bool


def test_arviz_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install \"tfp_ebm\[arviz\]\""):
        SAMPLES.to_arviz()
    with pytest.raises(TypeError, match="`samples` must be"):
        mcmc.to_arviz(STATES)
