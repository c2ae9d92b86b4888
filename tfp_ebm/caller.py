"""Warnings that point to the user's line, wherever inside the package they are issued.

A fixed `stacklevel` counts frames, but the number of frames between the user and a warning varies: `p.sample` calls
TensorFlow Probability, a compiled function TensorFlow. This module therefore searches the stack for the first frame
that belongs to none of these packages.
"""

from __future__ import annotations

import sys
import warnings
from types import FrameType

# `decorator` and `contextlib` wrap functions of TensorFlow Probability and TensorFlow.
_INTERNAL = {"tfp_ebm", "tensorflow", "tensorflow_probability", "keras", "tf_keras", "decorator", "contextlib"}


def _is_internal(frame: FrameType) -> bool:
    """Returns whether a frame belongs to this package, or to one through which it is called."""
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in _INTERNAL or not package or package.startswith("__autograph_generated_file")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning with the file and line of the user's call.

    Args:
      message: the text.
      category: the class of the warning.

    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn("look here")
    >>> str(caught[0].message)
    'look here'
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_internal(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def is_called_by(name: str) -> bool:
    """Returns whether a function of this name is among the callers.

    >>> def outer():
    ...     return is_called_by("outer"), is_called_by("inner")
    >>> outer()
    (True, False)
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None
