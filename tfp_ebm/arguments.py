"""Checks of user arguments. Every error names the argument, the expected value and the value received.

Floor 0. Public functions call these checks before they do any work, so that bad input neither writes nor loses data.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Hashable
from typing import Any

import numpy as np


def _real(name: str, value: Any, expected: str) -> float:
    """Returns `value` as a finite float, or raises an error which states that it must be `expected`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | np.number):
        raise TypeError(f"`{name}` must be {expected}, got {value!r} of type {type(value).__name__}.")
    if not math.isfinite(float(value)):
        raise ValueError(f"`{name}` must be {expected}, got {value!r}.")
    return float(value)


def check_finite(name: str, value: Any) -> float:
    """Returns `value` as a float if it is a finite number."""
    return _real(name, value, "a finite number")


def check_positive(name: str, value: Any) -> float:
    """Returns `value` as a float if it is a finite number > 0."""
    real = _real(name, value, "a positive number")
    if real <= 0:
        raise ValueError(f"`{name}` must be a positive number, got {value!r}.")
    return real


def check_nonnegative(name: str, value: Any) -> float:
    """Returns `value` as a float if it is a finite number >= 0."""
    real = _real(name, value, "a number that is not negative")
    if real < 0:
        raise ValueError(f"`{name}` must be a number that is not negative, got {value!r}.")
    return real


def check_probability(name: str, value: Any) -> float:
    """Returns `value` as a float if it is a number from 0 to 1."""
    real = _real(name, value, "a number from 0 to 1")
    if not 0.0 <= real <= 1.0:
        raise ValueError(f"`{name}` must be a number from 0 to 1, got {value!r}.")
    return real


def check_share(name: str, value: Any) -> float:
    """Returns `value` as a float if it is a number between 0 and 1, neither of which it may be."""
    real = _real(name, value, "a share between 0 and 1")
    if not 0.0 < real < 1.0:
        raise ValueError(f"`{name}` must be a share between 0 and 1, got {value!r}.")
    return real


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int if it is a whole number >= `minimum`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        if isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_):
            raise ValueError(f"`{name}` must be a whole number of at least {minimum}, got {value!r}.")
        raise TypeError(
            f"`{name}` must be a whole number of at least {minimum}, got {value!r} of type {type(value).__name__}."
        )
    if value < minimum:
        raise ValueError(f"`{name}` must be a whole number of at least {minimum}, got {value!r}.")
    return int(value)


def check_event_shape(value: Any) -> tuple[int, ...]:
    """Returns a shape of one state, a sequence of sizes, as a tuple."""
    try:
        sizes = None if isinstance(value, str) else tuple(value)
    except TypeError:  # also of objects that have `__iter__`, such as distributions
        sizes = None
    if sizes is None:
        raise TypeError(f"`event_shape` must be a sequence of sizes, such as [2], got {value!r}.")
    return tuple(check_count("event_shape", size) for size in sizes)


def check_bool(name: str, value: Any) -> bool:
    """Returns `value` if it is True or False; no other value counts as one of them."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Returns `value` if it is one of `choices`; the error lists them."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return value


def check_jit_compile(value: Any, choices: tuple[Any, ...] = (True, False, "auto")) -> bool | str:
    """Returns `value` as a bool, or as "auto" where that is one of `choices`.

    >>> check_jit_compile("auto"), check_jit_compile(1)
    ('auto', True)
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"`jit_compile` must be {', '.join(others)} or {last}, got {value!r}.")
    return value if isinstance(value, str) else bool(value)


def check_kernel(value: Any, *, hashable: bool = False) -> Any:
    """Returns `value` if it can be a kernel, a callable `target_log_prob_fn -> tfp.mcmc.TransitionKernel`.

    Args:
      value: the argument `kernel`.
      hashable: whether it must also have a hash, so that its compiled loop can be reused.
    """
    if not callable(value):
        raise TypeError(f"`kernel` must map a target to a tfp.mcmc.TransitionKernel, got {value!r}.")
    if hashable and not isinstance(value, Hashable):
        raise TypeError(f"`kernel` must map a target to a tfp.mcmc.TransitionKernel, and have a hash, got {value!r}.")
    return value


