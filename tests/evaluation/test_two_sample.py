"""Distances between two tables: calibrated between draws of one distribution, and right against closed forms."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tfp_ebm.evaluation import column_distances, two_sample, two_sample_auc, worst_pairs


def tables_of_one_distribution(seed):
    """Two draws: numbers, rounded numbers, labels, and missing cells."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 150, 4))
    for table in (x, y):
        table[:, 1] = table[:, 1].round(1)
        table[:, 2] = np.floor(np.abs(table[:, 2]) * 2.0)
        table[rng.uniform(size=150) < 0.2, 3] = np.nan
    return x, y


def errors_of_auc(number):
    found = [two_sample_auc(*tables_of_one_distribution(seed), seed=seed) for seed in range(number)]
    return np.array([(estimate.value - 0.5) / estimate.standard_error for estimate in found])


@pytest.mark.slow
def test_the_classifier_is_calibrated():
    """40 pairs of draws, of which at most 2 (5 %) may be farther than 3 standard errors from ½.

    For a normal error of the right size, 3 or more are with a probability of 2e-4; of a size 1.5 times too small (the
    error without sharing of rows), the spread below is 1.4 ± .16 and the bound on it is missed with 70 %.
    """
    errors = errors_of_auc(40)
    assert (np.abs(errors) > 3.0).sum() <= 2
    assert 0.5 < errors.std() < 1.3


@pytest.mark.slow
def test_a_shift_is_detected_and_the_seed_decides():
    """A shift of half a standard deviation of one column has an AUC of .6 to .65, some 3 standard errors of .02."""
    x, y = np.random.default_rng(1).normal(size=(2, 1000, 3))
    y[:, 0] += 0.5
    shifted = two_sample_auc(x, y)
    assert shifted.value - 0.5 > 3.0 * shifted.standard_error
    best = scipy.stats.norm.cdf(0.5 / np.sqrt(2.0))  # of the likelihood ratio
    assert shifted.value < best + 2.0 * shifted.standard_error
    assert two_sample_auc(x, y) == shifted != two_sample_auc(x, y, seed=1)


def test_dependence_alone_is_detected():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1000, 2)) @ [[1.0, 0.9], [0.0, np.sqrt(1.0 - 0.81)]]
    estimate = two_sample_auc(x, rng.normal(size=(1000, 2)))
    assert estimate.value > 0.7


def test_rounding_of_data_is_no_difference(monkeypatch):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(500, 3)).round(1), rng.normal(size=(500, 3))
    estimate = two_sample_auc(x, y)
    assert abs(estimate.value - 0.5) < 3.0 * estimate.standard_error
    monkeypatch.setattr(two_sample, "_takes_few_values", lambda x: False)  # control
    assert two_sample_auc(x, y).value > 0.7


def test_copies_of_rows_do_not_look_like_a_difference(monkeypatch):
    rng = np.random.default_rng(4)
    x, y = np.repeat(rng.normal(size=(150, 3)), 2, 0), rng.normal(size=(600, 3))
    assert two_sample_auc(x, y).value < 0.55
    monkeypatch.setattr(two_sample, "_folds", lambda rows, is_y, rng: rng.permutation(len(rows)) % 5)  # control
    assert two_sample_auc(x, y).value > 0.6


def test_frames_with_labels_and_missing_cells():
    rng = np.random.default_rng(5)
    colours = rng.choice(["red", "white", None], 400)
    x = pd.DataFrame({"a": rng.normal(size=400), "colour": pd.Categorical(colours), "b": rng.uniform(size=400) < 0.5})
    y = x.sample(frac=1.0, random_state=0).reset_index(drop=True)
    y.loc[:, "a"] = rng.normal(size=400)
    assert abs(two_sample_auc(x, y).value - 0.5) < 0.1
    y["colour"] = pd.Categorical(np.where(colours == "red", "blue", colours))
    assert two_sample_auc(x, y).value > 0.6
    assert column_distances(x, y)["colour"] == pytest.approx(np.mean(colours == "red"))
    with pytest.raises(ValueError, match="`y`"):
        column_distances(x, y[["b", "a", "colour"]])


