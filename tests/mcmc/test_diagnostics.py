"""ESS, R-hat and the counts of bad chains, on draws whose truth is known."""

import logging

import numpy as np
import pytest
from laws import autoregressive

from tfp_ebm import mcmc


@pytest.mark.slow
@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_ess_of_autoregressive_chains(rho):
    """N(1 − ρ)/(1 + ρ), averaged over 30 independent coordinates of 25 chains of 4000 steps.

    Over six seeds one coordinate's estimate scattered by 1 % (ρ = 0) to 5 % (ρ = .9), the mean of 30 so by .9 % at
    most; its bias was below 1 %, but for ρ = −.5, where it was 2.3 % and the mean of 30 scatters by .4 %: each ρₖ comes
    out low by about 1/n, n the length of a half chain. 5 % is the bias and over 4 SE (false alarm 6e-5). The control,
    the same draws in another order, has ESS = N, 67 % off or more.
    """
    x = autoregressive(rho, 4000, 25, 30)
    truth = x[..., 0].size * (1 - rho) / (1 + rho)
    assert abs(mcmc.diagnose(x).ess.mean() / truth - 1) < 0.05
    if rho:
        shuffled = np.random.default_rng(2).permutation(x)
        assert abs(mcmc.diagnose(shuffled).ess.mean() / truth - 1) > 0.05


def test_mcse_is_the_error_of_the_mean():
    """The means of 400 coordinates with known mean 0 scatter by their MCSE.

    Standard error of a variance over 400 numbers: √(2/400) = 7 %, so 4 SE = 28 % (false alarm 6e-5). The control, the
    error of independent draws, understates the variance of the means threefold.
    """
    x = autoregressive(0.5, 500, 8, 400, seed=1)
    result = mcmc.diagnose(x)
    assert abs(np.mean((result.mean / result.mcse) ** 2) - 1) < 0.28
    naive = result.sd / np.sqrt(x[..., 0].size)
    assert abs(np.mean((result.mean / naive) ** 2) - 1) > 0.28
    np.testing.assert_allclose(result.sd, x.reshape(-1, 400).std(0, ddof=1))


def test_rhat():
    x = autoregressive(0.0, 500, 8, 3)
    assert np.all(np.abs(mcmc.diagnose(x).rhat - 1) < 0.01)
    shifted = x + 2.0 * (np.arange(8) % 2)[:, None]
    assert np.all(mcmc.diagnose(shifted).rhat > 1.3)
    # halves are compared too: a drift that all chains share is seen
    drifting = x + np.linspace(0, 4, 500)[:, None, None]
    assert np.all(mcmc.diagnose(drifting).rhat > 1.3)


def naive_ess(chains):
    """Vehtari et al. (2021), §3.2, for `[n, chains]`: autocovariances by their sums, Geyer's pairs one by one."""
    n, num_chains = chains.shape
    centred = chains - chains.mean(0)
    covariance = [(centred[: n - t] * centred[t:]).sum(0).mean() / n for t in range(n)]
    variance = covariance[0] + chains.mean(0).var(ddof=1)
    rho = [1.0] + [1 - (covariance[0] * n / (n - 1) - covariance[t]) / variance for t in range(1, n)]
    total, t, least = 0.0, 0, np.inf
    while t + 3 < n - 1 and rho[t] + rho[t + 1] > 0:
        least = min(least, rho[t] + rho[t + 1])
        total, t = total + least, t + 2
    last = rho[t] if rho[t] > 0 or rho[t] + rho[t + 1] >= 0 else 0.0
    return n * num_chains / max(2 * total - 1 + last, 1 / np.log10(n * num_chains))


@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.5, 0.99])
def test_ess_and_rhat_equal_their_naive_twins(rho):
    """On half chains, of odd number too. The control: whole chains have other figures."""
    for number in (8, 50, 51):
        x = autoregressive(rho, number, 5, 3)
        half = number // 2
        ends, first = (np.concatenate([x[:half], x[part]], 1) for part in (slice(-half, None), slice(half, 2 * half)))
        result = mcmc.diagnose(x)
        np.testing.assert_allclose(result.ess, [naive_ess(ends[..., k]) for k in range(3)], rtol=1e-9)
        rhat = np.sqrt((half - 1) / half + first.mean(0).var(0, ddof=1) / first.var(0, ddof=1).mean(0))
        np.testing.assert_allclose(result.rhat, rhat, rtol=1e-12)
        assert abs(naive_ess(x[..., 0]) / result.ess[0] - 1) > 1e-3 or rho == -0.9


