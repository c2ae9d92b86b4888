"""`p.given_coordinates(values, mask)`: exact for Gaussians and mixtures, a density of the rest for other energies."""

import keras
import numpy as np
import pytest
import tensorflow_probability as tfp
from energies import Quadratic
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy

tfd = tfp.distributions
MASK = np.array([False, True, True, False])
VALUES = np.array([np.nan, 0.7, -1.1, np.nan])


def parts():
    rng = np.random.default_rng(0)
    factors = np.eye(4) + 0.6 * np.tril(rng.normal(size=(3, 4, 4)), -1)
    return MixtureParameters(np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, 4)), factors)


def log_ratio(mixture, x):
    """log p(x) − log p(x at the mask), by the densities of SciPy."""
    covariances = mixture.scale_tril @ np.swapaxes(mixture.scale_tril, 1, 2)

    def log_prob(rows, chosen):
        logs = [
            np.log(w) + np.atleast_1d(stats.multivariate_normal(m[chosen], s[np.ix_(chosen, chosen)]).logpdf(rows))
            for w, m, s in zip(mixture.probs, mixture.loc, covariances, strict=True)
        ]
        return np.logaddexp.reduce(logs, 0)

    return log_prob(x, np.arange(4)) - log_prob(x[:, MASK], np.flatnonzero(MASK))


def full(unknown):
    x = np.tile(VALUES, (len(unknown), 1))
    x[:, ~MASK] = unknown
    return x


def distributions():
    """The mixture as a network, in units of its own, as a kernel density, and as a mixture of distributions."""
    mixture = parts()
    units = np.array([1.0, -2.0, 0.5, 3.0]), np.array([2.0, 0.3, 1.5, 0.8])
    inner = MixtureParameters(
        mixture.probs, (mixture.loc - units[0]) / units[1], mixture.scale_tril / units[1][:, None]
    )
    model = ebm.EnergyModel(GaussianMixtureEnergy.of(inner, dtype="float64"))
    model.standardization.loc.assign(units[0])
    model.standardization.scale.assign(units[1])
    normals = [tfd.MultivariateNormalTriL(*pair) for pair in zip(mixture.loc, mixture.scale_tril, strict=True)]
    shared = mixture._replace(scale_tril=mixture.scale_tril[0])
    kernel = ebm.EnergyModel(GaussianMixtureEnergy.of(shared, dtype="float64"))
    return {
        "units": (ebm.EnergyDistribution(model), mixture),
        "mixture": (ebm.composition.mixture(normals, mixture.probs), mixture),
        "nested": (ebm.composition.mixture([model, normals[0]], [0.4, 0.6]), joined(mixture)),
        "kernel density": (
            ebm.EnergyDistribution(kernel),
            mixture._replace(scale_tril=np.repeat(mixture.scale_tril[:1], 3, 0)),
        ),
    }


def joined(mixture):
    return MixtureParameters(
        np.append(0.4 * mixture.probs, 0.6),
        np.concatenate([mixture.loc, mixture.loc[:1]]),
        np.concatenate([mixture.scale_tril, mixture.scale_tril[:1]]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["units", "mixture", "nested", "kernel density"])
def test_mixtures_are_exact(name, tmp_path):
    p, mixture = distributions()[name]
    q = p.given_coordinates(VALUES, MASK)
    assert q.event_shape == (2,)
    unknown = np.random.default_rng(1).normal(size=(20, 2))
    expected = log_ratio(mixture, full(unknown))
    np.testing.assert_allclose(q.log_prob(unknown), expected, rtol=1e-8, atol=1e-8)
    swapped = log_ratio(mixture, full(unknown[:, ::-1]))
    assert np.abs(swapped - expected).max() > 0.1  # control: the order of the unknown coordinates
    assert q.sample(5, seed=0).shape == (5, 2)
    q.energy_model.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.energy(unknown), q.energy_model.energy(unknown))


