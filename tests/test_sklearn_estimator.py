"""The estimator of scikit-learn: its conventions, pipelines and searches, and tables of all kinds."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import tfp_ebm as ebm
from tfp_ebm.recipes import density_small
from tfp_ebm.sklearn import EnergyDensity

MINUTES = 0.01


# The tables of this check have 15 rows, of which some have weight 0, and `fit_density` needs ten others.
FAILS = {"check_sample_weight_equivalence_on_dense_data": "fewer than ten rows"}


# Older releases of scikit-learn pass a generator, which pytest will refuse.
CHECKS = parametrize_with_checks([EnergyDensity(minutes=MINUTES)], expected_failed_checks=lambda _: FAILS)
NAMES, VALUES = CHECKS.args


@pytest.mark.slow
@pytest.mark.parametrize(NAMES, list(VALUES), **CHECKS.kwargs)
def test_conventions_of_scikit_learn(estimator, check, monkeypatch):
    """Without networks, which take seconds to compile; the checks are of tables of 10 to 300 rows."""
    monkeypatch.setattr(density_small, "MIN_ROWS_OF_NETWORKS", 10**6)
    check(estimator)


@pytest.mark.slow
def test_weights_reach_the_fit():
    """Rows of weight 2 count twice: the mean of the density is the weighted one, and not that of the rows."""
    x = np.concatenate(
        [np.random.default_rng(0).normal(size=(40, 1)), np.random.default_rng(1).normal(9.0, 1.0, (40, 1))]
    )
    weights = np.repeat([1.0, 3.0], 40)
    estimator = EnergyDensity(minutes=MINUTES).fit(x, sample_weight=weights)
    grid = np.linspace(-6.0, 16.0, 2201)[:, None]
    mean = float(np.sum(grid[:, 0] * np.exp(estimator.score_samples(grid))) * 0.01)
    assert abs(mean - np.average(x[:, 0], weights=weights)) < 0.3 < abs(mean - x.mean())


def test_parameters():
    estimator = EnergyDensity(minutes=0.5, seed=3)
    assert estimator.get_params() == {"minutes": 0.5, "seed": 3}
    assert clone(estimator).set_params(seed=4).get_params() == {"minutes": 0.5, "seed": 4}
    assert EnergyDensity().get_params() == {"minutes": None, "seed": 0}
    assert repr(estimator) == "EnergyDensity(minutes=0.5, seed=3)"
    with pytest.raises(NotFittedError):
        estimator.sample()


def test_names_of_the_module():
    assert "EnergyDensity" in dir(ebm.sklearn) and ebm.sklearn.EnergyDensity is EnergyDensity
    with pytest.raises(AttributeError, match="Other"):
        ebm.sklearn.Other  # noqa: B018


BLOCKED = """
import sys, keras, tensorflow_probability  # Keras imports scikit-learn by itself where it is installed
for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
    del sys.modules[name]
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sklearn":
            raise ImportError("sklearn was imported")
sys.meta_path.insert(0, Refuse())
import tfp_ebm, tfp_ebm.cli, tfp_ebm.sklearn
print("imported", "EnergyDensity" in dir(tfp_ebm.sklearn), flush=True)
tfp_ebm.sklearn.EnergyDensity  # planted
"""


@pytest.mark.slow
def test_import_does_not_load_scikit_learn():
    """Up to the line "imported" nothing is refused; the first use of the class after it is."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", BLOCKED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.stdout == "imported True\n", result.stderr[-1000:]
    assert "sklearn was imported" in result.stderr


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(80, 2)) @ [[1.0, 0.5], [0.0, 1.0]] + [0.0, 20.0]


@pytest.fixture(scope="module")
def fitted(x):
    return EnergyDensity(minutes=MINUTES, seed=1).fit(x)


@pytest.mark.slow
def test_it_is_fit_density(x, fitted):
    """The same numbers as the function; near a kernel density of a good width, which is another estimator."""
    model = ebm.fit_density(x, minutes=MINUTES, seed=1, verbose=0)
    expected = ebm.EnergyDistribution(model).log_prob(x.astype(np.float32)).numpy()
    found = fitted.score_samples(x)
    assert found.dtype == np.float64 and fitted.n_features_in_ == 2 and not hasattr(fitted, "feature_names_in_")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert fitted.score(x) == pytest.approx(expected.sum(), rel=1e-5)
    kernel_density = KernelDensity(bandwidth=0.5).fit(x)
    assert abs(fitted.score(x) - kernel_density.score(x)) < 0.2 * len(x)


