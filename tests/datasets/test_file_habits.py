"""Habits of table files, one by one: the frame read from each, or the error that names the fault and the cure.

The table below is the specification. Each entry is a file as bytes, then the expected names and numbers, or the words
of the error; then the words of the one warning, if there is one. Anything else that is warned of fails the test.
"""
# ruff: noqa: E501

import bz2
import gzip
import io
import lzma
import re
import warnings
import zipfile

import numpy as np
import pytest

from tfp_ebm import datasets
from tfp_ebm.datasets import tables

AB = {"a": [1.5, 2.5, -3.25], "b": [-0.002, 700.0, 0.0]}
PLAIN = b"a,b\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n"
UNNAMED = {"column 1": AB["a"], "column 2": AB["b"]}
THOUSANDS = {"a": [1234.5, 1000000.0, 12.0], "b": [1.0, 2.0, 4.0]}


def npy(array, **save):
    buffer = io.BytesIO()
    np.save(buffer, array, **save)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def by_pandas(method, frame, **options):
    import pandas

    buffer = io.BytesIO()
    getattr(pandas.DataFrame(frame), method)(buffer, **options)
    return buffer.getvalue()


def sheet(*rows, name="Sheet1", more=()):
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = name
    for row in rows:
        book.active.append(row)
    for other in more:
        book.create_sheet(other)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


ARRAY = np.stack([AB["a"], AB["b"]], -1)

