"""A run of chains kept in files about once a minute, so that the same call made again continues it.

The directory has the draws, in one file for each backup, and the positions of the chains at the last two backups, each
written after its draws and naming how many files of draws belong to it. If the last position or its draws are damaged,
the one before it is used. All of it is removed at the end of the run.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.caller import warn
from tfp_ebm.files import load_arrays, load_first_undamaged, save_arrays
from tfp_ebm.mcmc.running.recorders import Visit, join_stretches
from tfp_ebm.mcmc.running.stretches import Run

# A position is removed once this many newer ones are written.
_KEPT = 2
# Seconds between two backups.
_SECONDS = 60.0


class RunBackup:
    """The files of a run of `ebm.mcmc.sample`.

    Args:
      folder: the directory, for this call alone; None keeps nothing.
      run: the run, before its first step.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, run: Run) -> None:
        if folder is not None and run.is_traced:
            raise ValueError("`backup_dir` must be None inside a tf.function, which writes no files.")
        self._folder = None if folder is None else pathlib.Path(folder)
        self._run, self._last = run, time.monotonic()
        self._digest = "" if folder is None else run.digest()
        self._num_files, self._num_saved = 0, 0  # files of draws, and stretches of draws in them
        self._damaged: list[pathlib.Path] = []  # positions that are newer than the one used
        self._reached: tuple[int, Any, list[Visit]] | None = None

    def restore(self) -> tuple[int, list[Visit]]:
        """Moves the run to its last position; returns the number of steps done, and the draws."""
        if self._folder is None:
            return 0, []
        paths = self._positions()
        try:
            loaded = load_first_undamaged(paths, self._load)
        except ValueError as error:
            warn(f"`backup_dir` {self._folder} is damaged, and the chains start anew: {error}")
            self.remove()
            return 0, []
        if loaded is None:
            return 0, []
        path, content = loaded
        if content is None:
            warn(f"`backup_dir` {self._folder} is of another call, and is replaced.")
            self.remove()
            return 0, []
        step, self._run.positions, draws = content
        self._damaged = paths[: paths.index(path)]
        self._num_files = self._num_saved = len(draws)
        return step, [tf.nest.map_structure(tf.convert_to_tensor, part) for part in draws]

    def _load(self, path: pathlib.Path) -> tuple[int, Any, list[Visit]] | None:
        """Returns the step of a position, the position, and the draws before it; None if it is of another call."""
        position = load_arrays(path)
        if str(position["digest"]) != self._digest:
            return None
        step = int(position["step"])
        files = [load_arrays(_file(path.parent, i)) for i in range(int(position["num_files"]))]
        draws = [Visit(file["state"], file.get("log_prob", ()), file["is_accepted"]) for file in files]
        if sum(len(part.state) for part in draws) != self._run.results_after(step):
            raise ValueError("its draws are not those before it")
        leaves = [position[f"leaf {i}"] for i in range(int(position["num_leaves"]))]
        return step, _packed(self._run.positions, leaves), draws

    def _positions(self) -> list[pathlib.Path]:
        """Returns the files of positions, the newest first."""
        return [] if self._folder is None else sorted(self._folder.glob("position_*.npz"))[::-1]

    def reach(self, stretches: list[Visit]) -> None:
        """Notes that the run has made its next stretch; once a minute, it is saved.

        Args:
          stretches: all draws so far.
        """
        if self._folder is None:
            return
        # in one statement, since an interrupt may come at any time
        self._reached = (self._run.step, self._run.positions, list(stretches))
        if time.monotonic() - self._last >= _SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the position that was reached last."""
        if self._folder is None or self._reached is None:
            return
        self._last = time.monotonic()
        step, positions, stretches = self._reached
        new = stretches[self._num_saved :]
        try:
            for path in self._damaged:  # their files of draws will be overwritten
                path.unlink(missing_ok=True)
            self._damaged = []
            if new:
                draws = join_stretches(new)._asdict()
                kept = {key: value for key, value in draws.items() if tf.is_tensor(value)}
                save_arrays(_file(self._folder, self._num_files), kept)
            leaves = tf.nest.flatten(positions)
            numbers = {"num_leaves": len(leaves), "num_files": self._num_files + bool(new), "step": step}
            arrays = {f"leaf {i}": value for i, value in enumerate(leaves)}
            save_arrays(self._folder / f"position_{step:012d}.npz", {**arrays, **numbers, "digest": self._digest})
            for path in self._positions()[_KEPT:]:
                path.unlink()
        except OSError as error:
            warn(f"no backup of the chains could be written to {self._folder}: {error}")
            return
        self._num_files, self._num_saved = self._num_files + bool(new), len(stretches)

    def remove(self) -> None:
        """Removes the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"draws_{number:06d}.npz"


def _packed(template: Any, leaves: list[np.ndarray]) -> Any:
    """Returns arrays in the structure of `template`, with its dtypes; ValueError if they do not fit."""
    like = tf.nest.flatten(template)
    if len(like) != len(leaves) or any(np.shape(a) != b.shape for a, b in zip(like, leaves, strict=True)):
        raise ValueError("the chains have another structure")
    return tf.nest.pack_sequence_as(
        template, [tf.constant(b, tf.convert_to_tensor(a).dtype) for a, b in zip(like, leaves, strict=True)]
    )
