"""Gaussian mixtures and Gaussians of rows with weights, against repeated rows."""

import numpy as np
import pytest

from tfp_ebm.energy.gaussian_mixture import MixtureParameters, fit_components
from tfp_ebm.energy.missing import fit_gaussian
from tfp_ebm.energy.moments import DataMoments

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(200, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
COUNTS = RNG.integers(1, 4, size=200)
COPIES = np.repeat(np.arange(200), COUNTS)


def test_a_step_with_counts_is_that_of_repeated_rows():
    """Expectation maximisation from one start, for all forms of covariances, against scikit-learn's for "full"."""
    start = MixtureParameters(np.array([0.5, 0.5]), np.array([[-1.0, 0.0], [1.0, 0.0]]), np.stack([np.eye(2)] * 2))
    mine = fit_components(Z, 2, "full", 0, start=start, weights=COUNTS.astype(float))
    theirs = fit_components(Z[COPIES], 2, "full", 0, start=start)
    for one, two in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-2, atol=2e-2)  # steps end at a gain below .001
    for kind in ("full", "diag", "tied"):
        mine, theirs = (fit_components(Z, 1, kind, 0, weights=COUNTS * 1.0), fit_components(Z[COPIES], 1, kind, 0))
        for one, two in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)
    planted = fit_components(Z, 1, "full", 0)
    assert np.abs(planted.loc - theirs.loc).max() > 1e-3


def test_weighted_mixtures_find_clusters():
    """Weights turn equal clusters into ones of .8 and .2; four standard errors of a share of 400 rows are .08."""
    x = RNG.normal(size=(800, 2)) + np.repeat([[-5.0, 0.0], [5.0, 0.0]], 400, 0)
    for kind in ("full", "diag", "tied"):
        fitted = fit_components(x, 2, kind, 3, 2, weights=np.repeat([4.0, 1.0], 400))
        order = np.argsort(fitted.loc[:, 0])
        np.testing.assert_allclose(fitted.probs[order], [0.8, 0.2], atol=1e-3)
        np.testing.assert_allclose(fitted.loc[order], [x[:400].mean(0), x[400:].mean(0)], atol=0.01)
        assert fit_components(x, 2, kind, 3, 2).probs == pytest.approx([0.5, 0.5], abs=1e-3)  # planted


def test_counts_are_repeated_rows_in_gaussians():
    counts = COUNTS.astype(float)
    for one, two in zip(DataMoments.of_rows(Z, counts), DataMoments.of_rows(Z[COPIES]), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)
    rows = np.where(RNG.random(Z.shape) < 0.2, np.nan, Z)
    theirs = fit_gaussian(rows[COPIES])
    for one, two, planted in zip(fit_gaussian(rows, weights=counts), theirs, fit_gaussian(rows), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
        assert np.abs(planted - two).max() > 1e-3