@pytest.mark.long
def test_any_energy_has_a_density_of_the_rest(tmp_path):
    """A Gaussian written as an energy: −E is exact up to a constant, log Z is log p of what is known, draws are right.

    Mean within 4.5 standard errors of 2000 draws; log Z within 4 of its own.
    """
    rng = np.random.default_rng(2)
    factor = np.eye(3) + 0.5 * np.tril(rng.normal(size=(3, 3)), -1)
    model = ebm.EnergyModel(Quadratic(dtype="float64"), event_shape=(3,))
    precision = np.linalg.inv(factor @ factor.T)
    model.network.factor.assign(np.linalg.cholesky(precision))
    model.network.mean.assign([1.0, 0.0, -1.0])
    data = np.array([1.0, 0.0, -1.0]) + rng.normal(size=(400, 3)) @ factor.T
    normal = tfd.MultivariateNormalTriL(np.array([1.0, 0.0, -1.0]), factor)
    x = rng.normal(size=(10, 3))
    constant = model.energy(x) + normal.log_prob(x)  # −log Z
    np.testing.assert_allclose(constant, constant[0], rtol=1e-9)
    model._fitted_base.assign(ebm.energy.moments.DataMoments.of([data]))
    mask, values = np.array([True, False, False]), np.array([0.3, np.nan, np.nan])
    mixture_base = tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.array([0.5, 0.5])),
        tfd.MultivariateNormalTriL(
            np.stack([data.mean(0), data.mean(0) + 0.5]), np.stack([1.2 * factor, 2.0 * factor])
        ),
    )
    covariance = factor @ factor.T
    gain = covariance[1:, 0] / covariance[0, 0]
    mean = np.array([0.0, -1.0]) + gain * (0.3 - 1.0)
    rest = covariance[1:, 1:] - np.outer(gain, covariance[0, 1:])
    marginal = stats.norm(1.0, np.sqrt(covariance[0, 0])).logpdf(0.3)
    for p in (
        ebm.EnergyDistribution(model, base=mixture_base),
        ebm.EnergyDistribution(lambda x: model.energy(x), [3], base=normal, dtype="float64"),
    ):
        q = p.given_coordinates(values, mask)
        drawn = q.draw(2000, seed=1)
        assert np.abs((np.mean(drawn.states, 0) - mean) / np.sqrt(np.diag(rest) / 2000)).max() < 4.5
        log_z = marginal - float(constant[0])
        assert abs(drawn.log_normalizer.value - log_z) < 4 * drawn.log_normalizer.standard_error + 1e-6
    q = ebm.EnergyDistribution(model).given_coordinates(values, mask)
    q.energy_model.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    unknown = rng.normal(size=(5, 2))
    np.testing.assert_array_equal(loaded.energy(unknown), q.energy_model.energy(unknown))
    np.testing.assert_allclose(q.energy_model.energy(unknown), model.energy(np.c_[np.full(5, 0.3), unknown]), rtol=1e-9)
    np.testing.assert_allclose(loaded.base.mean(), q.base.mean())


def test_images_and_images_of_parts():
    """An event of rank 2: the unknown coordinates are a vector in the order of the flattened event."""
    x = np.random.default_rng(0).normal(size=(50, 2, 2)).astype("float32")
    model = ebm.EnergyModel(ebm.networks.mlp([2, 2], units=[4]))
    model.adapt(x)
    mask = np.array([[True, False], [False, True]])
    q = ebm.EnergyDistribution(model).given_coordinates(x[0], mask)
    np.testing.assert_allclose(q.unnormalized_log_prob(x[0][~mask]), -model.energy(x[0]), rtol=1e-5)
    other = x[0].copy()
    other[0, 1] = 5.0
    np.testing.assert_allclose(q.unnormalized_log_prob(other[~mask]), -model.energy(other), rtol=1e-5)


BAD = {
    "dtype": ([0.0, 1.0, 2.0, 3.0], [0, 1, 1, 0], TypeError, "`mask` must hold True"),
    "shape": ([0.0, 1.0, 2.0, 3.0], [True, False], ValueError, "`mask` must have the event shape"),
    "all": ([0.0, 1.0, 2.0, 3.0], [True] * 4, ValueError, "`mask` must leave some"),
    "none": ([0.0, 1.0, 2.0, 3.0], [False] * 4, ValueError, "`mask` must leave some"),
    "values": ([0.0, 1.0], MASK, ValueError, "`values` must have the event shape"),
    "nan": ([0.0, np.nan, 1.0, 1.0], MASK, ValueError, "`values` must be finite where"),
    "text": (["a"] * 4, MASK, TypeError, "`values` must hold real numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    values, mask, error, message = BAD[name]
    p = distributions()["units"][0]
    with pytest.raises(error, match=message):
        p.given_coordinates(values, mask)
