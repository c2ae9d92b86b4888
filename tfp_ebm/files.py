"""Atomic writing of files, so that an interrupted run does not damage saved files."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# What NumPy raises at a damaged .npy or .npz file, beside OSError.
DAMAGED = (
    *(ValueError, EOFError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError),
    *(NotImplementedError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


@contextlib.contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Context with a temporary path next to `path` for a new file or directory, which is moved to `path` at the end.

    If the block raises, `path` is unchanged. A file is replaced atomically; a directory, which no system call can
    replace, is first renamed.

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
            path.rename(place / f"{path.name}.previous")
        os.replace(temporary, path)
    finally:
        shutil.rmtree(place, ignore_errors=True)


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
            return {name: arrays[name] for name in arrays.files}
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged: {error}") from error
