"""Calibrated kernels leave their target unchanged; Langevin dynamics has the bias of its formula.

The chains start at exact draws from the target, and after a few steps must still be exact draws. Half of them run on
the target p, half, as the negative control, on the cooler p^1.25: the very same test must reject those. Three targets
at two temperatures are six groups of chains of one run, so that each kernel is traced once.
"""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from laws import mixture, smallest_p_value

from tfp_ebm import mcmc, random, targets

tfd = tfp.distributions
NUM_CHAINS = 40_000
COOLER = 1.25


def gaussian():
    """N(0, [[1, .6], [.6, 1]]), and the distribution functions of two marginals and a projection."""
    target = tfd.MultivariateNormalTriL(scale_tril=np.linalg.cholesky([[1.0, 0.6], [0.6, 1.0]]))
    projections = {(1.0, 0.0): 1.0, (0.0, 1.0): 1.0, (1.0, -1.0): np.sqrt(0.8), (1.0, 1.0): np.sqrt(3.2)}
    return target, {axis: scipy.stats.norm(0, sd).cdf for axis, sd in projections.items()}


def two_gaussians():
    """.3 N((−1, 0), .8²I) + .7 N((1, .5), .8²I)."""
    weights, means, sd = np.array([0.3, 0.7]), np.array([[-1.0, 0.0], [1.0, 0.5]]), 0.8

    def cdf(axis):
        axis = np.array(axis)
        scale = sd * np.linalg.norm(axis)
        return lambda x: sum(w * scipy.stats.norm(m @ axis, scale).cdf(x) for w, m in zip(weights, means, strict=True))

    axes = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)]
    return mixture(weights, means, sd), {axis: cdf(axis) for axis in axes}


def banana():
    """x₁ ~ N(0, 1), x₂ | x₁ ~ N(.5x₁² − .5, .3²), all × 2.5; its projections are integrals over x₁."""
    u = np.linspace(-8.0, 8.0, 2001)
    weights = scipy.stats.norm.pdf(u) * (u[1] - u[0])

    def cdf(axis):
        a, b = axis
        t = np.linspace(-12.0, 40.0, 4001)
        centre, scale = a * u + b * (0.5 * u**2 - 0.5), max(0.3 * abs(b), 1e-9)
        values = scipy.stats.norm.cdf((t[:, None] - centre) / scale) @ weights
        return lambda x: np.interp(x, 2.5 * t, values)

    target = tfd.TransformedDistribution(targets.banana(dtype=tf.float64), tfp.bijectors.Scale(np.float64(2.5)))
    return target, {
        (1.0, 0.0): scipy.stats.norm(0, 2.5).cdf,
        **{axis: cdf(axis) for axis in [(0.0, 1.0), (0.5, 1.0)]},
    }


def spread(x, seed):
    """x* = x·exp(.3 Z): an asymmetric proposal, q(x|x*)/q(x*|x) = Π |x*/x|."""
    return x * tf.exp(0.3 * random.normal(tf.shape(x), seed, x.dtype))


def spread_ratio(x, proposed):
    return tf.reduce_sum(tf.math.log(proposed / x), -1)


# Coordinates of one sign are kept by the asymmetric proposal, so a symmetric step comes with it.
SPREAD = mcmc.Sequential([mcmc.MetropolisHastings(spread, spread_ratio), mcmc.RandomWalk(0.5)])
BASE = tfd.MultivariateNormalDiag(np.zeros(2), np.array([2.0, 2.0]))
KERNELS = {
    # kernel, steps, compiled by XLA (which only NUTS needs)
    "random_walk": (mcmc.RandomWalk(0.9), 20, False),
    "mala": (mcmc.MALA([0.9, 1.1]), 12, False),
    "hmc": (mcmc.HMC(0.5, 4, mass=[1.0, 1.5]), 6, False),
    "nuts": (mcmc.NUTS(0.5, max_tree_depth=3), 3, True),
    "adaptive": (mcmc.Adaptive(mcmc.HMC(0.5, 4), num_adaptation_steps=0), 6, False),
    "metropolis": (SPREAD, 20, False),
    "independence": (mcmc.IndependenceMetropolis(BASE), 12, False),
    "proposals": (mcmc.IndependenceMetropolis(BASE, 4), 3, False),
    "sequence": (mcmc.Sequential([mcmc.IndependenceMetropolis(BASE), mcmc.MALA(0.9)]), 6, False),
    "tempered_transition": (mcmc.TemperedTransition(mcmc.HMC(0.6, 2), BASE, 3), 6, False),
    # its replicas all start from the cold one, so that it needs a burn-in
    "tempered": (mcmc.ReplicaExchange(mcmc.HMC(0.6, 4), [1.0, 0.6]), 14, False),
    "transformed": (mcmc.Transformed(mcmc.MALA(0.9), tfp.bijectors.SinhArcsinh(np.float64(0.3))), 12, False),
}


