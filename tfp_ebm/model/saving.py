"""A Keras model whose files are replaced atomically, by `save`, `save_weights` and the callbacks that call these.

`keras.callbacks.BackupAndRestore` writes two files one after the other: the weights, then the number of epochs. A
process that is killed between them, or while it writes the second, would resume at an epoch that is not that of the
weights. Hence weights that are saved during `fit` hold the number of epochs too, and `fit` compares both.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import tensorflow as tf

from tfp_ebm.files import written_atomically

# The attribute of a weight file with the number of epochs that were complete.
_EPOCHS = "completed_epochs"


class Epochs(keras.callbacks.Callback):
    """Counts the epochs of a training that are complete, those before it was resumed included."""

    completed = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """See Keras."""
        self.completed = epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """See Keras."""
        self.completed = epoch + 1


class AtomicallySavedModel(keras.Model):
    """A Keras model of which an interrupted save keeps the previous file."""

    _epochs: Epochs | None = None  # of the `fit` that runs now

    def fit(self, **call: Any) -> Any:
        """Trains as Keras does; first mends the epoch of backups that a killed process left."""
        callbacks = call.get("callbacks")
        # a list object of the user's own is left as it is: its callbacks would come before ours
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            given = [] if callbacks is None else list(tf.nest.flatten(callbacks))
            for callback in given:
                if isinstance(callback, keras.callbacks.BackupAndRestore):
                    _mend(callback)
            self._epochs = Epochs()
            call["callbacks"] = [self._epochs, *given]
        try:
            return super().fit(**call)
        finally:
            self._epochs = None

    def save(self, filepath: str | os.PathLike[str], overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the model as Keras's `save` does, but atomically: an interrupted save keeps the previous file."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"`filepath` must end in .keras, got {filepath}: the old HDF5 format cannot hold an energy model. "
                "(`save_weights` writes .weights.h5.)"
            )
        if not _is_one_file(filepath, overwrite, ".keras"):
            super().save(filepath, overwrite=overwrite, **kwargs)  # Keras prompts the user or raises an error
            return
        with written_atomically(filepath) as temporary:
            super().save(temporary, **kwargs)

    def save_weights(self, filepath: str | os.PathLike[str], overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the weights as Keras's `save_weights` does, but atomically, so that `BackupAndRestore` loses nothing.

        With `max_shard_size`, which writes several files, it is Keras's own.
        """
        if kwargs.get("max_shard_size") is not None or not _is_one_file(filepath, overwrite, ".weights.h5"):
            super().save_weights(filepath, overwrite=overwrite, **kwargs)
            return
        buffer = _InMemory()
        super().save_weights(buffer, **kwargs)
        if self._epochs is not None:
            with h5py.File(buffer, "r+") as file:
                file.attrs[_EPOCHS] = self._epochs.completed
        with written_atomically(filepath) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class _InMemory(io.BytesIO):
    """A file in memory with a name that Keras accepts; where a disk is full, HDF5 itself would end the process."""

    def __str__(self) -> str:
        return "in memory.weights.h5"


def _mend(backup: keras.callbacks.BackupAndRestore) -> None:
    """Makes the number of epochs in a backup that of its weights."""
    weights, record = backup._weights_path, backup._training_metadata_path
    if not os.path.isfile(weights):
        if os.path.isfile(record):  # the process was killed while it removed the backup at its end
            os.remove(record)
        return
    try:
        with h5py.File(weights, "r") as file:
            epochs = file.attrs.get(_EPOCHS)
    except OSError:
        return  # damaged: for Keras to say, which may have another one
    if epochs is None:
        return
    try:
        with open(record, encoding="utf-8") as text:
            content = json.load(text)
    except (OSError, ValueError):  # not written, or half of it
        content = {"batch": 0}
    if content.get("epoch") != int(epochs):
        with written_atomically(record) as temporary:
            temporary.write_text(json.dumps({**content, "epoch": int(epochs)}), encoding="utf-8")


def _is_one_file(filepath: str | os.PathLike[str], overwrite: bool, suffix: str) -> bool:
    """Whether a save writes one file of that kind, and needs no permission to replace another."""
    exists = os.path.exists(filepath)
    return str(filepath).endswith(suffix) and not os.path.isdir(filepath) and (overwrite or not exists)
