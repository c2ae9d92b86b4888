"""Annealed importance sampling: E w = Z for any kernel and number of temperatures, error bars that hold, both sides."""

import math
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import diagonal_normal

import tfp_ebm as ebm
from tfp_ebm import mcmc, targets
from tfp_ebm.energy.base import draw
from tfp_ebm.evaluation import (
    annealed_importance_sampling,
    grid_log_normalizer,
    importance_sampling,
    reverse_annealed_importance_sampling,
)
from tfp_ebm.evaluation.estimate import of_log_weights
from tfp_ebm.random import fold_in, stateless_seed

tfd = tfp.distributions
LOG_Z = 1.7  # planted: the targets are densities times exp(LOG_Z)


def log_density(mean, covariance):
    """log N(x; mean, covariance), by hand: `tfd`'s takes seconds to trace."""
    mean, d = np.array(mean, np.float64), len(mean)
    precision, offset = np.linalg.inv(covariance), 0.5 * np.linalg.slogdet(2 * math.pi * np.array(covariance))[1]
    assert precision.shape == (d, d)
    return lambda x: -0.5 * tf.reduce_sum(((x - mean) @ precision) * (x - mean), -1) - offset


@pytest.fixture(scope="module")
def gaussian():
    """The energy of a correlated Gaussian, which notes its traces, and a wider base."""
    density, traces = log_density([0.3, -0.2], [[1.0, 0.5], [0.5, 0.8]]), []

    def energy(x):
        traces.append(0)
        return -density(x) - LOG_Z

    energy.traces = traces
    return energy, diagonal_normal(2, 1.5)


def mean_and_error(log_weights):
    weights = np.exp(log_weights - LOG_Z)
    return np.mean(weights), np.std(weights, ddof=1) / np.sqrt(len(weights))


KERNELS = {
    "hmc": (mcmc.HMC(0.6, 2), "linear"),
    "mala": (mcmc.MALA(0.8), "linear"),
    "random_walk": (mcmc.RandomWalk(0.8), "linear"),
    "adaptive": (mcmc.Adaptive(mcmc.MALA(0.1)), "adaptive"),
}


# At 3 standard errors a new seed would raise a false alarm in 3.2 % of runs of these twelve. Power: the bias of TFP's
# own, 3 to 6 % here, is at least 6 standard errors (the control below).
@pytest.mark.parametrize("name", KERNELS)
def test_mean_weight_is_z_at_any_number_of_temperatures(name, gaussian):
    energy, base = gaussian
    kernel, schedule = KERNELS[name]
    counts = []
    for num_temperatures in (3, 10, 30):
        estimate = annealed_importance_sampling(
            energy, base, kernel, num_temperatures, 40_000, schedule, seed=5, jit_compile=False
        )
        mean, error = mean_and_error(estimate.log_weights)
        assert estimate.log_weights.dtype == np.float64
        assert abs(mean - 1) < 3 * error < 3 * 0.005
        assert estimate.standard_error == pytest.approx(error / mean, rel=1e-2)
        assert estimate.value == pytest.approx(np.log(mean) + LOG_Z, abs=1e-9)
        counts.append(len(energy.traces))
    assert counts[0] == counts[1] == counts[2]  # one trace for all


def plain_loop(log_prob, base, num_temperatures, num_chains, seed, is_fresh, step_size=0.6):
    """The naive twin: the same sum step by step, with results made afresh at each temperature, or carried over."""
    x = draw(base, [num_chains], fold_in(seed, 0))
    base_log_prob = log_density([0.0, 0.0], 1.5**2 * np.eye(2))
    betas = np.linspace(0.0, 1.0, num_temperatures + 1)
    log_weights, results = np.zeros(num_chains), None
    for k in range(1, num_temperatures + 1):
        log_weights += (betas[k] - betas[k - 1]) * (log_prob(x) - base_log_prob(x)).numpy()

        def bridge(x, beta=betas[k]):
            return beta * log_prob(x) + (1 - beta) * base_log_prob(x)

        kernel = tfp.mcmc.HamiltonianMonteCarlo(bridge, np.float64(step_size), 2)
        if is_fresh or results is None:
            results = kernel.bootstrap_results(x)
        x, results = kernel.one_step(x, results, seed=fold_in(seed, k))
    return log_weights