@pytest.fixture(scope="module")
def groups():
    """Log density of states [target, temperature, chain, 2], exact draws at temperature 1, distribution functions."""
    distributions, cdfs = zip(gaussian(), two_gaussians(), banana(), strict=True)
    draws = [p.sample([2, NUM_CHAINS], seed=tf.constant([0, 5])) for p in distributions]

    def log_prob(x):
        parts = zip(distributions, tf.unstack(x, axis=-4), strict=True)
        return np.array([[1.0], [COOLER]]) * tf.stack([p.log_prob(part) for p, part in parts], -3)

    return log_prob, tf.stack(draws), cdfs


# Each test accepts at p > 1e-3 for three targets, so for a new seed the eleven would raise a false alarm once in
# thirty; the controls must reach p < 2e-5. Power: the cooler Gaussian has .8 of the variance, a KS distance of .027
# when the chain has mixed, and √40 000 · .027 = 5.4 is p = 1e-25; the banana's first coordinate is such a Gaussian.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n in ("tempered", "tempered_transition") else ()) for n in KERNELS],
)
def test_exact_draws_stay_exact(name, groups):
    kernel, num_steps, jit_compile = KERNELS[name]
    log_prob, start, cdfs = groups
    samples = mcmc.sample(
        log_prob, start, kernel, num_results=1, num_burnin_steps=num_steps - 1, seed=17, jit_compile=jit_compile
    )
    end, accepted = samples.states[0].numpy(), samples.is_accepted[0].numpy()
    for k, cdf in enumerate(cdfs):
        assert smallest_p_value(end[k, 0], cdf) > 1e-3
        assert smallest_p_value(end[k, 1], cdf) < 2e-5
        # A kernel that does not move is invariant too: chains must move by a good part of the target's width.
        jump = np.mean(np.sum((end[k, 0] - start[k, 0]) ** 2, -1)) / np.sum(np.var(start[k, 0], axis=0))
        assert jump > 0.5
        if name != "nuts":  # which always finds a point of its trajectory to go to
            assert 0.1 < np.mean(accepted[k, 0]) < 1


def test_an_asymmetric_proposal_without_its_ratio_fails():
    target, cdfs = gaussian()
    start = target.sample(NUM_CHAINS, seed=tf.constant([0, 5]))
    kernel = mcmc.Sequential([mcmc.MetropolisHastings(spread), mcmc.RandomWalk(0.5)])
    samples = mcmc.sample(
        target.log_prob, start, kernel, num_results=1, num_burnin_steps=11, seed=17, jit_compile=False
    )
    assert smallest_p_value(samples.states[-1].numpy(), cdfs) < 2e-5


def test_the_start_is_exact():
    """The test itself: exact draws pass, and draws of the cooler Gaussian do not."""
    target, cdfs = gaussian()
    x = target.sample(NUM_CHAINS, seed=tf.constant([0, 6])).numpy()
    assert smallest_p_value(x, cdfs) > 1e-3
    assert smallest_p_value(x / np.sqrt(COOLER), cdfs) < 2e-5


