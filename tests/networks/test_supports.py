"""Autoregressive energies with columns of a few values and with missing cells; draws of missing cells."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks import AutoregressiveEnergy, autoregressive, completion
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.normalized import AffineEnergy, MixtureEnergy, WarpedEnergy

tfd = tfp.distributions
SEED = tf.constant([0, 5])
SUPPORTS = {0: [0.0, 1.0, 2.0], 2: [-1.0, 0.5, 2.0, 7.0]}
FREQUENCIES = {0: np.array([0.2, 0.5, 0.3]), 2: np.array([0.1, 0.2, 0.3, 0.4])}


def random_network(**options):
    """A network far from its start of four coordinates, two of them with supports, in float64."""
    options = {"order": [2, 1, 0, 3], "supports": SUPPORTS, **options}
    network = autoregressive([4], units=[12, 12], dtype="float64", seed=3, **options)
    rng = np.random.default_rng(0)
    for kernel in (network.trunk.last.kernel, network.trunk.skip.kernel):
        kernel.assign(0.3 * rng.normal(size=kernel.shape))
    network.set_frequencies(FREQUENCIES)
    return network


def correlated_normal(size, seed=0):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, size))
    covariance = factor @ factor.T + 0.1 * np.eye(size)
    return tfd.MultivariateNormalTriL(rng.normal(size=size), np.linalg.cholesky(covariance))


def total_mass(network):
    """Σ over both supports of the integral over the two other coordinates, by a rule of 141² places."""
    v = np.linspace(-np.arcsinh(100.0), np.arcsinh(100.0), 141)
    places = np.stack(np.meshgrid(np.sinh(v), np.sinh(v), indexing="ij"), -1).reshape(-1, 2)
    total = 0.0
    for first in SUPPORTS[0]:
        for third in SUPPORTS[2]:
            columns = np.full(len(places), first), places[:, 0], np.full(len(places), third), places[:, 1]
            density = np.exp(-network(tf.constant(np.stack(columns, -1)))).reshape(141, 141)
            density *= np.cosh(v) * np.cosh(v)[:, None]
            total += np.trapezoid(np.trapezoid(density, v), v)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("of_mixture", [False, True])
def test_probabilities_and_density_sum_to_one(of_mixture):
    """The rule's own error is below 2e-3 here. Planted: a support that lacks a value loses its mass."""
    network = random_network(**({"proposal": correlated_normal(4)} if of_mixture else {}))
    assert abs(total_mass(network) - 1.0) < 2e-3
    assert np.isposinf(network(tf.constant([[0.0, 0.0, 3.0, 0.0]], tf.float64))).all()
    network.value_conditionals.is_value[:, 0] = False
    assert abs(total_mass(network) - 1.0) > 0.05


def test_a_network_at_its_start_has_the_frequencies():
    network = autoregressive([2], units=[8], supports={0: [1.0, 3.0], 1: [0, 1, 2]}, dtype="float64")
    shares = {0: np.array([0.25, 0.75]), 1: np.array([0.5, 0.3, 0.2])}
    network.set_frequencies(shares)
    x = np.array([[a, b] for a in (1.0, 3.0) for b in range(3)])
    np.testing.assert_allclose(np.exp(-network(tf.constant(x))), np.outer(shares[0], shares[1]).reshape(-1))


