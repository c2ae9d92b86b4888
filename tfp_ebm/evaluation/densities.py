"""Evaluates energies in any form that a user may pass, and reference distributions, in blocks of rows."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import derivatives
from tfp_ebm.arguments import check_data
from tfp_ebm.energy.shapes import by_blocks, one_per_row
from tfp_ebm.energy.signs import check_energy
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.random import stateless_seed
from tfp_ebm.types import EnergyLike, Seed


def energy_of(energy_fn: EnergyLike) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns E as a callable `[batch, *event] -> [batch]`.

    Args:
      energy_fn: an `EnergyModel`, a Keras network, any `tfd.Distribution` (an `EnergyDistribution` too), whose energy
        is minus its unnormalized log density, or a plain callable, which is an energy.

    Raises:
      TypeError: if `energy_fn` is none of these, or is known to be a log density.

    >>> energy_of(lambda x: x**2)(tf.constant([[2.0]])).numpy().tolist()  # a column will do
    [4.0]
    """
    if isinstance(energy_fn, EnergyModel):
        if energy_fn.is_conditional:
            raise ValueError("`energy_fn` must be of x alone, got a conditional model: pass `model.given(condition)`.")
        return energy_fn.energy
    if isinstance(energy_fn, EnergyDistribution):  # whose unnormalized_log_prob holds a known log Z
        return lambda x: -energy_fn.negative_energy(x)
    if isinstance(energy_fn, tfp.distributions.Distribution):
        return lambda x: -energy_fn.unnormalized_log_prob(x)
    if isinstance(energy_fn, keras.layers.Layer):
        return lambda x: tf.cast(one_per_row(energy_fn(x, training=False), x), x.dtype)
    if not callable(energy_fn):
        raise TypeError(
            "`energy_fn` must be an EnergyModel, an EnergyDistribution, a Keras network or a callable, got "
            f"{energy_fn!r}."
        )
    check_energy(energy_fn)
    return lambda x: one_per_row(energy_fn(x), x)


