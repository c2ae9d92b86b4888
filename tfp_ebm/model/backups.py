"""Backups of a training: weights with the position in the training, written atomically; the last two are kept.

A backup is a directory, named by the model's step. Its digest covers all that is in it, so that a damaged one is found,
and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import warnings
from typing import Any

from tfp_ebm.files import load_first_undamaged, written_atomically

_WEIGHTS, _POSITION = "state.weights.h5", "position.json"
# A backup is removed once this many newer ones are complete.
_KEPT = 2


def found(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the backups in a directory, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))[::-1]


def save(model: Any, folder: pathlib.Path, position: dict[str, Any]) -> None:
    """Writes a backup, and removes those that are not needed any more.

    Args:
      model: an `EnergyTrainer`.
      folder: the directory of the backups.
      position: what else is needed to resume; numbers, strings, lists and dictionaries of these.
    """
    with written_atomically(folder / f"{int(model._step.numpy()):012d}") as place:
        place.mkdir()
        model.save_weights(place / _WEIGHTS)
        text = json.dumps(position, sort_keys=True)
        record = {"position": position, "digest": _digest(place / _WEIGHTS, text)}
        (place / _POSITION).write_text(json.dumps(record), encoding="utf-8")
    for path in found(folder)[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def load(model: Any, folder: pathlib.Path) -> dict[str, Any] | None:
    """Loads the newest backup that is not damaged, and returns its position; None if there is no backup.

    Warns of a damaged backup if there is another one.

    Raises:
      ValueError: if all backups are damaged, or they are those of another model.
    """
    loaded = load_first_undamaged(found(folder), _position)
    if loaded is None:
        return None
    path, position = loaded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns of weights that it does not find
            model.load_weights(path / _WEIGHTS)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise ValueError(f"the backup {path} does not fit the model: {error}") from error
    return position


def _position(path: pathlib.Path) -> dict[str, Any]:
    """Returns the position of a backup; ValueError if its content is not what was written."""
    record = json.loads((path / _POSITION).read_text(encoding="utf-8"))
    position = dict(record["position"])
    if record["digest"] != _digest(path / _WEIGHTS, json.dumps(position, sort_keys=True)):
        raise ValueError("its content is not what was written")
    return position


def _digest(weights: pathlib.Path, text: str) -> str:
    digest = hashlib.sha256(text.encode())
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