# habit: (file name, content, expected frame, words of the warning)
READ = {
    # --- right before, and still
    "plain": ("x.csv", PLAIN, AB, None),
    "no header, no last line end": ("x.csv", b"1.5,-2e-3\n2.5,7e2\n-3.25,0", UNNAMED, None),
    "quoted numbers": ("x.csv", b'"a","b"\n"1.5","-2e-3"\n2.5,"7e2"\n-3.25,0\n', AB, None),
    "quoted header with commas": (
        "x.csv",
        b'"height, cm","b ""x"""\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n',
        {"height, cm": AB["a"], 'b "x"': AB["b"]},
        None,
    ),
    "header over two lines": (
        "x.csv", b'"two\nlines",b\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n', {"two lines": AB["a"], "b": AB["b"]}, None,
    ),
    "CR": ("x.csv", PLAIN.replace(b"\n", b"\r"), AB, None),
    "CRLF": ("x.csv", PLAIN.replace(b"\n", b"\r\n"), AB, None),
    "byte order mark": ("x.csv", b"\xef\xbb\xbf" + PLAIN, AB, None),
    "space after comma": ("x.csv", PLAIN.replace(b",", b", "), AB, None),
    "number sign before the header": ("x.csv", b"# a b\n1.5 -2e-3\n2.5 7e2\n-3.25 0\n", AB, None),
    "numbers as commented header": (
        "x.csv", b"# 1,2\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n", {"1": AB["a"], "2": AB["b"]}, None,
    ),
    "big-endian": ("x.npy", npy(ARRAY.astype(">f8")), UNNAMED, None),
    "Fortran order": ("x.npy", npy(np.asfortranarray(ARRAY)), UNNAMED, None),
    "float16": ("x.npy", npy(np.float16([[1, 2], [3, 5]])), {"column 1": [1, 3], "column 2": [2, 5]}, None),
    "long double": ("x.npy", npy(ARRAY.astype(np.longdouble)), UNNAMED, None),
    "truth values as an array": ("x.npy", npy(np.array([[True, False], [False, False], [True, True]])),
                                 {"column 1": [1, 0, 1], "column 2": [0, 0, 1]}, None),
    "int8": ("x.npy", npy(np.int8([[1, 2], [3, -5]])), {"column 1": [1, 3], "column 2": [2, -5]}, None),
    "compressed npz": ("x.npz", npz(only=ARRAY), UNNAMED, None),
    "duplicated headers": ("x.csv", b"a,a\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n", {"a": AB["a"], "a.1": AB["b"]}, None),
    "one column": ("x.csv", b"wind speed\n1\n2\n4\n", {"wind speed": [1, 2, 4]}, None),
    # --- suffixes
    "tsv": ("x.tsv", PLAIN.replace(b",", b"\t"), AB, None),
    "txt": ("x.txt", PLAIN.replace(b",", b" "), AB, None),
    "dat of aligned columns": ("x.dat", b"    a       b\n  1.5   -2e-3 \n  2.5     7e2\n-3.25       0\n", AB, None),
    "data": ("x.data", PLAIN.replace(b",", b"|"), AB, None),
    "gz": ("x.csv.gz", gzip.compress(PLAIN), AB, None),
    "gz without a suffix of its own": ("x.gz", gzip.compress(PLAIN), AB, None),
    "bz2": ("x.csv.bz2", bz2.compress(PLAIN), AB, None),
    "xz": ("x.tsv.xz", lzma.compress(PLAIN.replace(b",", b"\t")), AB, None),
    "zip": ("x.zip", zipped(x__csv=PLAIN), AB, None),
    "zip of a workbook": ("x.zip", zipped(x__xlsx=sheet(["a"], [1.5], [2])), {"a": [1.5, 2]}, None),
    "parquet": ("x.parquet", by_pandas("to_parquet", AB), AB, None),
    "parquet with nullable numbers": (
        "x.parquet", by_pandas("to_parquet", {"n": np.array([1, 2, 4], np.int32), **AB}), {"n": [1, 2, 4], **AB}, None,
    ),
    "feather": ("x.feather", by_pandas("to_feather", AB), AB, None),
    "xlsx": ("x.xlsx", sheet(["a", "b"], [1.5, -2e-3], [2.5, 700], [-3.25, 0]), AB, None),
    "xlsx of numbers with three decimals": ("x.xlsx", sheet(["a"], [1.234], [5.678]), {"a": [1.234, 5.678]}, None),
    "xlsx with a title": (
        "x.xlsx", sheet(["Lake", None], [], ["a", "b"], [1.5, -2e-3], [2.5, 700], [-3.25, 0], []), AB, None,
    ),
    "xlsx with sheets": ("x.xlsx", sheet(["a"], [1.5], [2], more=["B"]), {"a": [1.5, 2]}, "sheet_name='B'"),
    "json of records": ("x.json", b'[{"a": 1.5, "b": -0.002}, {"a": 2.5, "b": 700}, {"a": -3.25, "b": 0}]', AB, None),
    "json of columns": ("x.json", b'{"a": [1.5, 2.5, -3.25], "b": [-0.002, 700, 0]}', AB, None),
    "json lines": ("x.json", b'{"a": 1.5, "b": -0.002}\n{"a": 2.5, "b": 700}\n{"a": -3.25, "b": 0}\n', AB, None),
    "json lines of the other suffix": ("x.ndjson", b'{"a": 1.5}\n{"a": 2}\n', {"a": [1.5, 2]}, None),
    **{
        f"json by {layout} of pandas": ("x.json", by_pandas("to_json", AB, orient=layout), AB, None)
        for layout in ("split", "table", "index", "columns", "records")
    },
    "json by values of pandas": ("x.json", by_pandas("to_json", AB, orient="values"), {"0": AB["a"], "1": AB["b"]}, None),
    "json with numbers called dates": ("x.json", b'[{"date": 20240101}, {"date": 7}]', {"date": [20240101, 7]}, None),
    # --- notations of numbers
    "decimal comma, semicolon": ("x.csv", b"a;b\n1,5;-2e-3\n2,5;7e2\n-3,25;0\n", AB, None),
    "decimal comma, tab": ("x.tsv", b"a\tb\n1,5\t-2e-3\n2,5\t7e2\n-3,25\t0\n", AB, None),
    "decimal comma, space": ("x.txt", b"a b\n1,5 -0,002\n2,5 7e2\n-3,25 0\n", AB, None),
    "decimal comma, one column": ("x.csv", b"a\n1,5\n2,5\n", {"a": [1.5, 2.5]}, None),
    "decimal comma in quotes": ("x.csv", b'a,b\n"1,5","-0,002"\n"2,5",7e2\n"-3,25",0\n', AB, None),
    "thousands by quoted comma": ("x.csv", b'a,b\n"1,234.5",1\n"1,000,000",2\n12,4\n', THOUSANDS, None),
    "thousands by space": ("x.csv", b"a;b\n1 234,5;1\n1 000 000;2\n12;4\n", THOUSANDS, None),
    "thousands by no-break space": (
        "x.csv", "a;b\n1\u202f234,5;1\n1\u00a0000\u00a0000;2\n12;4\n".encode(), THOUSANDS, None,
    ),
    "thousands by point": ("x.csv", b"a;b\n1.234,5;1\n1.000.000;2\n12;4\n", THOUSANDS, None),
    "thousands by apostrophe": ("x.csv", b"a;b\n1'234.5;1\n1'000'000;2\n12;4\n", THOUSANDS, None),
    "a point that may stand for thousands": (
        "x.csv", b"a;b\n1.234;5\n2.500;7\n", {"a": [1.234, 2.5], "b": [5, 7]}, "thousands='.', decimal=','",
    ),
    "three decimals beside others": ("x.csv", b"a;b\n1.234;5.5\n2.500;7\n", {"a": [1.234, 2.5], "b": [5.5, 7]}, None),
    "a comma that may stand for thousands": (
        "x.csv", b"a;b\n1,234;5\n2,500;7\n", {"a": [1.234, 2.5], "b": [5, 7]}, "'a': '1,234' is read .* decimal mark",
    ),
    "a quoted comma that may be a decimal one": (
        "x.csv", b'a,b\n"1,234",5\n"2,500",7\n', {"a": [1234, 2500], "b": [5, 7]}, "mark of thousands.* decimal=','",
    ),
    "percent": ("x.csv", b"a,b\n5%,1\n12.5 %,2\n7%,4\n", {"a": [5, 12.5, 7], "b": [1, 2, 4]}, "12 % is read as 12"),
    "currency": ("x.csv", b'a,b\n"$1,234.50",1\n-$5,2\n$0.5,4\n', {"a": [1234.5, -5, 0.5], "b": [1, 2, 4]}, None),
    "currency behind": ("x.csv", "a;b\n1.234,50 €;1\n5 €;2\n".encode(), {"a": [1234.5, 5], "b": [1, 2]}, None),
    "Fortran exponents": ("x.dat", b"a b\n1.5D+00 -2d-3\n0.25D1 7D2\n-.325D+01 0.D0\n", AB, None),
    "typographic minus": ("x.csv", PLAIN.replace(b"-", "\u2212".encode()), AB, None),
    # --- encodings
    "UTF-16": ("x.csv", PLAIN.decode().encode("utf-16"), AB, None),
    "UTF-16 without a mark": ("x.csv", PLAIN.decode().encode("utf-16-le"), AB, None),
    "UTF-16 big-endian": ("x.csv", PLAIN.decode().encode("utf-16-be"), AB, None),
    "Latin-1": ("x.csv", "größe,b\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n".encode("latin-1"), {"größe": AB["a"], "b": AB["b"]}, None),
    "cp1252": ("x.csv", "a “x”,b\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n".encode("cp1252"), {"a “x”": AB["a"], "b": AB["b"]}, None),
    "separator line of Excel": ("x.csv", b"sep=;\r\n" + PLAIN.replace(b",", b";").replace(b"\n", b"\r\n"), AB, None),
    # --- around the table
    "comment lines": ("x.csv", b"# of 2024\n# more, of it\n" + PLAIN + b"# end\n", AB, None),
    "comment lines among the rows": ("x.csv", PLAIN.replace(b"2.5,", b"# a new day\n2.5,"), AB, None),
    "comments behind numbers": ("x.csv", PLAIN.replace(b"7e2", b"7e2 # high"), AB, None),
    "percent signs before comments": ("x.txt", b"% by Matlab\n" + PLAIN, AB, None),
    **{
        f"comments after {mark}": ("x.txt", f"{mark} by hand\n".encode() + PLAIN.replace(b",", b" "), AB, None)
        for mark in "!;*"
    },
    "title": ("x.csv", b"The lake in 2024\n" + PLAIN, AB, None),
    "codes with zeros in front": (
        "x.csv",
        b"zip,b\n01067,1.5\n10115,2.5\n00501,0.5\n",
        {"zip": [1067, 10115, 501], "b": [1.5, 2.5, 0.5]},
        r"column 'zip': '01067' is read as 1067.*dtype=\{'zip': 'str'\}",
    ),
    "a name missing in the header": ("x.csv", PLAIN.replace(b"a,b", b"a,", 1), {"a": AB["a"], "column 2": AB["b"]}, None),
    "lines that begin and end with a delimiter": (
        "x.txt",
        b"".join(b"|" + line.replace(b",", b"|") + b"|\n" for line in PLAIN.splitlines()),
        AB,
        None,
    ),
    "title and blank lines": ("x.csv", b"The lake\n\n\n" + PLAIN + b"\n\n", AB, None),
    "title of a spreadsheet": ("x.csv", b"The lake,\n,\n" + PLAIN + b",\n,\n", AB, None),
    "trailing delimiter": ("x.csv", PLAIN.replace(b"\n", b",\n"), AB, None),
    "trailing delimiter of rows alone": ("x.csv", b"a,b\n1.5,-2e-3,\n2.5,7e2,\n-3.25,0,\n", AB, None),
    "index of pandas": ("x.csv", b",a,b\n0,1.5,-2e-3\n1,2.5,7e2\n2,-3.25,0\n", AB, "first column has no name"),
    "index of R": ("x.txt", b'"a" "b"\n"1" 1.5 -2e-3\n"2" 2.5 7e2\n"3" -3.25 0\n', AB, "first column has no name"),
    "names of rows": ("x.csv", b",a,b\nx,1.5,-2e-3\ny,2.5,7e2\nz,-3.25,0\n", AB, "first column has no name"),
    "names of rows by R": ("x.csv", b"a,b\nx,1.5,-2e-3\ny,2.5,7e2\nz,-3.25,0\n", AB, "first column has no name"),
    "numbers in a column without a name": (
        "x.csv", b",b\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n", {"column 1": AB["a"], "b": AB["b"]}, None,
    ),
    "a column that counts the rows": (
        "x.csv",
        b"id,b\n1,.5\n2,.25\n3,7.5\n4,1\n5,1\n6,0\n",
        {"id": [1, 2, 3, 4, 5, 6], "b": [0.5, 0.25, 7.5, 1, 1, 0]},
        r"column 'id' counts the rows.*usecols=\['b'\]",
    ),
    "units": ("x.csv", b"a,b\nm/s,kg\n1.5,-2e-3\n2.5,7e2\n-3.25,0\n", AB, "line 2 .* is taken as units"),
    "single quotes": ("x.csv", b"'a','b'\n'1.5','-2e-3'\n'2.5','7e2'\n'-3.25','0'\n", AB, None),
    "footer": ("x.csv", PLAIN + b"Total,700\n", AB, "line 5 .* is a footer"),
    "footer of one cell": ("x.csv", PLAIN + b"\nSource: the lake\n", AB, "line 6 .* is a footer"),
    # --- headers
    "years as names": (
        "x.csv", b"id,2019\n1.5,2\n2.5,7\n", {"id": [1.5, 2.5], "2019": [2, 7]}, "taken as the header.*header=None",
    ),
    "numbers as names": (
        "x.csv",
        b"0,1,2\n.5,.25,7.5\n1.5,.5,8\n2,1,9.5\n",
        {"column 1": [0, 0.5, 1.5, 2], "column 2": [1, 0.25, 0.5, 1], "column 3": [2, 7.5, 8, 9.5]},
        "line 1 .* may be the header.*header=0",
    ),
    "whole numbers below their names": (
        "x.csv",
        b"0,1,2\n5,2,7\n1,5,8\n2,1,9\n",
        {"column 1": [0, 5, 1, 2], "column 2": [1, 2, 5, 1], "column 3": [2, 7, 8, 9]},
        "line 1 .* may be the header.*header=0",
    ),
    "years as names of all": (
        "x.csv",
        b"2019,2020\n.5,.25\n1.5,.5\n2,1\n",
        {"column 1": [2019, 0.5, 1.5, 2], "column 2": [2020, 0.25, 0.5, 1]},
        "line 1 .* may be the header|determine each other",  # as they do beside such a row
    ),
    # --- values
    "a number for missing cells": (
        "x.csv", b"a,b\n1.5,-2e-3\n-999,7e2\n-999,0\n2.5,3\n", {"a": [1.5, -999, -999, 2.5], "b": [-0.002, 700, 0, 3]},
        r"'a' holds -999 2 times.*na_values=\[-999\]",
    ),
    "the same number among its like": (
        "x.csv", b"a,b\n-900.5,1\n-999,7\n-999,2\n-500,3\n", {"a": [-900.5, -999, -999, -500], "b": [1, 7, 2, 3]}, None,
    ),
    "the same number once": ("x.csv", b"a,b\n1.5,1\n-999,7\n2,2\n", {"a": [1.5, -999, 2], "b": [1, 7, 2]}, None),
    "columns that determine each other": (
        "x.csv", b"a,b,c\n1,2,3.0001\n2,5,7\n3,1,4\n5,2,7\n7,7,14\n",
        {"a": [1, 2, 3, 5, 7], "b": [2, 5, 1, 2, 7], "c": [3.0001, 7, 4, 7, 14]}, "'a', 'b' determine each other|'c'",
    ),
    # --- NumPy
    "structured npy": ("x.npy", npy(np.array(list(zip(*AB.values(), strict=True)), [("a", "f8"), ("b", ">f4")])), AB, None),
    "npz of a training set": (
        "x.npz", npz(x_train=ARRAY, y_train=np.arange(3), x_test=ARRAY[:1]), UNNAMED, "the array 'x_train' is read; `key`",
    ),
    # --- sizes
    "a long field": ("x.csv", b'a,b\n1.5,"' + b" " * 200_000 + b'-2e-3"\n2.5,7e2\n-3.25,0\n', AB, None),
    "20 000 columns": (
        "x.csv",
        (",".join(f"c{i}" for i in range(20_000)) + "\n" + (",".join(["0.5"] * 20_000) + "\n") * 2).encode(),
        {f"c{i}": [0.5, 0.5] for i in range(20_000)},
        None,
    ),
}  # fmt: skip