def negated(energy_fn: EnergyLike) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns −E of a network or a callable; two calls return equal callables, so that compiled loops are reused.

    >>> energy = lambda x: x[:, 0] ** 2
    >>> negated(energy) == negated(energy), negated(energy)(tf.constant([[2.0]])).numpy().tolist()
    (True, [-4.0])
    """
    if isinstance(energy_fn, types.MethodType):
        return types.MethodType(_minus_method(energy_fn.__func__), energy_fn.__self__)
    return types.MethodType(_minus_network if isinstance(energy_fn, keras.layers.Layer) else _minus, energy_fn)


def _minus(energy_fn: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    energies = tf.convert_to_tensor(energy_fn(x))
    return -(energies[:, 0] if energies.shape.rank == 2 and energies.shape[1] == 1 else energies)


def _minus_network(network: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    return -tf.cast(one_per_row(network(x, training=False), x), x.dtype)


@functools.lru_cache(maxsize=256)
def _minus_method(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    return lambda owner, x: _minus(functools.partial(function, owner), x)


def event_shape_of(energy_fn: EnergyLike) -> tuple[int, ...] | None:
    """Returns the shape of one x; None if `energy_fn` does not determine it."""
    if isinstance(energy_fn, EnergyModel):
        return energy_fn.event_shape if energy_fn.built else None
    if isinstance(energy_fn, tfp.distributions.Distribution):
        return tuple(energy_fn.event_shape)
    return None


def dtype_of(energy_fn: EnergyLike, x: np.ndarray) -> Any:
    """Returns the dtype in which the energy takes the array x; for a plain callable, the precision of x."""
    if isinstance(energy_fn, EnergyModel | tfp.distributions.Distribution):
        return tf.as_dtype(energy_fn.dtype).as_numpy_dtype
    if isinstance(energy_fn, keras.layers.Layer):
        return np.dtype(energy_fn.variable_dtype)
    return x.dtype if x.dtype in (np.float32, np.float64) else np.dtype(np.float32)


def energies(energy_fn: EnergyLike, x: Any, name: str = "x") -> np.ndarray:
    """Returns E at rows, float64 `[rows]`.

    Raises:
      TypeError, ValueError: if `x` is empty or not finite, or the energy is not one number per row.

    >>> energies(lambda x: tf.reduce_sum(x**2, -1), np.array([[1.0, 2.0]])).tolist()
    [5.0]
    """
    x = check_data(name, x)
    return _in_blocks(energy_of(energy_fn), x.astype(dtype_of(energy_fn, x), copy=False))


def scores(energy_fn: EnergyLike, x: Any, name: str = "x") -> np.ndarray:
    """Returns −∇E at rows, float64 `[rows, coordinates]`."""
    x = check_data(name, x)
    x = x.astype(dtype_of(energy_fn, x), copy=False)
    if isinstance(energy_fn, EnergyModel):
        function: Callable[[tf.Tensor], tf.Tensor] = energy_fn.score
    else:
        energy = energy_of(energy_fn)
        function = lambda rows: derivatives.score(energy, rows)  # noqa: E731
    return _in_blocks(function, x).reshape(len(x), -1)


def class_probabilities(logits_fn: Any, x: Any) -> np.ndarray:
    """Returns the softmax of logits at rows, float64 `[rows, classes]`.

    Raises:
      TypeError: if `logits_fn` is an energy or not a callable.
      ValueError: if it does not return one number for each row and class.
    """
    if isinstance(logits_fn, EnergyModel | tfp.distributions.Distribution) or not callable(logits_fn):
        raise TypeError(f"`energy_fn` must be a classifier of logits [batch, classes], got {logits_fn!r}.")
    x = check_data("x", x)
    is_network = isinstance(logits_fn, keras.layers.Layer)
    function = (lambda rows: logits_fn(rows, training=False)) if is_network else logits_fn
    logits = _in_blocks(function, x.astype(dtype_of(logits_fn, x), copy=False))
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(f"the logits must have shape [{len(x)}, classes], got {logits.shape}.")
    return np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))


def _in_blocks(function: Callable[[tf.Tensor], tf.Tensor], x: np.ndarray) -> np.ndarray:
    return by_blocks(function, tf.constant(x)).numpy().astype(np.float64)


def check_reference(reference: Any, name: str = "reference") -> tfp.distributions.Distribution:
    """Returns `reference` if it is one distribution with a normalised density."""
    if not isinstance(reference, tfp.distributions.Distribution):
        raise TypeError(f"`{name}` must be a tfp.distributions.Distribution with an exact log_prob, got {reference!r}.")
    if tuple(reference.batch_shape) != ():
        raise ValueError(f"`{name}` must be one distribution, got a batch of shape {tuple(reference.batch_shape)}.")
    if tuple(reference.event_shape) == ():
        raise ValueError(f"`{name}` must be over vectors or arrays, got one over numbers: use tfd.Sample({name}, 1).")
    if isinstance(reference, EnergyDistribution) and reference.log_normalizer is None:
        raise ValueError(
            f"`{name}` must have an exact log_prob, got one whose log Z is not known: use {name}.with_log_normalizer."
        )
    return reference


def known_log_prob(reference: tfp.distributions.Distribution, x: np.ndarray) -> np.ndarray:
    """Returns log p of a distribution at rows, float64 `[rows]`."""
    return _in_blocks(reference.log_prob, x.astype(tf.as_dtype(reference.dtype).as_numpy_dtype, copy=False))


def draws(reference: tfp.distributions.Distribution, num_samples: int, seed: Seed) -> np.ndarray:
    """Returns draws `[num_samples, *event]` of a distribution, the same for the same seed."""
    return np.asarray(reference.sample(num_samples, seed=stateless_seed(seed)))
