"""`fit_density` of small tables: cross-validated candidates, their weights, and the report that files keep."""

import types
import warnings

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

import tfp_ebm as ebm
from tfp_ebm.composition import fitted_parts
from tfp_ebm.recipes import density_folds, density_small, density_training
from tfp_ebm.recipes.density_training import history_of


def test_folds_are_balanced_and_hold_equal_rows_together():
    x = np.repeat(np.random.default_rng(0).normal(size=(50, 2)), 2, 0)
    fold = density_folds.folds_of(x, 5, seed=1)
    assert np.bincount(fold).tolist() == [20] * 5
    assert (fold[::2] == fold[1::2]).all() and len(set(fold[:20])) > 1
    two = density_folds.folds_of(np.repeat([[0.0], [1.0]], 10, 0), 5, seed=0)
    assert sorted(set(two)) == [0, 1]


def test_log_densities_are_of_fits_without_the_row():
    """The Gaussian without shrinkage is that of SciPy without the fold, to 1e-4; a fit to all rows is not."""
    x = np.random.default_rng(0).normal(size=(60, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + 7.0
    fold = density_folds.folds_of(x, 5, seed=0)

    def plain(z, seed, weights):
        return {key: one for key, one in density_folds._gaussians(z, seed).items() if key == (0.0, 1.0)}

    chosen = density_folds._judge(plain, x, fold, 0)
    naive, leaking = np.empty(60), stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x)
    for number in range(5):
        rest = x[fold != number]
        normal = stats.multivariate_normal(rest.mean(0), np.cov(rest.T, bias=True))
        naive[fold == number] = normal.logpdf(x[fold == number])
    np.testing.assert_allclose(chosen.log_probs, naive, atol=1e-4)
    np.testing.assert_allclose(chosen.fit(x[fold != 2]).log_prob(x)[fold == 2], naive[fold == 2], atol=1e-4)
    assert np.abs(leaking - naive).max() > 0.02
    np.testing.assert_allclose(chosen.fit(x).log_prob(x), leaking, atol=1e-4)


def test_variants_of_one_shape_share_their_distances():
    z = np.random.default_rng(0).normal(size=(30, 3))
    rows = np.random.default_rng(1).normal(size=(5, 3))
    for fit in (density_folds._gaussians, density_folds._scale_mixtures, density_folds._kernels):
        variants = fit(z, 0)
        scores = density_folds._scores_of_scaled(variants, rows)
        for key, naive in density_folds._scores(variants, rows).items():
            np.testing.assert_allclose(scores[key], naive, rtol=1e-6)


def peers(x):
    """Gaussian, scikit-learn's mixture by BIC, and its kernel density by Scott's rule, as functions of rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixtures = [GaussianMixture(k, random_state=0).fit(x) for k in (1, 2, 3, 4)]
    best = min(mixtures, key=lambda one: one.bic(x))
    return mixtures[0].score_samples, best.score_samples, stats.gaussian_kde(x.T).logpdf


@pytest.mark.slow
def test_a_small_table_beats_gaussian_mixture_and_kernel_density():
    """At 61 rows of 12 columns and 40 of three: mean of three tables, 2000 new rows each, against the best peer.

    The mean differences are above 0 by more than a standard error. The kernel density alone fails on the first family.
    """

    def normal(number, rng):
        return rng.normal(size=(number, 12)) @ np.tril(np.full((12, 12), 0.7))

    def heavy(number, rng):
        return rng.standard_t(3.0, size=(number, 3)) * np.exp(rng.normal(size=(number, 1)))

    for draw, rows in ((normal, 61), (heavy, 40)):
        gains, planted = [], []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            x, new = draw(rows, rng), draw(2000, rng)
            chosen, _ = density_folds.cross_validated(
                x, density_folds.folds_of(x, 10, seed), seed=seed, with_kernels=True
            )
            kept, probs = fitted_parts(np.stack([one.log_probs for one in chosen.values()], 1))
            parts = np.stack([one.fit(x).log_prob(new) for one in chosen.values()], 1)
            best = max(float(log_prob(new.T if i == 2 else new).mean()) for i, log_prob in enumerate(peers(x)))
            gains.append(np.logaddexp.reduce(parts[:, kept] + np.log(probs), axis=1).mean() - best)
            planted.append(parts[:, list(chosen).index("kernel_density")].mean() - best)
        assert np.mean(gains) > np.std(gains, ddof=1) / np.sqrt(3.0)
        if rows == 61:
            assert np.mean(planted) < 0.0


def hard_tables():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3))
    rare = np.column_stack([x[:, 0], np.arange(12) == 5])  # constant outside of one fold
    far = x.copy()
    far[3, 1] = 1e30
    gaps = np.where(rng.random((20, 3)) < 0.2, np.nan, rng.normal(size=(20, 3)))
    yield from (rare, far, np.repeat(x[:4], 5, 0), gaps)
    yield np.column_stack([x[:, 0], x[:, 0] + 1e-9 * x[:, 1], x[:, 2]])
    yield rng.normal(size=(15, 40))  # more columns than rows


@pytest.mark.long
def test_no_table_of_few_rows_fails():
    """Finite energies of the rows, and a result of each candidate."""
    for x in hard_tables():
        model = ebm.fit_density(x, verbose=0)
        assert np.isfinite(model.energy(x.astype("float32"))).all()
        assert {"gaussian", "gaussian_scales", "stack"} <= set(model.candidates)
        assert np.isfinite(list(model.candidates.values())).all() and model.histories == {}


def test_networks_stop_at_the_judgement_with_the_best_mean():
    """Planted: each fold's own best judgement, 0 and 2, has the mean 1.5; the common one, 1, has 1."""
    curves = [[0.0, 1.0, 3.0], [3.0, 1.0, 0.0]]
    trainings = [
        types.SimpleNamespace(
            held_out_losses=curve, losses=[5.0, 4.0, 3.0], snapshots={i: [np.array([float(i)])] for i in range(3)}
        )
        for curve in curves
    ]

    class Network:
        def set_weights(self, weights):
            self.level = weights[0][0]

        def __call__(self, y):
            return np.full(len(y), self.level)

    table = types.SimpleNamespace(y=np.zeros((4, 1)))
    fold, own = np.array([0, 0, 1, 1]), [Network(), Network()]
    kept = density_small.to_one_judgement(fold, own, trainings)
    assert kept == 1 and density_small.left_out(table.y, fold, own).tolist() == [-1.0] * 4
    history = history_of(trainings, 10.0, 20.0, kept)
    assert history == {
        "log_likelihood": [5.0, 6.0, 7.0],
        "held_out_log_likelihood": [18.5, 19.0, 18.5],
        "kept": 1,
    }


@pytest.fixture(scope="module")
def fitted():
    """A table of 120 rows, 70 of them equal."""
    x = np.random.default_rng(0).normal(size=(120, 2))
    x[:, 1] = 100.0 * (x[:, 0] ** 2 + 0.2 * x[:, 1])
    x[:70] = x[0]  # one fold has all of these, and the networks of the others fewer rows than a batch
    return ebm.fit_density(x, minutes=0.02, seed=1, verbose=0)


@pytest.mark.long
def test_files_keep_candidates_and_curves(fitted, tmp_path):
    """The curve at the judgement kept is the result of the candidate, to .05 nat: both are means over held-out rows."""
    (name,) = fitted.histories
    curve = fitted.histories[name]
    assert len(curve["log_likelihood"]) == len(curve["held_out_log_likelihood"]) > curve["kept"]
    assert abs(curve["held_out_log_likelihood"][curve["kept"]] - fitted.candidates[name][0]) < 0.05
    fitted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.candidates == fitted.candidates and loaded.histories == dict(fitted.histories)
    assert loaded.cut_by_clock == fitted.cut_by_clock
    assert loaded.get_config()["report"] == fitted.get_config()["report"]


@pytest.mark.slow
def test_no_time_left_ends_a_training_at_once():
    """Two judgements after the first, which compiles. Planted: a negative number of seconds, which ends nothing."""
    x = np.random.default_rng(0).normal(size=(64, 1)).astype("float32")
    network = ebm.networks.autoregressive([1], units=[8], seed=0)
    settings = density_training.settings_for_rows(64, 1)._replace(num_steps=400)
    trainer = density_training.Trainer(network, settings, 0)
    assert len(trainer.train(x, x, 0.01, 0).losses) <= 3
    assert len(trainer.train(x, x, -1.0, 0).losses) > 3