def read(tmp_path, name, content, **options):
    """The frame of a file, and the messages of all warnings."""
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = datasets.load_table(path, **options)
    return frame, [str(warning.message) for warning in caught]


def assert_frame(frame, expected):
    assert list(frame.columns) == list(expected)
    values = frame.to_numpy().astype(float)
    np.testing.assert_allclose(values, np.stack(list(expected.values()), -1), rtol=1e-7, atol=0)


@pytest.mark.parametrize("habit", READ)
def test_habits_that_are_read(habit, tmp_path):
    name, content, expected, warning = READ[habit]
    frame, messages = read(tmp_path, name, content)
    assert_frame(frame, expected)
    assert (messages == []) == (warning is None), messages
    assert len(messages) <= (2 if warning and "|" in warning else 1)
    assert all(re.search(warning, message) for message in messages), messages


# habit: (file name, content, words of the error)
REFUSED = {
    "empty": ("x.csv", b"", "is empty"),
    "blank": ("x.csv", b"\xef\xbb\xbf\r\n \n", "is empty"),
    "header alone": ("x.csv", b"a,b\n\n", "has a header but no rows"),
    "ragged": ("x.csv", b"a,b\n1,2\n3,4,5\n6,7\n", "ragged: line 3 has 3 cell.*line 2 has 2"),
    "header too long": ("x.csv", b"a,b\n1\n2\n", "ragged"),
    "header too short": ("x.csv", b"a,b\n1,2,3\n4,5,6\n", "ragged: line 1 has 2"),
    "word": ("x.csv", b"a,b\n1,2\n3,x y\n5,6\n", "1 cell.* of column 'b' do not, the first in line 3 .'x y'"),
    "repeated word": ("x.csv", b"a,b\n1,2\n3,low\n5,low\n", r"2 cell.* line 3 .*na_values=\['low'\]"),
    "word below a quoted line end": ("x.csv", b'"a\nz",b\n1,2\n3,oops\n', "line 4 .'oops'"),
    "underscore": ("x.csv", b"1,2\n3,1_000\n4,5\n", "line 2 .'1_000'"),
    "number in parentheses": ("x.csv", b"a,b\n(5.5),1\n7,2\n8,3\n", "1 cell.* of column 'a' do not, the first in line 2"),
    "minus behind": ("x.csv", b"a,b\n1.5-,kg\n7,2\n8,3\n", "the first in line 2"),
    "infinity": ("x.csv", b"1,2\n-inf,4\n", "finite numbers: 1 cell.* of column 'column 1' do not, the first in line 2"),
    "digits without end": ("x.csv", b'1,2\n3,"' + b"4" * 200_000 + b'"\n', "finite numbers.*line 2 .'4444"),
    **{
        f"a whole number of {digits} digits in the first row": (  # Python's int neither fits a float nor is always read
            "x.csv", b"9" * digits + b",1\n1.5,2\n2.5,3\n3.5,4\n", "finite numbers.*line 1 .'9999",
        )
        for digits in (400, 5000)
    },
    "a code without end": ("x.csv", b"a,b\n1,2\n3," + b"0" * 5000 + b"\nx,4\n", "column 'a'"),
    "a name without end": ("x.csv", b"n" * 3000 + b",b\nx,2\ny,3\nx,5\n", "^.{20,700}$"),
    **{
        f"missing as {cell!r}": (
            "x.csv", f"a,b\n1,2\n3,{cell}\n5,6\n{cell},{cell}\n".encode(),
            "3 missing cell.* in 2 of 4 rows: 2 in 'b', 1 in 'a'; the first in line 3, column 'b'.*Fill them in",
        )
        for cell in ("NA", "NaN", "null", "#N/A", "?", "-", ".", "n/a", "None", "n.a.", "NaT", "(null)", "-1.#IND", "\\N")
    },
    "missing as nothing": ("x.csv", b"a,b\n1,2\n3,\n5,6\n", "1 missing cell.* the first in line 3, column 'b'"),
    "missing under a tab": ("x.tsv", b"a\tb\n1\t2\n\t4\n", "line 3, column 'a'"),
    "missing at the end of a short workbook": ("x.xlsx", sheet(["a", "b"], [1, 2], [3, None]), "line 3, column 'b'"),
    "missing in parquet": ("x.parquet", by_pandas("to_parquet", {"a": [1.0, np.nan]}), "1 missing cell.* row 2"),
    "missing in json": ("x.json", b'[{"a": 1}, {"b": 2}]', "2 missing cell"),
    "missing text after a footer-like word": ("x.csv", b"a,b\n1,2\nTotal,NA\n3,4\n", "must hold numbers.*line 3 .'Total'"),
    "truth values": ("x.csv", b"a,b\n1,True\n3,False\n", "column 'b' holds truth values.*write 0 and 1"),
    "yes and no": ("x.csv", b"a,b\n1,yes\n3,no\n", "column 'b' holds truth values"),
    "truth values in parquet": ("x.parquet", by_pandas("to_parquet", {"a": [True, False]}), "'a' holds truth values"),
    "truth values in a workbook": ("x.xlsx", sheet(["a", "b"], [1, True], [2, False]), "'b' holds truth values"),
    "categories": ("x.csv", b"a,b\n1,red\n3,blue\n4,red\n", "column 'b' holds 2 categories .'red', 'blue'"),
    "categories in feather": ("x.feather", by_pandas("to_feather", {"a": ["x", "y"]}), "'a' holds 2 categories"),
    "dates": ("x.csv", b"t,a\n2024-01-01,1\n2024-01-02,2\n", "column 't' holds dates.*write them as numbers, such as days"),
    "times": ("x.csv", b"t,a\n12:30,1\n13:00,2\n", "column 't' holds dates or times"),
    "German dates": ("x.csv", b"t;a\n01.02.2024;1,5\n02.02.2024;2\n", "column 't' holds dates"),
    "dates in parquet": (
        "x.parquet", by_pandas("to_parquet", {"t": np.array(["2024-01-01", "2024-01-02"], "M8[ns]")}), "'t' holds dates",
    ),
    "dates in a workbook": (
        "x.xlsx", sheet(["t"], [np.datetime64("2024-01-01").item()], [np.datetime64("2024-01-02").item()]), "'t' holds dates",
    ),
    "mixed decimal marks": ("x.csv", b"a;b\n1,5;2\n2.5;3\n", "mixes decimal points and decimal commas.*'2.5' and '1,5'"),
    "marks that could be either": ("x.csv", b"a;b\n1,234;2.345\n2,500;3.456\n", "is ambiguous.*decimal='.', thousands=','"),
    "mixed currencies": ("x.csv", "a,b\n$5,1\n€6,2\n".encode(), "'a' mixes units"),
    "percent now and then": ("x.csv", b"a,b\n5%,1\n6,2\n", "'a' mixes units: of its numbers, 1 with '%', 1 without"),
    "bytes that are no text": ("x.csv", bytes(range(256)) * 20, "is not a text file"),
    "pickles": ("x.npy", npy(np.array([{}, 1], object), allow_pickle=True), "array of Python objects"),
    "complex": ("x.npy", npy(np.ones([3, 2], complex)), "must hold real numbers"),
    "strings": ("x.npy", npy(np.array([["a", "b"]])), "must hold real numbers"),
    "one axis": ("x.npy", npy(np.arange(5.0)), r"must have shape \[rows, columns\], got \(5,\)"),
    "truncated npy": ("x.npy", npy(ARRAY)[:-3], "it may be truncated"),
    "truncated gz": ("x.csv.gz", gzip.compress(PLAIN)[:-9], "it may be truncated"),
    "zip of a file without a name": ("x.zip", zipped(x__csv=PLAIN).replace(b"x.csv", b"\0.csv"), "`key` must name one"),
    "text of no characters": (
        "x.npy",
        npy(np.array([(1.0, 0x20202020), (2.0, 65)], [("a", "<f4"), ("b", "<u4")]).view([("a", "<f4"), ("b", "<U1")])),
        "'b' must hold text, but U\\+20202020 is no character of Unicode",
    ),
    "bytes that are not ASCII": (
        "x.npy",
        npy(np.array([(1.0, b"\xf8"), (2.0, b"b")], [("a", "<f4"), ("b", "S1")])),
        "'b' must hold ASCII text",
    ),
    "truncated zip": ("x.zip", zipped(x__csv=PLAIN)[:-9], "it may be truncated"),
    "truncated parquet": ("x.parquet", by_pandas("to_parquet", AB)[:-9], "cannot be read"),
    "truncated workbook": ("x.xlsx", sheet(["a"], [1], [2])[:-90], "cannot be read"),
    "damaged json": ("x.json", b'[{"a": 1,', "cannot be read"),
    "zip of two files": ("x.zip", zipped(a__csv=PLAIN, b__csv=PLAIN), "`key` must name one of .* 'a.csv', 'b.csv'"),
    "npz of two arrays": ("x.npz", npz(a=ARRAY, b=ARRAY), "`key` must be one of 'a', 'b'"),
    "unknown kind": ("x.doc", b"1,2", r"one of the kinds \.csv.*got '\.doc'"),
    "fields of several numbers": ("x.npy", npy(np.zeros(3, [("a", "f8", 2)])), "the field 'a' must hold one number"),
}  # fmt: skip


