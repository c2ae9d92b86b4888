"""Kinds of columns: found, encoded, decoded, refused by name."""

import json
import warnings

import numpy as np
import pandas
import pytest

from tfp_ebm.datasets import TableEncoder, coding, columns, dependence, kinds

ROWS = 400


def mixed_frame(rows=ROWS):
    """A table with every kind of column; "copy" is a copy of "length", "total" a combination of three columns."""
    rng = np.random.default_rng(0)
    length, count = rng.normal(20.0, 3.0, rows), rng.integers(0, 500, rows)
    rating = rng.integers(1, 8, rows)
    frame = pandas.DataFrame(
        {
            "length": length,
            "count": count,
            "rating": rating,
            "smoker": rng.random(rows) < 0.3,
            "colour": rng.choice(["red", "blue", "green"], rows),
            "size": pandas.Categorical(rng.choice(["M", "S"], rows), categories=["S", "M", "L"], ordered=True),
            "year": np.full(rows, 2024),
            "copy": length,
            "total": 2 * length - count + 0.5 * rating + 7,
            "half": rng.integers(0, 4, rows).astype(np.float32) / 2,
        }
    )
    frame["not smoker"] = ~frame["smoker"]
    frame["colour again"] = pandas.Categorical(frame["colour"], categories=["blue", "green", "red"])
    return frame


def with_missing(frame, share=0.1, but=()):
    """The table with some cells missing, in dtypes that have missing cells."""
    rng = np.random.default_rng(1)
    frame = frame.astype(
        {"count": "Int64", "rating": "Int64", "year": "Int64", "smoker": "boolean", "not smoker": "boolean"}
    )
    for name in frame.columns:
        if name not in but:
            frame.loc[rng.random(len(frame)) < share, name] = None
    return frame


