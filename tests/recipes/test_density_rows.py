"""`fit_density(groups=)`: rows that stay together in splits and folds; means over rows with weights and groups."""

import numpy as np
import pandas
import pytest

import tfp_ebm as ebm
from tfp_ebm.recipes import density, density_folds, density_rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 2))
# 60 groups of 5 rows, in random order, and a large one in their place of 100
LABELS = RNG.permutation(np.repeat(np.arange(60), 5))
UNEVEN = np.where(LABELS < 20, 0, LABELS)


def is_apart(numbers, sides):
    """Whether a group has rows on several sides."""
    return any(len(set(sides[numbers == one])) > 1 for one in set(numbers))


def sides(x, seed, labels, weights=None):
    _, held_out = density_rows.split_rows(x, 0.2, seed, labels, weights)
    return np.isin(np.arange(len(x)), held_out)


@pytest.mark.parametrize("labels", [LABELS, UNEVEN])
@pytest.mark.parametrize("weights", [None, RNG.exponential(size=300)])
def test_groups_are_on_one_side_and_in_one_fold(labels, weights):
    """Planted: splits and folds that do not know the groups have parts of them on both sides."""
    for seed in range(3):
        held_out = sides(X, seed, labels, weights)
        size = len(X) if weights is None else weights.sum()
        share = (held_out if weights is None else weights * held_out).sum() / size
        assert not is_apart(labels, held_out) and 0.1 <= share <= 0.3
        assert is_apart(labels, sides(X, seed, None))
        fold = density_folds.folds_of(X, 5, seed, labels, weights)
        loads = np.bincount(fold, weights) / size
        assert not is_apart(labels, fold) and len(loads) == 5
        assert np.abs(loads - 0.2).max() < (0.2 if labels is UNEVEN else 0.05)
        assert is_apart(labels, density_folds.folds_of(X, 5, seed))


def test_groups_that_share_equal_rows_are_one():
    x = X.copy()
    x[LABELS == 7] = x[LABELS == 9] = x[0]
    connected = np.isin(LABELS, [7, 9, LABELS[0]])
    fold = density_folds.folds_of(x, 5, 1, LABELS)
    assert len(set(fold[connected])) == 1 and not is_apart(LABELS, fold)
    held_out = sides(x, 1, LABELS)
    assert len(set(held_out[connected])) == 1


def test_fewer_groups_than_folds_make_fewer_folds():
    for labels, number in ((np.arange(300) < 20, 2), (np.arange(300) % 3, 3)):
        assert density_folds.folds_of(X, 10, 0, labels.astype(int)).max() + 1 == number
    for small in (20, 100):  # the goal is 60: the smaller group is held out, whatever the seed
        labels = (np.arange(300) < small).astype(int)
        assert all(sides(X, seed, labels).sum() == small for seed in range(4))


def test_equal_rows_with_missing_cells_are_in_one_fold():
    x = np.repeat(np.where(RNG.random((50, 2)) < 0.3, np.nan, RNG.normal(size=(50, 2))), 2, 0)
    for seed in range(3):
        fold = density_folds.folds_of(x, 5, seed)
        held_out = sides(x, seed, None)
        assert (fold[::2] == fold[1::2]).all() and (held_out[::2] == held_out[1::2]).all()


@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        (["a"] * 300, ValueError, "at least two groups"),
        (["a"] * 299, ValueError, "one label per row"),
        (LABELS[:, None], ValueError, "one label per row"),
        ([None, *LABELS[1:]], ValueError, "1 are missing"),
        ([[1]] * 300, TypeError, "hashable"),
        ("abc", TypeError, "a label for each row"),
    ],
)
def test_refused_groups(groups, error, match):
    with pytest.raises(error, match=f"`groups`.*{match}"):
        ebm.fit_density(X, groups=groups)


def test_labels_of_all_kinds():
    expected = [0, 1, 0, 2]
    for labels in (
        ["a", 7, "a", (1, 2)],
        np.array([3, 1, 3, 2]),
        pandas.Series(["u", "v", "u", "w"], index=[9, 8, 7, 6]),
    ):
        assert density_rows.check_groups(labels, 4).tolist() == expected
    assert density_rows.check_groups([1, "1"], 2).tolist() == [0, 1]


class Reached(Exception):
    """The call has passed its checks."""


def test_groups_and_weights_reach_the_fit(monkeypatch):
    """Rows of weight zero connect no groups; equal weights are none; labels are numbers that equal rows share."""

    def fit(job):
        raise Reached(job.rows, job.weights, job.labels)

    monkeypatch.setattr(density, "_fit_by_folds", fit)
    x = X.copy()
    x[1] = x[0]
    with pytest.raises(Reached) as caught:
        ebm.fit_density(x, groups=np.arange(300), sample_weight=np.full(300, 3))
    rows, weights, labels = caught.value.args
    assert weights is None and labels[0] == labels[1] and labels.max() == 298
    with pytest.raises(Reached) as caught:
        ebm.fit_density(x, groups=np.arange(300), sample_weight=[0, 2] + [1] * 298)
    rows, weights, labels = caught.value.args
    assert len(rows) == 299 and labels.max() == 298
    assert weights.sum() == pytest.approx(300**2 / 302) and weights[0] == pytest.approx(2 * weights[1])


def test_a_directory_of_another_call_is_refused(monkeypatch, tmp_path):
    def fit(*args):
        raise Reached

    monkeypatch.setattr(density, "_fit_by_folds", fit)
    monkeypatch.setattr(density, "_fit_by_split", fit)
    x = np.column_stack([X, np.arange(300) % 3])
    for _ in range(2):
        with pytest.raises(Reached):
            ebm.fit_density(x, groups=LABELS, backup_dir=tmp_path)
    for other in ({}, {"groups": UNEVEN}, {"groups": LABELS, "sample_weight": X[:, 0] ** 2}):
        with pytest.raises(ValueError, match="`backup_dir`"):
            ebm.fit_density(x, backup_dir=tmp_path, **other)
    with pytest.raises(ValueError, match="`backup_dir`"):
        ebm.fit_density(x, groups=LABELS, kinds={2: "category"}, backup_dir=tmp_path)


def test_standard_errors_of_means_are_right():
    """5000 tables of 40 rows: the mean square error is that of the means, within four standard errors (2 % each).

    Rows have weights, and four rows of a group have one effect. Planted: the error without groups is too small.
    """
    rng = np.random.default_rng(1)
    labels, weights = np.repeat(np.arange(40), 4), rng.exponential(size=160)
    means, errors, planted = [], [], []
    for _ in range(5000):
        values = rng.normal(size=40)[labels] + rng.normal(size=160)
        mean, error = density_rows.mean_and_error(values, weights, labels)
        means.append(mean)
        errors.append(error)
        planted.append(density_rows.mean_and_error(values, weights)[1])
    # the plug-in estimate is too small by the share of the largest groups, about Σw²/(Σw)² of 40 groups, 5 %
    assert abs(np.mean(np.square(errors)) / np.var(means) - 1.0) < 0.08 + 0.05
    assert np.mean(np.square(planted)) / np.var(means) < 0.7
    values = rng.normal(size=50)
    np.testing.assert_allclose(
        density_rows.mean_and_error(values, np.full(50, 3.0)), density_rows.mean_and_error(values), rtol=1e-12
    )
