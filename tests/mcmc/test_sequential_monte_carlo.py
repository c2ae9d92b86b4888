"""Sequential Monte Carlo: unbiased Ẑ, right shares, no noise used twice, and a verdict that warns where it must."""

import functools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm.mcmc.running.particle_moves as moves_module
import tfp_ebm.mcmc.running.particles as particles_module
from tfp_ebm import mcmc, targets
from tfp_ebm.mcmc import particle_sampler, weights
from tfp_ebm.mcmc.clusters import effective_draws, find_clusters, joined
from tfp_ebm.mcmc.draws import imbalance, nested_r_hat
from tfp_ebm.mcmc.running import compiled
from tfp_ebm.mcmc.running.particle_state import Plan, Settings, empty_plan, initial_particles
from tfp_ebm.mcmc.running.particles import run_pass

tfd = tfp.distributions
run = mcmc.sequential_monte_carlo


def skewed(x):
    """The log density of Gumbel(1, .5), times e²: far from symmetric, with a one-sided log ratio to a Gaussian."""
    z = (x[:, 0] - 1.0) / 0.5
    return 2.0 - z - tf.exp(-z) - np.log(0.5)


def wide(size=1, scale=2.0, dtype=tf.float64):
    return tfd.MultivariateNormalDiag(tf.zeros([size], dtype), tf.fill([size], tf.constant(scale, dtype)))


def frozen_pass(betas, num, seed, base, target, step_size=0.7, moves=2, jit_compile=False, proposes=True):
    """Runs a pass with given temperatures in float64, and returns its result."""
    size = int(base.event_shape[0])
    settings = Settings(8, 0.9, (2, 4), 5, 2, len(betas), True)
    count = len(betas) + 1
    plan = Plan(
        tf.constant([*betas, 1.0], tf.float64),
        tf.fill([count], moves),
        tf.fill([count], tf.constant(np.log(step_size), tf.float64)),
        tf.eye(size, batch_shape=[count], dtype=base.dtype),
        tf.fill([count], proposes),
    )
    x = base.sample(num, seed=[seed, 1])
    log_ratio = target(x) - base.log_prob(x)
    start = initial_particles(x, tf.cast(log_ratio, tf.float64), 8)
    function = functools.partial(run_pass, lambda: target, base, settings)
    function = tf.function(function, autograph=False, jit_compile=jit_compile)
    zero = tf.constant(0.0, tf.float64)
    return function(start, plan, tf.constant(True), zero, tf.constant([seed, 2]))


def z_score_of_normalizer(betas=(0.2, 0.5, 1.0), num=200_000, **kwargs):
    """(mean of Ẑ over 8 groups)/Z − 1 in standard errors, and the relative standard error."""
    passed = frozen_pass(betas, num, 0, wide(), skewed, **kwargs)
    z = np.exp(passed.particles.log_normalizers.numpy() - 2.0)
    error = z.std(ddof=1) / np.sqrt(len(z))
    return (z.mean() - 1) / error, error


@pytest.mark.slow
def test_the_mean_of_z_is_z_for_three_frozen_temperatures():
    # standard error .3 %: two of them have a false alarm rate of .09, with a fixed seed; a bias of 2 % is found almost
    # surely. Over 10 seeds of half as many particles the mean was 1 - .0016 ± .0007.
    score, error = z_score_of_normalizer()
    assert abs(score * error) < 0.006 and error < 0.005


@pytest.mark.slow
def test_a_wrong_weight_biases_z(monkeypatch):
    def wrong(settings, now, beta):
        gain = now.log_ratio * (beta - now.beta) * 1.02
        return now._replace(log_weights=now.log_weights + gain, beta=beta)

    monkeypatch.setattr(particles_module, "_weighted", wrong)
    assert abs(z_score_of_normalizer()[0]) > 4


@pytest.mark.slow
def test_the_mean_of_z_is_z_without_proposals_from_the_base():
    score, error = z_score_of_normalizer(moves=4, proposes=False)
    assert abs(score * error) < 0.006 and error < 0.005