def fitted(frame, **options):
    """The encoder of a table, and the messages of all warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = TableEncoder.fit(frame, **options)
    return encoder, [str(warning.message) for warning in caught]


KINDS = {
    "length": "continuous",
    "count": "whole",
    "rating": "rating",
    "smoker": "boolean",
    "colour": "category",
    "size": "category",
    "year": "constant",
    "copy": "duplicate",
    "total": "duplicate",
    "half": "rating",
    "not smoker": "duplicate",
    "colour again": "duplicate",
}


def test_kinds_are_found_and_described():
    frame = mixed_frame()
    encoder, messages = fitted(frame)
    assert {column.name: column.kind for column in encoder.columns} == KINDS
    assert encoder.names == ("length", "count", "rating", "smoker", "colour", "size", "half")
    assert list(encoder.supports) == ["rating", "smoker", "colour", "size", "half"]
    assert encoder.supports["half"].tolist() == [0, 0.5, 1, 1.5]
    assert encoder.supports["size"].tolist() == [0, 1, 2] and encoder.supports["size"].dtype == np.float64
    by_name = {column.name: column for column in encoder.columns}
    assert by_name["colour"].levels == tuple(dict.fromkeys(frame["colour"]))
    assert by_name["size"].levels == ("S", "M", "L")
    assert by_name["year"].treatment == "kept aside: all rows hold 2024"
    assert by_name["rating"].treatment == "7 values, modelled as probabilities"
    assert by_name["count"].treatment == "rounded to whole numbers after sampling"
    assert by_name["copy"].treatment == "kept aside: equal to column 'length'"
    assert by_name["total"].treatment == "kept aside: equal to 2 'length' - 'count' + 0.5 'rating' + 7"
    assert by_name["not smoker"].treatment == "kept aside: equal to -'smoker' + 1"
    assert not encoder.allows_missing
    assert len(messages) == 1 and "other columns determine 4 column" in messages[0] and "'total'" in messages[0]


def test_round_trip_gives_the_same_frame():
    frame = mixed_frame()
    encoder, _ = fitted(frame)
    decoded = encoder.decode(encoder.encode(frame))
    pandas.testing.assert_frame_equal(decoded, frame, rtol=1e-12)
    shuffled = frame[frame.columns[::-1]]
    np.testing.assert_array_equal(encoder.encode(shuffled), encoder.encode(frame))
    np.testing.assert_array_equal(encoder.encode(frame[list(encoder.names)]), encoder.encode(frame))
    # a planted fault: without rounding to the nearest value, or without noise removed, the frames differ
    with pytest.raises(AssertionError):
        pandas.testing.assert_frame_equal(encoder.decode(encoder.encode(frame) + 0.6), frame)


def test_round_trip_with_missing_cells():
    full = mixed_frame(2000)
    frame = with_missing(full)
    encoder, _ = fitted(frame, missing="model")
    assert {column.name: column.kind for column in encoder.columns} == KINDS
    assert encoder.allows_missing
    encoded = encoder.encode(frame)
    decoded = encoder.decode(encoded)
    assert list(decoded.columns) == list(frame.columns)
    assert (decoded.dtypes == frame.dtypes).all()
    assert decoded["size"].cat.categories.tolist() == ["S", "M", "L"] and decoded["size"].cat.ordered
    for name in frame.columns:
        there = frame[name].notna()
        if name in encoder.names:
            assert decoded[name][there].notna().all()
        same = decoded[name].notna() & there
        pandas.testing.assert_series_equal(decoded[name][same], frame[name][same], rtol=1e-9)
        # a cell is filled only if the others determine it, and then rightly
        filled = decoded[name].notna() & ~there
        pandas.testing.assert_series_equal(
            decoded[name][filled], full[name].astype(frame[name].dtype)[filled], rtol=1e-9
        )
        assert not (filled.any() and name in ("size", "half"))
    # 10 % are missing in each column: of "colour", 1 % after its copy has filled in, ± 4 standard errors
    assert abs(np.isnan(encoded[:, 4]).mean() - 0.01) < 4 * np.sqrt(0.01 * 0.99 / 2000)
    assert np.isnan(encoded[:, 5]).sum() == frame["size"].isna().sum()


def test_dtypes_are_those_of_the_training_table():
    frame = pandas.DataFrame({"x": np.linspace(0.0, 1.0, 30) ** 2})
    rng = np.random.default_rng(3)
    for dtype in ("int8", "uint16", "int64", "Int32", "UInt8", "float32", "float64", "Float64"):
        frame[dtype] = pandas.Series(rng.permutation(30)).astype(dtype)
    for dtype in ("bool", "boolean", "object"):
        frame[f"truth {dtype}"] = pandas.Series(rng.random(30) < 0.5).astype(dtype)
    for dtype in ("object", "string", "str"):
        frame[f"text {dtype}"] = pandas.Series(rng.choice(["a", "b", "c"], 30)).astype(dtype)
    frame["levels"] = pandas.Categorical(rng.choice([3, 1], 30), categories=[3, 1, 2])
    encoder, messages = fitted(frame)
    assert messages == []
    pandas.testing.assert_frame_equal(encoder.decode(encoder.encode(frame)), frame)
    encoder = TableEncoder.from_config(json.loads(json.dumps(encoder.get_config())))
    pandas.testing.assert_frame_equal(encoder.decode(encoder.encode(frame)), frame)
    none = encoder.decode(np.full([2, len(encoder.names)], np.nan))
    assert none.isna().all(axis=None)
    expected = {"int8": "Int64", "uint16": "Int64", "int64": "Int64", "truth bool": "boolean"}
    assert {name: str(dtype) for name, dtype in none.dtypes.items()} == {
        name: expected.get(name, str(dtype)) for name, dtype in frame.dtypes.items()
    }
    extreme = encoder.decode(np.full([1, len(encoder.names)], 1e9))
    assert extreme["int8"][0] == 127 and extreme["UInt8"][0] == 255 and extreme["levels"][0] == 2


def test_config_is_plain_json_and_complete():
    frame = with_missing(mixed_frame())
    encoder, _ = fitted(frame, missing="model")
    config = json.loads(json.dumps(encoder.get_config(), allow_nan=False))
    again = TableEncoder.from_config(config)
    assert again.columns == encoder.columns and again.get_config() == encoder.get_config()
    assert again.missing == "model" and again.names == encoder.names
    np.testing.assert_array_equal(again.encode(frame, seed=4), encoder.encode(frame, seed=4))
    pandas.testing.assert_frame_equal(again.decode(again.encode(frame)), encoder.decode(encoder.encode(frame)))
    with pytest.raises(ValueError, match="`config` must have format"):
        TableEncoder.from_config({**config, "format": 0})


def test_noise_is_uniform_and_undone(monkeypatch):
    """Kolmogorov-Smirnov at 20 000 numbers: false-alarm rate 10⁻⁴; noise of width .95 has D = .025, p < 10⁻⁹."""
    from scipy import stats

    n = np.random.default_rng(0).integers(-1000, 1000, 20_000)
    frame = pandas.DataFrame({"n": n, "m": n[::-1].copy()})
    encoder, _ = fitted(frame)
    x = encoder.encode(frame, seed=5)
    noise = x - frame.to_numpy()
    for i in range(2):
        assert stats.kstest(noise[:, i] + 0.5, "uniform").pvalue > 1e-4
        assert stats.kstest(0.95 * noise[:, i] + 0.5, "uniform").pvalue < 1e-4
        # no correlation with the number; standard error 1/√20000
        assert abs(np.corrcoef(noise[:, i], frame.to_numpy()[:, i])[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 4 / np.sqrt(20_000)
    pandas.testing.assert_frame_equal(encoder.decode(x), frame)
    np.testing.assert_array_equal(x, encoder.encode(frame, seed=5))
    assert (x != encoder.encode(frame, seed=6)).any(axis=1).all()
    monkeypatch.setattr(columns, "rounded", lambda column, values: np.floor(values))  # planted: rounds down
    with pytest.raises(AssertionError):
        pandas.testing.assert_frame_equal(encoder.decode(x), frame)


def test_large_whole_numbers_keep_their_cell():
    n = 2**45 - np.arange(1000)
    encoder, _ = fitted(pandas.DataFrame({"n": n}))
    x = encoder.encode(pandas.DataFrame({"n": n}))
    np.testing.assert_array_equal(np.rint(x[:, 0]), n)
    assert encoder.columns[0].kind == "whole"
    larger = pandas.DataFrame({"n": 4.0 * n})
    assert fitted(larger)[0].columns[0].kind == "continuous"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.repeat(np.arange(64), 5), "rating"),
        (np.repeat(np.arange(65), 5), "whole"),
        (np.repeat(np.arange(64), 5)[1:], "whole"),
        (np.repeat(np.arange(12) / 4, 5), "rating"),
        (np.repeat(np.arange(13) / 4, 5), "continuous"),
        ([0, 1] * 5, "rating"),
        ([0.5, 1.5, 2.5], "continuous"),
        ([3, 1, 2], "whole"),
        (["yes", "no", "no"], "boolean"),
        (["Y", "N", "N"], "boolean"),
        (["yes", "n", "n"], "category"),
        ([True, False, np.nan], "boolean"),
        ([1.5, 1.5], "constant"),
        (["a", "a"], "constant"),
    ],
)
def test_kinds_by_number_of_values(values, kind):
    frame = pandas.DataFrame({"a": values, "b": np.random.default_rng(0).normal(size=len(values))})
    encoder, _ = fitted(frame, missing="model")
    assert encoder.columns[0].kind == kind
    pandas.testing.assert_series_equal(encoder.decode(encoder.encode(frame))["a"], frame["a"])


def test_every_kind_can_be_given():
    n = 40
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "ones": rng.integers(0, 2, n),
            "stars": rng.integers(0, 4, n),
            "wide": rng.integers(0, 10**6, n),
            "word": rng.permutation([f"w{i}" for i in range(n)]),
            "copy": 0,
        }
    )
    frame["copy"] = frame["wide"]
    given = {"ones": "boolean", "stars": "category", "wide": "continuous", "word": "category", "copy": "whole"}
    encoder, messages = fitted(frame, kinds=given)
    assert {column.name: column.kind for column in encoder.columns} == given and messages == []
    pandas.testing.assert_frame_equal(encoder.decode(encoder.encode(frame)), frame)
    assert encoder.columns[1].levels == (0, 1, 2, 3)
    others = {"ones": "continuous", "stars": "whole", "wide": "rating", "word": "category", "copy": "duplicate"}
    encoder, _ = fitted(frame, kinds=others)
    assert {column.name: column.kind for column in encoder.columns} == others
    pandas.testing.assert_frame_equal(encoder.decode(encoder.encode(frame)), frame)
    assert fitted(frame.assign(copy=1), kinds={"copy": "constant", "word": "category"})[0].columns[4].kind == "constant"


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("text", "continuous", "'text' cannot be of kind 'continuous', because it holds labels, not numbers"),
        ("text", "boolean", "it does not hold two truth values"),
        ("truth", "rating", "it holds truth values, not numbers"),
        ("float", "whole", "because it holds 0.25"),
        ("same", "continuous", "all its rows are equal"),
        ("float", "constant", "it holds 20 different values"),
        ("float", "duplicate", "'float' cannot be a duplicate"),
        ("float", "ordinal", r"`kinds\['float'\]` must be one of 'continuous'"),
        ("flaot", "whole", "`kinds` must name columns of the table, got 'flaot'"),
    ],
)
def test_kinds_that_cannot_be_are_refused(name, kind, words):
    frame = pandas.DataFrame(
        {
            "float": np.arange(20) + 0.25,
            "text": ["a", "b"] * 10,
            "truth": [True, False, False, True] * 5,
            "same": 1,
        }
    )
    with pytest.raises(ValueError, match=words):
        TableEncoder.fit(frame, kinds={name: kind})


@pytest.mark.parametrize(
    ("column", "error", "words"),
    [
        ([np.nan] * 4, ValueError, "column 'a' holds no value: all 4 cells are missing; leave it out"),
        ([None] * 4, ValueError, "column 'a' holds no value"),
        (
            ["p", "q", "r", "s"],
            ValueError,
            "a different text in each row, such as 'p'.*leave it out, or set kinds={'a'",
        ),
        (np.array(["2024-01-01"] * 4, "M8[ns]"), ValueError, "dates or times, such as '2024-01-01.*days or seconds"),
        (["2024-01-01", "2024-01-02"] * 2, ValueError, "column 'a' holds dates or times, such as '2024-01-01'"),
        (pandas.period_range("2024", periods=4, freq="M"), ValueError, "dates or times"),
        ([pandas.Timestamp("2024").date()] * 4, ValueError, "dates or times"),
        (pandas.to_timedelta([1, 2, 3, 4]), ValueError, "durations; write them as numbers"),
        ([1j, 2, 3, 4], TypeError, "complex numbers"),
        ([1.0, np.inf, 2, -np.inf], ValueError, r"2 infinite number\(s\), the first in row 2"),
        ([1, "a", 2, 3], TypeError, r"values of the types int, str; write all as"),
        ([[1], [2], [3], [4]], TypeError, "values of the types list"),
        ([2**60, 2, 3, 4], ValueError, "above 2⁵³, the first in row 1.*subtract an offset"),
        (pandas.cut([1, 2, 3, 4], 2), TypeError, r"categories of type Interval; write them as text.*astype\(str\)"),
        (
            [1.0, np.nan, np.nan, 2],
            ValueError,
            "2 missing cell.* in 2 of 4 rows, the first in row 2, column 'a'; row 3, co",
        ),
    ],
)
def test_columns_that_are_refused(column, error, words):
    with pytest.raises(error, match=words):
        TableEncoder.fit(pandas.DataFrame({"a": column, "b": [1.5, 2.5, 0.5, 3.5]}))


def test_too_many_levels_are_refused():
    words = [f"w{i}" for i in range(1001)] * 2
    with pytest.raises(ValueError, match="'a' has 1001 levels as a category, and at most 1000 are allowed; merge rare"):
        TableEncoder.fit(pandas.DataFrame({"a": words}))
    assert len(fitted(pandas.DataFrame({"a": words[:1000] + words[:10]}))[0].supports["a"]) == 1000
    categories = pandas.Categorical(["w0", "w1"], categories=words[:1001])
    with pytest.raises(ValueError, match="remove_unused_categories"):
        TableEncoder.fit(pandas.DataFrame({"a": categories}))


@pytest.mark.parametrize(
    ("frame", "options", "error", "words"),
    [
        (np.ones([3, 2]), {}, TypeError, "`frame` must be a pandas.DataFrame, got ndarray"),
        (pandas.DataFrame({"a": [1.5]}), {}, ValueError, "`frame` must have at least two rows, got 1"),
        (pandas.DataFrame(), {}, ValueError, "got no column"),
        (pandas.DataFrame({"a": [1, 1], "b": ["x", "x"]}), {}, ValueError, "a column that varies"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), {}, ValueError, "columns with different names, got 'a'"),
        (pandas.DataFrame([[1, 2]], columns=["1", 1]), {}, ValueError, "columns with different names, got '1'"),
        (pandas.DataFrame({("a", "b"): [1, 2]}), {}, TypeError, "names of columns of type str or int"),
        (pandas.DataFrame({"a": [1, 2]}), {"missing": "impute"}, ValueError, "`missing` must be one of 'refuse'"),
        (pandas.DataFrame({"a": [1, 2]}), {"kinds": ["whole"]}, TypeError, "`kinds` must be a dict"),
        (pandas.DataFrame({"a": [1, None, 2], "b": None}), {"missing": "drop"}, ValueError, "'b' holds no value"),
    ],
)
def test_frames_that_are_refused(frame, options, error, words):
    with pytest.raises(error, match=words):
        TableEncoder.fit(frame, **options)


def test_rows_with_missing_cells_are_dropped():
    frame = with_missing(mixed_frame(), but=("copy",))
    encoder, messages = fitted(frame, missing="drop")
    complete = frame.notna().all(axis=1)
    assert f"{(~complete).sum()} of 400 rows have missing cells" in messages[0]
    assert all(column.num_missing == 0 for column in encoder.columns) and not encoder.allows_missing
    rows = encoder.missing_rows(frame)
    with pytest.warns(UserWarning, match=f"{rows.sum()} of 400 rows have missing cells and are left out"):
        encoded = encoder.encode(frame)
    assert len(encoded) == (~rows).sum() and not np.isnan(encoded).any()
    # cells that a duplicate determines are filled; nothing determines "size" and "half"
    assert not (rows & complete).any() and rows[frame[["size", "half"]].isna().any(axis=1)].all()
    assert rows.sum() < (~complete).sum()


def test_encoding_refuses_by_name():
    frame = mixed_frame()
    encoder, _ = fitted(frame)
    wrong = frame.astype({"colour": object})
    wrong.loc[2, "colour"] = "mauve"
    with pytest.raises(
        ValueError, match=r"column 'colour' holds 'mauve', which was not in the training table \(row 3\)"
    ):
        encoder.encode(wrong)
    with pytest.raises(ValueError, match="must have the columns of the training table; missing: 'count', 'half'"):
        encoder.encode(frame.drop(columns=["count", "half", "year", "copy"]))
    with pytest.warns(UserWarning, match=r"1 column\(s\) were not in the training table: 'more'; left out"):
        encoded = encoder.encode(frame.assign(more=1))
    np.testing.assert_array_equal(encoded, encoder.encode(frame))
    with pytest.raises(TypeError, match="column 'length' must hold numbers, as in the training table, got 'long'"):
        encoder.encode(frame.assign(length="long"))
    with pytest.raises(
        ValueError, match=r"column 'count' holds 1\.5 in row 1, and the training table had whole numbers"
    ):
        encoder.encode(frame.assign(count=1.5))
    with pytest.raises(ValueError, match=r"1 missing cell.* row 5, column 'length'.*missing='drop'.*missing='model'"):
        encoder.encode(frame.assign(length=frame["length"].where(frame.index != 4)).drop(columns=["copy", "total"]))
    filled = encoder.encode(frame.assign(length=frame["length"].where(frame.index != 4)))
    np.testing.assert_array_equal(filled, encoder.encode(frame))
    with pytest.raises(TypeError, match="`seed`"):
        encoder.encode(frame, seed="a")
    with pytest.raises(ValueError, match=r"`values` must have shape \[rows, 7\], got \(3, 2\)"):
        encoder.decode(np.ones([3, 2]))
    with pytest.raises(TypeError, match="`values` must be numbers"):
        encoder.decode([["a"] * 7])
    with pytest.raises(
        ValueError, match="`values` must be finite or NaN: 1 are infinite, the first in row 2, column 'rat"
    ):
        encoder.decode([[0.0] * 7, [0.0, 0.0, np.inf, 0.0, 0.0, 0.0, 0.0]])
    # a rating that was not in the training table is encoded as it is: its probability is 0
    assert encoder.encode(frame.assign(rating=11))[0, 2] == 11


def test_unknown_rows_are_those_that_encode_refuses():
    frame = pandas.DataFrame({"n": np.arange(100), "c": ["x", "y"] * 50, "unit": ["m"] * 100})
    encoder = TableEncoder.fit(frame)
    assert not encoder.unknown_rows(frame).any()
    tested = frame[:5].astype({"n": float}).assign(c=["x", "z", "y", None, "y"])
    tested.loc[2, "n"], tested.loc[4, "unit"] = 1.5, "km"  # a constant is not encoded
    assert encoder.unknown_rows(tested).tolist() == [False, True, True, False, False]
    encoder.encode(tested.iloc[[0, 4]])
    for row in (1, 2):
        with pytest.raises(ValueError, match="column"):
            encoder.encode(tested.iloc[[row]])


def test_violations_are_counted():
    frame = mixed_frame()
    encoder, _ = fitted(frame)
    assert not encoder.violations(frame).any()
    wrong = frame.copy()
    wrong.loc[0, "year"] = 2023
    wrong.loc[1, "copy"] += 0.01
    wrong.loc[2, "total"] += 0.01
    wrong.loc[3, "not smoker"] = wrong.loc[3, "smoker"]
    wrong.loc[4, "colour again"] = "red" if frame["colour"][4] != "red" else "blue"
    wrong.loc[5, "total"] += 1e-9
    assert np.flatnonzero(encoder.violations(wrong)).tolist() == [0, 1, 2, 3, 4]


def test_names_that_are_numbers():
    frame = pandas.DataFrame(np.random.default_rng(0).normal(size=[10, 3]))
    encoder, _ = fitted(frame)
    assert encoder.names == ("0", "1", "2")
    pandas.testing.assert_frame_equal(
        encoder.decode(encoder.encode(frame)), frame.set_axis(list(frame.columns), axis=1)
    )


def test_combinations_are_exact_or_none():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[300, 4])
    y = x @ [1.0, -2.0, 0.0, 1 / 3] + 5
    named = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "d": x[:, 3], "y": y}
    found = dependence.find_combinations(named)
    assert list(found) == ["y"]
    np.testing.assert_allclose([weight for _, weight in found["y"].sources], [1, -2, 1 / 3], rtol=1e-9)
    assert [name for name, _ in found["y"].sources] == ["a", "b", "d"]
    noise = rng.normal(size=300) * y.std()
    assert dependence.find_combinations({**named, "y": y + 1e-5 * noise}) == {}
    assert list(dependence.find_combinations({**named, "y": y + 3e-7 * noise})) == ["y"]
    assert dependence.find_combinations(named, frozenset({"y"})) == {}
    # scales and offsets do not matter, nor a number of 10³⁰; an outlier that two columns share is no dependence
    assert list(dependence.find_combinations({**named, "d": 1e-20 * x[:, 3] + 1, "y": 1e20 * y}))[:1] == []
    assert list(dependence.find_combinations({**named, "b": 1e150 * x[:, 1], "y": x[:, 0] - 2 * x[:, 1]})) == ["y"]
    far = x.copy()
    far[7, :] = 1e30
    assert dependence.find_combinations({"a": far[:, 0], "b": far[:, 1], "c": far[:, 2]}) == {}
    # few rows determine everything
    few = rng.normal(size=[5, 4])
    assert dependence.find_combinations({str(i): few[:, i] for i in range(4)}) == {}
    # one-hot columns add up to one
    hot = np.eye(3)[rng.integers(0, 3, 200)]
    assert list(dependence.find_combinations({str(i): hot[:, i] for i in range(3)})) == ["2"]


def test_a_planted_tolerance_is_seen(monkeypatch):
    """The control of the test above: with a tolerance of 10⁻³ noise of 10⁻⁵ passes for rounding."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=[300, 2])
    named = {"a": x[:, 0], "b": x[:, 0] + 1e-5 * x[:, 1]}
    assert dependence.find_combinations(named) == {}
    monkeypatch.setattr(dependence, "_TOLERANCE", 1e-3)
    assert list(dependence.find_combinations(named)) == ["b"]


