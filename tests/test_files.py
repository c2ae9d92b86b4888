"""Files that are written atomically and read with a check."""

import errno
import os
import warnings

import numpy as np
import pytest

from tfp_ebm.files import load_arrays, load_first_undamaged, save_arrays, written_atomically


def test_a_changed_byte_is_found_or_changes_nothing(tmp_path):
    """Bytes of a file in turn; NumPy compares the check sum of each array. The control: an array without one."""
    arrays = {"x": np.arange(5.0), "n": np.int64(3)}
    path = tmp_path / "a.npz"
    save_arrays(path, arrays)
    raw, found = path.read_bytes(), 0
    for place in [*range(0, len(raw) - 200, 3), *range(len(raw) - 200, len(raw))]:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        try:
            loaded = load_arrays(path)
        except (OSError, ValueError):
            found += 1
            continue
        assert loaded.keys() == arrays.keys() and all(np.array_equal(loaded[name], arrays[name]) for name in arrays)
    assert found > 200
    np.save(tmp_path / "x.npy", arrays["x"])
    raw = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(raw[:-1] + b"\1")
    assert not np.array_equal(np.load(tmp_path / "x.npy"), arrays["x"])


def test_the_first_undamaged_backup_is_used_and_the_others_are_named(tmp_path):
    paths = [tmp_path / f"{name}.npz" for name in "ab"]
    for number, path in enumerate(paths):
        save_arrays(path, {"number": number})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_first_undamaged([], load_arrays) is None
        assert load_first_undamaged(paths, load_arrays)[0] == paths[0]
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"a\.npz is damaged: .*b\.npz is used instead"):
        path, arrays = load_first_undamaged(paths, load_arrays)
    assert path == paths[1] and arrays["number"] == 1
    paths[1].unlink()
    with pytest.raises(ValueError, match=r"no backup can be read: .*a\.npz is damaged.*b\.npz is damaged"):
        load_first_undamaged(paths, load_arrays)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_an_error_of_the_disk_is_an_os_error_and_the_file_stays(number, tmp_path):
    """TensorFlow calls a full disk exhausted resources, which the command line would take for memory."""
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(OSError, match=r"a\.txt") as caught, written_atomically(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError(f"{temporary}; {os.strerror(number)}")
    assert caught.value.errno == number and path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), written_atomically(path):
        raise RuntimeError("another one")