def test_rhat_of_ranks():
    """What R̂ of Gelman & Rubin misses it sees: chains of one mean and two widths. And it sees ranks only."""
    x = autoregressive(0.0, 500, 8, 3)
    wide = x * np.where(np.arange(8) % 2, 3.0, 1.0)[:, None]
    assert np.all(mcmc.diagnose(wide).rhat_rank > 1.1) and np.all(mcmc.diagnose(wide).rhat < 1.01)
    plain, heavy = mcmc.diagnose(x), mcmc.diagnose(x + 1e-9 * x**3)
    assert np.all(np.abs(plain.rhat_rank - 1) < 0.01)
    np.testing.assert_allclose(heavy.rhat_rank, plain.rhat_rank, rtol=1e-4)


def test_one_chain():
    result = mcmc.diagnose(autoregressive(0.0, 2001, 1, 2)[:, 0])
    assert result.ess.shape == (2,)
    assert np.all(np.abs(result.rhat - 1) < 0.01)
    assert np.all((result.ess > 1000) & (result.ess < 2001 * np.log10(2001)))


def test_event_and_chain_axes():
    x = autoregressive(0.5, 100, 12, 6)
    flat = mcmc.diagnose(x)
    image = mcmc.diagnose(x.reshape(100, 3, 4, 2, 3), event_ndims=2)
    np.testing.assert_allclose(image.ess, flat.ess.reshape(2, 3))
    np.testing.assert_allclose(image.rhat, flat.rhat.reshape(2, 3))
    scalar = mcmc.diagnose(x[..., 0], event_ndims=0)
    np.testing.assert_allclose(scalar.ess, flat.ess[0])
    assert np.shape(scalar.mean) == ()


def test_blocks_of_coordinates_do_not_matter(monkeypatch):
    x = autoregressive(0.5, 50, 4, 7)
    whole = mcmc.diagnose(x)
    monkeypatch.setattr("tfp_ebm.mcmc.diagnostics._BLOCK_NUMBERS", 3 * 50 * 4)
    np.testing.assert_allclose(mcmc.diagnose(x).ess, whole.ess)
    np.testing.assert_allclose(mcmc.diagnose(x).rhat, whole.rhat)


def test_samples_say_which_axes_are_chains():
    states = autoregressive(0.0, 20, 6, 2).reshape(20, 2, 3, 2)
    accepted = np.zeros([20, 2, 3], bool)
    accepted[:5] = True
    samples = mcmc.Samples(states, states.sum(-1), accepted, None, 0)
    result = mcmc.diagnose(samples)
    assert result.mean.shape == (2,)
    assert result.acceptance_rate == 0.25
    assert mcmc.diagnose(states).acceptance_rate is None


def test_stuck_and_nonfinite_chains_are_counted():
    x = autoregressive(0.0, 20, 6, 2)
    x[:, 1] = x[0, 1]
    x[:, 2, 0] = x[0, 2, 0]  # one still coordinate is not a stuck chain
    x[7, 3, 1] = np.inf
    x[:, 4] = np.nan
    result = mcmc.diagnose(x)
    assert (result.num_stuck, result.num_nonfinite) == (1, 2)
    assert np.isnan(result.mean).all() and np.isnan(result.ess).all()  # nothing is left out


def test_too_few_results_to_know():
    x = autoregressive(0.0, 1, 100, 2)
    result = mcmc.diagnose(x)
    assert np.isnan(result.ess).all() and np.isnan(result.mcse).all() and np.isnan(result.rhat).all()
    assert result.num_stuck is None
    np.testing.assert_allclose(result.mean, x[0].mean(0))
    assert np.isnan(mcmc.diagnose(x[:, 0]).sd).all()


def test_nothing_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        mcmc.diagnose(autoregressive(0.0, 20, 3, 2))
    assert not caplog.records


@pytest.mark.parametrize(
    ("samples", "event_ndims", "error", "name"),
    [
        (np.array([["a"]]), 1, TypeError, "samples"),
        (np.zeros([5]), 1, ValueError, "samples"),
        (np.zeros([0, 3]), 1, ValueError, "samples"),
        (np.zeros([5, 3]), -1, ValueError, "event_ndims"),
    ],
)
def test_bad_arguments(samples, event_ndims, error, name):
    with pytest.raises(error, match=f"`{name}`"):
        mcmc.diagnose(samples, event_ndims)