@pytest.mark.slow
def test_a_density_kept_from_before_a_move_biases_z(monkeypatch):
    original = moves_module._trajectory

    def stale(bridge, num_leapfrog_steps, beta, x, at, *args):
        x, _, accept = original(bridge, num_leapfrog_steps, beta, x, at, *args)
        return x, at, accept

    monkeypatch.setattr(moves_module, "_trajectory", stale)
    assert abs(z_score_of_normalizer(moves=4, proposes=False)[0]) > 4


@pytest.mark.slow
def test_the_base_proposes_as_long_as_draws_from_it_are_accepted():
    """A normal density far from the base: at a temperature after which hardly any draw is accepted, proposals end."""
    base, settings = wide(1, 1.0), Settings(8, 0.9, (2, 4), 3, 2, 50, True)
    x = base.sample(1024, seed=[0, 1])

    def far(x):
        return -0.5 * tf.square((x[:, 0] - 8.0) / 0.5)

    function = functools.partial(run_pass, lambda: far, base, settings)
    args = (initial_particles(x, far(x) - base.log_prob(x), 8), empty_plan(settings, 1, base.dtype), tf.constant(False))
    passed = tf.function(function, autograph=False)(*args, tf.constant(0.0, tf.float64), tf.constant([0, 2]))
    num = int(passed.num_stages)
    proposes, accept = passed.plan.proposes.numpy()[:num], passed.accept_base.numpy()[:num]
    assert proposes[0] and not proposes[-1] and (np.diff(proposes.astype(int)) <= 0).all()
    assert (accept[proposes][:-1] >= 0.001).all() and accept[proposes][-1] < 0.001 and not accept[~proposes].any()
    # 1024 particles: the standard error of the mean is .016, and of log Z about .1
    assert abs(passed.particles.x.numpy().mean() - 8.0) < 0.1 and passed.accept.numpy()[:num].min() > 0.4
    assert abs(passed.particles.log_normalizers.numpy().mean() - np.log(0.5 * np.sqrt(2 * np.pi))) < 0.5


@pytest.mark.slow
def test_moves_leave_the_target_invariant():
    # the exact quantiles of 4000 particles: Kolmogorov-Smirnov, false alarm rate 10⁻³
    draws = run(skewed, wide(), num_samples=4000, seed=3, num_last_moves=10, jit_compile=False)
    u = scipy.stats.gumbel_r(1.0, 0.5).cdf(draws.states.numpy()[:, 0])
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(draws.log_normalizer.value - 2.0) < 4 * draws.log_normalizer.standard_error < 0.3


@pytest.mark.slow
def test_a_target_equal_to_the_base_needs_no_annealing_and_has_no_error():
    base = wide(2)
    draws = run(base.log_prob, base, num_samples=20, seed=0, jit_compile=False)
    assert draws.log_normalizer.value == 0.0 and draws.log_normalizer.standard_error == 0.0
    assert draws.inverse_temperatures.tolist() == [0.0, 1.0] and draws.trouble == ()
    assert draws.states.shape == (20, 2) and draws.num_particles == 1024


@pytest.fixture(scope="module", params=["fitted", "annealed"])
def two_modes(request):
    """A target with two modes far from its base, and the draws of one seed, by either way."""
    target, base = targets.two_gaussians(tf.float64), wide(2, 4.0)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "annealed":
            patch.setattr(particle_sampler, "suffices", lambda weights: False)
        draws = run(target.log_prob, base, num_samples=2000, seed=5)
        assert (len(draws.inverse_temperatures) > 3) == (request.param == "annealed")
        yield target, base, draws


@pytest.mark.slow
def test_shares_and_log_normalizer_of_two_modes(two_modes):
    draws = two_modes[2]
    share = np.mean(draws.states.numpy()[:, 0] > 0)
    assert draws.trouble == () and draws.states.shape == (2000, 2)
    # about 1000 effective draws: standard error .015
    assert abs(share - 0.7) < 0.06 and abs(draws.shares.values[0] - 0.7) < 0.06
    assert abs(draws.log_normalizer.value) < 5 * draws.log_normalizer.standard_error < 0.2
    assert draws.shares.of_groups.shape == (8, 2) and draws.shares.centers.shape == (2, 2)
    assert len(draws.acceptance_rate) == len(draws.inverse_temperatures) - 1
    assert (np.diff(draws.inverse_temperatures) > 0).all() and draws.inverse_temperatures[-1] == 1.0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_compiles_nothing(two_modes):
    target, base, draws = two_modes
    entries = [entry for _, entries in compiled._COMPILED.values() for entry in entries.values()]
    found = [entry for entry in entries if isinstance(entry, compiled.Compiled)]  # others are of tests before
    assert found
    before = [entry._call.experimental_get_tracing_count() for entry in found]
    again = run(target.log_prob, base, num_samples=2000, seed=5)
    other = run(target.log_prob, base, num_samples=2000, seed=6)
    assert np.array_equal(draws.states, again.states) and not np.array_equal(draws.states, other.states)
    assert draws.log_normalizer.value == again.log_normalizer.value != other.log_normalizer.value
    assert before == [entry._call.experimental_get_tracing_count() for entry in found]


