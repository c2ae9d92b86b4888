"""Toy data are draws of their targets; files become finite float32 numbers. (Habits of files: test_file_habits.py.)"""

import numpy as np
import pytest
import tensorflow as tf

from tfp_ebm import datasets, targets

MIXED = np.array([[1.5, -2e-3], [2.5, 7e2], [-3.25, 0.0]])


@pytest.fixture
def write(tmp_path):
    """Writes a file of text (or bytes) and returns its path."""

    def write(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_every_target_is_a_data_set_and_has_a_name():
    assert set(datasets.TOY_NAMES) == set(targets.__all__) - {"Target", "gmm40", "many_well", "two_widths"}


@pytest.mark.parametrize("name", datasets.TOY_NAMES)
def test_toys_are_draws_of_their_target(name):
    draw = getattr(datasets, name)
    x = draw(50, seed=7)
    assert isinstance(x, np.ndarray) and x.dtype == np.float32 and x.shape == (50, 2)
    assert np.array_equal(x, getattr(targets, name)().sample(50, seed=7))
    assert np.array_equal(x, datasets.load(name, n=50, seed=tf.constant([0, 7])))
    assert not np.array_equal(x, draw(50, seed=8))
    assert draw.__name__ == name and name in draw.__doc__


def test_toys_name_bad_arguments():
    with pytest.raises(ValueError, match="`n` must be a whole number of at least 1, got 0"):
        datasets.two_moons(0)
    with pytest.raises(TypeError, match="`n`"):
        datasets.load("two_moons", n="many")
    with pytest.raises(TypeError, match="`seed` must be an int"):
        datasets.two_moons(3, seed=None)
    assert datasets.load("banana").shape == (50_000, 2)


def test_digits():
    pixels = datasets.digits(dequantize=False)
    assert pixels.shape == (1797, 64) and pixels.dtype == np.float32
    assert set(np.unique(pixels)) == set(range(17))
    x = datasets.digits(seed=1)
    assert x.shape == (1797, 64) and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1
    np.testing.assert_array_equal(np.floor(np.clip(17 * x.astype(np.float64), 0, 16.99)), pixels)
    # U(0, 1) has mean ½: within 5 standard errors 1/√(12n), n = 115 008 (false alarms 6e-7); a mean of .51 is 12 away
    noise = 17 * x.astype(np.float64) - pixels
    assert abs(noise.mean() - 0.5) < 5 * noise.size**-0.5 / 12**0.5
    assert noise.var() == pytest.approx(1 / 12, rel=0.01)
    assert np.array_equal(x, datasets.digits(seed=1)) and not np.array_equal(x, datasets.digits(seed=2))
    images = datasets.digits(seed=1, images=True)
    assert images.shape == (1797, 8, 8, 1) and np.array_equal(images.reshape(1797, 64), x)
    assert np.array_equal(datasets.load("digits"), pixels)
    assert np.array_equal(datasets.load("digits", dequantize=True, seed=1), x)


def test_csv_with_a_given_delimiter(write):
    assert datasets.load(write("1:2\n3:4\n"), delimiter=":").tolist() == [[1, 2], [3, 4]]
    assert datasets.load(write("1 2\n3  4\n"), delimiter=" ").tolist() == [[1, 2], [3, 4]]
    assert datasets.load(write("1\t2\n3\t4\n"), delimiter=r"\t").tolist() == [[1, 2], [3, 4]]
    for delimiter in ("::", '"', 3):
        with pytest.raises(ValueError, match="`sep` must be one character, got"):
            datasets.load(write("1:2\n3:4\n"), delimiter=delimiter)


def test_tables_are_float32_and_know_their_names(write):
    path = write("a;b\n1,5;-2e-3\n2,5;7e2\n-3,25;0\n")
    values, names = datasets.loading.load_named(path)
    assert values.dtype == np.float32 and names == ("a", "b")
    np.testing.assert_array_equal(values, MIXED.astype(np.float32))
    assert datasets.load(path, decimal=",", thousands=".")[1, 0] == 2.5
    assert datasets.loading.load_named(write("1.5,2\n3,4\n"))[1] is None
    assert datasets.loading.load_named("banana", n=3)[1] is None


@pytest.mark.parametrize("text", ["a,b\n1,2\n1,2\n", "1,2\n"])
def test_rows_must_differ(write, text):
    with pytest.raises(ValueError, match="at least two different rows, got"):
        datasets.load(write(text))


def test_npy_and_npz(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3, 2))
    np.save(tmp_path / "x.npy", x)
    values = datasets.load(tmp_path / "x.npy")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, x.astype(np.float32))
    np.testing.assert_array_equal(datasets.load(str(tmp_path / "x.npy")), values)
    np.savez(tmp_path / "one.npz", only=x)
    np.savez_compressed(tmp_path / "two.NPZ", first=x, second=2 * x)
    (tmp_path / "two.NPZ.npz").rename(tmp_path / "two.NPZ")
    np.testing.assert_array_equal(datasets.load(tmp_path / "one.npz"), values)
    np.testing.assert_array_equal(datasets.load(tmp_path / "two.NPZ", key="second"), 2 * values)
    for key in (None, "third"):
        with pytest.raises(ValueError, match=f"`key` must be one of 'first', 'second', the arrays of .*, got {key!r}"):
            datasets.load(tmp_path / "two.NPZ", key=key)
    np.savez(tmp_path / "long.npz", **{f"{i}{'a' * 1000}": x for i in range(50)})
    with pytest.raises(ValueError, match="`key` must be one of") as caught:
        datasets.load(tmp_path / "long.npz", key="b" * 1000)
    assert len(str(caught.value)) < 1500
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="holds no array"):
        datasets.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.array([["a", "b"]]), TypeError, "must hold real numbers, got an array of dtype <U1"),
        (np.array([[1, "b"], [None, 2]], object), TypeError, "got an array of Python objects"),
        (np.ones([3, 2], complex), TypeError, "must hold real numbers"),
        (np.arange(5.0), ValueError, r"must have shape \[rows, \*event\]"),
        (np.array(5.0), ValueError, r"must have shape \[rows, \*event\]"),
        (np.zeros([0, 2]), ValueError, "must not be empty"),
        (np.zeros([4, 2]), ValueError, "at least two different rows, got 4 equal ones"),
        (
            np.array([[1, 2], [3, np.nan], [np.inf, 4]]),
            ValueError,
            r"2 of its 6 numbers are NaN or infinite, the first at index \(1, 1\)",
        ),
    ],
)
def test_bad_arrays_are_named(tmp_path, array, error, message):
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", x=array)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(error, match=message) as caught:
            datasets.load(tmp_path / name)
        assert f"`{tmp_path / name}`" in str(caught.value)