def test_a_mixture_gives_its_masses_to_the_cells():
    """One coordinate, N(.3, .8²), whose values 0, 1, 3 have the cells (−∞, ½), (½, 2), (2, ∞); a hundredth is even."""
    normal = tfd.MultivariateNormalTriL([0.3], [[0.8]])
    network = autoregressive([1], units=[8], supports={0: [0, 1, 3]}, proposal=normal, dtype="float64")
    edges = stats.norm.cdf([0.5, 2.0], 0.3, 0.8)
    masses = 0.99 * np.diff([0.0, *edges, 1.0]) + 0.01 / 3.0
    np.testing.assert_allclose(np.exp(-network(tf.constant([[0.0], [1.0], [3.0]], tf.float64))), masses, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("of_mixture", [False, True])
def test_draws_have_the_probabilities(of_mixture):
    """20 000 draws against exact probabilities: χ² at a false-alarm rate of 1e-3. Planted: other frequencies fail."""
    network = random_network(**({"proposal": correlated_normal(4)} if of_mixture else {}))
    x = network.draw(20_000, SEED).numpy()

    def p_value():
        states = tf.constant([[value, 0.0, 0.0, 0.0] for value in SUPPORTS[2]], tf.float64)  # in order of dependence
        expected = 20_000 * np.exp(network.log_conditionals(states, 128)[:, 0])
        counts = [(x[:, 2] == value).sum() for value in SUPPORTS[2]]
        return stats.chisquare(counts, expected * sum(counts) / expected.sum()).pvalue

    assert set(np.unique(x[:, 0])) == set(SUPPORTS[0])
    assert p_value() > 1e-3
    network.trunk.last.bias.assign(network.trunk.last.bias + 0.3 * np.arange(network.trunk.last.bias.shape[0]) % 2)
    assert p_value() < 1e-3


def test_many_values_share_outputs():
    """300 values and 32 outputs: still probabilities, and a gradient for all of them."""
    values = np.arange(300.0)
    network = autoregressive([2], units=[8], supports={1: values}, dtype="float64")
    x = tf.constant(np.stack([np.zeros(300), values], -1))
    probabilities = np.exp(network.log_conditionals(x, 64)[:, 1])
    assert abs(probabilities.sum() - 1.0) < 1e-12
    with tf.GradientTape() as tape:
        energy = tf.reduce_mean(network(x))
    assert np.isfinite(tape.gradient(energy, network.trunk.last.bias.value)).all()


def test_missing_cells_have_no_factor():
    """A row without a cell has the factors of the others; the density of a row without any is 1."""
    network = random_network(allows_missing=True)
    x = network.draw(5, SEED).numpy()
    all_factors = network.log_conditionals(tf.gather(x, network.order, axis=1), 128).numpy()
    x[0, 3] = x[1, 2] = np.nan  # last and first in the order
    x[2] = np.nan
    factors = network.log_conditionals(tf.gather(x, network.order, axis=1), 128).numpy()
    np.testing.assert_allclose(factors[0, :3], all_factors[0, :3])
    assert factors[0, 3] == factors[1, 0] == 0.0
    assert (factors[1, 1:] != all_factors[1, 1:]).all()  # it sees that the first is missing
    np.testing.assert_allclose(-network(tf.constant(x)), factors.sum(1))
    assert (factors[2] == 0.0).all()
    mapped = AffineEnergy(WarpedEnergy(network, [False, True, False, True]), np.zeros(4), [1, 2, 1, 3], dtype="float64")
    assert mapped.allows_missing
    assert float(mapped(tf.constant(x))[2]) == 0.0  # nor has the map a volume for it
    with tf.GradientTape() as tape:
        energy = tf.reduce_mean(mapped.training_energy(tf.constant(x), SEED))
    assert all(np.isfinite(value).all() for value in tape.gradient(energy, mapped.trainable_variables))


def test_the_network_sees_no_number_beyond_the_range_of_the_data():
    network = random_network(supports=None)
    network.seen_range.assign([[-1.0] * 4, [1.0] * 4])
    near, far = tf.constant([[1.0, 1.0, 1.0, 0.0]], tf.float64), tf.constant([[9.0, 9.0, 9.0, 0.0]], tf.float64)
    last = [network.log_conditionals(y, 128)[0, 3] for y in (near, far)]
    assert float(last[0]) == float(last[1])
    network.seen_range.assign([[-10.0] * 4, [10.0] * 4])
    assert float(network.log_conditionals(far, 128)[0, 3]) != float(last[1])


def rows_with_gaps(distribution, number=30):
    x = np.array(distribution.sample(number, seed=SEED))
    x[np.random.default_rng(0).random(x.shape) < 0.4] = np.nan
    x[0] = np.nan
    return x


def standardized_errors(network, x, num_draws, num_particles):
    """Means of draws less those of the conditional Gaussian, in standard errors; and the errors of log p."""
    normal = correlated_normal(x.shape[1])
    loc, covariance = np.array(normal.loc), np.array(normal.covariance())
    filled = completion.complete(network, x, num_draws, num_particles, SEED)
    errors, log_prob = [], []
    for row, draws in zip(x, filled.states, strict=True):
        gaps = np.isnan(row)
        assert (draws[:, ~gaps] == row[~gaps]).all()
        given = covariance[~gaps][:, ~gaps]
        gain = covariance[gaps][:, ~gaps] @ np.linalg.inv(given)
        mean = loc[gaps] + gain @ (row - loc)[~gaps]
        rest = covariance[gaps][:, gaps] - gain @ covariance[~gaps][:, gaps]
        errors.append((draws[:, gaps].mean(0) - mean) / np.sqrt(np.diag(rest) / num_draws))
        some = (~gaps).any()
        log_prob.append(stats.multivariate_normal.logpdf(row[~gaps], loc[~gaps], given) if some else 0.0)
    return np.concatenate(errors), filled.log_prob - np.array(log_prob)


def gaussian_energy(normal, **options):
    parts = MixtureParameters(np.ones(1), np.array(normal.loc)[None], np.array(normal.scale.to_dense())[None])
    return GaussianMixtureEnergy.of(parts, dtype="float64", **options)


def test_gaussian_cells_are_drawn_from_their_conditionals():
    """In closed form: z-scores of 60 cells, standard deviation 1 ± .1, and log p of the given cells to rounding."""
    normal = correlated_normal(5)
    z, gap = standardized_errors(gaussian_energy(normal), rows_with_gaps(normal), 500, 1)
    assert np.abs(z).max() < 4.5
    assert 0.7 < z.std() < 1.3
    np.testing.assert_allclose(gap, 0.0, atol=1e-9)


def test_a_mixture_without_cells_has_its_marginal_density():
    """Against scipy's marginals, in float64."""
    normal = correlated_normal(4)
    x = rows_with_gaps(normal, 10)
    loc, covariance = np.array(normal.loc), np.array(normal.covariance())
    expected = [0.0]
    for row in x[1:]:
        kept = ~np.isnan(row)
        expected.append(stats.multivariate_normal.logpdf(row[kept], loc[kept], covariance[kept][:, kept]))
    energy = gaussian_energy(normal, allows_missing=True)
    np.testing.assert_allclose(-energy(tf.constant(x)), expected, atol=1e-10)
    np.testing.assert_allclose(energy(normal.sample(3, seed=SEED)), -normal.log_prob(normal.sample(3, seed=SEED)))


@pytest.mark.slow
def test_particles_draw_from_the_conditionals(monkeypatch):
    """1000 particles for 100 draws: their own error adds a third to the standard deviation of z.

    Planted: the given cells are clamped without weights, which ignores those later in the order: z reaches 10.
    """
    normal = correlated_normal(5)
    network = autoregressive([5], units=[8], proposal=normal, order=[3, 1, 0, 2, 4], dtype="float64")
    x = rows_with_gaps(normal)
    z, gap = standardized_errors(network, x, 100, 1000)
    assert np.abs(z).max() < 5.0
    assert np.abs(gap).max() < 0.4
    monkeypatch.setattr(AutoregressiveEnergy, "log_conditional", lambda self, y, *_: tf.zeros_like(y[:, 0]))
    z, _ = standardized_errors(network, x, 100, 1000)
    assert np.abs(z).max() > 10.0


def test_parts_of_a_mixture_are_chosen_by_what_is_given():
    """Two Gaussians at ±3 in both coordinates: the second follows the first, through the maps of both parts."""
    parts = [
        AffineEnergy(
            gaussian_energy(tfd.MultivariateNormalTriL(mean, np.eye(2))), [0.0, 0.0], [1.0, 1.0], dtype="float64"
        )
        for mean in ([-3.0, -3.0], [3.0, 3.0])
    ]
    model = ebm.EnergyModel(MixtureEnergy(parts, [0.5, 0.5], dtype="float64"))
    model.standardization.loc.assign([1.0, 2.0])
    model.standardization.scale.assign([2.0, 10.0])
    filled = ebm.recipes.impute(model, [[7.0, np.nan], [-5.0, np.nan]], num_draws=400, seed=1)
    assert (filled[0, :, 1] > -18.0).all()  # five deviations below 2 + 10 · 3
    np.testing.assert_allclose(filled[:, :, 1].mean(1), [32.0, -28.0], atol=2.5)  # five standard errors


def test_refusals():
    with pytest.raises(ValueError, match="supports"):
        autoregressive([2], supports={2: [0, 1]})
    with pytest.raises(ValueError, match="supports"):
        autoregressive([2], supports={0: [1, 1]})
    with pytest.raises(ValueError, match="allows_missing"):
        autoregressive([2], proposal=correlated_normal(2), allows_missing=True)
    model = ebm.EnergyModel(autoregressive([2], units=[8]))
    with pytest.raises(ValueError, match="`x`"):
        ebm.recipes.impute(model, np.zeros((3, 3)))
    with pytest.raises(TypeError, match="`model`"):
        ebm.recipes.impute(ebm.EnergyModel(ebm.networks.mlp([2])), np.zeros((3, 2)))
