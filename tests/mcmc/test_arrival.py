"""`EnergyDistribution.sample` warns when its chains still depend on where they started, and only then."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.mcmc import arrival
from tfp_ebm.mcmc.diagnostics import MAX_RHAT
from tfp_ebm.mcmc.running.moments import Moments

tfd = tfp.distributions


def gaussian(x):
    return 0.5 * tf.reduce_sum(x**2, -1)


def two_modes(x):
    """Equal modes of sd ½ at ±4 along the diagonal: 16 standard deviations apart."""
    squares = [tf.reduce_sum((x - mode / np.sqrt(2)) ** 2, -1) / (2 * 0.5**2) for mode in (-4.0, 4.0)]
    return -tf.reduce_logsumexp(-tf.stack(squares), 0)


def base(mean=0.0, sd=1.0):
    return tfd.MultivariateNormalDiag([mean, mean], [sd, sd])


def sample(energy, base, kernel, num_burnin_steps=60, n=200, seed=0):
    p = ebm.EnergyDistribution(energy, [2], base=base, kernel=kernel, num_burnin_steps=num_burnin_steps)
    return p.sample(n, seed=seed)


HMC = ebm.mcmc.HMC(0.3, 4)
UNARRIVED = {
    "separate modes": (two_modes, base(sd=3.0), HMC),
    "chains that hardly move": (gaussian, base(sd=3.0), ebm.mcmc.RandomWalk(0.02)),
    "a shared drift": (gaussian, base(5.0, 0.1), ebm.mcmc.Langevin(0.15)),
    "a foreign kernel": (
        two_modes,
        base(sd=3.0),
        lambda target: tfp.mcmc.HamiltonianMonteCarlo(target, step_size=0.2, num_leapfrog_steps=3),
    ),
}


@pytest.mark.parametrize("name", UNARRIVED)
def test_chains_that_have_not_arrived_are_warned_of(name):
    """Certain: at every one of three seeds, and the figure shows how far off they are."""
    for seed in range(3):
        with pytest.warns(UserWarning, match=r"R-hat is \S+, above 1.02") as record:
            sample(*UNARRIVED[name], seed=seed)
        figure = float(str(record[0].message).split()[2].rstrip(","))
        assert figure**2 > 1.2


@pytest.mark.parametrize(
    ("energy", "start", "kernel", "steps"),
    [
        (gaussian, base(sd=3.0), HMC, 60),
        (gaussian, base(5.0, 0.1), HMC, 60),
        (gaussian, base(), ebm.mcmc.MALA(1.0), 60),
        (gaussian, base(sd=3.0), None, 300),  # the defaults
    ],
)
def test_chains_that_have_arrived_are_not(energy, start, kernel, steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sample(energy, start, kernel, steps)
    assert x.shape == (200, 2)


@pytest.mark.slow
def test_where_nothing_is_said():
    """Few chains, no burn-in, and functions that are being traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(two_modes, base(sd=3.0), HMC, n=arrival.MIN_CHAINS - 1)
        sample(two_modes, base(sd=3.0), HMC, num_burnin_steps=0)
        tf.function(lambda: sample(two_modes, base(sd=3.0), HMC))()
    with pytest.warns(UserWarning, match="R-hat"):  # control
        sample(two_modes, base(sd=3.0), HMC, n=arrival.MIN_CHAINS)


@pytest.mark.slow
@pytest.mark.parametrize("num_burnin_steps", [1, 4, 30])
def test_the_states_are_those_of_sample(num_burnin_steps):
    """Judging changes no bit of them, whatever an adaptive kernel takes from the length of its burn-in."""
    x = np.random.default_rng(0).normal(size=[20, 2])
    kernel = ebm.mcmc.Adaptive(ebm.mcmc.HMC(0.3, 2))
    arguments = {"num_burnin_steps": num_burnin_steps, "seed": 3, "jit_compile": False}

    def log_prob(x):
        return -gaussian(x)

    states, _ = arrival.last_states(log_prob, x, kernel, **arguments)
    kept = ebm.mcmc.sample(log_prob, x, kernel, num_results=1, **arguments)
    np.testing.assert_array_equal(states, kept.states[0])
    arguments["num_burnin_steps"] += 1  # control
    assert np.any(states != ebm.mcmc.sample(log_prob, x, kernel, num_results=1, **arguments).states[0])