@pytest.mark.slow
def test_duplicates_separate(two_modes):
    assert len(np.unique(two_modes[2].states.numpy()[:, 0])) == 2000


@pytest.mark.long
def test_xla_runs_the_same_algorithm():
    # TFP's acceptance has other random numbers under XLA, so the two agree in distribution only
    xla, again = (frozen_pass((0.3, 1.0), 8000, 1, wide(), skewed, 0.3, 1, jit_compile=True) for _ in range(2))
    value, error = weights.jackknife_of_log_mean(xla.particles.log_normalizers.numpy())
    assert np.array_equal(xla.particles.x, again.particles.x)
    assert abs(value - 2.0) < 4 * error < 0.1 and int(xla.num_stages) == 3


def noise_of_stages(monkeypatch):
    """The seeds of all moves and resamplings of one pass in graph mode, as rows of numbers."""
    seeds = []

    def record(seed):
        seeds.append(tuple(seed.tolist()))
        return np.int32(0)

    original = moves_module._from_base, particles_module._resampled

    def from_base(bridge, beta, x, log_ratio, seed):
        with tf.control_dependencies([tf.numpy_function(record, [seed], tf.int32)]):
            return original[0](bridge, tf.identity(beta), x, log_ratio, tf.identity(seed))

    def resampled(settings, now, is_last, seed):
        with tf.control_dependencies([tf.numpy_function(record, [seed], tf.int32)]):
            return original[1](settings, now, is_last, tf.identity(seed))

    monkeypatch.setattr(moves_module, "_from_base", from_base)
    monkeypatch.setattr(particles_module, "_resampled", resampled)
    frozen_pass((0.2, 0.5, 1.0), 64, 0, wide(), skewed)
    return seeds


@pytest.mark.slow
def test_no_seed_is_used_twice(monkeypatch):
    seeds = noise_of_stages(monkeypatch)
    assert len(seeds) == 4 + 4 * 2 and len(set(seeds)) == len(seeds)


def test_a_seed_that_is_used_twice_is_found(monkeypatch):
    monkeypatch.setattr(particles_module.random, "fold_in", lambda seed, number: tf.identity(seed))
    seeds = noise_of_stages(monkeypatch)
    assert len(set(seeds)) < len(seeds)


def check_bisection():
    h = np.random.default_rng(0).exponential(size=5000) * 30.0  # one-sided
    weight = np.random.default_rng(1).exponential(size=5000)
    delta = float(weights.next_step(tf.constant(weight), tf.constant(h), tf.constant(1.0, tf.float64), 0.9))
    u = np.exp(delta * (h - h.max()))
    w = weight / weight.sum()
    assert 0 < delta < 1 and abs((w @ u) ** 2 / (w @ u**2) - 0.9) < 1e-6


def test_the_step_in_temperature_has_the_conditional_ess():
    check_bisection()


def test_a_wrong_sign_in_the_bisection_fails(monkeypatch):
    original = weights.conditional_ess
    monkeypatch.setattr(weights, "conditional_ess", lambda w, h, delta: original(w, h, -delta))
    with pytest.raises(AssertionError):
        check_bisection()


def test_conditional_ess_leaves_out_points_of_density_zero():
    h = tf.constant([0.0, -np.inf, 1.0], tf.float64)
    value = weights.conditional_ess(tf.ones([3], tf.float64), h, tf.constant(1.0, tf.float64))
    u = np.exp([0.0, 1.0])
    assert abs(float(value) - u.sum() ** 2 / (2 * (u**2).sum())) < 1e-12


