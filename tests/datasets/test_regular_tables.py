"""The reader of regular tables gives what the reader of cells gives, or leaves the file to it."""
# ruff: noqa: E501

import warnings

import numpy as np
import pandas
import pytest

from tests.datasets import test_file_habits, test_mixed_tables
from tfp_ebm import datasets
from tfp_ebm.datasets import regular, tables


def both(path, monkeypatch, mixed=True):
    """The frames or errors of both readers, with their warnings; the first is None where the file is left to the other."""
    raw = path.read_bytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = regular.read_regular(raw, f"`{path}`", None, None, mixed)
        told = [str(warning.message) for warning in caught]
    with warnings.catch_warnings(record=True) as caught, monkeypatch.context() as patched:
        warnings.simplefilter("always")
        patched.setattr(tables, "_read_fast", lambda *arguments: None)
        patched.setattr(tables.frames, "warn_of_habits", lambda *arguments: None)
        try:
            careful = datasets.load_table(path, mixed=mixed)
        except (ValueError, TypeError) as error:
            careful = error
        return found and found[0], careful, told, [str(warning.message) for warning in caught]


def text_files():
    """All text files in the tables of habits."""
    for source in (test_file_habits.READ, test_file_habits.REFUSED, test_mixed_tables.READ):
        for habit, (name, content, *_) in source.items():
            if name.endswith(tables.TEXT) and len(content) < 100_000:
                yield habit, name, content if isinstance(content, bytes) else content.encode()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("repeats", [1, 30])
def test_the_readers_agree_on_all_habits(tmp_path, monkeypatch, mixed, repeats):
    """Repeated, most files are longer than the head from which the layout is found, and are read in several pieces."""
    monkeypatch.setattr(regular, "_HEAD", 12)
    monkeypatch.setattr(regular, "_TAIL", 3)
    monkeypatch.setattr(regular, "_CHUNK", 7)
    num_read = 0
    for habit, name, content in text_files():
        path = tmp_path / name
        ascii_line_ends = content.count(b"\n") > 1 and b"\x00" not in content
        path.write_bytes(
            content + b"".join(content.splitlines(True)[1:]) * (repeats - 1) if ascii_line_ends else content
        )
        fast, careful, told, others = both(path, monkeypatch, mixed)
        if fast is not None:
            num_read += 1
            assert isinstance(careful, pandas.DataFrame), (habit, careful)
            pandas.testing.assert_frame_equal(fast, careful, obj=habit)
            assert told == others, habit
    assert num_read > 20  # the comparison means something


def random_table(rng, rows):
    """A table of random columns, each in one way of writing, and one of the usual separators."""
    columns = []
    for _ in range(rng.integers(1, 6)):
        kind = rng.integers(0, 6)
        if kind == 0:
            column = [f"{x:.6g}" for x in rng.normal(size=rows) * 10.0 ** rng.integers(-3, 6)]
        elif kind == 1:
            column = [str(x) for x in rng.integers(-5, 10 ** rng.integers(1, 9), rows)]
        elif kind == 2:
            column = rng.choice(["red", "New York", "blue ", "x-1"], rows).tolist()
        elif kind == 3:
            column = rng.choice(
                [["true", "false"], ["TRUE", "FALSE"], ["True", "False"]][rng.integers(3)], rows
            ).tolist()
        elif kind == 4:
            column = [repr(float(x)) for x in rng.integers(0, 9, rows)]
        else:
            column = rng.choice(["yes", "no"], rows).tolist()
        markers = [["NA"], [""], ["?", "nan"], ["null", "NULL", "NaN"]][rng.integers(4)]
        if rng.random() < 0.5:
            column = [rng.choice(markers) if rng.random() < 0.2 else cell for cell in column]
        columns.append([f"v{len(columns)}", *column])
    separator = rng.choice([",", ";", "\t", "|"])
    end = rng.choice(["\n", "\r\n"])
    return end.join(separator.join(row) for row in zip(*columns, strict=True)) + end * int(rng.integers(0, 2))


def test_the_readers_agree_on_random_tables(tmp_path, monkeypatch):
    """60 random tables of 5 to 60 rows, read in pieces of 7; most are regular."""
    monkeypatch.setattr(regular, "_HEAD", 12)
    monkeypatch.setattr(regular, "_CHUNK", 7)
    rng = np.random.default_rng(0)
    num_read, path = 0, tmp_path / "x.csv"
    for i in range(60):
        path.write_bytes(random_table(rng, int(rng.integers(5, 60))).encode())
        fast, careful, told, others = both(path, monkeypatch)
        if fast is not None:
            num_read += 1
            assert isinstance(careful, pandas.DataFrame), (i, careful)
            pandas.testing.assert_frame_equal(fast, careful, obj=str(i))
            assert told == others
    assert num_read > 30