@pytest.mark.slow
def test_samples(x, fitted):
    samples = fitted.sample(2000)
    assert samples.shape == (2000, 2) and samples.dtype == np.float64
    error = x.std(0) / np.sqrt(80)  # that of the fitted mean
    assert (np.abs(samples.mean(0) - x.mean(0)) < 4 * error).all()
    first = fitted.sample(5)
    np.testing.assert_array_equal(first, fitted.sample(5, random_state=1))  # the seed of the estimator
    assert (first != fitted.sample(5, random_state=2)).any()
    of_state = [fitted.sample(5, random_state=np.random.RandomState(0)) for _ in range(2)]
    np.testing.assert_array_equal(*of_state)
    assert fitted.sample().shape == (1, 2)
    with pytest.raises(ValueError, match="`n_samples`"):
        fitted.sample(0)


PICKLED = """
import pickle, sys
import numpy as np
estimator, x, expected = pickle.load(open(sys.argv[1], "rb"))
np.testing.assert_array_equal(estimator.score_samples(x), expected)
print("same")
"""


@pytest.mark.long
def test_pickles_are_read_by_a_new_process(x, fitted, tmp_path):
    """It imports nothing of this package by itself, as the processes of a parallel search."""
    (tmp_path / "p").write_bytes(pickle.dumps((fitted, x, fitted.score_samples(x))))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", PICKLED, str(tmp_path / "p")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.stdout == "same\n", result.stderr[-1000:]


@pytest.mark.long
def test_pipelines_and_searches(x):
    """In a pipeline, log p is of the scaled rows: it differs from that of the rows by Σ log scale."""
    pipeline = make_pipeline(StandardScaler(), EnergyDensity(minutes=MINUTES))
    scores = cross_val_score(pipeline, x[:40], cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()
    search = GridSearchCV(pipeline, {"energydensity__seed": [0, 1]}, cv=2).fit(x[:40])
    assert search.best_score_ == pytest.approx(scores.mean(), abs=3.0)
    assert search.score(x) == search.best_estimator_.score(x)
    alone = EnergyDensity(minutes=MINUTES).fit(x[:40]).score_samples(x[:40])
    scaled = pipeline.fit(x[:40]).score_samples(x[:40])
    np.testing.assert_allclose(scaled - alone, np.log(x[:40].std(0)).sum(), atol=0.02)


@pytest.mark.slow
def test_frames(x):
    """Samples have the columns of the frame; a row that contradicts a constant has no density."""
    frame = pd.DataFrame(x, columns=["a", "b"]).assign(unit="m")
    estimator = EnergyDensity(minutes=MINUTES).fit(frame)
    assert estimator.feature_names_in_.tolist() == ["a", "b", "unit"] and estimator.n_features_in_ == 3
    samples = estimator.sample(3)
    assert samples.columns.tolist() == ["a", "b", "unit"] and (samples["unit"] == "m").all()
    expected = estimator.score_samples(frame)
    assert np.isfinite(expected).all()
    frame.loc[3, "unit"] = "km"
    assert np.flatnonzero(estimator.score_samples(frame) == -np.inf).tolist() == [3]
    assert estimator.score(frame) == -np.inf
    with pytest.raises(ValueError, match="feature names"):
        estimator.score_samples(frame[["a", "unit"]])


@pytest.mark.slow
def test_arrays_after_a_frame(x):
    """They are taken in the order of its columns, with scikit-learn's warning; columns in another order are refused."""
    frame = pd.DataFrame(x, columns=["a", "b"])
    estimator = EnergyDensity(minutes=MINUTES).fit(frame)
    with pytest.warns(UserWarning, match="valid feature names"):
        found = estimator.score_samples(x)
    np.testing.assert_array_equal(found, estimator.score_samples(frame))
    with pytest.raises(ValueError, match="same order"):
        estimator.score_samples(frame[["b", "a"]])


@pytest.mark.slow
def test_missing_cells(x):
    holes = x.copy()
    holes[::9, 0] = np.nan
    estimator = EnergyDensity(minutes=MINUTES).fit(holes)
    assert np.isfinite(estimator.score_samples(holes)).all() and np.isfinite(estimator.sample(3)).all()


def test_errors(x):
    with pytest.raises(ValueError, match="minimum of 10"):
        EnergyDensity().fit(x[:9])
    with pytest.raises(ValueError, match="`minutes`"):
        EnergyDensity(minutes=-1.0).fit(x)
    with pytest.raises(ValueError, match="`seed`"):
        EnergyDensity(seed=-1).fit(x)
    with pytest.raises(ValueError, match="constant"):
        EnergyDensity().fit(np.ones((20, 2)))
