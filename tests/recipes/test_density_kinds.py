"""`fit_density(kinds=)`: columns of arrays and data frames whose kinds are given."""

import itertools

import numpy as np
import pandas
import pytest

import tfp_ebm as ebm
from tfp_ebm.recipes import density, density_kinds

RNG = np.random.default_rng(0)
# a category whose codes are far apart, a number that depends on it, a truth value, a count
CODE = RNG.choice([-3.0, 7.0, 100.0], size=400, p=[0.5, 0.3, 0.2])
TABLE = np.column_stack(
    [
        CODE,
        RNG.normal(size=400) + (CODE > 0.0),
        (RNG.random(400) < np.where(CODE > 0.0, 0.8, 0.3)).astype(float),
        RNG.poisson(40.0, size=400),
    ]
)
KINDS = {0: "category", 2: "boolean", 3: "whole"}


def simple_fit(monkeypatch, x, **options):
    """A fit without networks."""
    monkeypatch.setattr(density, "train_networks", lambda *args: iter(()))
    return ebm.fit_density(x, verbose=0, **options)


@pytest.mark.slow
def test_probabilities_of_an_array(monkeypatch):
    """Over all pairs of values, and places of the two numbers on a fine grid, the mass is 1; off a support it is 0.

    The shares of the codes are those of the table within four standard errors; draws hold no other values. A list of
    the values gives the same model as the kind.
    """
    x = TABLE[:, [0, 1, 2]]
    model = simple_fit(monkeypatch, x, kinds={0: "category", 2: "boolean"})
    p, grid = ebm.EnergyDistribution(model), np.linspace(-9.0, 11.0, 2001)
    masses = {}
    for code, answer in itertools.product([-3.0, 7.0, 100.0], [0.0, 1.0]):
        rows = np.column_stack([np.full(2001, code), grid, np.full(2001, answer)])
        masses[code, answer] = float(np.exp(p.log_prob(rows.astype("float32")).numpy().astype(float)).sum() * 0.01)
    assert sum(masses.values()) == pytest.approx(1.0, abs=2e-3)
    for code, share in zip((-3.0, 7.0, 100.0), (0.5, 0.3, 0.2), strict=True):
        found = masses[code, 0.0] + masses[code, 1.0]
        # of 360 rows, and the standard deviation with which the table has drawn them
        assert abs(found - (CODE == code).mean()) < 4.0 * np.sqrt(share * (1.0 - share) / 360)
    # within a quarter of the smallest gap a number counts as the value
    off = np.array([[2.0, 0.0, 1.0], [7.0, 0.0, 0.5], [90.0, 0.0, 0.0]], "float32")
    assert (p.log_prob(off).numpy() == -np.inf).all()
    samples = p.sample(500, seed=0).numpy()
    assert set(samples[:, 0]) == {-3.0, 7.0, 100.0} and set(samples[:, 2]) == {0.0, 1.0}
    assert len(set(samples[:, 1])) == 500 and model.encoder is None
    lists = simple_fit(monkeypatch, x, kinds={0: [100, -3, 7], 2: np.array([0, 1])})
    assert lists.candidates == model.candidates


def test_kinds_of_an_array_are_read():
    table = density_kinds.read_table(TABLE, KINDS, None, 0)
    assert {column: values.tolist() for column, values in table.supports.items()} == {
        0: [-3.0, 7.0, 100.0],
        2: [0.0, 1.0],
    }
    np.testing.assert_array_equal(table.rows[:, :3], TABLE[:, :3])
    np.testing.assert_array_equal(np.rint(table.rows[:, 3]), TABLE[:, 3])
    noise = table.rows[:, 3] - TABLE[:, 3]
    assert np.abs(noise).max() < 0.5 and abs(noise.var() - 1.0 / 12.0) < 4.0 * np.sqrt(1.0 / 180.0 / 400.0)
    plain = density_kinds.read_table(TABLE, {3: "continuous"}, None, 0)
    np.testing.assert_array_equal(plain.rows, TABLE)  # ties stay as they are
    assert not plain.supports
    gaps = TABLE.copy()
    gaps[::3, [0, 3]] = np.nan
    table = density_kinds.read_table(gaps, KINDS, None, 0)
    assert np.isnan(table.rows[::3, [0, 3]]).all() and table.supports[0].tolist() == [-3.0, 7.0, 100.0]
    assert density_kinds.read_table(TABLE, KINDS, CODE > 0.0, 0).supports[0].tolist() == [7.0, 100.0]


