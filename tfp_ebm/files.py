"""Files that are written atomically, so that an interrupted run does not damage them, and read with a check.

A .npz file has a check sum for each of its arrays, and NumPy compares it. What has none, such as weights in HDF5, needs
a digest of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from tfp_ebm.caller import warn

# What NumPy raises at a damaged .npy or .npz file, beside OSError.
DAMAGED = (
    *(ValueError, EOFError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError),
    *(NotImplementedError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)

# Errors of a disk, which TensorFlow calls exhausted resources, and HDF5 a runtime error.
_OF_DISKS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
# Where the number of files stands in a .zip file without a comment, from its end.
_NUM_ARRAYS = -12

_Content = TypeVar("_Content")


@contextlib.contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Context with a temporary path next to `path` for a new file or directory, which is moved to `path` at the end.

    If the block raises, `path` is unchanged. It is replaced in one step; a directory, on systems other than Linux, is
    first renamed. A full or read-only disk raises OSError, also where a library has an error of its own for it.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_atomically(f"{folder}/a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     pathlib.Path(folder, "a.txt").read_text()
    'whole'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary = place / path.name
        yield temporary
        if path.is_dir() and not path.is_symlink():
            if _exchange(temporary, path):
                return
            path.rename(place / f"{path.name}.previous")
        os.replace(temporary, path)
    except Exception as error:
        number = next((number for number in _OF_DISKS if os.strerror(number) in str(error)), None)
        if number is None or isinstance(error, OSError):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


# Of Linux's renameat2: paths relative to the working directory, and the exchange of two of them.
_WORKING_DIRECTORY, _EXCHANGE = -100, 2


def _exchange(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Exchanges two paths in one step; returns False where the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    return bool(rename(_WORKING_DIRECTORY, os.fsencode(a), _WORKING_DIRECTORY, os.fsencode(b), _EXCHANGE) == 0)


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Writes arrays to a .npz file, atomically.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(f"{folder}/a.npz", {"x": [1.0, 2.0]})
    ...     load_arrays(f"{folder}/a.npz")["x"].tolist()
    [1.0, 2.0]
    """
    with written_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: np.asarray(value) for name, value in arrays.items()})


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file written by `save_arrays`; OSError or ValueError if it cannot be read, or is damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            file.seek(_NUM_ARRAYS, os.SEEK_END)
            number = int.from_bytes(file.read(2), "little")
            if number != min(len(arrays.files), 2**16 - 1):  # zipfile does not compare, and leaves out the others
                raise ValueError(f"it has {number} arrays, of which {len(arrays.files)} are found")
            return {name: arrays[name] for name in arrays.files}
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def load_first_undamaged(
    paths: Iterable[pathlib.Path], load: Callable[[pathlib.Path], _Content]
) -> tuple[pathlib.Path, _Content] | None:
    """Loads the first of several backups that is not damaged, and warns of the damaged ones before it.

    Args:
      paths: the backups, the newest first.
      load: returns the content of a backup; raises OSError, ValueError, KeyError or TypeError if it is damaged.

    Returns:
      The path and its content; None if there are no paths.

    Raises:
      ValueError: if all are damaged.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.npz")
    ...     save_arrays(path, {"x": 1.0})
    ...     load_first_undamaged([path], load_arrays)[1]["x"].tolist()
    1.0
    """
    damages = []
    for path in paths:
        try:
            content = load(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damages.append(f"{path} is damaged: {error}")
            continue
        if damages:
            warn(f"{'; '.join(damages)}. The backup {path} is used instead.")
        return path, content
    if damages:
        raise ValueError(f"no backup can be read: {'; '.join(damages)}.")
    return None
