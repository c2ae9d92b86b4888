"""Tables of text, truth values and missing cells, as `load_table(mixed=True)` and `load_frame` read them."""
# ruff: noqa: E501

import re
import warnings

import numpy as np
import pandas
import pytest

from tfp_ebm import datasets
from tfp_ebm.datasets import loading

NA = None


def read(tmp_path, name, content, reader=datasets.load_table, **options):
    """The frame of a file, and the messages of all warnings."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = {"mixed": True, **options} if reader is datasets.load_table else options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = reader(path, **options)
    return frame, [str(warning.message) for warning in caught]


# habit: (file name, content, {column: (dtype, cells)}, words of the warning)
READ = {
    "text and numbers": (
        "x.csv", "colour,size\nred,1.5\nblue,2.5\n", {"colour": ("str", ["red", "blue"]), "size": ("float64", [1.5, 2.5])}, None,
    ),
    "truth values": (
        "x.csv",
        "a,b,c\ntrue,TRUE,yes\nfalse,FALSE,no\nfalse,TRUE,no\n",
        {"a": ("bool", [True, False, False]), "b": ("bool", [True, False, True]), "c": ("str", ["yes", "no", "no"])},
        None,
    ),
    "missing cells": (
        "x.csv",
        "a,b,c,d\n1,1.5,true,red\nNA,,?,null\n3,2.5,false,#N/A\n",
        {
            "a": ("Int64", [1, NA, 3]),
            "b": ("float64", [1.5, NA, 2.5]),
            "c": ("boolean", [True, NA, False]),
            "d": ("str", ["red", NA, NA]),
        },
        None,
    ),
    "decimal commas": (
        "x.csv", "a;b\n1,5;red\n1.234,25;blue\n;red\n", {"a": ("float64", [1.5, 1234.25, NA]), "b": ("str", ["red", "blue", "red"])}, None,
    ),
    "no header": (
        "x.csv", "red,1.5\nblue,2.5\nred,0.5\n", {"column 1": ("str", ["red", "blue", "red"]), "column 2": ("float64", [1.5, 2.5, 0.5])}, None,
    ),
    "text alone": ("x.csv", "a,b\nx,p\ny,q\nx,q\n", {"a": ("str", ["x", "y", "x"]), "b": ("str", ["p", "q", "q"])}, None),
    "text alone without a header": (
        "x.csv",
        "x,p\ny,q\nx,q\ny,p\n",
        {"column 1": ("str", ["x", "y", "x", "y"]), "column 2": ("str", ["p", "q", "q", "p"])},
        "line 1 .* is read as a row, but may be the header.*header=0",
    ),
    "a name that is a label too": (
        "x.csv", "x,b\ny,q\nx,q\n", {"x": ("str", ["y", "x"]), "b": ("str", ["q", "q"])}, "read as the header, but.*header=None",
    ),
    "years as names beside labels": (
        "x.csv",
        "name,2019,2020\nx,1.5,2\ny,2.5,3\nx,1,2.5\ny,2,1\n",
        {"name": ("str", ["x", "y", "x", "y"]), "2019": ("float64", [1.5, 2.5, 1, 2]), "2020": ("float64", [2, 3, 2.5, 1])},
        "taken as the header, although it holds numbers.*header=None",
    ),
    "a last row of a label and missing cells": (
        "x.csv", "a,b\nn,1.5\nx,2.5\nx,\nx,3\nx,1\nx,2\nn,\n",
        {"a": ("str", ["n", "x", "x", "x", "x", "x", "n"]), "b": ("float64", [1.5, 2.5, NA, 3, 1, 2, NA])}, None,
    ),
    "a footer below labels": (
        "x.csv", "a,b\nx,1.5\ny,2.5\nx,2\nTotal,6\n", {"a": ("str", ["x", "y", "x"]), "b": ("float64", [1.5, 2.5, 2])}, "line 5 .* is a footer",
    ),
    "units above numbers, beside labels": (
        "x.csv", "a,b\n,cm\nx,1.5\ny,2.5\n", {"a": ("str", ["x", "y"]), "b": ("float64", [1.5, 2.5])}, "line 2 .* is taken as units",
    ),
    "a marker that may be a label": (
        "x.csv", "a,b\nnone,1.5\nfish,2.5\nfish,2\n", {"a": ("str", [NA, "fish", "fish"]), "b": ("float64", [1.5, 2.5, 2])},
        "'a': 'none' is read as a missing cell.*keep_default_na=False",
    ),
    "a number for missing cells beside missing ones": (
        "x.csv", "a,b\n1.5,x\n-999,y\n,x\n-999,y\n2.5,x\n", {"a": ("float64", [1.5, -999, NA, -999, 2.5]), "b": ("str", list("xyxyx"))},
        r"'a' holds -999 2 times.*na_values=\[-999\]",
    ),
    "a column that counts the rows beside missing cells": (
        "x.csv", "id,b\n1,.5\n2,\n3,7.5\n4,1\n5,1\n", {"id": ("int64", [1, 2, 3, 4, 5]), "b": ("float64", [0.5, NA, 7.5, 1, 1])},
        "column 'id' counts the rows",
    ),
    "columns that determine each other": (
        "x.csv", "a,b\n1,2\n2,4\n5,10\n", {"a": ("int64", [1, 2, 5]), "b": ("int64", [2, 4, 10])}, None,
    ),
    "an empty column": ("x.csv", "a,b,c\n1.5,,x\n2.5,,y\n", {"a": ("float64", [1.5, 2.5]), "b": ("float64", [NA, NA]), "c": ("str", ["x", "y"])}, None),
    "codes of letters and numbers": (
        "x.csv", "a,b\nA1,1.5\n7,2.5\nB2,2\n", {"a": ("str", ["A1", "7", "B2"]), "b": ("float64", [1.5, 2.5, 2])}, None,
    ),
    "json": (
        "x.json", '[{"a": "x", "b": true, "c": 1}, {"a": null, "b": null, "c": null}, {"a": "y", "b": false, "c": 2.5}]',
        {"a": ("str", ["x", NA, "y"]), "b": ("boolean", [True, NA, False]), "c": ("float64", [1, NA, 2.5])}, None,
    ),
}  # fmt: skip


def assert_frame(frame, expected):
    expected = pandas.DataFrame({name: pandas.Series(cells, dtype=dtype) for name, (dtype, cells) in expected.items()})
    pandas.testing.assert_frame_equal(frame, expected, check_index_type=False)


@pytest.mark.parametrize("habit", READ)
def test_mixed_habits_are_read(habit, tmp_path):
    name, content, expected, warning = READ[habit]
    frame, messages = read(tmp_path, name, content)
    assert_frame(frame, expected)
    assert len(messages) == (warning is not None), messages
    assert warning is None or re.search(warning, messages[0]), messages


def test_formats_with_types_keep_them(tmp_path):
    frame = pandas.DataFrame(
        {
            "size": pandas.Categorical(["S", None, "M"], categories=["S", "M", "L"], ordered=True),
            "truth": pandas.array([True, None, False], "boolean"),
            "count": pandas.array([1, None, 3], "Int64"),
            "float": np.float32([1.5, np.nan, 2.5]),
            "text": ["a", None, "b"],
        }
    )
    for name, method in (("x.parquet", "to_parquet"), ("x.feather", "to_feather")):
        getattr(frame, method)(tmp_path / name)
        pandas.testing.assert_frame_equal(datasets.load_table(tmp_path / name, mixed=True), frame)
    frame.to_excel(tmp_path / "x.xlsx", index=False)
    sheet = datasets.load_table(tmp_path / "x.xlsx", mixed=True)
    expected = frame.drop(index=1).reset_index(drop=True)  # a blank row
    expected = expected.astype({"size": "str", "float": "float64", "truth": "bool", "count": "int64"})
    pandas.testing.assert_frame_equal(sheet, expected)
    fields = np.array([("x", True, 1.5), ("y", False, 2.5)], [("a", "U3"), ("b", "?"), ("c", ">f4")])
    np.save(tmp_path / "x.npy", fields)
    loaded = datasets.load_table(tmp_path / "x.npy", mixed=True)
    assert loaded["a"].tolist() == ["x", "y"] and loaded["b"].dtype == bool and loaded["c"].tolist() == [1.5, 2.5]


def test_options_of_pandas_hold(tmp_path):
    content = "a;b;c\n1,5;none;1\n2,5;fish;2\n;fish;3+\n"
    frame, messages = read(
        tmp_path, "x.csv", content, decimal=",", dtype={"c": "str"}, keep_default_na=False, na_values=[""]
    )
    assert_frame(
        frame,
        {"a": ("float64", [1.5, 2.5, NA]), "b": ("str", ["none", "fish", "fish"]), "c": ("str", ["1", "2", "3+"])},
    )
    assert messages == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "a,b\n1,2\n3,x y\n5,6\n", "1 cell.* of column 'b' do not, the first in line 3 .'x y'.*dtype={'b': 'str'}"),
        ("x.csv", "a,b\n2024-01-01,x\n2024-01-02,y\n", "column 'a' holds dates or times.*days or seconds"),
        ("x.csv", "a,b\n1.5,x\ninf,y\n", "must hold finite numbers: 1 cell.* 'a' do not, the first in line 3"),
        ("x.csv", "a,b\n1,x\n3,y,z\n5,x\n", "ragged: line 3 has 3"),
        ("x.csv", "a,b\n", "has a header but no rows"),
        ("x.csv", "a,b\n$5,x\n6,y\n", "'a' mixes units"),
        ("x.json", '[{"a": "2024-01-01"}, {"a": "2024-01-02"}]', "column 'a' holds dates or times"),
        ("x.json", '[{"a": 1}, {"a": 2}, {"a": "x"}]', "1 cell.* of column 'a' do not, the first in row 3"),
        ("x.json", '[{"a": "1"}, {"a": "2"}, {"a": "x"}]', "1 cell.* of column 'a' do not, the first in row 3"),
    ],
)  # fmt: skip
def test_what_is_no_mixed_table_is_refused(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, name, content)


@pytest.mark.parametrize("content", ["a,b\n1,x\n2,y\n", "a,b\n1,true\n2,false\n", "a,b\n1,2\n2,\n"])
def test_number_tables_name_the_cure(tmp_path, content):
    for reader in (lambda path: datasets.load_table(path), datasets.load):
        with pytest.raises(ValueError, match=r"`load_table\(path, mixed=True\)` reads such tables, and `TableEncoder`"):
            read(tmp_path, "x.csv", content, reader=reader)
    with pytest.raises(TypeError, match="`mixed` must be True or False, got 'yes'"):
        read(tmp_path, "x.csv", content, mixed="yes")


def test_frames_for_the_command_line(tmp_path):
    load_frame = loading.load_frame
    moons = load_frame("two_moons", n=50, seed=3)
    np.testing.assert_array_equal(moons.to_numpy(), datasets.two_moons(50, seed=3))
    assert list(moons.columns) == ["column 1", "column 2"]
    assert load_frame("digits").shape == (1797, 64)
    x = np.float32([[1.5, np.nan], [2.5, 0.25], [0.5, 1.0]])
    np.save(tmp_path / "x.npy", x)
    frame = load_frame(tmp_path / "x.npy")
    np.testing.assert_array_equal(frame.to_numpy(), x)
    assert list(frame.columns) == ["column 1", "column 2"] and set(frame.dtypes) == {np.dtype("float32")}
    np.savez(tmp_path / "x.npz", a=x, b=np.ones([3, 2, 2]))
    np.testing.assert_array_equal(load_frame(tmp_path / "x.npz", key="a").to_numpy(), x)
    with pytest.raises(ValueError, match=r"must have shape \[rows, columns\], got \(3, 2, 2\); `datasets.load` reads"):
        load_frame(tmp_path / "x.npz", key="b")
    frame, messages = read(tmp_path, "x.csv", "a:b\nx:1\ny:2\n", reader=load_frame, delimiter=":")
    assert_frame(frame, {"a": ("str", ["x", "y"]), "b": ("int64", [1, 2])})
    frame, messages = read(tmp_path, "x.csv", "a;b\nx;1,234\ny;2\n", reader=load_frame, decimal=",")
    assert frame["b"].tolist() == [1.234, 2] and messages == []
    with pytest.raises(FileNotFoundError, match="neither a file nor a known name"):
        load_frame("three_moons")
    with pytest.raises(TypeError, match="`path_or_name` must be a name or a path"):
        load_frame(x)
    with pytest.raises(ValueError, match="`key` is for files, got key='a' with 'two_moons'"):
        load_frame("two_moons", key="a")
    with pytest.raises(ValueError, match=r"`delimiter` is not for \.npy files"):
        load_frame(tmp_path / "x.npy", delimiter=",")
    with pytest.raises(ValueError, match=r"`key` is for \.npz and \.zip files"):
        load_frame(tmp_path / "x.csv", key="a")