# --- error rates, on chains whose law is known ------------------------------------------------------------------------

LENGTH, LAG = 37, 150  # an eighth and half of the default burn-in


def windows(rng, rho, num_chains, modes=0.0, drift=0.0, size=2):
    """Moments of two windows of stationary AR(1) chains, each around one of two modes, with a shift in between."""
    x = np.empty([LAG + LENGTH, num_chains, size])
    x[0] = rng.normal(size=[num_chains, size])
    for t in range(1, len(x)):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=[num_chains, size])
    x += modes * rng.choice([-1.0, 1.0], [num_chains, 1])
    x = np.concatenate([x[:LENGTH], x[-LENGTH:] + drift])
    return x, [moments(part) for part in np.split(x, 2)]


def moments(x):
    number = tf.constant(len(x), tf.float64)
    chains = x.shape[1]
    mean, squares = tf.constant(x.mean(0)), tf.constant(x.var(0) * len(x))
    return Moments(number, (mean,), (squares,), (), tf.zeros([chains]), tf.ones([chains], tf.bool))


@pytest.mark.parametrize(("rho", "num_chains"), [(0.0, 16), (0.8, 16), (0.8, 200)])
def test_false_alarms(rho, num_chains):
    """None in 200: of arrived chains the bound exceeds 1 with probability 10⁻³ at most, and 1.02 far more rarely. At
    ρ = .8 (τ = 9) split R-hat, the control, would raise an alarm in most of them, though e⁻³³ of the start is left."""
    rng = np.random.default_rng(0)
    alarms = split = 0
    for _ in range(200):
        x, parts = windows(rng, rho, num_chains)
        alarms += arrival.judge(*parts).at_least > MAX_RHAT
        halves = np.concatenate(np.split(x, 2), 1)
        within, between = halves.var(0, ddof=1).mean(0), halves.mean(0).var(0, ddof=1)
        split += np.max(np.sqrt(1 + between / within)) > MAX_RHAT
    assert alarms == 0
    assert split > 150 or rho == 0


@pytest.mark.parametrize(
    ("num_chains", "modes", "drift"), [(16, 3.0, 0.0), (500, 0.5, 0.0), (16, 0.0, 3.0), (500, 0.0, 0.7)]
)
def test_power(num_chains, modes, drift):
    """All of 100: modes six standard deviations apart by 16 chains, or one apart by 500; drifts of 3 and of .7. The
    share is m²/(1 + m²) for modes at ±m, so R̂² = 1 + m², and drift d gives 1 + d²/4. Control: R̂ itself is not that."""
    rng = np.random.default_rng(1)
    found = [arrival.judge(*windows(rng, 0.5, num_chains, modes, drift)[1]) for _ in range(100)]
    assert min(judged.at_least for judged in found) > MAX_RHAT
    truth = np.sqrt(1 + modes**2 + 0.25 * drift**2)
    median = np.median([judged.rhat for judged in found])
    assert abs(median**2 / truth**2 - 1) < 0.1
    assert truth**2 < 1.2 or abs(median / truth**2 - 1) > 0.1
    control = arrival.judge(*windows(rng, 0.5, num_chains)[1])
    assert control.at_least < MAX_RHAT < truth


def test_bad_chains_are_left_out():
    rng = np.random.default_rng(2)
    _, parts = windows(rng, 0.5, 40)
    bad = tf.constant(np.arange(40) < 10)
    spoilt = [
        part._replace(mean=tuple(tf.where(bad[:, None], np.nan, mean) for mean in part.mean), is_finite=~bad)
        for part in parts
    ]
    assert np.isfinite(arrival.judge(*spoilt).rhat)
    few = [part._replace(is_finite=tf.constant(np.arange(40) < 15)) for part in parts]
    assert np.isnan(arrival.judge(*few).at_least)


def test_nonfinite_chains_are_warned_of():
    def wall(x):
        return tf.where(x[..., 0] > 0, gaussian(x), np.inf)

    with pytest.warns(UserWarning, match="of 200 chains start"):
        sample(wall, base(), ebm.mcmc.RandomWalk(1.0))
