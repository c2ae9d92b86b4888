"""A Gaussian fitted to rows with missing cells."""

import numpy as np
from scipy import stats

from tfp_ebm.energy.missing import fit_gaussian

MEAN, COVARIANCE = np.array([1.0, -2.0, 0.5]), np.array([[1.0, 0.8, 0.2], [0.8, 1.5, -0.3], [0.2, -0.3, 0.7]])


def rows(number, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, size=number)


def test_complete_rows_give_their_moments():
    x = rows(200)
    mean, covariance = fit_gaussian(x)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), atol=2e-6)  # 1e-6 keeps it regular


def test_cells_that_are_missing_by_what_is_given_do_not_bias_it():
    """The second column is missing where the first is large. Standard errors are .03; the planted mean of given cells
    is .4 off."""
    x = rows(4000)
    x[x[:, 0] > 1.0, 1] = np.nan
    mean, covariance = fit_gaussian(x)
    assert np.abs(mean - MEAN).max() < 0.12 and np.abs(covariance - COVARIANCE).max() < 0.15
    assert abs(np.nanmean(x[:, 1]) - MEAN[1]) > 0.3


def test_it_is_a_maximum_of_the_likelihood():
    """Of the marginal densities of what is given; moved parameters are less likely."""
    x = rows(300)
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    x[0] = np.nan  # an empty row has no likelihood

    def log_likelihood(mean, covariance):
        total = 0.0
        for row in x[1:]:
            kept = ~np.isnan(row)
            if kept.any():
                total += stats.multivariate_normal.logpdf(row[kept], mean[kept], covariance[kept][:, kept])
        return total

    mean, covariance = fit_gaussian(x)
    best = log_likelihood(mean, covariance)
    rng = np.random.default_rng(2)
    for _ in range(10):
        assert log_likelihood(mean + 0.1 * rng.normal(size=3), covariance) < best
        factor = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
        assert log_likelihood(mean, factor @ covariance @ factor.T) < best