def test_distances_are_those_of_scipy_and_of_frequencies():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(300, 6)), 0.3 + rng.normal(size=(200, 6))
    x[:, 1:4], y[:, 1:4] = rng.integers(0, 4, (300, 3)), rng.integers(1, 5, (200, 3))
    x[:50, 0] = y[:20, 0] = np.nan
    kinds = ["continuous", "whole", "rating", "category", "constant", "duplicate"]
    found = column_distances(x, y, kinds)
    assert found["0"] == pytest.approx(scipy.stats.ks_2samp(x[50:, 0], y[20:, 0]).statistic)
    assert found["1"] == pytest.approx(scipy.stats.ks_2samp(x[:, 1], y[:, 1]).statistic)
    frequencies = [np.bincount(part.astype(int), minlength=5) / len(part) for part in (x[:, 2], y[:, 2])]
    assert found["2"] == pytest.approx(0.5 * np.abs(frequencies[0] - frequencies[1]).sum())
    assert found["4"] == found["5"] == 0.0
    assert column_distances(x, y, dict(zip("012345", kinds, strict=True))) == found


def test_distances_by_chance_are_their_means():
    """Means of 300 draws; the relative spread of a distance is about .35, so that of a mean is .02. Bound: 10 %.

    The formulas are those of large tables: with 300 rows the Kolmogorov-Smirnov statistic is some 4 % smaller.
    """
    rng = np.random.default_rng(7)
    kinds, distances = ["continuous", "category"], []
    for _ in range(300):
        x, y = (np.stack([rng.normal(size=n), rng.integers(0, 5, n)], 1) for n in (300, 500))
        distances.append(list(column_distances(x, y, kinds).values()))
    expected = list(two_sample.chance_distances(x, y, kinds).values())
    np.testing.assert_allclose(np.mean(distances, 0), expected, rtol=0.1)


def test_pairs_are_ranked_by_dependence_of_every_kind():
    """Pair (0, 1) has another correlation, (2, 3) a dependence without correlation, (4, 5) is of labels."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(2, 3000, 8))
    x[:, 1] = 0.9 * x[:, 0] + np.sqrt(0.19) * x[:, 1]
    x[:, 3] = np.abs(x[:, 2]) + 0.1 * x[:, 3]
    x[:, 4], y[:, 4] = rng.integers(0, 3, (2, 3000))
    x[:, 5], y[:, 5] = x[:, 4], rng.integers(0, 3, 3000)
    y[:, 6] += 3.0  # wrong by itself alone
    kinds = [*["continuous"] * 4, "category", "rating", "continuous", "continuous"]
    pairs = worst_pairs(x, y, kinds)
    assert {pair[:2] for pair in pairs[:3]} == {("0", "1"), ("2", "3"), ("4", "5")}
    assert len(pairs) == 28 and max(abs(pair.distance) for pair in pairs[3:]) < 0.02 < 0.2 < pairs[2].distance
    # uniform labels that are equal: ½ (3 (1/3 − 1/9) + 6/9) = 2/3
    assert next(pair for pair in pairs if pair.first == "4").distance == pytest.approx(2.0 / 3.0, abs=0.05)
    assert worst_pairs(x, y, kinds, count=2) == pairs[:2] and worst_pairs(x[:, :1], y[:, :1]) == []


def test_pairs_have_distance_zero_by_chance():
    """The mean over 40 draws and 6 pairs, with standard error .001; without the value of chance it is .06."""
    found = [pair.distance for seed in range(40) for pair in worst_pairs(*tables_of_one_distribution(seed))]
    assert len(found) == 240 and abs(np.mean(found)) < 0.01


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: two_sample_auc(x[:10], x), "x"),
        (lambda x: two_sample_auc(x, x[:, :1]), "y"),
        (lambda x: two_sample_auc(x, x, seed=-1), "seed"),
        (lambda x: two_sample_auc(x[:, 0], x), "x"),
        (lambda x: column_distances(x, x, ["continuous"]), "kinds"),
        (lambda x: column_distances(x, x, ["continuous", "number"]), "kinds"),
        (lambda x: column_distances(x, x, {"0": "whole"}), "kinds"),
        (lambda x: worst_pairs(x, x, count=0), "count"),
    ],
)
def test_wrong_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call(np.zeros((50, 2)))
