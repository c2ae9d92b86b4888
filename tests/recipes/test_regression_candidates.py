"""The stack of conditional densities: cross-validation of p(y | x); few rows, on which a linear regression is best."""

import numpy as np
import pytest
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.recipes import density_folds


def test_targets_are_judged_given_the_inputs():
    """log p(y | x) of a row by the Gaussian without its fold is the linear regression's; rows in no fold judge none."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)) * [3.0, 1.0] + 5.0
    rows = np.concatenate([x, x @ [[1.0], [-2.0]] + 0.5 * rng.normal(size=(60, 1))], 1)
    fold = density_folds.folds_of(rows, 5, seed=0)
    fold = np.where(fold < 3, fold, -1)

    def plain(z, seed):
        return {key: one for key, one in density_folds._gaussians(z, seed).items() if key == (0.0, 1.0)}

    chosen = density_folds._judge(plain, rows, fold, 0, num_inputs=2)
    expected = np.full(60, np.nan)
    for number in range(3):
        rest = rows[fold != number]
        design = np.column_stack([rest[:, :2], np.ones(len(rest))])
        slopes = np.linalg.lstsq(design, rest[:, 2], rcond=None)[0]
        deviation = np.std(rest[:, 2] - design @ slopes)
        own = rows[fold == number]
        mean = np.column_stack([own[:, :2], np.ones(len(own))]) @ slopes
        expected[fold == number] = stats.norm(mean, deviation).logpdf(own[:, 2])
    assert len(chosen.log_probs) == np.sum(fold >= 0) < 60
    np.testing.assert_allclose(chosen.log_probs, expected[fold >= 0], atol=1e-3)
    joint = density_folds._judge(plain, rows, fold, 0)
    assert np.abs(joint.log_probs - expected[fold >= 0]).max() > 1.0


@pytest.mark.long
def test_few_rows_of_many_inputs():
    """120 rows of 10 inputs of which one matters: within .12 nats of the truth; networks alone had been .6 behind."""
    rng = np.random.default_rng(1)

    def made(rows):
        x = rng.normal(size=(rows, 10))
        return x, x[:, :1] + 0.5 * rng.normal(size=(rows, 1))

    x, y = made(120)
    model = ebm.recipes.regression(x, y, num_networks=2)
    x, y = made(5000)
    truth = stats.norm(x[:, 0], 0.5).logpdf(y[:, 0])
    gap = truth + model.energy(y.astype("float32"), x.astype("float32")).numpy()
    assert np.mean(gap) < 0.12
    assert set(model.candidates) == {"gaussian", "gaussian_scales", "gaussian_mixture", "networks", "stack"}
    best = max(mean for name, (mean, _) in model.candidates.items() if name != "stack")
    assert model.candidates["stack"][0] >= best