def test_damaged_numpy_files(tmp_path, write):
    x = np.random.default_rng(0).normal(size=(500, 2))
    np.save(tmp_path / "x.npy", x)
    np.savez_compressed(tmp_path / "x.npz", x=x)
    for name in ("x.npy", "x.npz"):
        whole = (tmp_path / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 255
        damaged = [whole[:-200], whole[: len(whole) // 2], whole[:20], whole[:4], b"", b"no such thing at all"]
        for content in damaged + [bytes(flipped)] * (name == "x.npz"):  # .npy has no checksum
            with pytest.raises(ValueError, match=rf"is not a complete \.{name[2:]} file, it may be truncated"):
                datasets.load(write(content, name))


def test_unknown_files_and_names(tmp_path, write):
    with pytest.raises(FileNotFoundError, match="'two_suns' is neither a file nor a known name") as error:
        datasets.load("two_suns")
    assert all(name in str(error.value) for name in [*datasets.TOY_NAMES, "digits"])
    with pytest.raises(FileNotFoundError, match="neither a file"):
        datasets.load(tmp_path)
    with pytest.raises(ValueError, match=r"must be a file of one of the kinds \.csv, .*got '\.doc'"):
        datasets.load(write("1,2", "data.doc"))
    for bad in (3, None, np.ones([3, 2])):
        with pytest.raises(TypeError, match="`path_or_name` must be a name or a path"):
            datasets.load(bad)


def test_options_that_would_do_nothing_are_refused(write):
    path = write("1,2\n3,4.5\n")
    for options, message in (
        ({"key": "x"}, "`key` is for .npz and .zip files, got key='x'"),
        ({"dequantize": True}, "`dequantize` is for whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.load(path, **options)
    with pytest.raises(ValueError, match="`delimiter` is for files, got delimiter=',' with 'two_moons'"):
        datasets.load("two_moons", delimiter=",")
    with pytest.raises(ValueError, match=r"`dequantize`.*two_moons"):
        datasets.load("two_moons", dequantize=True)


def test_whole_numbers_are_dequantized(tmp_path):
    counts = np.random.default_rng(0).integers(0, 256, [1000, 3]).astype(np.uint8)
    np.save(tmp_path / "counts.npy", counts)
    np.testing.assert_array_equal(datasets.load(tmp_path / "counts.npy"), counts)
    x = datasets.load(tmp_path / "counts.npy", dequantize=True, seed=3)
    assert x.dtype == np.float32 and (np.abs(x - counts - 0.5) <= 0.5).all() and np.std(x - counts) > 0.25
    assert np.array_equal(x, datasets.load(tmp_path / "counts.npy", dequantize=True, seed=3))


def test_columns_that_float32_cannot_resolve_are_refused(write, tmp_path):
    rng = np.random.default_rng(0)
    small = rng.normal(size=100)
    good = np.stack([small, np.full(100, 0.1), 1e-3 * small, 1e3 * small, 100 + small, small > 0], -1)
    np.save(tmp_path / "good.npy", good)  # constant columns and mixed scales pass
    with pytest.warns(UserWarning, match="determine each other"):  # as four of them do
        np.testing.assert_allclose(datasets.load(tmp_path / "good.npy"), good, rtol=1e-7)
    bad = "a,b\n" + "\n".join(
        f"{value!r},{1e6 + 1e-3 * other!r}" for value, other in zip(small.tolist(), small.tolist()[::-1], strict=True)
    )
    with pytest.raises(
        ValueError, match=r"needs more than float32's precision in 'b': its numbers, 1000000 ± 0\.00096"
    ):
        datasets.load(write(bad))
    for column in (1e300 * small, np.full(100, 1e39), 1e-50 * small, 2**53 + np.arange(100)):
        np.save(tmp_path / "bad.npy", np.stack([small[::-1], column], -1))
        with pytest.raises(ValueError, match="needs more than float32's precision in 'column 2'"):
            datasets.load(tmp_path / "bad.npy")
