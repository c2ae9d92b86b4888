"""The stack of conditional densities: cross-validation of p(y | x); few rows, on which a linear regression is best."""

import numpy as np
import pytest
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.recipes import density_folds, regression_candidates
from tfp_ebm.recipes.density_training import Settings


def test_targets_are_judged_given_the_inputs():
    """log p(y | x) of a row by the Gaussian without its fold is the linear regression's; rows in no fold judge none."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)) * [3.0, 1.0] + 5.0
    rows = np.concatenate([x, x @ [[1.0], [-2.0]] + 0.5 * rng.normal(size=(60, 1))], 1)
    fold = density_folds.folds_of(rows, 5, seed=0)
    fold = np.where(fold < 3, fold, -1)

    def plain(z, seed, weights):
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
@pytest.mark.parametrize("number, kinds", [(2, {"networks"}), (4, {"networks", "networks_from_random"})])
def test_few_rows_of_many_inputs(number, kinds):
    """120 rows of 10 inputs of which one matters: within .12 nats of the truth; networks alone had been .6 behind."""
    rng = np.random.default_rng(1)

    def made(rows):
        x = rng.normal(size=(rows, 10))
        return x, x[:, :1] + 0.5 * rng.normal(size=(rows, 1))

    x, y = made(120)
    model = ebm.recipes.regression(x, y, num_networks=number)
    x, y = made(5000)
    truth = stats.norm(x[:, 0], 0.5).logpdf(y[:, 0])
    gap = truth + model.energy(y.astype("float32"), x.astype("float32")).numpy()
    assert np.mean(gap) < 0.12
    assert set(model.candidates) == {"gaussian", "gaussian_scales", "gaussian_mixture", "stack", *kinds}
    assert set(model.histories) == kinds
    best = max(mean for name, (mean, _) in model.candidates.items() if name != "stack")
    assert model.candidates["stack"][0] >= best


@pytest.mark.slow
def test_both_kinds_of_networks_are_stacked_by_their_rows_left_out(monkeypatch):
    """Each network's density of its own fold is what judges it, and its weight is that of its kind, shared equally."""
    monkeypatch.setattr(regression_candidates, "settings_for_rows", lambda *_: Settings(200, 32, 16, 0.1, 0.0, 4e-3, 1))
    rng = np.random.default_rng(2)
    x = rng.normal(size=(150, 1))
    z = np.concatenate([x, np.abs(x) + 0.2 * rng.normal(size=(150, 1))], 1).astype("float32")
    kept = (np.array([3, 4]), [0.25, 0.75])
    monkeypatch.setattr(regression_candidates, "stacked_parts", lambda of_all: kept)
    judge, chosen = regression_candidates.to_one_judgement, []
    monkeypatch.setattr(regression_candidates, "to_one_judgement", lambda *a: chosen.append(judge(*a)) or chosen[-1])
    monkeypatch.setattr(regression_candidates, "snapshot_every", lambda *_: 7)  # the best judgement may have no copy
    found = regression_candidates.fit_candidates(z, 1, 4, 0.1, np.inf, seed=5)
    assert [history["kept"] for history in found.histories.values()] == chosen
    assert list(found.log_probs) == [
        *("gaussian", "gaussian_scales", "gaussian_mixture"),
        *("networks", "networks_from_random", "stack"),
    ]
    np.testing.assert_allclose(found.probs, [0.125, 0.125, 0.375, 0.375])
    for place, (name, seed) in enumerate((("networks", 5), ("networks_from_random", 6))):
        fold, expected = density_folds.folds_of(z, 2, seed), np.empty(150)
        for number in range(2):
            expected[fold == number] = -found.networks[2 * place + number](z[fold == number]).numpy()
        np.testing.assert_allclose(found.log_probs[name], expected, atol=1e-4)
        other = -found.networks[2 * place](z).numpy()
        assert np.abs(found.log_probs[name] - other).max() > 0.01, "a network judged on rows it has seen"