@pytest.mark.parametrize("habit", REFUSED)
def test_habits_that_are_refused_by_name(habit, tmp_path):
    name, content, words = REFUSED[habit]
    with pytest.raises((ValueError, TypeError), match=words) as error:
        read(tmp_path, name, content)
    assert len(str(error.value)) < 600 and f"`{tmp_path / name}`" in str(error.value)


# options: (file name, content, options, expected frame)
OPTIONS = {
    "thousands": ("x.csv", b"a;b\n1.234;5\n2.500;7\n", {"thousands": ".", "decimal": ","}, {"a": [1234, 2500], "b": [5, 7]}),
    "decimal": ("x.csv", b"a;b\n1,234;5\n2,500;7\n", {"decimal": ","}, {"a": [1.234, 2.5], "b": [5, 7]}),
    "header": ("x.csv", b"0,1,2\n.5,.25,7.5\n1.5,.5,8\n2,1,9\n", {"header": 0},
               {"0": [0.5, 1.5, 2], "1": [0.25, 0.5, 1], "2": [7.5, 8, 9]}),
    "no header": ("x.csv", b"1,2\n3,4.5\n", {"header": None}, {"column 1": [1, 3], "column 2": [2, 4.5]}),
    "separator": ("x.csv", b"a:b\n1:2\n3:4\n", {"sep": ":"}, {"a": [1, 3], "b": [2, 4]}),
    "escaped separator": ("x.csv", b"a\tb\n1\t2\n3\t4\n", {"sep": r"\t"}, {"a": [1, 3], "b": [2, 4]}),
    "columns": ("x.csv", PLAIN, {"usecols": ["b"]}, {"b": AB["b"]}),
    "encoding": ("x.csv", "größe\n1.5\n2.5\n".encode("cp850"), {"encoding": "cp850"}, {"größe": [1.5, 2.5]}),
    "sheet": ("x.xlsx", sheet(["a"], [1.5], [2]), {"sheet_name": "Sheet1"}, {"a": [1.5, 2]}),
    "rows of a workbook": ("x.xlsx", sheet(["x"], ["a"], [1.5], [2]), {"skiprows": 1}, {"a": [1.5, 2]}),
    "columns of parquet": ("x.parquet", by_pandas("to_parquet", AB), {"columns": ["b"]}, {"b": AB["b"]}),
    "file of a zip": ("x.zip", zipped(a__csv=PLAIN, b__csv=b"c\n1\n2\n"), {"key": "b.csv"}, {"c": [1, 2]}),
    "array of an archive": ("x.npz", npz(a=ARRAY, b=ARRAY + 1), {"key": "a"}, UNNAMED),
}  # fmt: skip


