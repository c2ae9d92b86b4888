"""A Keras model whose files are replaced atomically, by `save`, `save_weights` and the callbacks that call these."""

from __future__ import annotations

import io
import os
from typing import Any

import keras

from tfp_ebm.files import written_atomically


class AtomicallySavedModel(keras.Model):
    """A Keras model of which an interrupted save keeps the previous file."""

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
        with written_atomically(filepath) as temporary:
            temporary.write_bytes(buffer.getbuffer())


class _InMemory(io.BytesIO):
    """A file in memory with a name that Keras accepts; where a disk is full, HDF5 itself would end the process."""

    def __str__(self) -> str:
        return "in memory.weights.h5"


def _is_one_file(filepath: str | os.PathLike[str], overwrite: bool, suffix: str) -> bool:
    """Whether a save writes one file of that kind, and needs no permission to replace another."""
    exists = os.path.exists(filepath)
    return str(filepath).endswith(suffix) and not os.path.isdir(filepath) and (overwrite or not exists)