@pytest.mark.slow
def test_whole_numbers_of_an_array_have_a_density_over_their_cells(monkeypatch):
    """Its sum over the whole numbers is 1, as of probabilities, and their mean that of the table."""
    monkeypatch.setattr(density.density_small, "MIN_ROWS_OF_NETWORKS", 10_000)
    x = TABLE[:, [3, 1]]
    model = ebm.fit_density(x, kinds={0: "whole"}, verbose=0)
    numbers, grid = np.arange(10.0, 80.0), np.linspace(-6.0, 8.0, 281)
    rows = np.stack(np.meshgrid(numbers, grid, indexing="ij"), -1).reshape(-1, 2).astype("float32")
    mass = np.exp(-np.asarray(model.energy(rows), float)).reshape(70, 281).sum(1) * 0.05
    assert mass.sum() == pytest.approx(1.0, abs=0.01)
    assert (mass * numbers).sum() == pytest.approx(x[:, 0].mean(), abs=0.2)


def test_a_data_frame_is_encoded_by_the_given_kinds(monkeypatch):
    class Reached(Exception):
        """The call has passed its checks."""

    def fit(job, values, *args):
        raise Reached(job.rows, values)

    monkeypatch.setattr(density, "_fit_by_split", fit)
    frame = pandas.DataFrame({"code": CODE, "number": TABLE[:, 1]})
    with pytest.raises(Reached) as caught:
        ebm.fit_density(frame, kinds={"code": "category"}, sample_weight=np.where(CODE < 50.0, 1.0, 0.0))
    rows, values = caught.value.args
    assert values[0].tolist() == [0.0, 1.0] and len(rows) == (CODE < 50.0).sum()
    for kinds, match in (
        ({"colour": "category"}, "`kinds` must name columns"),
        ({"code": "colour"}, r"`kinds\['code'\]` must be one of"),
        ({"code": [1, 2]}, r"`kinds\['code'\]` must be one of"),
        ({"number": "whole"}, "`kinds`: column 'number' cannot be of kind 'whole'"),
    ):
        with pytest.raises(ValueError, match=match):
            ebm.fit_density(frame, kinds=kinds)


@pytest.mark.parametrize(
    ("kinds", "match"),
    [
        ({4: "whole"}, "`kinds` must be for columns from 0 to 3 of the array, got 4"),
        ({-1: "whole"}, "from 0 to 3"),
        ({"code": "category"}, "from 0 to 3 of the array, got 'code'"),
        ({True: "category"}, "got True"),
        ({0: "colour"}, r"`kinds\[0\]` must be one of 'continuous'"),
        ({0: "constant"}, r"`kinds\[0\]` must be one of"),
        ({0: 7}, r"`kinds\[0\]` must be a kind or a list"),
        ({0: ["a", "b"]}, r"`kinds\[0\]` must be a kind or a list"),
        ({0: [1]}, r"`kinds\[0\]` must hold at least two finite numbers"),
        ({0: [1, 1]}, r"`kinds\[0\]` must hold at least two finite numbers that differ"),
        ({0: [2.0**24, 2.0**24 + 1.0]}, "differ in float32"),
        ({0: [-3, 7]}, r"`kinds\[0\]` must hold all values of the column, but 100 is not among them"),
        ({0: "boolean"}, "`kinds`: column '0' cannot be of kind 'boolean'"),
        ({1: "whole"}, "`kinds`: column '1' cannot be of kind 'whole'"),
    ],
)
def test_refused_kinds(kinds, match):
    with pytest.raises(ValueError, match=match):
        ebm.fit_density(TABLE, kinds=kinds)


def test_other_refusals_of_kinds():
    with pytest.raises(TypeError, match="`kinds` must be a mapping"):
        ebm.fit_density(TABLE, kinds=["category"])
    many = np.column_stack([np.arange(1500.0), RNG.normal(size=1500)])
    with pytest.raises(ValueError, match=r"`kinds\[0\]` is 'rating', but the column holds 1500 values"):
        ebm.fit_density(many, kinds={0: "rating"})