@pytest.mark.parametrize("habit", OPTIONS)
def test_options_decide(habit, tmp_path):
    name, content, options, expected = OPTIONS[habit]
    frame, messages = read(tmp_path, name, content, **options)
    assert_frame(frame, expected)
    assert messages == []


@pytest.mark.parametrize(
    ("name", "content", "options", "error", "words"),
    [
        ("x.csv", b"a,b\n1,\n-999,2\n-999,3\n", {"na_values": [-999]}, ValueError, "3 missing cell"),
        ("x.csv", PLAIN, {"seperator": ";"}, TypeError, "read_csv does not take these options.*seperator"),
        ("x.csv", PLAIN, {"sep": "::"}, ValueError, "`sep` must be one character, got '::'"),
        ("x.csv", PLAIN, {"encoding": "klingon"}, ValueError, "`encoding` must be a text encoding"),
        ("x.csv", PLAIN, {"key": "a"}, TypeError, "`key` is no option for .csv files"),
        ("x.npy", npy(ARRAY), {"sep": ","}, TypeError, "`sep` is no option for .npy files"),
        ("x.npz", npz(a=ARRAY), {"key": "c"}, ValueError, "`key` must be one of 'a'.*got 'c'"),
        ("x.csv", PLAIN, {"decimal": ",,"}, ValueError, "cannot be read"),
    ],
)
def test_options_that_are_wrong_are_named(tmp_path, name, content, options, error, words):
    with pytest.raises(error, match=words):
        read(tmp_path, name, content, **options)