@pytest.mark.slow
def test_mala_and_hmc_of_one_step_agree():
    """Two independent runs of 40 000 chains: acceptance by a z-test, the law of the first jump by two-sample KS tests.

    The z-test takes its standard error from the chains (about .002 for the difference); |z| < 4 raises a false alarm
    once in 16 000, the two KS tests at 1e-3 once in 500. The control, step size ε² for ε as in TFP's MALA, must fail
    both: its jumps are a tenth longer.
    """
    target, _ = two_gaussians()
    start = target.sample(NUM_CHAINS, seed=tf.constant([0, 7]))

    def run(kernel, seed):
        samples = mcmc.sample(target.log_prob, start, kernel, num_results=6, seed=seed, jit_compile=False)
        per_chain = np.mean(samples.is_accepted, axis=0)
        return (samples.states[0] - start).numpy(), per_chain.mean(), per_chain.var() / NUM_CHAINS

    mala, acceptance, variance = run(mcmc.MALA(1.1), 1)
    hmc, acceptance_hmc, variance_hmc = run(mcmc.HMC(1.1, 1), 2)
    squared, acceptance_squared, variance_squared = run(mcmc.HMC(1.1**2, 1), 3)
    assert abs(acceptance - acceptance_hmc) < 4 * np.sqrt(variance + variance_hmc)
    assert abs(acceptance - acceptance_squared) > 4 * np.sqrt(variance + variance_squared)
    for k in range(2):
        assert scipy.stats.ks_2samp(mala[:, k], hmc[:, k]).pvalue > 1e-3
    assert min(scipy.stats.ks_2samp(mala[:, k], squared[:, k]).pvalue for k in range(2)) < 2e-5


@pytest.mark.parametrize("noise_scale", [None, 0.5, 2.0])
def test_stationary_variance_of_langevin(noise_scale):
    """T/(1 − ε²/4) on N(0, 1), T = τ²/ε², for 40 000 independent chains after 60 steps of autocorrelation 1 − ε²/2.

    At ε = 1 that is .5 a step, so the start is forgotten to 2⁻⁶⁰. The draws are independent and Gaussian: standard
    error √(2/n) = .7 % of the variance; 4 SE raise a false alarm once in 16 000. Controls, all beyond 4 SE: no
    discretisation bias (25 % off), and the convention x' = x − ηE' + √(2η)Z read as η = ε² (variance 1/(1 − ε²/2) = 2).
    """
    epsilon = 1.0
    temperature = 1.0 if noise_scale is None else noise_scale**2 / epsilon**2
    samples = mcmc.sample(
        lambda x: -0.5 * x**2,
        np.zeros([NUM_CHAINS]),
        mcmc.Langevin(epsilon, noise_scale),
        num_results=1,
        num_burnin_steps=60,
        seed=3,
        jit_compile=False,
    )
    variance = np.var(samples.states)
    error = np.sqrt(2 / NUM_CHAINS)
    truth = temperature / (1 - epsilon**2 / 4)
    assert abs(variance / truth - 1) < 4 * error
    for wrong in (temperature, temperature / (1 - epsilon**2 / 2)):
        assert abs(variance / wrong - 1) > 4 * error


def test_variance_of_a_single_langevin_chain():
    """The same from one long chain, whose standard error comes from its ESS.

    x² of a Gaussian chain of autocorrelation ρ = 1 − ε²/2 has autocorrelation ρ²; the variance of the mean of x² is
    2v²/ESS. 20 000 steps give an error of 1.3 % of the variance, and the ESS itself to 3 % (measured): 4 SE each.
    """
    epsilon = 1.0
    chain = mcmc.sample(
        lambda x: -0.5 * tf.reduce_sum(x**2, -1),
        np.zeros([1, 1]),
        mcmc.Langevin(epsilon),
        num_results=20_000,
        num_burnin_steps=100,
        seed=4,
        jit_compile=True,
    )
    squares = mcmc.diagnose(chain.states**2)
    rho = (1 - epsilon**2 / 2) ** 2
    assert abs(squares.ess[0] / (20_000 * (1 - rho) / (1 + rho)) - 1) < 0.12
    assert abs(squares.mean[0] - 1 / (1 - epsilon**2 / 4)) < 4 * squares.mcse[0]
    for wrong in (1.0, 1 / (1 - epsilon**2 / 2)):
        assert abs(squares.mean[0] - wrong) > 4 * squares.mcse[0]
