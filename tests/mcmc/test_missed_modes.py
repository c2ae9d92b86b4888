"""Modes that all particles miss are found by climbs from the base, reported, and cured; nothing else is reported.

Measured, all in graph mode, 100 draws each unless another number is given:

- Healthy runs, 5 seeds each of 20 kinds of targets (banana, eight Gaussians, pinwheel, rings, swiss roll, two
  Gaussians, two moons, checkerboard, GMM-40, funnel and Rosenbrock in 2 coordinates from a Gaussian; mixtures from a
  mixture; Many Well 8, Student t, Laplace, a ring, a rugged density and correlated Gaussians in 5 to 30): the verdict
  is empty in 97 of 100; the others are Rosenbrock (2) and funnel (1). In none of them is a mode reported as missed.
- Funnel-10: see `test_drift.py`.
- `two_widths(10, 10, ratio=0.1)` from a Gaussian of the same moments, 1000 draws: the first run has shares from 0 to
  .96 instead of .7. With the second run, 20 of 22 seeds had .67 to .75 and no verdict, and the other two a verdict. A
  second run then needed half of the mass in the modes; since a fifth suffices, these two have .71 and .68.
- `two_widths(d, 10, ratio=0.5)` from `fit_base` of 5000 rows, d = 10 and 20, 20 seeds each: shares between .58 and .77
  (standard error of 100 draws: .046), so that there is nothing to report, and no verdict. From N(0, 6 I), d = 10:
  shares between .36 and .86 and a verdict in 20 of 20 before the second run;
  with it, .67 to .75 and no verdict in 6 of 7, and a verdict in the other.
- The same from N(0, 36 I), d = 20: share 0 and no verdict in 19 of 20 as long as climbs began at draws of the base, of
  which half were contracted to its mean by at most .3. Since the starts are spread: see the first test.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import mcmc, targets
from tfp_ebm.mcmc import draws as draws_module
from tfp_ebm.mcmc import modes, particle_sampler
from tfp_ebm.mcmc.running.climb import climb

tfd = tfp.distributions


def matched(target):
    """The Gaussian with the moments of a target."""
    return tfd.MultivariateNormalTriL(target.mean(), tf.linalg.cholesky(target.covariance()))


def regions_of(target, base, unit, log_normalizer=0.0, num=128):
    """The regions that a search finds, and a function to log f and its gradient."""
    function = tf.function(lambda x: climb(lambda: target, base, x, tf.constant(unit)), autograph=False)
    found = [part.numpy() for part in function(base.sample(num, seed=[0, 1]))]

    def at(x):
        value, gradient = tfp.math.value_and_gradient(target, tf.constant(x, base.dtype))
        return value.numpy().astype(np.float64), gradient.numpy().astype(np.float64)

    return modes.find_regions(*found, unit, log_normalizer, at, np.random.default_rng(0)), found


@pytest.mark.parametrize(
    ("size", "scale", "where"),
    [
        (10, 6.0, "axis"),
        (20, 6.0, "axis"),
        (20, 3.0, "diagonal"),
        (50, 3.0, "diagonal"),
        (20, 3.0, "opposite"),
        (50, 6.0, "opposite"),
    ],
)
def test_starts_are_spread_so_that_climbs_from_a_round_gaussian_find_a_narrow_mode(size, scale, where):
    """A mode of half the width, ten apart from the wide one, which draws have found: found in each of 5 seeds.

    The wide one is at the base's mean, and the other one along an axis or a diagonal; or they are on opposite sides of
    the mean, in a random direction. The same climbs from draws of the base alone find it in none but at most one.
    """
    directions = {"axis": np.eye(size)[1], "diagonal": np.full(size, size**-0.5)}
    random = np.random.default_rng(size).normal(size=size)
    direction = directions.get(where, random / np.linalg.norm(random))
    wide, narrow = (-5.0 * direction, 5.0 * direction) if where == "opposite" else (0.0 * direction, 10.0 * direction)
    locs, widths = np.stack([wide, narrow]).astype("float32"), np.stack([np.ones(size), np.full(size, 0.5)])
    components = tfd.MultivariateNormalDiag(locs, widths.astype("float32"))
    target = tfd.MixtureSameFamily(tfd.Categorical(probs=[0.3, 0.7]), components)
    base = tfd.MultivariateNormalDiag(tf.zeros([size]), tf.fill([size], scale))
    unit = tf.fill([size], tf.constant(scale, tf.float64))
    function = tf.function(lambda x: climb(lambda: target.log_prob, base, x, unit), autograph=False)
    found = {"spread": 0, "alone": 0}
    for seed in range(5):
        x = base.sample(modes.NUM_STARTS, seed=[seed, 1])
        spread = tf.constant(modes.spread_starts(x.numpy(), np.zeros(size), wide), tf.float32)
        for name, start in (("spread", spread), ("alone", x)):
            ends = function(start)[0].numpy()
            found[name] += bool((np.linalg.norm(ends - narrow, axis=1) < 1.0).any())
    assert found["spread"] == 5 and found["alone"] <= 1


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_regions_have_the_masses_of_the_modes_and_missing_ones_are_named(dtype):
    target = targets.two_widths(10, 10.0, 0.5, dtype)
    base = matched(target)
    unit = np.sqrt(np.diag(target.covariance().numpy())).astype(np.float64)
    regions, (x, values, inverses) = regions_of(target.log_prob, base, unit)
    assert len(regions) == 2
    # exact: 90 % of each mode; the other mode adds less than 10⁻⁹. The error of an estimate is about 5 %.
    masses = sorted(np.exp(region.log_mass) for region in regions)
    assert np.abs(np.log(masses) - np.log([0.27, 0.63])).max() < 4 * max(r.error for r in regions) < 0.4
    narrow = max(regions, key=lambda region: region.log_mass)
    np.testing.assert_allclose(narrow.loc, [5.0] + 9 * [0.0], atol=0.02)
    np.testing.assert_allclose(narrow.scale_tril @ narrow.scale_tril.T, 0.25 * np.eye(10), atol=0.02)
    top = int(np.argmax(values))
    np.testing.assert_allclose(inverses[top] * np.outer(unit, unit), 0.25 * np.eye(10), atol=0.3)
    assert np.abs(x[top] - narrow.loc).max() < 0.1
    draws = target.sample(2000, seed=1).numpy().astype(np.float64)
    which = target.modes(tf.constant(draws, dtype)).numpy()
    assert modes.find_missed(regions, draws, 0.0, 0.02, 500.0) == []
    # only the wide mode: log Z is that of the wide mode, log .3
    (missed,) = modes.find_missed(regions, draws[which == 0], np.log(0.3), 0.02, 500.0)
    assert missed.region is narrow and missed.share_of_draws == 0.0 and abs(missed.share - 0.68) < 0.08
    # a share of .2 instead of .7 is named; one of .6 is within the doubt of 500 draws and a factor of two
    kept = np.concatenate([draws[which == 0][:400], draws[which == 1][:100]])
    assert len(modes.find_missed(regions, kept, np.log(0.3 / 0.8), 0.02, 500.0)) == 1
    kept = np.concatenate([draws[which == 0][:400], draws[which == 1][:600]])
    assert modes.find_missed(regions, kept, np.log(0.3 / 0.4), 0.02, 500.0) == []


@pytest.mark.slow
def test_ridges_heavy_tails_and_rugged_energies_are_not_reported():
    def ring(x):
        return -0.5 * ((tf.norm(x, axis=-1) - 3.0) / 0.1) ** 2

    def rugged(x):
        return -0.5 * tf.reduce_sum(x**2, -1) + 0.7 * tf.reduce_sum(tf.sin(9.0 * x), -1)

    student = tfd.Independent(tfd.StudentT(2.0, tf.zeros(3), 1.0), 1).log_prob
    laplace = tfd.Independent(tfd.Laplace(tf.zeros(3), 1.0), 1).log_prob
    base = tfd.MultivariateNormalDiag(tf.zeros(3), tf.fill([3], 3.0))
    for target in (ring, rugged, student, laplace):
        x = base.sample(400_000, seed=[1, 2])
        log_weights = (target(x) - base.log_prob(x)).numpy().astype(np.float64)
        weights = np.exp(log_weights - log_weights.max())
        log_z = log_weights.max() + np.log(weights.mean())
        chosen = np.random.default_rng(0).choice(len(weights), 4000, p=weights / weights.sum())
        regions, _ = regions_of(target, base, 3.0 * np.ones(3), log_z)
        draws = x.numpy()[chosen].astype(np.float64)
        assert modes.find_missed(regions, draws, log_z, 0.02, 1000.0) == []
        # the estimates hold nothing that is not there: the share of exact draws, and at most 5 errors more
        for region in regions:
            share = region.contains(draws).mean()
            assert np.exp(region.log_mass - log_z) < share + 5 * (region.error + 0.02) * share + 0.01


@pytest.mark.long
def test_a_lost_mode_is_found_and_cured(monkeypatch):
    verdicts = []

    def recorded(**kwargs):
        verdicts.append(original(**kwargs))
        return verdicts[-1]

    original = draws_module.verdict
    monkeypatch.setattr(draws_module, "verdict", recorded)
    target = targets.two_widths(10, 10.0, 0.1)
    run = functools.partial(
        mcmc.sequential_monte_carlo, target, matched(target), num_samples=1000, seed=7, jit_compile=False
    )
    draws = run()
    assert any("miss a mode" in sentence for one in verdicts for sentence in one) and verdicts[-1] == ()
    # at least 300 effective draws: standard error of the share at most .03
    assert draws.trouble == () and abs(np.mean(target.modes(draws.states)) - 0.7) < 0.1
    assert abs(draws.log_normalizer.value) < 4 * draws.log_normalizer.standard_error < 0.2
    np.testing.assert_array_equal(draws.states, run().states)
    # the negative control: without the search, nearly all draws are in one mode, and the sentence is not there
    monkeypatch.setattr(particle_sampler, "find_regions", lambda *args: [])
    draws = run()
    assert np.mean(target.modes(draws.states)) < 0.1 and not any("miss a mode" in s for s in draws.trouble)


def test_a_base_with_modes_is_a_density():
    base = tfd.MultivariateNormalDiag([0.0], [4.0])
    region = modes.Region(np.array([2.0]), np.array([[0.5]]), -1.0, 0.1)
    other = modes.Region(np.array([-2.0]), np.array([[0.1]]), -2.0, 0.1)
    mixed = modes.with_modes(base, [region, other])
    grid = np.linspace(-40.0, 40.0, 80_001, dtype=np.float32)[:, None]
    assert abs(np.exp(mixed.log_prob(grid)).sum() * 0.001 - 1.0) < 1e-3
    x = mixed.sample(20_000, seed=[0, 1]).numpy()
    inside = (np.abs(grid[:, 0] - 2.0) < 0.65).nonzero()[0]
    exact = np.exp(mixed.log_prob(grid[inside])).sum() * 0.001
    assert abs(np.mean(np.abs(x[:, 0] - 2.0) < 0.65) - exact) < 4 * np.sqrt(0.25 / 20_000)


@pytest.mark.slow
def test_weighted_draws_of_a_flat_density_need_no_moves(monkeypatch):
    """A checkerboard has no gradient, and its edges refuse moves; draws that are no copies are not worse for it."""
    target = targets.checkerboard()
    base = ebm.fit_base(target.sample(5000, seed=1).numpy(), width=1.2)

    def run():
        return mcmc.sequential_monte_carlo(
            target.unnormalized_log_prob, base, num_samples=100, seed=0, jit_compile=False
        )

    draws = run()
    assert draws.trouble == () and draws.acceptance_rate[-1] < 0.1 and draws.num_ancestors > 0.9 * draws.num_particles
    monkeypatch.setattr(draws_module, "_ENOUGH_ANCESTORS", 1.1)  # control: as if they were copies
    assert any("accepted at a rate" in sentence for sentence in run().trouble)