@pytest.mark.parametrize("path", [3, None, b"x.csv", ARRAY])
def test_paths_are_paths(path):
    with pytest.raises(TypeError, match="`path` must be a path"):
        datasets.load_table(path)


def test_both_readers_agree_and_clean_files_take_the_fast_one(tmp_path, monkeypatch):
    """The careful reader goes cell by cell. The control: with a footer it must be the one that is used."""
    x = np.random.default_rng(0).normal(size=(500, 5)) * 10.0 ** np.arange(-2, 3)
    content = ("a,b,c,d,e\n" + "\n".join(",".join(map(repr, row)) for row in x.tolist())).encode()
    fast, _ = read(tmp_path, "x.csv", content)
    np.testing.assert_array_equal(fast.to_numpy(), x)
    with monkeypatch.context() as patched:
        patched.setattr(tables, "_read_fast", lambda *arguments: None)
        careful, _ = read(tmp_path, "x.csv", content)
    np.testing.assert_array_equal(careful.to_numpy(), x)

    def called(*arguments):
        raise RuntimeError("cell by cell")

    monkeypatch.setattr(tables.frames, "frame_of_layout", called)
    read(tmp_path, "x.csv", content)
    with pytest.raises(RuntimeError, match="cell by cell"):
        read(tmp_path, "x.csv", content + b"\nTotal,1,2,3,4\n")
    with pytest.raises(ValueError, match="ragged: line 502 has 3"):  # which pandas would fill up
        read(tmp_path, "x.csv", content + b"\n1,2,3\n")


