"""The check that a network's energy of a row does not depend on other rows.

A density needs E(x) to be a function of x. A layer that computes statistics over the batch (minibatch deviation, batch
normalisation in training mode, a softmax over rows) makes it depend on the other rows in the batch. Two rows are
sufficient for a check: the energy of one row must not change if the other is omitted, and must have no gradient in it.
"""

from __future__ import annotations

import concurrent.futures
import warnings
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.derivatives.failures import first_layer

if TYPE_CHECKING:
    from tfp_ebm.energy.function import EnergyFunction

# Relative differences between the results for one row and for two rows that rounding explains, by the lowest precision.
_TOLERANCES = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}


def check_rows(energy_function: EnergyFunction, training: bool = False) -> None:
    """Raises if the network's energy of a row depends on the other rows of its batch.

    The function runs the network eagerly on one row and on two rows; no weight changes.

    Args:
      energy_function: the energy; its network must be built.
      training: the mode in which the network runs. In training mode only the gradient is compared, because layers may
        draw noise.

    Raises:
      ValueError: if rows are mixed; names the layer that mixes them, if it is found.
    """
    if not tf.executing_eagerly():
        # a separate thread is eager; `tf.init_scope` is too, but tapes do not record in it
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            executor.submit(check_rows, energy_function, training).result()
        return
    with keras.StatelessScope():
        x = tf.constant(_two_rows(energy_function.event_shape), energy_function.dtype)
        try:
            found = _mixes(energy_function, x, training)
        except tf.errors.InvalidArgumentError as error:
            first_line = str(error).splitlines()[0]
            raise ValueError(f"`network` must take batches of any size, but fails on two rows: {first_line}") from error
        if not found:
            return
        layer = first_layer(energy_function.network, lambda layer, spec: _layer_mixes(layer, spec, training))
    where = "" if layer is None else f", because its layer `{layer.name}` ({type(layer).__name__}) mixes rows"
    mode = "in training mode " if training else ""
    raise ValueError(
        f"`network` must give each row an energy of its own, but {mode}the energy of one row depends on the other rows "
        f"of its batch{where}. Then exp(−E) is no density of x. Compute over the coordinates of each row instead "
        "(tfp_ebm.networks.GroupNormalization in place of batch normalisation, or freeze that with "
        "`trainable = False`)."
    )


def _two_rows(event_shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *event_shape))


def _mixes(energy_function: EnergyFunction, x: tf.Tensor, training: bool) -> bool:
    def energies(x: tf.Tensor) -> tf.Tensor:
        condition, spec = None, energy_function.condition_spec
        if energy_function.is_conditional:  # labels start at 0, and noise levels are positive
            fill = tf.zeros if spec.dtype.is_integer else tf.ones
            condition = fill(tf.concat([tf.shape(x)[:1], spec.shape], 0), spec.dtype)
        return energy_function.network_term(x, condition, training=training)

    if _has_gradient_across(energies, x):
        return True
    if training:
        return False
    dtypes = {layer.compute_dtype for layer in energy_function.network._flatten_layers()}
    tolerance = max(_TOLERANCES.get(dtype, 0.0) for dtype in (*dtypes, energy_function.dtype))
    return _changes_with_others(energies, x, tolerance)


def _changes_with_others(function: Any, x: tf.Tensor, tolerance: float) -> bool:
    """Returns whether the value of either row changes when the other one is replaced or left out."""
    values, again = (tf.cast(function(x), tf.float64).numpy() for _ in range(2))
    if not np.isfinite(values).all() or not np.array_equal(values, again):
        return False  # a function that draws noise, or has no value there, cannot be compared
    allowed = tolerance * np.abs(values[:1]).max(), tolerance * np.abs(values[1:2]).max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of a softmax over a single row
        for row in (0, 1):  # a sum over the rows above leaves the first one as it is
            kept = x[row : row + 1]
            for far in (-5.0, 5.0, None):
                other = [] if far is None else [tf.fill(tf.shape(kept), tf.constant(far, x.dtype))]
                rows = tf.concat([kept, *other] if row == 0 else [*other, kept], 0)
                value = tf.cast(function(rows), tf.float64).numpy()[0 if row == 0 else -1]
                if np.abs(value - values[row]).max() > allowed[row]:
                    return True
    return False


def _has_gradient_across(function: Any, x: tf.Tensor) -> bool:
    """Returns whether the value of either row of a function has a gradient in the other row of x."""
    with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
        tape.watch(x)
        values = function(x)
        sums = [tf.reduce_sum(tf.cast(values[row], tf.float32)) for row in (0, 1)]
    for row, value in enumerate(sums):
        try:
            gradient = tape.gradient(value, x)
        except LookupError:
            return False  # it has no gradient at all, which is reported where one is needed
        if gradient is not None:
            across = tf.convert_to_tensor(gradient)[1 - row].numpy()
            if (np.isfinite(across) & (across != 0)).any():
                return True
    return False


def _layer_mixes(layer: keras.layers.Layer, spec: tf.TensorSpec, training: bool) -> bool:
    shape = [2 if size is None else size for size in spec.shape.as_list()]
    if shape[0] != 2 or not spec.dtype.is_floating:
        return False
    x = tf.constant(np.random.default_rng(1).normal(size=shape), spec.dtype)
    try:
        if _has_gradient_across(lambda x: layer(x, training=training), x):
            return True
        return not training and _changes_with_others(lambda x: layer(x, training=False), x, 0.05)
    except (TypeError, ValueError, AttributeError, LookupError, IndexError, tf.errors.OpError):
        return False  # it cannot be called alone
