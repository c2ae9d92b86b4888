"""Conformal p-values: exact under exchangeability, with controls that are not, and rows that a table rules out."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm import outliers


def minus(x):
    """An energy whose statistic is the number itself."""
    return -x[:, 0]


def square(x):
    return 0.5 * tf.reduce_sum(x**2, -1)


def logarithm(x):
    return tf.math.log(x[:, 0])


def one_out(values, p_value):
    """p-values of each of some exchangeable numbers, given the others."""
    return np.array([p_value(np.delete(values, i), values[i]) for i in range(len(values))])


def of_package(calibration, s):
    return outliers.p_values(minus, calibration[:, None], np.array([[s]]))[0]


def strict(calibration, s):
    return (1 + np.sum(calibration < s)) / (len(calibration) + 1)


def without_one(calibration, s):
    return np.sum(calibration <= s) / len(calibration)


def violations(values, p_value):
    """Levels at which exchangeable numbers have a small p-value too often; each number is equally likely the last."""
    p = one_out(values, p_value)
    return [level for level in np.arange(1, 100) / 100 if np.mean(p <= level) > level + 1e-12]


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 5.0, 4.0], [1.0, 1.0, 2.0, 2.0, 2.0], [0.0] * 5])
def test_p_values_are_valid_by_enumeration(values):
    """P(p ≤ α) ≤ α exactly, with equality without ties; a strict count fails with ties, a count without 1 without."""
    values = np.array(values)
    assert violations(values, of_package) == []
    has_ties = len(set(values)) < len(values)
    assert has_ties or sorted(one_out(values, of_package)) == pytest.approx(np.arange(1, 6) / 5, abs=1e-12)
    assert bool(violations(values, strict)) == has_ties
    assert has_ties or violations(values, without_one)


def overfitted(centres, width):
    """The energy of a kernel density of rows, too narrow."""
    return lambda x: -tf.reduce_logsumexp(-0.5 * ((x - tf.constant(centres, x.dtype)[:, 0]) / width) ** 2, -1)


def test_calibration_rows_must_not_be_training_rows():
    """Kolmogorov-Smirnov at a false-alarm rate of .001: a density that knows its training rows by heart is no harm if
    others calibrate it. Calibrated by its training rows, p-values are far from uniform."""
    train, calibration, fresh = np.random.default_rng(0).normal(size=(3, 500, 1))
    energy = overfitted(train, 1e-3)

    def distance(rows):
        return stats.kstest(outliers.p_values(energy, rows, fresh), "uniform").statistic

    bound = 1.95 * np.sqrt(2 / 500)
    assert distance(calibration) < bound
    assert distance(train) > 3 * bound


@pytest.mark.slow
def test_false_alarm_rate():
    """200 calibrations of 19 rows, a level of .1 and a wrong model. The rate given a calibration is Beta(2, 18)
    distributed, so that the mean over them has a standard error of .0049. A rank that is off by one shifts it by .05,
    ten standard errors; a false alarm of this test has probability 6e-5."""
    rng, level, n, rows = np.random.default_rng(1), 0.1, 19, 200
    error = np.sqrt((level * (1 - level) / (n + 2)) * (1 + (n + 1) / rows) / 200)
    rates, planted = [], []
    for _ in range(200):
        calibration, x = rng.exponential(size=(n, 1)), rng.exponential(size=(rows, 1))
        s = -0.5 * x[:, 0] ** 2
        t = outliers.threshold(square, calibration, level)
        alarms = outliers.p_values(square, calibration, x) <= level
        assert (alarms == (s < t)).all()
        rates.append(alarms.mean())
        planted.append(np.mean(s < np.sort(-0.5 * calibration[:, 0] ** 2)[2]))
    assert abs(np.mean(rates) - level) < 4 * error
    assert abs(np.mean(planted) - level) > 6 * error


def test_the_sign():
    """Outliers have the smallest p-value, and the largest under the wrong sign."""
    calibration = np.random.default_rng(2).normal(size=(99, 2))
    far = np.array([[9.0, 0.0], [0.0, -7.0]])
    assert outliers.p_values(square, calibration, far).tolist() == [0.01, 0.01]
    assert outliers.p_values(lambda x: -square(x), calibration, far).tolist() == [1.0, 1.0]
    t = outliers.threshold(square, calibration, 0.05)
    assert -0.5 * 7.0**2 < t < 0.0
    by_gradient = outliers.p_values(square, calibration, far, kind="gradient")
    assert by_gradient.tolist() == [0.01, 0.01]


@pytest.mark.parametrize("n", [9, 19, 99, 100, 347])
def test_threshold_and_p_values_agree_with_ties(n):
    """For statistics with many ties and every level k/100, the rows below the threshold are those with p ≤ α."""
    rng = np.random.default_rng(n)
    calibration, x = rng.integers(0, 8, (n, 1)) * 1.0, np.arange(-1.0, 9.0)[:, None]
    p = outliers.p_values(minus, calibration, x)
    for level in np.arange(1, 100) / 100:
        if level * (n + 1) < 1 - 1e-9:
            with pytest.raises(ValueError, match="`calibration`"):
                outliers.threshold(minus, calibration, level)
        else:
            assert ((x[:, 0] < outliers.threshold(minus, calibration, level)) == (p <= level)).all()


def test_statistics_of_minus_infinity():
    def energy(x):
        return tf.where(x[:, 0] < 0, np.inf, x[:, 0])

    calibration = np.arange(9.0)[:, None]
    assert outliers.p_values(energy, calibration, [[-1.0], [0.0]]).tolist() == [0.1, 1.0]
    calibration[:2] = -1.0
    assert outliers.p_values(energy, calibration, [[-1.0], [8.0]]).tolist() == pytest.approx([0.3, 0.4])
    assert outliers.threshold(energy, calibration, 0.2) == -np.inf  # no statistic is below


@pytest.mark.slow
def test_every_kind_of_model():
    rng = np.random.default_rng(3)
    calibration, x = rng.normal(size=(2, 30, 2)).astype(np.float32)
    network = ebm.networks.mlp([2], units=[8])
    model = ebm.EnergyModel(network)
    model.build((None, 2))
    expected = outliers.p_values(network, calibration, x)
    distribution = ebm.EnergyDistribution(model)
    for energy in (model, distribution, lambda rows: network(rows), ebm.EnergyDistribution(network, [2])):
        np.testing.assert_array_equal(outliers.p_values(energy, calibration, x), expected)
        assert outliers.threshold(energy, calibration, 0.1) == pytest.approx(
            outliers.threshold(network, calibration, 0.1), abs=1e-6
        )


def test_frames_without_an_encoder_are_ordered_by_name():
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8]))
    model.build((None, 2))
    model.columns = ("a", "b")
    frame = pd.DataFrame(np.random.default_rng(4).normal(size=(30, 2)), columns=["a", "b"])
    expected = outliers.p_values(model, frame.to_numpy(), frame.to_numpy())
    np.testing.assert_array_equal(outliers.p_values(model, frame, frame[["b", "a"]]), expected)
    assert (outliers.p_values(model, frame.to_numpy(), frame[["b", "a"]].to_numpy()) != expected).any()  # control
    with pytest.raises(ValueError, match=r"`x`.*missing: b"):
        outliers.p_values(model, frame, frame[["a"]])


@pytest.mark.parametrize(
    "change, error, word",
    [
        ({"calibration": np.zeros((0, 2))}, ValueError, "`calibration`"),
        ({"calibration": [[0.0, np.nan]]}, ValueError, "`calibration`"),
        ({"x": [[np.inf, 0.0]]}, ValueError, "`x`"),
        ({"x": np.zeros((3, 4))}, ValueError, r"`x`.*\[rows, 2\]"),
        ({"x": [["a", "b"]]}, TypeError, "`x`"),
        ({"model": lambda x: x[:, 0] * np.nan}, ValueError, "`calibration`.*5 of 5 are NaN"),
        ({"model": logarithm, "x": [[1.0, 0], [-1.0, 0]]}, ValueError, "`x`.*1 of 2 are NaN.*row 2"),
        ({"model": 3.0}, TypeError, "`model`"),
        ({"model": ebm.targets.two_moons().log_prob}, TypeError, "`model` must be an energy"),
        ({"kind": "other"}, ValueError, "`kind`"),
        ({"seed": None}, TypeError, "`seed`"),
    ],
)  # fmt: skip
def test_errors(change, error, word):
    arguments = {"model": square, "calibration": np.ones((5, 2)), "x": np.ones((3, 2)), **change}
    with pytest.raises(error, match=word):
        outliers.p_values(arguments.pop("model"), arguments.pop("calibration"), arguments.pop("x"), **arguments)


@pytest.mark.parametrize("rate, error", [(0.0, ValueError), (1.0, ValueError), ("x", TypeError), (np.nan, ValueError)])
def test_errors_of_rates(rate, error):
    with pytest.raises(error, match="`false_alarm_rate`"):
        outliers.threshold(square, np.ones((50, 2)), rate)


def test_the_least_number_of_calibration_rows():
    with pytest.raises(ValueError, match=r"`calibration` must have at least 99 rows.*got 98"):
        outliers.threshold(square, np.ones((98, 2)), 0.01)
    assert outliers.threshold(square, np.ones((99, 2)), 0.01) == -1.0


def mixed(rows, seed):
    rng = np.random.default_rng(seed)
    size = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "size": size,
            "count": np.round(500 + 100 * size + 20 * rng.normal(size=rows)).astype(int),
            "stars": rng.integers(1, 6, rows),
            "colour": rng.choice(["red", "blue"], rows),
            "unit": "m",
        }
    )


def untrained(frame, missing="refuse"):
    """A density with an encoder as `fit_density` returns it, in the units of a table, but with its initial weights."""
    encoder = ebm.datasets.TableEncoder.fit(frame, missing=missing)
    x = encoder.encode(frame)
    supports, size = encoder.numbered_supports, x.shape[1]
    network = ebm.networks.autoregressive(
        [size], units=[8], supports=supports, allows_missing=missing == "model", seed=0
    )
    model = ebm.EnergyModel(network)
    model.build((None, size))
    free = [i for i in range(size) if i not in supports]
    loc, scale = np.zeros(size), np.ones(size)
    loc[free], scale[free] = np.nanmean(x[:, free], 0), np.nanstd(x[:, free], 0)
    model.standardization.loc.assign(loc)
    model.standardization.scale.assign(scale)
    model.encoder, model.columns = encoder, encoder.names
    return model


@pytest.fixture(scope="module")
def density():
    return untrained(mixed(90, 0))


@pytest.mark.slow
def test_rows_that_the_table_rules_out(density):
    """A new label, a contradicted constant, a value off the support and a broken number; the control is a usual row."""
    calibration, x = mixed(49, 1), mixed(6, 2).astype({"count": float})
    x.loc[0, ["size", "count"]] = [0.0, 500.0]
    x.loc[1, "colour"] = "green"
    x.loc[2, "unit"] = "km"
    x.loc[3, "stars"] = 9
    x.loc[4, "count"] = 500.5
    x.loc[5, "size"] = 40.0
    x.index = [7] * 6  # an index is ignored
    for model in (density, ebm.EnergyDistribution(density)):
        p = outliers.p_values(model, calibration, x[["unit", "stars", "size", "count", "colour"]])
        assert p[0] > 0.1 and p[1:].tolist() == [0.02] * 5
    assert outliers.p_values(density, calibration, x.iloc[1:3]).tolist() == [0.02] * 2  # none is left
    assert np.isfinite(outliers.threshold(density, calibration, 0.1))
    encoded = density.encoder.encode(calibration)
    assert (outliers.p_values(density, encoded, encoded) > 0).all()


@pytest.mark.slow
def test_errors_of_frames_name_the_argument(density):
    calibration, x = mixed(49, 1), mixed(6, 2)
    with pytest.raises(ValueError, match=r"`calibration`.*missing.*'size'"):
        outliers.p_values(density, calibration.drop(columns="size"), x)
    with pytest.raises(ValueError, match=r"`x`.*row"):
        outliers.p_values(density, calibration, x.iloc[:0])
    with pytest.raises(ValueError, match=r"`x`.*missing"):
        outliers.p_values(density, calibration, x.assign(size=[np.nan, *x["size"][1:]]))
    with pytest.raises(TypeError, match=r"`x`.*'size'"):
        outliers.p_values(density, calibration, x.assign(size="large"))


@pytest.mark.slow
def test_noise_of_whole_numbers_differs_between_the_tables(density):
    """With the same noise in both, the p-values of the calibration rows would be all multiples of 1/(n + 1)."""
    calibration = mixed(200, 1)
    p = np.sort(outliers.p_values(density, calibration, calibration))
    assert not np.allclose(p, np.arange(2, 202) / 201) and np.allclose(p, np.arange(2, 202) / 201, atol=0.1)
    np.testing.assert_array_equal(p, np.sort(outliers.p_values(density, calibration, calibration)))
    assert (p != np.sort(outliers.p_values(density, calibration, calibration, seed=1))).any()


@pytest.mark.slow
def test_missing_cells():
    """A model of tables with missing cells takes them; the statistic of complete rows is the same beside them."""
    frame = mixed(90, 0)[["size", "count"]].astype(float)
    frame.loc[::7, "size"] = np.nan
    model = untrained(frame, missing="model")
    calibration, x = mixed(39, 1)[["size", "count"]], mixed(5, 2)[["size", "count"]].astype(float)
    expected = outliers.p_values(model, calibration, x)
    x.loc[4, "size"] = np.nan
    found = outliers.p_values(model, calibration, x)
    np.testing.assert_array_equal(found[:4], expected[:4])
    assert found[4] > 1 / 40
    with pytest.raises(ValueError, match="`x`"):
        outliers.p_values(model, calibration, x, kind="gradient")