def test_formats_without_their_package_name_the_extra(tmp_path, monkeypatch):
    import pandas

    def missing(*arguments, **options):
        raise ImportError("Missing optional dependency")

    of_feather = by_pandas("to_feather", AB)
    for function, name in (("read_parquet", "x.parquet"), ("ExcelFile", "x.xlsx"), ("read_feather", "x.feather")):
        monkeypatch.setattr(pandas, function, missing)
        with pytest.raises(ImportError, match=re.escape('pip install "tfp_ebm[tables]"')):
            read(tmp_path, name, of_feather if name == "x.feather" else b"content")


@pytest.mark.parametrize("mixed", [False, True])
def test_damaged_offsets_of_text_in_feather_are_refused(tmp_path, mixed):
    """Arrow reads texts at offsets that the file gives; far outside, the process would end (bad_alloc, SIGSEGV)."""
    words = [f"w{i}" for i in range(5)]
    raw = by_pandas("to_feather", {"a": np.arange(5.0), "b": words}, compression="uncompressed")
    offsets = [np.array([0, 2, 4, 6, 8, 10], dtype).tobytes() for dtype in ("<i4", "<i8")]
    found = next(known for known in reversed(offsets) if raw.count(known) == 1)
    frame, _ = read(tmp_path, "x.feather", raw, mixed=True)
    assert list(frame["b"]) == words  # the file as it was
    for at in range(3, len(found), len(found) // 6):
        damaged = bytearray(found)
        damaged[at] = 0x7F
        with pytest.raises(ValueError, match=r"x\.feather` cannot be read"):
            read(tmp_path, "x.feather", raw.replace(found, bytes(damaged)), mixed=mixed)
