"""Reads arrays from NumPy's file formats."""

from __future__ import annotations

import io
import warnings

import numpy as np

from tfp_ebm.datasets.cells import quoted, shown_list
from tfp_ebm.datasets.faults import reason_of
from tfp_ebm.files import DAMAGED

# Names of the training inputs in archives that also hold labels and a test set, such as those of Keras.
_INPUTS = ("x_train", "X_train", "train_x", "train_images", "x", "X", "data")


def read_array(raw: bytes, suffix: str, label: str, key: str | None) -> np.ndarray:
    """Returns the array of a `.npy` file, or one array of a `.npz` file.

    Args:
      raw: the content of the file.
      suffix: ".npy" or ".npz".
      label: the name of the file in error messages.
      key: the array's name in a `.npz` file. None: the only one, or else the inputs of a training set (`x_train`, …).

    Raises:
      TypeError: if the array holds Python objects.
      ValueError: if the file is damaged, or has no such array.
    """
    try:
        content = np.load(io.BytesIO(raw), allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        names = list(content.files)
        chosen = _chosen(names, label) if key is None else key
        if chosen in names:
            found = content[chosen]
            if not isinstance(found, np.ndarray):
                raise ValueError(f"its part {quoted(chosen)} is no array")
            return found
    except (OSError, *DAMAGED) as error:
        if "Object arrays" in str(error):
            raise TypeError(f"{label} must hold real numbers, got an array of Python objects.") from error
        raise ValueError(f"{label} is not a complete {suffix} file, it may be truncated: {reason_of(error)}") from error
    if not names:
        raise ValueError(f"{label} holds no array.")
    raise ValueError(f"`key` must be one of {shown_list(names)}, the arrays of {label}, got {quoted(key)}.")


def _chosen(names: list[str], label: str) -> str | None:
    if len(names) == 1:
        return names[0]
    chosen = next((name for name in _INPUTS if name in names), None)
    if chosen is not None:
        others = shown_list([name for name in names if name != chosen])
        warnings.warn(f"{label}: the array {quoted(chosen)} is read; `key` chooses another of {others}.", stacklevel=4)
    return chosen