@pytest.mark.slow
def test_stale_results_bias_the_weights(gaussian):
    """The negative control: what the kernel remembers of the temperature before, in a plain loop and in TFP's own."""
    energy, base = gaussian
    log_prob = lambda x: -energy(x)  # noqa: E731
    seed, num = stateless_seed(3), 40_000
    fresh, stale = (plain_loop(log_prob, base, 10, num, seed, is_fresh) for is_fresh in (True, False))

    @tf.function(autograph=False)
    def tfp_chain():
        return tfp.mcmc.sample_annealed_importance_chain(
            10,
            base.log_prob,
            log_prob,
            draw(base, [num], seed),
            lambda target: tfp.mcmc.HamiltonianMonteCarlo(target, np.float64(0.6), 2),
            seed=seed,
        )[1]

    mean, error = mean_and_error(fresh)
    assert abs(mean - 1) < 3 * error
    for log_weights in (stale, tfp_chain().numpy()):
        mean, error = mean_and_error(log_weights)
        assert mean < 1 - 6 * error


@pytest.mark.slow
def test_target_equal_to_base_has_no_error():
    base = diagonal_normal(3, 1.5)
    for estimate in (
        annealed_importance_sampling(base, base, mcmc.HMC(0.5, 2), 10, 50, jit_compile=False),
        annealed_importance_sampling(base, base, mcmc.HMC(0.5, 2), 10, 50, "adaptive", jit_compile=False),
        reverse_annealed_importance_sampling(base, None, base, mcmc.HMC(0.5, 2), 10, 50, jit_compile=False),
        importance_sampling(base, base, 50),
    ):
        assert (estimate.value, estimate.standard_error, estimate.ess) == (0.0, 0.0, 50.0)


def correlated(d):
    """N(0, C), C_ij = .7^|i − j|: its log density, its draws, and a base as wide as its marginals."""
    covariance = 0.7 ** np.abs(np.subtract.outer(np.arange(d), np.arange(d)))
    z = np.random.default_rng(3).normal(size=(200, d))
    return log_density(np.zeros(d), covariance), z @ np.linalg.cholesky(covariance).T, diagonal_normal(d)


def eight_gaussians():
    target = targets.eight_gaussians(tf.float64)
    return target.log_prob, target.sample(400, seed=7), diagonal_normal(2, 2.0)


# target, draws, base; kernel, temperatures, the most that the bracket may be open, whether by XLA
BRACKETS = {
    "eight_gaussians": (eight_gaussians(), mcmc.HMC(0.2, 5), 60, 1.0, True),
    "gaussian_50": (correlated(50), mcmc.HMC(0.3, 5), 300, 2.0, False),
}


# Four one-sided tests at 3 standard errors (the two values are two-sided) give a false alarm in 1.3 % of new seeds.
# Power: the brackets are open by many of their errors, so that sides exchanged are seen.
@pytest.mark.slow
@pytest.mark.parametrize("name", BRACKETS)
def test_forward_and_reverse_enclose_log_z(name):
    (density, samples, base), kernel, num_temperatures, width, jit_compile = BRACKETS[name]

    def energy(x):
        return -density(x) - LOG_Z

    num_chains = len(samples)
    lower = annealed_importance_sampling(
        energy, base, kernel, num_temperatures, num_chains, seed=1, jit_compile=jit_compile
    )
    upper = reverse_annealed_importance_sampling(
        energy, samples, base, kernel, num_temperatures, seed=1, is_exact=True, jit_compile=jit_compile
    )
    assert not upper.is_approximate
    (low, low_error), (high, high_error) = (
        (np.mean(e.log_weights), np.std(e.log_weights, ddof=1) / np.sqrt(num_chains)) for e in (lower, upper)
    )
    assert low - 3 * low_error <= LOG_Z <= high + 3 * high_error
    for estimate in (lower, upper):
        assert abs(estimate.value - LOG_Z) < 3 * estimate.standard_error < 3 * 0.25
    # what is enclosed is narrow, but not so that the sides could be exchanged unseen
    assert low + 4 * low_error < high - 4 * high_error < low + width


def coverage(estimates, factor=1.0):
    return sum(abs(value - LOG_Z) <= 2 * factor * error for value, error in estimates)


