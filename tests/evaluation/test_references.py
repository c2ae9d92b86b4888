"""Simple densities of a table: closed forms of marginals and of units, and tables that are hard to fit."""

import numpy as np
import pytest
import scipy.stats

from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.evaluation import reference_log_likelihoods, references
from tfp_ebm.evaluation.references import Units, fit_references, marginal_log_prob

NAMES = ["gaussian", "gaussian_mixture", "kernel_density"]


def correlated(rows, size, seed=0):
    rng = np.random.default_rng(seed)
    factor = np.eye(size) + 0.5 * rng.normal(size=(size, size)) / np.sqrt(size)
    return 10.0 + rng.normal(size=(rows, size)) @ factor.T, factor @ factor.T


def test_marginals_of_a_mixture_are_those_of_its_gaussians():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(30, 3))
    y[rng.uniform(size=y.shape) < 0.4] = np.nan
    y[0] = np.nan
    factors = np.tril(rng.normal(size=(2, 3, 3))) + 2.0 * np.eye(3)
    probs, loc = np.array([0.3, 0.7]), rng.normal(size=(2, 3))
    for scale_tril in (factors, factors[0]):
        covariance = np.broadcast_to(scale_tril @ np.swapaxes(scale_tril, -1, -2), (2, 3, 3))
        expected = []
        for row in y:
            p = np.flatnonzero(~np.isnan(row))
            parts = [scipy.stats.multivariate_normal(m[p], c[np.ix_(p, p)]).pdf(row[p]) if len(p) else 1.0
                     for m, c in zip(loc, covariance, strict=True)]  # fmt: skip
            expected.append(np.log(probs @ parts))
        found = marginal_log_prob(MixtureParameters(probs, loc, scale_tril), y)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_units_have_the_jacobian_of_their_map():
    rng = np.random.default_rng(1)
    x = np.stack([5.0 + 3.0 * rng.normal(size=200), rng.standard_cauchy(200)], 1)
    units = Units.of(x)
    assert units.heavy.tolist() == [False, True]
    step = 1e-5
    slopes = [(units.to_y(x + step * e) - units.to_y(x - step * e)).sum(1) / (2 * step) for e in np.eye(2)]
    np.testing.assert_allclose(units.log_slopes(x).sum(1), np.log(slopes).sum(0), atol=1e-5)
    partly = np.where([[True, False]], x, np.nan)
    np.testing.assert_allclose(units.log_slopes(partly).sum(1), np.log(slopes[0]), atol=1e-5)


def test_densities_integrate_to_one_in_the_units_of_the_user():
    """A trapezoid rule over a column with heavy tails; without the Jacobian of asinh it would not be 1."""
    x = np.random.default_rng(2).standard_t(2, size=(500, 1))
    fitted = fit_references(x)
    assert fitted.units.heavy.all()
    grid = np.sinh(np.linspace(-30.0, 30.0, 40_001))
    for name, log_prob in fitted.log_probs(grid[:, None]).items():
        assert np.trapezoid(np.exp(log_prob), grid) == pytest.approx(1.0, abs=1e-3), name


def test_the_gaussian_has_the_likelihood_of_the_true_one(monkeypatch):
    """Paired with the true density: the loss of 14 free numbers is 14/(2·2000) = .0035, bound .02."""
    x, covariance = correlated(2500, 4)
    true = scipy.stats.multivariate_normal(np.full(4, 10.0), covariance).logpdf(x[2000:])
    mean, error = reference_log_likelihoods(x[:2000], x[2000:])["gaussian"]
    assert abs(mean - true.mean()) < 0.02
    assert error == pytest.approx(true.std() / np.sqrt(500), rel=0.1)
    monkeypatch.setattr(Units, "log_slopes", lambda self, x: np.zeros(x.shape))  # control
    assert abs(reference_log_likelihoods(x[:2000], x[2000:])["gaussian"][0] - true.mean()) > 0.02


