"""Energies of coordinates with two edges: closed forms, slopes, missing cells, distribution functions, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import integrate, stats

import tfp_ebm as ebm
from tfp_ebm.composition import cdf
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.bounded import BoundedEnergy, EdgeMap
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.normalized import DistributionEnergy

tfd = tfp.distributions
LOW, HIGH, MARGIN = -2.0, 3.0, 1e-3
# At, inside and outside the edges, also where float32 has no number between the place and its edge.
PLACES = np.array([LOW, LOW + 1e-9, LOW + 1e-3, -0.3, 0.5, 2.9, HIGH - 1e-9, HIGH, LOW - 1e-6, HIGH + 0.1, HIGH + 50.0])


def uniform_energy(dtype="float64"):
    """The uniform distribution between the edges, but for its margin."""
    normal = DistributionEnergy(tfd.MultivariateNormalDiag(np.zeros(1, dtype)))
    return BoundedEnergy(normal, [(LOW, HIGH)], MARGIN, dtype=dtype)


def correlated(dtype="float64"):
    """Two Gaussian coordinates of correlation .6, the second of which is mapped."""
    network = GaussianMixtureEnergy([2], 1, dtype=dtype)
    factor = np.linalg.cholesky([[1.0, 0.6], [0.6, 1.0]])
    network.assign(MixtureParameters(np.ones(1), np.zeros((1, 2)), factor[None]))
    return BoundedEnergy(network, [None, (LOW, HIGH)], MARGIN, dtype=dtype)


def mapped(x):
    """The map between the edges, by SciPy."""
    return stats.norm.ppf(((x - LOW) / (HIGH - LOW) + MARGIN) / (1.0 + 2.0 * MARGIN))


def test_a_normal_inside_is_uniform_between_the_edges():
    """1/((1 + 2δ)(b − a)) to 1e-12; the integral is 1 to 1e-6, δ/(1 + 2δ) of it beyond each edge to 1e-6."""
    energy = uniform_energy()
    inside = PLACES[(PLACES >= LOW) & (PLACES <= HIGH)]
    density = np.exp(-energy(inside[:, None]))
    np.testing.assert_allclose(density, 1.0 / ((1.0 + 2.0 * MARGIN) * (HIGH - LOW)), rtol=1e-12)

    def mass(distances, signs):
        x = np.where(signs > 0, HIGH + distances, LOW - distances)
        return integrate.trapezoid(np.exp(-energy(x[:, None])) * distances, np.log(distances))

    for sign in (-1, 1):
        distances = np.geomspace(1e-9, 1e4, 20_001)
        assert abs(mass(distances, sign) - MARGIN / (1.0 + 2.0 * MARGIN)) < 1e-6


def test_slopes_are_those_of_the_map():
    """Central differences, relative 1e-6, at both sides of each edge; y and its slope are continuous there."""
    edges = EdgeMap([(LOW, HIGH)], MARGIN)
    x = PLACES[np.abs(PLACES - LOW) + np.abs(PLACES - HIGH) > 5.0 + 1e-5]
    x = np.concatenate([x, [LOW + 1e-4, 0.0, HIGH - 1e-4]])[:, None]
    step = 1e-7
    y, log_slopes = edges.forward(tf.constant(x))
    numeric = (edges.forward(tf.constant(x + step))[0] - edges.forward(tf.constant(x - step))[0]) / (2.0 * step)
    np.testing.assert_allclose(np.exp(log_slopes), numeric, rtol=1e-6)
    assert np.abs((HIGH - LOW) * np.exp(log_slopes) / numeric - 1.0).min() > 1.0  # planted: without the range's length
    within = (x >= LOW) & (x <= HIGH)
    np.testing.assert_allclose(y[within], mapped(x[within]), rtol=1e-9)
    for edge in (LOW, HIGH):
        beside = tf.constant([[edge - 1e-12], [edge + 1e-12]], tf.float64)
        y, log_slopes = edges.forward(beside)
        np.testing.assert_allclose(y[0], y[1], rtol=1e-8)
        np.testing.assert_allclose(log_slopes[0], log_slopes[1], atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 3e-6)])
def test_the_inverse_gives_the_places_back(dtype, tolerance):
    edges = EdgeMap([(LOW, HIGH), None], MARGIN)
    x = np.stack([PLACES, PLACES], 1).astype(dtype)
    y, log_slopes = edges.forward(tf.constant(x))
    assert y.dtype == log_slopes.dtype == dtype
    np.testing.assert_array_equal(y[:, 1], x[:, 1])
    np.testing.assert_array_equal(log_slopes[:, 1], 0.0)
    np.testing.assert_allclose(edges.inverse(y), x, rtol=tolerance, atol=tolerance)


def test_single_precision_and_xla_agree():
    """log p at all places: float32 within 1e-3 of float64, XLA within 1e-5 of the graph."""
    energy = correlated("float32")
    x = np.stack([np.linspace(-1.0, 1.0, len(PLACES)), PLACES], 1)
    exact = correlated()(x)
    single = energy(tf.constant(x, tf.float32))
    np.testing.assert_allclose(single, exact, rtol=1e-3, atol=1e-3)
    compiled = tf.function(energy, jit_compile=True)(tf.constant(x, tf.float32))
    np.testing.assert_allclose(compiled, single, rtol=1e-5, atol=1e-5)


def test_scores_are_the_slopes_of_the_log_density():
    """By central differences, relative 1e-5, inside and outside; finite at 1e6 times the range."""
    energy = correlated()
    places = np.array([-1.99, -0.3, 0.5, 2.9, LOW - 0.1, HIGH + 0.1, HIGH + 50.0])
    x = tf.constant(np.stack([np.linspace(-1.0, 1.0, 7), places], 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = energy(x)
    gradient = tape.gradient(values, x).numpy()
    for i in range(2):
        step = 1e-6 * np.eye(2)[i]
        numeric = (energy(x + step) - energy(x - step)) / 2e-6
        np.testing.assert_allclose(gradient[:, i], numeric, rtol=1e-5, atol=1e-6)
    far = tf.constant([[0.0, 5e6], [0.0, -5e6]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(far)
        values = energy(far)
    assert np.isfinite(values).all() and np.isfinite(tape.gradient(values, far)).all()


def test_missing_cells_have_no_factor_and_no_gradient():
    edges = EdgeMap([(LOW, HIGH), (LOW, HIGH)], MARGIN)
    x = tf.constant([[np.nan, 0.5], [0.5, np.nan]], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, log_slopes = edges.forward(x)
        total = tf.reduce_sum(log_slopes)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_array_equal(log_slopes.numpy()[np.isnan(x)], 0.0)
    assert np.isfinite(tape.gradient(total, x)).all()


def test_draws_are_uniform_between_the_edges():
    """KS of 4000 draws, 1 % critical value .0257; about eight of them may lie outside, at most 25 do."""
    energy = uniform_energy("float32")
    draws = energy.draw(4000, tf.constant([0, 3])).numpy()[:, 0]
    assert stats.kstest(draws, "uniform", args=(LOW, HIGH - LOW)).statistic < 0.0257
    assert ((draws < LOW) | (draws > HIGH)).sum() <= 25
    normal = np.random.default_rng(0).normal(0.5, 5.0 / np.sqrt(12.0), 4000)  # planted: its moments, not its shape
    assert stats.kstest(normal, "uniform", args=(LOW, HIGH - LOW)).statistic > 0.0257


def test_distribution_functions_and_imputation():
    """F(x₁ | x₀) and p(x₁ | x₀) in closed form, to 1e-6; draws of x₁ given x₀ follow F (KS of 4000, 1 %: .0257)."""
    model = ebm.EnergyModel(correlated())
    model.standardization.loc.assign([0.0, 1.0])
    model.standardization.scale.assign([1.0, 2.0])
    places = np.array([-1.9, 0.0, 1.0, 2.9])
    rows = np.stack([np.full(4, 0.7), 1.0 + 2.0 * places], 1)
    np.testing.assert_allclose(cdf(model, rows, 1), stats.norm.cdf(mapped(places), 0.42, 0.8), atol=1e-6)
    backward = stats.norm.cdf(0.7, 0.6 * mapped(places), 0.8)
    np.testing.assert_allclose(cdf(model, rows, 0), backward, atol=1e-6)
    draws = np.asarray(ebm.impute(model, np.array([[0.7, np.nan]]), num_draws=4000, seed=0)).reshape(4000, 2)
    values = (draws[:, 1] - 1.0) / 2.0
    assert stats.kstest(mapped(np.clip(values, LOW, HIGH)), "norm", args=(0.42, 0.8)).statistic < 0.0257
    assert stats.kstest(mapped(np.clip(values, LOW, HIGH)), "norm", args=(0.0, 1.0)).statistic > 0.0257


def test_it_is_saved(tmp_path):
    model = ebm.EnergyModel(correlated("float32"))
    model.compile(loss=ebm.losses.NegativeLogLikelihood())
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.stack([PLACES, PLACES], 1).astype("float32")
    np.testing.assert_array_equal(loaded.energy(x), model.energy(x))
    assert loaded.network.map.edges == (None, (LOW, HIGH)) and loaded.network.map.margin == MARGIN
    assert float(loaded.log_normalizer) == 0.0


@pytest.mark.parametrize(
    ("edges", "margin", "name"),
    [
        ([(0.0, 1.0)], 1e-3, "`edges`"),
        ([None, (1.0, 1.0)], 1e-3, "`edges`"),
        ([None, (0.0, np.inf)], 1e-3, "`edges`"),
        ([None, (0.0, 1.0)], 0.0, "`margin`"),
        ([None, (0.0, 1.0)], np.nan, "`margin`"),
    ],
)
def test_refusals(edges, margin, name):
    with pytest.raises(ValueError, match=name):
        BoundedEnergy(correlated().network, edges, margin)