def check_sigmas(name: str, values: Any) -> tuple[float, ...]:
    """Returns noise scales as a tuple of floats if they are positive and sorted, in ascending or descending order."""
    if isinstance(values, str) or np.ndim(values) != 1 or np.size(values) == 0:
        raise ValueError(f"`{name}` must be a list of at least one positive number, got {values!r}.")
    scales = tuple(check_positive(f"{name}[{i}]", value) for i, value in enumerate(values))
    if list(scales) not in (sorted(scales), sorted(scales, reverse=True)):
        raise ValueError(f"`{name}` must be sorted, got {values!r}.")
    return scales


def check_weights(name: str, weights: Any, num_rows: int) -> np.ndarray:
    """Returns `weights` as an array if it holds one finite number >= 0 for each row, `[rows]` or `[rows, 1]`."""
    array = np.asarray(weights)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` must hold real numbers, got an array of dtype {array.dtype}.")
    if array.shape not in ((num_rows,), (num_rows, 1)):
        raise ValueError(f"`{name}` must hold one number per row, shape [{num_rows}], got {array.shape}.")
    bad = np.flatnonzero(~(array >= 0) | ~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"`{name}` must be finite and not negative: {len(bad)} of its {num_rows} numbers are not, the first at "
            f"index {bad[0]} ({array.reshape(-1)[bad[0]]})."
        )
    return array


def is_frame(x: Any) -> bool:
    """Returns whether `x` is a `pandas.DataFrame`, without importing pandas."""
    return type(x).__module__.split(".")[0] == "pandas" and hasattr(x, "columns")


def _numbers_of_frame(name: str, frame: Any) -> np.ndarray:
    """Returns the numbers of a `pandas.DataFrame` as an array `[rows, columns]`, with NaN for missing values."""
    kinds = {str(column): getattr(dtype, "kind", "O") for column, dtype in frame.dtypes.items()}
    others = [column for column, kind in kinds.items() if kind not in "biuf"]
    if others:
        raise TypeError(f"`{name}` must hold real numbers, but its columns {', '.join(map(repr, others))} do not.")
    if all(isinstance(dtype, np.dtype) for dtype in frame.dtypes):
        return frame.to_numpy()
    return frame.to_numpy(np.float64, na_value=np.nan)


def numbers_of(name: str, x: Any) -> np.ndarray:
    """Returns array-like numbers or a `pandas.DataFrame` as an array of real numbers, which may be NaN."""
    try:
        array = _numbers_of_frame(name, x) if is_frame(x) else np.asarray(x)
    except ValueError as error:  # ragged nested lists
        raise ValueError(f"`{name}` must be a rectangular array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` must hold real numbers, got an array of dtype {array.dtype}.")
    return array


def check_data(name: str, x: Any, event_shape: tuple[int, ...] | None = None, min_rows: int = 1) -> np.ndarray:
    """Returns `x` as a numeric array `[rows, *event]` if it is not empty and all its numbers are finite.

    Args:
      name: the argument's name, for the error messages.
      x: array-like of numbers, or a `pandas.DataFrame` of numbers.
      event_shape: the shape of one row. If None, any shape with at least one axis is accepted.
      min_rows: the smallest number of rows allowed.

    Raises:
      TypeError: if `x` holds strings or objects.
      ValueError: if it is empty, has too few rows, has the wrong rank or shape, or holds NaN or infinities
        (the error gives their number and the index of the first).
    """
    array = numbers_of(name, x)
    if event_shape is not None and array.shape[1:] != tuple(event_shape):
        expected = ", ".join(["rows", *map(str, event_shape)])
        raise ValueError(f"`{name}` must have shape [{expected}], got {array.shape}.")
    if array.ndim < 2:
        raise ValueError(f"`{name}` must have shape [rows, *event], at least two axes, got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"`{name}` must not be empty, got shape {array.shape}.")
    if len(array) < min_rows:
        raise ValueError(f"`{name}` must have at least {min_rows} rows, got {len(array)}.")
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.argwhere(~finite)
        first = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"`{name}` must be finite: {len(bad)} of its {array.size} numbers are NaN or infinite, "
            f"the first at index {first} ({array[first]})."
        )
    return array


def check_keras_3(name: str, value: Any) -> None:
    """Raises TypeError if `value` is an object of tf_keras, the Keras 2 package, whose classes have the same names."""
    for kind in type(value).__mro__ if not isinstance(value, type) else value.__mro__:
        if kind.__module__.split(".")[0] == "tf_keras":
            raise TypeError(
                f"`{name}` must be an object of Keras 3 (`import keras`), got {type(value).__name__} of the package "
                "tf_keras, which is Keras 2. Create it with `keras`."
            )