REGULAR = ["a,b,c\n", *(f"{i}.25,w{i % 5},{i % 7}\n" for i in range(100))]


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (60, "1.5,w1\n", "ragged: line 61 has 2 cell"),
        (60, "1.5,w1,2,3\n", "ragged: line 61 has 4 cell"),
        (60, "2,w1,inf\n", "must hold finite numbers.*line 61"),
        (60, "2,w1,x\n", "must hold numbers: 1 cell.* of column 'c' do not, the first in line 61"),
        (60, "2,w1,2020-01-01\n", "1 cell.* of column 'c' do not|dates or times.*line 61"),
        (60, "2;w1;3\n", "ragged: line 61 has 1"),
        (60, "2,w\x011,3\n", "control characters"),
        (60, '2,"w1,3\n', "ragged"),
    ],
)
def test_faults_in_the_middle_of_long_files_are_found(tmp_path, monkeypatch, line, text, words):
    """Line 61 lies neither in the head nor in the tail. The control: without the fault the file is read in pieces."""
    monkeypatch.setattr(regular, "_HEAD", 12)
    monkeypatch.setattr(regular, "_TAIL", 3)
    monkeypatch.setattr(regular, "_CHUNK", 7)
    path = tmp_path / "x.csv"
    path.write_text("".join(REGULAR))
    fast, careful, _, _ = both(path, monkeypatch)
    pandas.testing.assert_frame_equal(fast, careful)
    path.write_text("".join([*REGULAR[:line], text, *REGULAR[line + 1 :]]))
    assert regular.read_regular(path.read_bytes(), "x", None, None, True) is None
    with pytest.raises(ValueError, match=words):
        datasets.load_table(path, mixed=True)


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("# a comment\n", None),
        ("\n", None),
        ("1.5,w1,2 # a comment\n", (1.5, "w1", 2)),
        ('"1,234.5",w1,2\n', (1234.5, "w1", 2)),
        ("1.5,none,2\n", (1.5, None, 2)),
        ("1.5,nONE,2\n", (1.5, None, 2)),
        ("1.5,,2\n", (1.5, None, 2)),
        ("nAn,w1,2\n", (np.nan, "w1", 2)),
        (",,\n", None),
        ('1.5,"w1\nw2",2\n', (1.5, "w1 w2", 2)),
        ('1.5,"w,1",2\n', (1.5, "w,1", 2)),
        ("1.5,w1 ,2\n", (1.5, "w1", 2)),
        ("1.5,wé,2\n", (1.5, "wé", 2)),
    ],
)  # fmt: skip
def test_unusual_lines_in_the_middle_are_read_by_either(tmp_path, monkeypatch, text, cells):
    monkeypatch.setattr(regular, "_HEAD", 12)
    monkeypatch.setattr(regular, "_TAIL", 3)
    monkeypatch.setattr(regular, "_CHUNK", 7)
    path = tmp_path / "x.csv"
    path.write_text("".join([*REGULAR[:60], text, *REGULAR[60:]]), encoding="utf-8")
    fast, careful, told, others = both(path, monkeypatch)
    if fast is not None:
        pandas.testing.assert_frame_equal(fast, careful)
        assert told == others
    assert len(careful) == 100 + (cells is not None)
    if cells is not None:
        found = [None if pandas.isna(cell) else cell for cell in careful.iloc[59]]
        assert found == [None if pandas.isna(cell) else cell for cell in cells]


def test_an_index_of_pandas_is_left_out_by_both(tmp_path, monkeypatch):
    monkeypatch.setattr(regular, "_CHUNK", 7)
    frame = pandas.DataFrame({"a": np.linspace(0, 1, 40) ** 2, "b": ["x", "y"] * 20})
    frame.to_csv(tmp_path / "x.csv")
    fast, careful, told, others = both(tmp_path / "x.csv", monkeypatch)
    pandas.testing.assert_frame_equal(fast, careful)
    pandas.testing.assert_frame_equal(fast, frame)
    assert told == others and "the first column has no name and holds line numbers" in told[0]


def test_a_planted_difference_is_seen(tmp_path, monkeypatch):
    """The control of the comparisons: a reader that takes "?" for a label gives another frame."""
    path = tmp_path / "x.csv"
    path.write_text("".join(REGULAR).replace("w1", "?"))
    fast, careful, _, _ = both(path, monkeypatch)
    pandas.testing.assert_frame_equal(fast, careful)
    monkeypatch.setattr(
        regular.typed,
        "text_of",
        lambda name, codes, levels, label: pandas.Series(np.array(levels, object)[codes], dtype="str"),
    )
    monkeypatch.setattr(regular, "_markers", lambda: [""])
    fast, _, _, _ = both(path, monkeypatch)
    with pytest.raises(AssertionError):
        pandas.testing.assert_frame_equal(fast, careful)