@pytest.mark.slow
def test_error_bars_are_calibrated(gaussian):
    """100 seeds of 64 chains. If 95 % is the truth, fewer than 88 in bounds come by chance in .2 % of new seeds; bars
    that are half as long would cover 68 %."""
    energy, base = gaussian
    estimates = [
        annealed_importance_sampling(energy, base, KERNELS["hmc"][0], 10, 64, seed=seed, jit_compile=False)[:2]
        for seed in range(100)
    ]
    assert coverage(estimates) >= 88
    assert max(error for _, error in estimates) < 0.12
    assert coverage(estimates, factor=0.5) < 80
    z = [(value - LOG_Z) / error for value, error in estimates]
    assert abs(np.mean(z)) < 4 * np.std(z) / 10


def test_the_adaptive_kernel_finds_a_step_size_for_each_temperature():
    """From a base 30 times as wide as the target no one step size serves. The gap log Z − E log w shows it."""
    density, base = log_density([0.5, 0.5], 0.03**2 * np.eye(2)), diagonal_normal(2)
    energy = lambda x: -density(x)  # noqa: E731

    def gap(kernel, schedule):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimate = annealed_importance_sampling(energy, base, kernel, 100, 64, schedule, seed=2, jit_compile=False)
        return -np.mean(estimate.log_weights), estimate

    long, short = (gap(mcmc.HMC(step, 3), "sigmoid")[0] for step in (0.5, 0.03))
    fitting = gap(mcmc.Adaptive(mcmc.HMC(0.5, 3)), "sigmoid")[0]
    assert fitting < 0.5 * min(long, short)
    # and steps of equal difficulty beat those of the sigmoid
    even, estimate = gap(mcmc.Adaptive(mcmc.HMC(0.5, 3)), "adaptive")
    assert even < 0.7 * fitting
    assert abs(estimate.value) < 3 * estimate.standard_error < 1


def test_one_temperature_is_importance_sampling(gaussian):
    energy, base = gaussian
    annealed = annealed_importance_sampling(energy, base, KERNELS["hmc"][0], 1, 500, seed=4, jit_compile=False)
    plain = importance_sampling(energy, base, 500, seed=4)
    np.testing.assert_allclose(annealed.log_weights, plain.log_weights, rtol=1e-12)
    assert plain.value == pytest.approx(LOG_Z, abs=3 * plain.standard_error)


def test_many_targets_and_sizes_are_no_reason_to_warn(gaussian, caplog):
    _, base = gaussian
    with caplog.at_level("WARNING", "tensorflow"):
        for i in range(7):
            importance_sampling(lambda x, i=i: i - base.log_prob(x), base, 100 + i, seed=0)
            importance_sampling(base, base, 100 + i, seed=0)
    assert not caplog.records


def test_seeds(gaussian):
    energy, base = gaussian

    def run(seed, jit_compile=False):
        return annealed_importance_sampling(
            energy, base, KERNELS["mala"][0], 5, 2000, seed=seed, jit_compile=jit_compile
        )

    first = run(1)
    np.testing.assert_array_equal(first.log_weights, run([0, 1]).log_weights)
    assert np.abs(first.log_weights - run(2).log_weights).max() > 0.1


@pytest.mark.long
def test_a_trained_model_agrees_with_the_grid():
    """A short training on two moons, in other units than its own: log Z by chains from both sides and by the grid.

    3 standard errors are a false alarm in .3 % of new seeds; without the units' Σ log scale log Z is off by 2 and more.
    """
    x = 3.0 * targets.two_moons().sample(4096, seed=1).numpy() + 10.0
    model = ebm.recipes.low_dimensional(x, num_steps=160, units=[32, 32], steps_per_execution=16)
    model.fit(x, batch_size=256, epochs=10, verbose=0)
    grid = grid_log_normalizer(model, x.min(0) - 15, x.max(0) + 15, num=300)
    assert grid.standard_error < 1e-3
    p = ebm.EnergyDistribution(model)
    kernel = mcmc.Adaptive(mcmc.HMC(0.3, 3))
    log_z = annealed_importance_sampling(p, None, kernel, 60, 200, seed=2)
    assert abs(log_z.value - grid.value) < 3 * log_z.standard_error < 0.15
    assert p.with_log_normalizer(log_z.value).log_prob(x[:1]).numpy() == pytest.approx(
        -model.energy(x[:1]).numpy() - log_z.value, abs=1e-4
    )
    other = reverse_annealed_importance_sampling(model, x[:200], None, kernel, 60, seed=2)
    assert other.is_approximate
    assert abs(other.value - grid.value) < 0.3


