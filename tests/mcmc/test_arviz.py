"""Bulk ESS, effective draws per gradient, and ArviZ's form of the draws."""

import functools
import sys
import types
import warnings

import numpy as np
import pytest
import tensorflow_probability as tfp
from laws import autoregressive, normal

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


@pytest.mark.slow
def test_ess_per_gradient():
    """Evaluations from result to result: leapfrog steps times the steps between. The burn-in costs nothing here."""

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


def from_dict_before_1(posterior=None, *, sample_stats=None, **kwargs):
    return {"posterior": posterior, "sample_stats": sample_stats}


def from_dict_since_1(data, *, name=None):
    return data


@pytest.mark.parametrize("from_dict", [from_dict_before_1, from_dict_since_1])
def test_arviz_gets_chains_first(from_dict, monkeypatch):
    """A stub in its place takes what ArviZ would: groups by name, or, since its release 1, in one dictionary."""
    monkeypatch.setitem(sys.modules, "arviz", types.SimpleNamespace(from_dict=from_dict))
    for groups in (SAMPLES.to_arviz(),):
        x, stats = groups["posterior"]["x"], groups["sample_stats"]
        assert x.shape == (6, 5, 4) and stats["lp"].shape == stats["accepted"].shape == (6, 5)
        for chain in range(6):
            np.testing.assert_array_equal(x[chain], STATES[:, chain // 3, chain % 3])
            np.testing.assert_array_equal(stats["lp"][chain], STATES[:, chain // 3, chain % 3].sum(-1))
        assert stats["accepted"].dtype == bool


def test_arviz_shows_the_figures_of_diagnose():
    """The real one, of whatever release is installed. More chains than draws are nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future
        arviz = pytest.importorskip("arviz")
    x = autoregressive(0.7, 60, 80, 3)
    x[..., 1] = np.round(x[..., 1] + 0.01 * np.arange(80), 1)  # ties, and chains that differ
    samples = mcmc.Samples(x, -0.5 * (x**2).sum(-1), x[..., 0] > 0, None, 0)
    groups, result = samples.to_arviz(), mcmc.diagnose(samples)
    assert groups["posterior"]["x"].dims[:2] == groups["sample_stats"]["accepted"].dims == ("chain", "draw")
    assert sorted(groups["sample_stats"].data_vars) == ["accepted", "lp"]
    np.testing.assert_array_equal(groups["posterior"]["x"], np.moveaxis(x, 0, 1))
    np.testing.assert_array_equal(groups["sample_stats"].coords["chain"], np.arange(80))
    table = arviz.summary(groups, round_to="none")
    for theirs, ours in {"mean": "mean", "sd": "sd", "mcse_mean": "mcse", "ess_bulk": "ess_bulk"}.items():
        np.testing.assert_allclose(table[theirs], getattr(result, ours), rtol=1e-9)
    np.testing.assert_allclose(table["r_hat"], result.rhat_rank, rtol=1e-9)
    for method, rhat in {"split": result.rhat, "rank": result.rhat_rank}.items():
        found = arviz.rhat(groups, method=method)
        np.testing.assert_allclose(getattr(found, "posterior", found)["x"], rhat, rtol=1e-9)
    ess = arviz.ess(groups, method="mean")
    np.testing.assert_allclose(getattr(ess, "posterior", ess)["x"], result.ess, rtol=1e-9)
    # control: TFP's, the square and more of it
    assert np.all(np.abs(tfp.mcmc.potential_scale_reduction(x, split_chains=True) - result.rhat) > 1e-3)


def test_arviz_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install \"tfp_ebm\[arviz\]\""):
        SAMPLES.to_arviz()
