"""Shapes and dtypes of states and energies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Rows per evaluation: large enough for both cores, small enough for the activations of a wide network.
_BLOCK = 16_384


def input_event_shape(network: keras.layers.Layer) -> tuple[int, ...] | None:
    """Returns the event shape of the network's (first) input if it is known, else None."""
    shape = getattr(network, "input_shape", None)
    if isinstance(shape, list):
        shape = shape[0]
    if not isinstance(shape, tuple) or len(shape) < 2 or any(not isinstance(size, int) for size in shape[1:]):
        return None
    return shape[1:]


def state_dtype(network: keras.layers.Layer) -> str:
    """Returns the dtype of an energy and its states: float64 if the network has float64 weights, else float32.

    Mixed precision computes inside the network in half precision, but energies, whose differences decide
    Metropolis steps and log-weights, are never reduced in less than float32.
    """
    dtypes = {weight.dtype for weight in network.weights}
    if not dtypes:
        dtypes = {layer.variable_dtype for layer in (network, *getattr(network, "layers", ()))}
    return "float64" if "float64" in dtypes else "float32"


def as_state(x: Any, dtype: str | tf.DType, event_shape: tuple[int, ...], name: str = "x") -> tf.Tensor:
    """Returns `x` as a tensor `[..., *event]` of `dtype`.

    Arrays and lists of numbers are converted. A *tensor* of another dtype raises an error, because it comes from a
    chain or a graph, and its conversion would hide a mistake.

    Raises:
      TypeError: for a tensor of another dtype, or an object that does not hold numbers.
      ValueError: if the last axes are not the event shape.
    """
    dtype = tf.as_dtype(dtype)
    if tf.is_tensor(x):
        x = tf.convert_to_tensor(x)
        if x.dtype != dtype:
            raise TypeError(f"`{name}` must be a tensor of dtype {dtype.name} like the energy, got {x.dtype.name}.")
    else:
        array = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"`{name}` must hold real numbers, got {type(x).__name__} of dtype {array.dtype}.")
        x = tf.convert_to_tensor(array.astype(dtype.as_numpy_dtype))
    rank = len(event_shape)
    known = x.shape.rank is not None
    if not known or x.shape.rank < rank or not x.shape[x.shape.rank - rank :].is_compatible_with(event_shape):
        expected = ", ".join(["...", *map(str, event_shape)])
        raise ValueError(
            f"`{name}` must have shape [{expected}], got {tuple(x.shape) if known else 'a tensor of unknown rank'}."
        )
    return x


def one_per_row(energies: Any, x: tf.Tensor) -> tf.Tensor:
    """Reshapes energies `[batch]` or `[batch, 1]` of states `[batch, *event]` to `[batch]`.

    Raises:
      ValueError: for any other shape.
    """
    energies = tf.convert_to_tensor(energies)
    shape = energies.shape
    is_column = shape.rank == 2 and shape[1] in (1, None)
    if not (shape.rank == 1 or is_column) or not shape[:1].is_compatible_with(x.shape[:1]):
        raise ValueError(
            f"the energy must be one number per row, shape [batch] or [batch, 1], got {tuple(shape)} "
            f"for states of shape {tuple(x.shape)}."
        )
    # reshaped to the batch of x, not to [-1], so that a network that mixes rows fails at run time if not at trace time
    return tf.ensure_shape(tf.reshape(energies, tf.shape(x)[:1]), x.shape[:1])


def over_leading_dimensions(
    function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, event_rank: int, keeps_event: bool = False
) -> tf.Tensor:
    """Applies `function`, which takes `[batch, *event]`, to `[..., *event]` of any number of leading dimensions.

    For example, TFP's replica exchange calls its target with `[replica, chain, *event]`, which a Keras network does not
    accept. The function's result is `[batch]`, or `[batch, *event]` if `keeps_event`.
    """
    if x.shape.rank == event_rank + 1:
        return function(x)
    shape = tf.shape(x)
    leading = x.shape.rank - event_rank
    result = function(tf.reshape(x, tf.concat([[-1], shape[leading:]], 0)))
    if keeps_event:
        return tf.ensure_shape(tf.reshape(result, shape), x.shape)
    return tf.ensure_shape(tf.reshape(result, shape[:leading]), x.shape[:leading])


def by_blocks(function: Callable[..., tf.Tensor], *arrays: tf.Tensor) -> tf.Tensor:
    """Applies a function of rows to blocks of at most 16 384 rows, and joins its results.

    So the memory of hidden units does not grow with the number of rows. Where a function is traced, it gets all rows.

    >>> by_blocks(lambda x, y: x + y[:, None], tf.ones([100_000, 2]), tf.range(100_000.0))[-1].numpy().tolist()
    [100000.0, 100000.0]
    """
    num_rows = arrays[0].shape[0]
    if not tf.executing_eagerly() or num_rows <= _BLOCK:
        return function(*arrays)
    blocks = [[array[first : first + _BLOCK] for array in arrays] for first in range(0, num_rows, _BLOCK)]
    return tf.concat([function(*block) for block in blocks], 0)