def test_what_cannot_be_trusted_warns():
    far, base = log_density(np.ones(20), 0.1 * np.eye(20)), diagonal_normal(20)
    with pytest.warns(UserWarning, match=r"effective sample size is .* of 100"):
        annealed_importance_sampling(lambda x: -far(x), base, mcmc.HMC(0.2, 2), 2, 100, jit_compile=False)
    with pytest.warns(UserWarning, match=r"all 20 weights are zero"):
        nowhere = importance_sampling(lambda x: tf.fill(tf.shape(x)[:1], np.float64(np.inf)), base, 20)
    assert math.isnan(nowhere.value) and math.isnan(nowhere.standard_error)
    with pytest.warns(UserWarning, match=r"of 20 weights are NaN"):
        importance_sampling(lambda x: tf.math.log(x[:, 0]), base, 20)
    with pytest.warns(UserWarning, match="effective sample size is 1.0 of 1000"):
        lone = of_log_weights(np.array([100.0] + [0.0] * 999))
    assert lone.standard_error > 1


def warnings_of_weights(sd, seeds=40, num=1000):
    """The warnings about importance weights of N(0, I) for a base N(0, sd²I), and how often 2 errors hold log Z = 0."""
    said, held = [], 0
    for seed in range(seeds):
        z = np.random.default_rng(seed).normal(size=(num, 2))
        log_weights = 2 * math.log(sd) + 0.5 * np.sum((1 - sd**2) * z**2, -1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimate = of_log_weights(log_weights)
        held += abs(estimate.value) <= 2 * estimate.standard_error
        said += [str(warning.message) for warning in caught]
    return sum("Pareto" in words for words in said), len(said), held


def test_a_base_narrower_than_the_target_is_seen_in_the_tail():
    """Weights of infinite variance, whose error bars hold in half of 40 sets: most sets are warned of (28), by the
    effective sample size, and of those that it lets pass a good part by the tail (9). A wide base is never."""
    by_tail, warned, held = warnings_of_weights(0.4)
    assert held < 30
    assert warned > 20 and by_tail > 4
    assert warnings_of_weights(1.5)[1] == 0 and warnings_of_weights(0.8)[1] == 0


def test_weights_of_no_mass_count_as_zero():
    """A target on a half-line of the base: half of the weights are exp(−∞), which is no trouble."""
    base = diagonal_normal(1)
    half = importance_sampling(lambda x: tf.where(x[:, 0] > 0, -base.log_prob(x), np.float64(np.inf)), base, 4000)
    assert abs(half.value - math.log(0.5)) < 3 * half.standard_error
    assert half.standard_error == pytest.approx(1 / math.sqrt(4000), rel=0.1)


def annealed(**arguments):
    given = {"energy_fn": diagonal_normal(2), "base": diagonal_normal(2, 2.0), "kernel": mcmc.HMC(0.5, 2)}
    return annealed_importance_sampling(**{**given, "num_temperatures": 3, "num_chains": 4, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"energy_fn": 3}, TypeError, "energy_fn"),
        ({"energy_fn": lambda x: x}, ValueError, "energy_fn"),
        ({"energy_fn": lambda x: tf.cast(x[:, 0], tf.float32)}, TypeError, "energy_fn"),
        ({"energy_fn": lambda x: tf.round(x[:, 0])}, ValueError, "energy_fn"),
        ({"energy_fn": diagonal_normal(2).log_prob}, TypeError, "energy_fn"),
        ({"base": None}, ValueError, "base"),
        ({"base": "wide"}, TypeError, "base"),
        ({"base": diagonal_normal(3)}, ValueError, "base"),
        ({"base": tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])}, TypeError, "base"),
        ({"kernel": "hmc"}, TypeError, "kernel"),
        ({"kernel": mcmc.Langevin(0.1)}, ValueError, "kernel"),
        ({"kernel": mcmc.Sequential([mcmc.Adaptive(mcmc.MALA(0.1))])}, ValueError, "kernel"),
        ({"kernel": mcmc.ReplicaExchange(mcmc.MALA(0.1), [1.0, 0.5])}, ValueError, "kernel"),
        ({"kernel": mcmc.MALA([0.1, 0.1, 0.1])}, ValueError, "step_size"),
        ({"num_temperatures": 0}, ValueError, "num_temperatures"),
        ({"num_chains": 1}, ValueError, "num_chains"),
        ({"schedule": "geometric"}, ValueError, "schedule"),
        ({"schedule": [0.0, 0.7, 0.5, 1.0]}, ValueError, "schedule"),
        ({"schedule": ["sigmoid", "linear"]}, ValueError, "schedule"),
        ({"schedule": [[0.0, 1.0], [1.0]]}, ValueError, "schedule"),
        ({"seed": None}, TypeError, "seed"),
        ({"jit_compile": "yes"}, ValueError, "jit_compile"),
    ],
)
def test_bad_arguments(arguments, error, name):
    with pytest.raises(error, match=f"`{name}`"):
        annealed(**arguments)


