"""Results of the trainings of a `fit_density` call, kept in files, so that an interrupted call can continue.

A call with the same rows and arguments repeats all steps but the trainings that are kept, whose results it reads. These
are the only part that takes long, and each of them starts from its own seed.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_ebm.caller import warn
from tfp_ebm.files import load_arrays, save_arrays, written_atomically
from tfp_ebm.recipes.density_training import Trainer, Training

_CALL = "call.json"


class Trainings:
    """Trainings that are done once, and read from files later.

    Args:
      folder: the directory; None keeps nothing.
      rows: the table.
      arguments: those of the call, which must be the same in each call; plain values.

    Raises:
      ValueError: if the directory holds trainings of other rows or arguments, or cannot be written.
    """

    def __init__(
        self,
        folder: pathlib.Path | None = None,
        rows: np.ndarray | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        if folder is None or rows is None:
            return
        digest = hashlib.sha256(np.ascontiguousarray(rows).tobytes())
        digest.update(json.dumps(arguments, sort_keys=True, default=repr).encode())
        path = folder / _CALL
        if not path.exists():
            try:
                with written_atomically(path) as temporary:
                    temporary.write_text(json.dumps({"digest": digest.hexdigest()}), encoding="utf-8")
            except OSError as error:
                raise ValueError(f"`backup_dir` {folder} cannot be written: {error}") from error
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"`backup_dir`: {path} cannot be read: {error}") from error
        if known != digest.hexdigest():
            raise ValueError(f"`backup_dir` {folder} holds trainings of other rows or with other arguments.")

    def result(self, name: str, trainer: Trainer, train: Callable[[], Training]) -> tuple[Training, float]:
        """Returns the result of a training, and the seconds that it took, in this call or an earlier one.

        Args:
          name: of the training; different for each training of the call.
          trainer: what trains; it continues as if it had made the training.
          train: makes the training.
        """
        path = None if self._folder is None else self._folder / f"{name}.npz"
        if path is not None and path.exists():
            try:
                return _read(path, trainer)
            except (OSError, ValueError, KeyError) as error:
                warn(f"{path} is damaged, and the training is repeated: {error}")
        start = time.monotonic()
        training = train()
        seconds = time.monotonic() - start
        if path is not None and training.weights is not None and not training.is_interrupted:
            try:
                _write(path, trainer, training, seconds)
            except OSError as error:
                warn(f"the training {name} could not be kept: {error}")
        return training, seconds


def _write(path: pathlib.Path, trainer: Trainer, training: Training, seconds: float) -> None:
    arrays: dict[str, Any] = {f"weights {i}": value for i, value in enumerate(training.weights or ())}
    for epoch, weights in training.snapshots.items():
        arrays |= {f"snapshot {epoch} {i}": value for i, value in enumerate(weights)}
    arrays |= {"losses": training.losses, "held_out_losses": training.held_out_losses}
    arrays |= {"is_cut": training.is_cut, "step": trainer.step, "seconds": seconds}
    save_arrays(path, arrays)


def _read(path: pathlib.Path, trainer: Trainer) -> tuple[Training, float]:
    arrays = load_arrays(path)
    weights: list[np.ndarray] = []
    snapshots: dict[int, list[np.ndarray]] = {}
    for name, value in arrays.items():
        kind, *numbers = name.split(" ")
        if kind == "weights":
            weights.append(value)
        elif kind == "snapshot":
            snapshots.setdefault(int(numbers[0]), []).append(value)
    losses, held_out_losses = arrays["losses"].tolist(), arrays["held_out_losses"].tolist()
    training = Training(weights, bool(arrays["is_cut"]), False, losses, held_out_losses, snapshots)
    trainer.step = int(arrays["step"])
    return training, float(arrays["seconds"])
