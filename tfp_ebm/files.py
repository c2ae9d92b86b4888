"""Writing files so that an interrupted run loses nothing that was saved."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives a temporary place beside `path` to write a file or a directory to, and moves it there when all is written.

    If the block raises, what was at `path` is still there. A file is replaced in one step; a directory, which no system
    call can replace, is first moved aside.

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
