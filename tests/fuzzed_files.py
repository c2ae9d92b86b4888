"""Random and damaged files of every format that the package reads, from a `random.Random`."""

import io
import json
import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pandas

FORMATS = (".npy", ".npz", ".csv", ".txt", ".json", ".parquet", ".xlsx", ".gz", ".zip", ".feather")


class Mark:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


# Cells of tables: usual numbers, odd numbers, words, signs.
_CELLS = (
    *"1 2.5 -3 0 1e3 -0.0 7 12.25 3 100000 NaN inf -inf 1e999 1e-999 - NA null None ? 0x10 1_000 1,5 1.234,5".split(),
    *"true false red blue 2020-01-02 12:30 1/2 50% $3 (3) ½ ١٢ 𝟙 ß a;b a|b # // =1+1 e E5 . + --1 \\".split(),
    *('"', "'", '""', '"a', "", " ", "\ufeff", "\x00", "\x1a", "9" * 400),
)


def random_text(rng):
    """A table of text: regular numbers in most cells, with odd cells, rows, quotes and ends of lines."""
    separator = rng.choice([",", ",", ";", "\t", " ", "|", "  ", "::", "\x01"])
    columns, rows = rng.choice([0, 1, 2, 3, 5, 30]), rng.choice([0, 1, 2, 3, 5, 20, 60])
    odd = rng.choice([0.0, 0.0, 0.02, 0.3, 1.0])
    lines = []
    if rng.random() < 0.6:
        lines.append(separator.join(rng.choice(["a", "b", "x y", "", "1", '"q', "é", "a"]) for _ in range(columns)))
    for _ in range(rows):
        count = columns + (rng.choice([-1, 1, 2]) if rng.random() < odd / 4 else 0)
        cells = [
            rng.choice(_CELLS) if rng.random() < odd else f"{rng.gauss(0, 1):.{rng.randrange(6)}f}"
            for _ in range(max(0, count))
        ]
        lines.append(separator.join(cells))
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(["# note", "", "total,1", "\x0c", "@data", "{", "---"]))
    text = rng.choice(["\n", "\n", "\r\n", "\r", "\n\n"]).join(lines) + rng.choice(["", "\n"])
    return text.encode(rng.choice(["utf-8", "utf-8", "utf-16", "utf-32", "latin-1", "utf-8-sig"]), "replace")


def random_array(rng, mark):
    """An array of any dtype and shape, objects of Python among them."""
    shape = rng.choice([(), (0,), (5,), (0, 2), (4, 0), (8, 2), (8, 1), (8, 3), (6, 2, 2), (8, 200), (1, 2)])
    values = np.random.default_rng(rng.randrange(2**32)).normal(size=shape) * 10 ** rng.choice([0, 0, 3, 30, 300])
    dtypes = ["f4", "f8", "f2", ">f4", "i4", "u1", "b1", "i8", "c8", "S3", "U3", "M8[s]", "m8[s]", "O", "V3", "g"]
    kind = rng.choice(dtypes)
    if kind == "O":
        return np.array([Mark(mark), 1.0], object)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = values.astype("i8").astype(kind) if kind[0] in "Mm" else values.astype(kind)
    if rng.random() < 0.1:
        array = np.zeros(5, [("a", "f4"), ("b", rng.choice(["i4", "U3", "f4", "(2,)f4"]))])
    if rng.random() < 0.2 and array.dtype.kind == "f" and array.size:
        array.flat[0] = rng.choice([np.nan, np.inf])
    return np.asfortranarray(array) if rng.random() < 0.2 else array


def npy(array, header=None):
    """The bytes of a `.npy` file, with a header of one's own if given."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    raw = file.getvalue()
    if header is None:
        return raw
    padded = header.encode("latin-1", "replace") + b"\n"
    return raw[:8] + len(padded).to_bytes(2, "little") + padded + raw[-64:]


def random_npy(rng, mark):
    """A `.npy` file, sometimes with a header that does not tell the truth."""
    header = None
    if rng.random() < 0.2:
        shape = rng.choice(
            ["(2, 2)", "(99999999999, 2)", "(2147483648, 2147483648)", "(-1,)", "(10**9,)", "'a'", "None"]
        )
        shape = rng.choice([shape, "(1.5,)", "(" * 200 + ")" * 200, "(True, 2)"])
        descr = rng.choice(
            ["'<f4'", "'<f8'", "'|O'", "[('a', '<f4')]", "'x'", "3", "__import__('os')", "'<U999999999'"]
        )
        header = f"{{'descr': {descr}, 'fortran_order': {rng.choice(['False', 'True', '2'])}, 'shape': {shape}, }}"
    if rng.random() < 0.05:
        return pickle.dumps(Mark(mark))
    return npy(random_array(rng, mark), header)


def random_zip(rng, mark, suffix):
    """An archive of arrays or tables, under names that lead elsewhere, too."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            name = rng.choice(
                ["x", "arr_0", "../../escaped", "/tmp/escaped", "a/b", "é", " ", "x_train", "..\\escaped"]
            )
            inner = ".npy" if suffix == ".npz" else rng.choice([".csv", ".npy", ".json", "", "/"])
            content = random_npy(rng, mark) if inner == ".npy" else random_text(rng)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the same name twice
                archive.writestr(name + rng.choice([inner, inner, inner, ""]), content)
    return file.getvalue()