@pytest.mark.parametrize("jit_compile", [False, True])
def test_systematic_resampling(jit_compile):
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=(3, 40)) * 2
    log_weights[0, 3] = log_weights[1, 0] = log_weights[2, -1] = -np.inf
    share = np.exp(log_weights) / np.exp(log_weights).sum(1, keepdims=True)
    function = tf.function(weights.resample, jit_compile=jit_compile, autograph=False)
    total = np.zeros([3, 40])
    grid = (np.arange(200) + 0.5) / 200  # of u: the mean over it is exact up to 1/200
    for u in grid:
        index = function(tf.constant(log_weights), tf.fill([3], tf.constant(u, tf.float64)), 25).numpy()
        counts = np.stack([np.bincount(row, minlength=40) for row in index])
        assert (np.abs(counts - 25 * share) < 1 + 1e-9).all() and index.shape == (3, 25)
        total += counts
    assert np.abs(total / 200 - 25 * share).max() < 0.011


@pytest.mark.slow
def test_unequal_widths_that_annealing_gets_wrong_are_reported(monkeypatch):
    # a width of ¼ in 20 coordinates, without the search for modes and the base made of draws, which cure it: of 16
    # seeds, 15 have a verdict that is not empty (share .68 ± .07)
    monkeypatch.setattr(particle_sampler, "find_regions", lambda *args: [])
    monkeypatch.setattr(particle_sampler, "is_uneven", lambda *args: False)
    target = targets.two_widths(20, 10.0, 0.25)
    base = tfd.MultivariateNormalTriL(target.mean(), tf.linalg.cholesky(target.covariance()))
    draws = run(target.log_prob, base, num_samples=100, seed=1, jit_compile=False)
    assert any("groups of particles" in sentence for sentence in draws.trouble)
    assert draws.shares.ess.min() < 150


@pytest.mark.slow
def test_a_good_base_gives_the_share_without_trouble():
    target = targets.two_widths(20, 10.0, 0.25)
    locs, scales = np.zeros([3, 20], np.float32), np.float32([1.3, 0.325, 5.0])
    locs[0, 0], locs[1, 0] = -5.0, 5.0
    base = tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.float32([0.45, 0.45, 0.1])),
        tfd.MultivariateNormalTriL(locs, scales[:, None, None] * np.eye(20, dtype=np.float32)),
    )
    draws = run(target.log_prob, base, num_samples=2000, seed=0, jit_compile=False)
    assert draws.trouble == ()
    # effective draws at least 400: standard error at most .023
    assert abs(np.mean(target.modes(draws.states)) - 0.7) < 0.08
    assert abs(draws.log_normalizer.value) < 5 * draws.log_normalizer.standard_error < 0.5


def test_effective_draws_of_independent_groups():
    rng = np.random.default_rng(0)
    table = rng.binomial(100, 0.3, (400, 1)) / 100
    shares, errors, ess = effective_draws(table, np.full(400, 1 / 400), 10**6)
    # 40 000 independent draws; the variance of 400 groups has a standard error of 7 %
    assert abs(ess[0] / 40_000 - 1) < 0.3 and abs(errors[0] / np.sqrt(0.21 / 40_000) - 1) < 0.15
    assert abs(shares[0] - 0.3) < 0.012


@pytest.mark.parametrize(("largest", "beyond"), [(4000, (0.0005, 0.006)), (10**9, (0.012, 0.03))], ids=["", "control"])
def test_errors_of_few_groups_are_not_too_small_by_chance(largest, beyond):
    """Shares of 8 groups of 500 draws are more than three standard errors off in .2 % of 4000 cases; if errors came
    from their spread alone, with 7 degrees of freedom, in 2 %."""
    rng, parts = np.random.default_rng(1), np.full(8, 1 / 8)
    scores = []
    for _ in range(4000):
        shares, errors, ess = effective_draws(rng.binomial(500, 0.125, (8, 1)) / 500, parts, largest)
        assert ess[0] <= largest
        scores.append((shares[0] - 0.125) / errors[0])
    assert beyond[0] < np.mean(np.abs(scores) > 3) < beyond[1]