def test_planted_faults_of_codes_are_seen(monkeypatch):
    frame = pandas.DataFrame({"a": ["x", "y", "y", "x"], "b": [1.5, 2.5, 0.5, 1.0]})
    encoder, _ = fitted(frame)
    other = pandas.DataFrame({"a": ["y", "x"], "b": [1.0, 2.0]})  # another order of first appearance
    assert encoder.encode(other)[:, 0].tolist() == [1, 0]
    monkeypatch.setattr(columns, "recoded", lambda column, content: content.values)  # planted: codes of its own
    assert encoder.encode(other)[:, 0].tolist() == [0, 1]


def test_documented_names():
    assert set(kinds.DISCRETE) < set(kinds.KINDS)
    np.testing.assert_array_equal(coding.nearest(np.array([1.0]), np.array([-5.0, np.nan])), [1.0, np.nan])


def test_numbers_that_were_rounded_are_ratings():
    """100 values of two digits, each in 50 rows; in 49 rows they are continuous."""
    values = np.tile(np.arange(100) / 10.0 + 0.05, 50)
    assert TableEncoder.fit(pandas.DataFrame({"a": values})).columns[0].kind == "rating"
    assert TableEncoder.fit(pandas.DataFrame({"a": values[100:]})).columns[0].kind == "continuous"