def random_json(rng, depth=0):
    """Any JSON, of tables and of other things."""
    kind = rng.choice(["records", "columns", "any", "deep", "split", "lines"])
    number = lambda: rng.choice([1, 2.5, -3, None, True, "a", "1", 10**30, [1], {"a": 1}, float("nan"), 1e308])  # noqa: E731
    if kind == "records":
        return json.dumps([{key: number() for key in "ab"} for _ in range(rng.randrange(6))])
    if kind == "columns":
        return json.dumps({key: [number() for _ in range(rng.randrange(5))] for key in "ab"})
    if kind == "split":
        return json.dumps({"columns": ["a", "b"], "data": [[number(), number()] for _ in range(rng.randrange(5))]})
    if kind == "lines":
        return "\n".join(json.dumps({"a": number(), "b": number()}) for _ in range(rng.randrange(6)))
    if kind == "deep":
        return "[" * 10**5 + "]" * 10**5 if rng.random() < 0.5 else '{"a":' * 2000 + "1" + "}" * 2000
    return json.dumps(number())


def random_frame(rng):
    """A table for Parquet, Feather and Excel."""
    n = rng.choice([0, 1, 3, 12])
    columns = {
        "f": np.arange(n) / 3.0,
        "i": np.arange(n),
        "s": [rng.choice("abc") for _ in range(n)],
        "b": [rng.random() < 0.5 for _ in range(n)],
        "t": pandas.date_range("2020", periods=n),
        "c": pandas.Categorical([rng.choice("xy") for _ in range(n)]),
        "n": [None] * n,
        "l": [[1.0, 2.0]] * n,
        "x": np.random.default_rng(rng.randrange(99)).normal(size=n),
    }
    chosen = [name for name in columns if rng.random() < 0.3] or ["f", "x"]
    return pandas.DataFrame({name: columns[name] for name in chosen})


def random_file(rng, mark):
    """Returns the suffix and the bytes of a file; about half of them are damaged or under a wrong name."""
    suffix = rng.choice(
        [".npy", ".npy", ".npz", ".csv", ".csv", ".csv", ".txt", ".json", ".parquet", ".zip", ".feather"]
    )
    suffix = rng.choice([suffix] * 30 + [".xlsx"])
    if suffix in (".csv", ".txt"):
        raw = random_text(rng)
    elif suffix == ".npy":
        raw = random_npy(rng, mark)
    elif suffix in (".npz", ".zip"):
        raw = random_zip(rng, mark, suffix)
    elif suffix == ".json":
        raw = random_json(rng).encode()
    else:
        file = io.BytesIO()
        frame = random_frame(rng)
        if suffix == ".xlsx":
            frame.drop(columns="l", errors="ignore").to_excel(file, index=False)
        else:
            getattr(frame, "to_parquet" if suffix == ".parquet" else "to_feather")(file)
        raw = file.getvalue()
    if rng.random() < 0.5:
        raw = mutated(rng, raw)
    return (rng.choice(FORMATS) if rng.random() < 0.05 else suffix), raw


def mutated(rng, raw):
    """Bytes with one to four of: a bit flipped, a piece lost, repeated or put in, the end lost, a word replaced."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 4])):
        i = rng.randrange(len(raw) + 1)
        j = min(len(raw), i + rng.choice([1, 4, 30]))
        what = rng.randrange(6)
        if what == 0 and i < len(raw):
            raw[i] ^= 1 << rng.randrange(8)
        elif what == 1:
            del raw[i:j]
        elif what == 2:
            raw[i:i] = raw[i:j] * rng.choice([1, 50])
        elif what == 3:
            raw[i:i] = rng.choice([b"\x00", b"\xff\xfe", b'"', b"\n", b",", b"9" * 20, rng.randbytes(8)])
        elif what == 4:
            del raw[i:]
        else:
            raw[i:j] = rng.choice([b"-1", b"nan", b"1e99", b"\x80\x81", b"{}", b"../../"])
    return bytes(raw)


def mutated_archive(rng, raw):
    """A `.keras` or `.npz` file in which the bytes, or one of its files, or one value of its JSON, are changed."""
    if rng.random() < 0.4:
        return mutated(rng, raw)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(parts))
    what = rng.random()
    if name.endswith(".json") and what < 0.7:
        parts[name] = json.dumps(_with_another_value(rng, json.loads(parts[name]))).encode()
    elif what < 0.8:
        parts[name] = mutated(rng, parts[name])
    elif what < 0.9:
        del parts[name]
    else:
        parts[rng.choice(["../../escaped", "/tmp/escaped", "assets/../../escaped"])] = b"x"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def _with_another_value(rng, value):
    """JSON in which one value, at random depth, is replaced or lost."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = _with_another_value(rng, value[key])
        return value
    return rng.choice(
        [None, 0, -1, 1e308, "", "x", [], {}, True, "os", "builtins", [1, 2], {"class_name": "Lambda"}, 2**70]
    )
