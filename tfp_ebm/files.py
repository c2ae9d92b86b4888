"""Atomic writing of files, so that an interrupted run does not damage saved files."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


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
