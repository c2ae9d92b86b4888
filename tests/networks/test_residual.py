"""Densities with a correction: closed forms, draws by rejection, completed cells, and what is learned."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.completion import complete
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.residual import ResidualEnergy
from tfp_ebm.recipes import density, density_residual

BOUND = 1.0


def normal(size, dtype="float64"):
    return GaussianMixtureEnergy.of(MixtureParameters(np.ones(1), np.zeros((1, size)), np.eye(size)[None]), dtype=dtype)


def corrected(monkeypatch):
    """A standard normal of two columns times exp(g), g = 1 − softplus(log(e − 1) − 2 x₁), and its density on a grid."""
    network = ResidualEnergy(normal(2), units=[4], dtype="float64")
    monkeypatch.setattr(network, "correction", lambda x: 2.0 * x[:, :1])
    grid = np.linspace(-8.0, 8.0, 8001)
    ratio = BOUND - np.logaddexp(0.0, np.log(np.expm1(BOUND)) - 2.0 * grid)
    factor = np.trapezoid(stats.norm.pdf(grid) * np.exp(ratio), grid)
    network.log_mass.assign(np.log(factor))
    return network, grid, stats.norm.pdf(grid) * np.exp(ratio) / factor


def test_density_draws_and_cells(monkeypatch):
    """Log p to 1e-12; 4000 draws and 2000 completed cells, each KS with a false alarm rate of 1e-3.

    Planted: draws that are all accepted, and cells that are not resampled.
    """
    network, grid, pdf = corrected(monkeypatch)
    x = np.array([[0.3, -1.0], [-2.0, 0.5]])
    exact = np.log(np.interp(x[:, 0], grid, pdf)) + stats.norm.logpdf(x[:, 1])
    np.testing.assert_allclose(-network(tf.constant(x)), exact, rtol=0.0, atol=1e-5)  # of the interpolation
    below = np.cumsum(pdf) * (grid[1] - grid[0])

    def of_draws():
        return stats.kstest(network.draw(4000, tf.constant([0, 1])).numpy()[:, 0], lambda t: np.interp(t, grid, below))

    def of_cells():
        found = complete(network, np.array([[np.nan, 0.4]]), 2000, 20_000, tf.constant([3, 4]))
        assert abs(found.log_prob[0] - stats.norm.logpdf(0.4)) < 0.03  # 5 standard errors
        return stats.kstest(found.states[0, :, 0], lambda t: np.interp(t, grid, below))

    assert of_draws().pvalue > 1e-3 and of_cells().pvalue > 1e-3
    np.testing.assert_allclose(network.draw(4000, tf.constant([0, 1])).numpy()[:, 1].std(), 1.0, atol=0.05)
    with monkeypatch.context() as planted:
        planted.setattr(ResidualEnergy, "log_ratio", lambda self, x: tf.ones_like(x[:, 0]))
        network.log_mass.assign(1.0)
        assert of_draws().pvalue < 1e-6 and of_cells().pvalue < 1e-6


def test_a_correction_is_bounded_and_saved(tmp_path):
    network = ResidualEnergy(normal(2, "float32"), units=[4], seed=3)
    x = 3.0 * np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    np.testing.assert_allclose(network.log_ratio(tf.constant(x)), 0.0, atol=1e-6)
    network.set_weights([w + np.random.default_rng(1).normal(size=w.shape) for w in network.get_weights()])
    network.seen_range.assign([[-1.0, -1.0], [1.0, 1.0]])
    values = network.log_ratio(tf.constant(x)).numpy()
    assert values.max() < BOUND and values.std() > 0.1
    np.testing.assert_array_equal(values, network.log_ratio(tf.clip_by_value(x, -1.0, 1.0)))
    model = ebm.EnergyModel(network)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras").energy(x), model.energy(x))
    with pytest.raises(ValueError, match="`network` must be an energy of vectors without missing cells"):
        ResidualEnergy(ebm.networks.autoregressive([2], units=[4], allows_missing=True))


@pytest.mark.slow
def test_a_correction_is_kept_where_it_is_better(monkeypatch):
    """Rows at a distance of 1.5 on average around 0, and a normal for them: KL .1 or less, from more than .2.

    The log-likelihood of 5000 new rows is that of an exact density: quadrature of exp(−E) on a grid is 1 within .01,
    four standard errors of log Z. Rows of the normal itself are not corrected.
    """
    monkeypatch.setattr(density_residual, "_NUM_PASSES", 5)

    def ring(number, seed):
        rng = np.random.default_rng(seed)
        angle, radius = rng.uniform(0.0, 2.0 * np.pi, number), 1.4 + 0.2 * rng.normal(size=number)
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)

    def log_density(x):
        radius = np.hypot(*x.T)
        return stats.norm.logpdf(radius, 1.4, 0.2) - np.log(2.0 * np.pi * radius)

    base, rows, new = normal(2, "float32"), ring(6000, 0), ring(5000, 1)
    network = density_residual.fit_residual(base, rows[:5000], rows[5000:], seed=0)
    before, after = (float((log_density(new) + e(new.astype("float32")).numpy()).mean()) for e in (base, network))
    assert after < 0.5 * before and before > 0.2
    axis = np.linspace(-6.0, 6.0, 301)
    states = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype("float32")
    assert abs(np.exp(-network(states).numpy()).sum() * (axis[1] - axis[0]) ** 2 - 1.0) < 0.01
    own = np.random.default_rng(5).normal(size=(6000, 2))
    assert density_residual.fit_residual(base, own[:5000], own[5000:], seed=0) is None


def test_the_gain_counts_the_error_of_log_z():
    """Held-out g = .1 and draws whose factors are 0 or 2: log Z = 0, with the error 1/√n of a fair coin."""
    draws = np.log(np.tile([1e-300, 2.0], 50))
    gain = density_residual._gain(np.full(10, 0.1), draws)
    np.testing.assert_allclose(gain, [0.1, 1.0 / np.sqrt(99.0), 0.0], atol=1e-12)


def test_a_fit_keeps_its_units(monkeypatch):
    """A correction that is given: the model has the units of the stack, and the candidate is noted."""
    rows = 10.0 + 3.0 * np.random.default_rng(0).normal(size=(40, 2))
    parts = MixtureParameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None])
    model = ebm.EnergyModel(GaussianMixtureEnergy.of(parts))
    model.standardization.loc.assign([10.0, 10.0])
    model.standardization.scale.assign([3.0, 3.0])
    contest = density._Contest(0)
    monkeypatch.setattr(density, "fit_residual", lambda network, *_: ResidualEnergy(network, units=[4]))
    corrected_model = density._corrected(model, rows, np.arange(20), np.arange(20, 40), contest, 0)
    x = rows.astype("float32")
    np.testing.assert_allclose(corrected_model.energy(x), model.energy(x), atol=1e-5)
    np.testing.assert_allclose(contest.results["residual"][0], -model.energy(x[20:]).numpy().mean(), atol=1e-4)