def test_bad_samples():
    target, base = diagonal_normal(2), diagonal_normal(2, 2.0)
    with pytest.raises(ValueError, match="`samples` must be given"):
        reverse_annealed_importance_sampling(lambda x: -target.log_prob(x), None, base)
    for samples in (np.zeros([0, 2]), np.zeros([5, 3]), np.zeros([1, 2]), np.full([5, 2], np.nan)):
        with pytest.raises(ValueError, match="`samples`"):
            reverse_annealed_importance_sampling(target, samples, base)


def test_reverse_from_a_target_without_density_where_the_base_has_some():
    """No chain from the box reaches the rest of the plane: the value is −log P_base(box), and the warning names it."""
    box = tfd.Independent(tfd.Uniform([0.0, 0.0], [1.0, 1.0]), 1)
    base = tfd.MultivariateNormalDiag([0.5, 0.5], [1.0, 1.0])
    with pytest.warns(UserWarning, match=r"no density at 8[4-7]\.\d%.* (1\.9|2)\."):
        log_z = reverse_annealed_importance_sampling(box, None, base, mcmc.RandomWalk(0.3), 20, 64)
    excess = -2.0 * math.log(math.erf(0.5 / math.sqrt(2.0)))
    assert abs(log_z.value - excess) < 4 * log_z.standard_error < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        within = tfd.Independent(tfd.Uniform([0.0, 0.0], [1.0, 0.5]), 1)
        log_z = reverse_annealed_importance_sampling(box, None, within, mcmc.RandomWalk(0.3), 20, 64)


def test_reverse_over_numbers():
    log_z = reverse_annealed_importance_sampling(tfd.Normal(0.0, 1.0), None, tfd.Normal(0.0, 2.0), mcmc.HMC(0.5, 3), 20)
    assert abs(log_z.value) < 4 * log_z.standard_error < 0.4


def test_a_network_is_an_energy_here_too():
    """As a log density its sign would be flipped, as the last line has it."""
    network = ebm.networks.mlp([2], [4], seed=0)
    base = tfd.Independent(tfd.Uniform([-1.0, -1.0], [1.0, 1.0]), 1)
    ours = importance_sampling(network, base, 1000)
    twin = importance_sampling(lambda x: network(x)[:, 0], base, 1000)
    np.testing.assert_allclose(ours.log_weights, twin.log_weights, rtol=1e-5)
    assert not np.allclose(ours.log_weights, importance_sampling(lambda x: -network(x)[:, 0], base, 1000).log_weights)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: tfd.MultivariateNormalDiag(tf.zeros([4, 3]), tf.ones([4, 3])),
        lambda: tfd.TransformedDistribution(tfd.Normal(0.0, 1.0), tfp.bijectors.Shift([1.0, 2.0, 3.0])),
    ],
)
def test_independent_of_what_draws_by_its_batch(inner):
    """Each of a batch draws for itself, and target = base gives log Z = 0 to the last bit."""
    base = tfd.Independent(inner(), 1)
    x = draw(base, [1000], tf.constant([0, 1])).numpy()
    assert x.shape == (1000, *base.event_shape)
    correlation = np.corrcoef(x.reshape(1000, -1).T)
    assert np.max(np.abs(correlation - np.eye(len(correlation)))) < 5.0 / math.sqrt(1000)  # of tied rows it is 1
    log_z = importance_sampling(lambda x: -base.log_prob(x), base, 100)
    assert log_z.value == 0.0 and log_z.standard_error == 0.0