def test_rows_with_missing_cells_are_judged_by_the_cells_present(monkeypatch):
    """Paired with the true marginals, of which a fit to 70 % of the cells loses about .01; bound .05."""
    covariance = 0.9 + 0.1 * np.eye(4)
    rng = np.random.default_rng(3)
    x = 10.0 + rng.normal(size=(2000, 4)) @ np.linalg.cholesky(covariance).T
    x[rng.uniform(size=x.shape) < 0.3] = np.nan
    true = MixtureParameters(np.ones(1), np.full((1, 4), 10.0), np.linalg.cholesky(covariance)[None])
    expected = marginal_log_prob(true, x[1500:]).mean()
    found = reference_log_likelihoods(x[:1500], x[1500:])
    assert list(found) == NAMES
    assert abs(found["gaussian"][0] - expected) < 0.05 and abs(found["gaussian_mixture"][0] - expected) < 0.1
    assert expected - 0.5 < found["kernel_density"][0] < expected + 0.05
    monkeypatch.setattr(references, "filled", lambda y, seed: [np.nan_to_num(y)])  # control: filled with the mean
    assert abs(reference_log_likelihoods(x[:1500], x[1500:])["gaussian"][0] - expected) > 0.05


def test_each_density_wins_on_its_own_data():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1200, 2)) + 8.0 * rng.integers(0, 2, (1200, 1))
    found = reference_log_likelihoods(x[:800], x[800:])
    assert found["gaussian_mixture"][0] > found["gaussian"][0] + 0.3
    angle = rng.uniform(0.0, 2.0 * np.pi, 1200)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.02 * rng.normal(size=(1200, 2))
    found = reference_log_likelihoods(x[:800], x[800:])
    assert found["kernel_density"][0] > found["gaussian"][0] + 1.0


def hard_tables():
    rng = np.random.default_rng(5)
    outlier = rng.normal(size=(300, 3))
    outlier[7, 1] = 1e30
    collinear = np.repeat(rng.normal(size=(300, 1)), 3, 1) + 1e-7 * rng.normal(size=(300, 3))
    wide = rng.normal(size=(40, 60))
    empty = rng.normal(size=(300, 3))
    empty[:, 2], empty[5] = np.nan, np.nan
    constant = rng.normal(size=(300, 2)) * [1.0, 0.0]
    copies = np.repeat(rng.normal(size=(100, 2)), 3, 0)
    single = np.where(rng.uniform(size=(300, 1)) < 0.1, np.nan, rng.normal(size=(300, 1)))
    return {"outlier": outlier, "collinear": collinear, "wide": wide, "empty": empty, "constant": constant,
            "copies": copies, "single": single, "few": rng.normal(size=(6, 2))}  # fmt: skip


@pytest.mark.parametrize("name", list(hard_tables()))
def test_hard_tables_have_finite_densities(name):
    x = hard_tables()[name]
    train, held_out = x[: -len(x) // 4], x[-len(x) // 4 :]
    fitted = fit_references(train)
    found = fitted.log_probs(held_out)
    assert list(found) == NAMES
    for density, values in found.items():
        assert values.shape == (len(held_out),) and np.isfinite(values).all(), density
        assert np.isfinite(fitted.sample(density, 50)).all()


def test_samples_have_the_moments_of_the_data():
    """Means of 4000 draws with standard error .016 of a standard deviation; bound 5 of them."""
    x, covariance = correlated(2000, 3, seed=6)
    fitted = fit_references(x)
    for name in NAMES:
        samples = fitted.sample(name, 4000)
        assert (np.abs(samples.mean(0) - x.mean(0)) < 0.08 * np.sqrt(np.diag(covariance))).all()
        np.testing.assert_allclose(np.corrcoef(samples.T), np.corrcoef(x.T), atol=0.1)
    np.testing.assert_array_equal(fitted.sample("gaussian", 5), fitted.sample("gaussian", 5))


@pytest.mark.parametrize(
    ("train", "held_out", "name"),
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), "train"),
        (np.zeros(30), np.zeros((3, 2)), "held_out"),
        (np.zeros((30, 2)), np.zeros((3, 3)), "held_out"),
        (np.full((30, 2), np.inf), np.zeros((3, 2)), "train"),
    ],
)
def test_wrong_input_is_named(train, held_out, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        reference_log_likelihoods(train, held_out)
