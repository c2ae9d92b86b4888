"""`composition.cdf` and the integrals below it: closed forms, naive quadrature, draws, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import integrate, stats

import tfp_ebm as ebm
from tfp_ebm.composition import cdf
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks import lattice
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.normalized import WarpedEnergy

COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 2.0, -0.5], [0.2, -0.5, 0.7]])
LOC = np.array([1.0, -2.0, 0.5])


def trained_like(seed, order=(0, 1), **kwargs):
    """A float64 network with large random weights, so that its energies are far from zero."""
    network = ebm.networks.autoregressive([2], units=[8], order=order, dtype="float64", seed=seed, **kwargs)
    rng = np.random.default_rng(seed)
    network.trunk.set_weights([w + 0.5 * rng.normal(size=w.shape) for w in network.trunk.get_weights()])
    return network


def test_integrals_below_a_limit():
    """256 nodes, as `cdf` has by default: exact to 2e-8. A factor exp(2 sin t): to 3e-6, 512 nodes to 2e-7.

    The error falls with the fourth power of the spacing: half as many nodes have 16 times as much. Without the end
    correction it would be 4 times.
    """
    t = np.linspace(-6.0, 6.0, 41)
    limits = tf.constant(t[:, None])

    def none(places):
        return tf.zeros([len(t), 1, places.shape[-1]], tf.float64)

    def sine(places):
        return none(places) + 2.0 * tf.sin(places)

    for family, pdf, exact in (
        ("normal", stats.norm.pdf, stats.norm.cdf),
        ("logistic", stats.logistic.pdf, stats.logistic.cdf),
    ):
        errors = []
        for num_nodes in (128, 256):
            below, total = lattice.integrals_below(family, num_nodes, limits, none)
            errors.append(np.abs(below[:, 0] - exact(t)).max())
            np.testing.assert_allclose(total, 1.0, atol=1e-8)
        assert errors[1] < 2e-8 and 14.0 < errors[0] / errors[1] < 18.0
        grid = np.linspace(-25.0, 6.0, 62_001)
        naive = integrate.cumulative_simpson(pdf(grid) * np.exp(2.0 * np.sin(grid)), x=grid, initial=0.0)
        for num_nodes, bound in ((256, 3e-6), (512, 2e-7)):
            below, _ = lattice.integrals_below(family, num_nodes, limits, sine)
            np.testing.assert_allclose(below[:, 0], np.interp(t, grid, naive), rtol=0.0, atol=bound)


def test_gaussians_in_closed_form():
    """Marginal and conditionals, given any coordinates, of one Gaussian through a model with units; 1e-10."""
    network = GaussianMixtureEnergy([3], 1, dtype="float64")
    network.assign(MixtureParameters(np.ones(1), LOC[None], np.linalg.cholesky(COVARIANCE)[None]))
    model = ebm.EnergyModel(network)
    model.standardization.loc.assign([5.0, 0.0, 0.0])
    model.standardization.scale.assign([1.0, 3.0, 1.0])
    loc = LOC * [1.0, 3.0, 1.0] + [5.0, 0.0, 0.0]
    covariance = COVARIANCE * np.outer([1.0, 3.0, 1.0], [1.0, 3.0, 1.0])
    x = np.array([[6.5, np.nan, np.nan], [5.5, -4.0, np.nan], [7.0, -9.0, 1.0], [5.0, np.nan, 0.0]])
    for row, value in zip(x, cdf(model, x, 0), strict=True):
        given = np.flatnonzero(~np.isnan(row[1:])) + 1
        gain = covariance[0, given] @ np.linalg.inv(covariance[np.ix_(given, given)])
        mean = loc[0] + gain @ (row[given] - loc[given])
        deviation = np.sqrt(covariance[0, 0] - gain @ covariance[given, 0])
        assert abs(value - stats.norm.cdf(row[0], mean, deviation)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["free", "mixture"])
def test_autoregressive_conditionals(kind):
    """The integral of exp(log p) by SciPy to 1e-5; uniform at draws (KS of 2000, 1 % critical value .0365).

    Planted: the distribution function of the same point given another row is not uniform.
    """
    proposal = tfp.distributions.MultivariateNormalTriL(np.zeros(2), [[1.0, 0.0], [0.6, 0.8]])
    arguments = {"proposal": proposal} if kind == "mixture" else {"num_components": 2}
    network = trained_like(3, order=(1, 0), **arguments)
    model = ebm.EnergyModel(network)

    def log_conditional(x0, x1, place):
        rows = tf.constant(np.stack([np.full(np.shape(x0), x1), x0], -1).reshape(-1, 2))  # in the order of dependence
        return network.log_conditionals(rows, 512)[:, place].numpy()

    grid = np.linspace(-40.0, 40.0, 40_001)
    naive = integrate.cumulative_trapezoid(np.exp(log_conditional(grid, 0.3, 1)), grid, initial=0.0)
    points = np.array([-1.0, 0.2, 2.5])
    got = cdf(model, np.stack([points, np.full(3, 0.3)], -1), 0)
    np.testing.assert_allclose(got, np.interp(points, grid, naive), atol=1e-5)
    x = ebm.EnergyDistribution(model).sample(2000, seed=0).numpy()
    assert stats.kstest(cdf(model, x, 0), "uniform").statistic < 0.0365
    assert stats.kstest(cdf(model, np.column_stack([np.full(2000, np.nan), x[:, 1]]), 1), "uniform").statistic < 0.0365
    assert stats.kstest(cdf(model, np.column_stack([x[:, 0], x[::-1, 1]]), 0), "uniform").statistic > 0.0365


def test_values_have_sums():
    network = trained_like(0, supports={1: [0.0, 1.0, 4.0]})
    model = ebm.EnergyModel(network)
    x = np.array([[0.5, v] for v in (-1.0, 0.0, 0.9, 1.0, 4.0, 9.0)])
    probs = np.exp(network.log_conditionals(tf.constant([[0.5, 0.0], [0.5, 1.0], [0.5, 4.0]], tf.float64), 128)[:, 1])
    expected = [0.0, probs[0], probs[0] + probs[1], probs[0] + probs[1], 1.0, 1.0]
    got = cdf(model, x, 1)
    np.testing.assert_allclose(got[[0, 1, 3, 4, 5]], np.array(expected)[[0, 1, 3, 4, 5]], atol=1e-6)


@pytest.mark.slow
def test_a_stack_weighs_its_parts_by_what_is_given():
    """Against a sum over a grid of the joint density of a warped network and a Gaussian mixture, to 1e-3.

    Planted: prior weights in place of the weights given x₀ differ by more.
    """
    warped = ebm.EnergyModel(WarpedEnergy(trained_like(1), [True, False]))
    warped.standardization.loc.assign([1.0, 0.0])
    gaussians = GaussianMixtureEnergy([2], 2, dtype="float64")
    factor = np.stack([np.eye(2), [[0.5, 0.0], [0.3, 0.4]]])
    gaussians.assign(MixtureParameters(np.array([0.4, 0.6]), np.array([[3.0, 1.0], [-1.0, 0.0]]), factor))
    parts = [warped, ebm.EnergyModel(gaussians)]
    p = ebm.composition.mixture(parts, [0.3, 0.7])
    grid = np.linspace(-60.0, 60.0, 60_001)
    joint = np.exp(p.log_prob(tf.constant(np.column_stack([np.full(len(grid), 2.0), grid]))).numpy())
    expected = joint[grid <= 0.5].sum() / joint.sum()
    assert abs(cdf(p, [[2.0, 0.5]], 1)[0] - expected) < 1e-3
    prior = sum(w * cdf(part, [[2.0, 0.5]], 1)[0] for w, part in zip([0.3, 0.7], parts, strict=True))
    assert abs(prior - expected) > 5e-3


def test_refusals():
    model = ebm.EnergyModel(trained_like(0))
    with pytest.raises(ValueError, match="`x` must give exactly the coordinates"):
        cdf(model, [[0.0, 1.0]], 0)
    with pytest.raises(ValueError, match="`coordinate`"):
        cdf(model, [[0.0, 1.0]], 2)
    with pytest.raises(ValueError, match="`x` must have a point in column 1"):
        cdf(model, [[0.0, np.nan]], 1)
    with pytest.raises(ValueError, match="`x` must hold"):
        cdf(model, [[0.0]], 0)
    with pytest.raises(TypeError, match="`density`"):
        cdf(trained_like(0), [[0.0, 1.0]], 0)
    normal = ebm.composition.mixture([tfp.distributions.MultivariateNormalDiag([0.0, 0.0])], [1.0])
    with pytest.raises(TypeError, match="`network` must be made of"):
        cdf(normal, [[0.0, 1.0]], 0)
