"""The check that Keras runs on TensorFlow: floor 0, called before any module that uses Keras is imported."""

from __future__ import annotations

import os
import sys


def check_backend(imports_keras: bool = True) -> None:
    """Raises ImportError if Keras runs, or is set to run, on another backend than TensorFlow.

    Args:
      imports_keras: whether Keras may be imported to read its configuration file. Otherwise only the environment
        variable counts, unless Keras is already imported.

    >>> check_backend()
    """
    # Keras imports its backend, which may not be installed, so the variable is read before Keras is imported.
    name = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if "keras" in sys.modules or (name == "tensorflow" and imports_keras):
        import keras

        name = keras.backend.backend()
    if name != "tensorflow":
        raise ImportError(
            f"tfp_ebm needs Keras on the TensorFlow backend, but Keras runs on {name!r}: set the environment variable "
            'KERAS_BACKEND=tensorflow before Keras is imported, or "backend" in ~/.keras/keras.json.'
        )