def test_clusters_are_modes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3)) + np.where(np.arange(2000) % 10 < 7, 6.0, -6.0)[:, None]

    def log_density(x):
        return np.logaddexp(-0.5 * np.square(x - 6).sum(1), -0.5 * np.square(x + 6).sum(1))

    shares, least = find_clusters(x, np.arange(2000) // 250, 8, log_density, 0)
    assert shares.values.round(2).tolist() == [0.7, 0.3] and np.abs(shares.centers[0] - 6).max() < 0.2
    assert least > 100
    sorted_groups = np.argsort(np.argsort(x[:, 0], kind="stable")) // 250  # each group sees one mode only
    assert find_clusters(x, sorted_groups, 8, log_density, 0)[1] < 20
    assert joined(np.zeros([1, 2]), lambda x: np.zeros(len(x))).tolist() == [0]


def test_imbalance_and_nested_r_hat_see_what_is_wrong():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(4000, 2)), np.arange(4000) % 8
    assert imbalance(x, -x, groups, 8) == 0.0 and nested_r_hat(x, groups, 8) < 1.01
    assert imbalance(1.3 * x, -1.3 * x, groups, 8) > 0.5  # draws that are too wide
    shifted = x + (groups == 3)[:, None]
    assert nested_r_hat(shifted, groups, 8) > 1.05


@pytest.mark.slow
def test_a_target_that_is_nan_in_places_is_reported():
    base = wide(1, 1.0)

    def target(x):
        return tf.where(x[:, 0] > 1.5, tf.constant(np.nan, x.dtype), -0.5 * x[:, 0] ** 2)

    draws = run(target, base, num_samples=10, seed=0, num_last_moves=2, jit_compile=False)
    assert any("NaN" in sentence for sentence in draws.trouble)
    assert np.isfinite(draws.states).all() and (draws.states.numpy() <= 1.5).all()


def test_bad_arguments_are_named():
    base = wide(1)
    good = functools.partial(run, skewed, base, num_samples=5, seed=0)
    with pytest.raises(TypeError, match="`base`"):
        run(skewed, skewed, num_samples=5, seed=0)
    with pytest.raises(ValueError, match="`num_samples`"):
        good(num_samples=0)
    with pytest.raises(ValueError, match="`num_groups`"):
        good(num_groups=1)
    with pytest.raises(ValueError, match="`conditional_ess`"):
        good(conditional_ess=1.0)
    with pytest.raises(ValueError, match="`num_leapfrog_steps`"):
        good(num_leapfrog_steps=(3, 2))
    with pytest.raises(ValueError, match="`num_leapfrog_steps`"):
        good(num_leapfrog_steps=3)
    with pytest.raises(ValueError, match="`jit_compile`"):
        good(jit_compile="yes")
    with pytest.raises(ValueError, match="zero or not a number at all"):
        run(lambda x: -np.inf * tf.ones_like(x[:, 0]), base, num_samples=5, seed=0)
    with pytest.raises(ValueError, match="`target_log_prob_fn` must return one number per state"):
        run(lambda x: x, base, num_samples=5, seed=0)
    with pytest.raises(TypeError, match="`target_log_prob_fn` must return values of the base's dtype"):
        run(lambda x: tf.cast(x[:, 0], tf.float32), base, num_samples=5, seed=0)


@pytest.mark.slow
def test_moves_run_in_graph_mode_where_only_the_gradient_of_xla_is_nan():
    """The gradient of tf.norm at 0, times zero, is zero in graph mode and NaN under XLA."""

    def log_prob(x):
        distance = tf.norm(x[:, :, None, None] - x[:, None, :, None], axis=-1)
        spring = tf.reduce_sum((1.0 - tf.eye(2)) * (distance - 1.0) ** 2, [1, 2])
        return -25.0 * spring - 0.5 * tf.reduce_sum(x**2, 1)

    base = wide(2, 4.0, tf.float32)
    alone = run(log_prob, base, num_samples=1024, seed=0, jit_compile=True)
    assert not alone.acceptance_rate.any() and "under XLA" in " ".join(alone.trouble)
    draws = run(log_prob, base, num_samples=1024, seed=0)
    assert draws.acceptance_rate.min() > 0.4 and draws.trouble == ()
