"""The representation of an energy in the derivative engine: E = Σ terms, over flat batches.

An energy may be a Keras network, an `EnergyFunction` (a network and, optionally, the tilt −log base of a base measure),
or any callable `[..., *event] -> [...]`. Networks are read layer by layer, so their event shape must be known, and
leading dimensions are flattened into one batch. A plain callable receives x unchanged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_keras_3

EnergyCallable = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of an energy.

    Attributes:
      function: the term as a callable of x, differentiable in reverse mode.
      source: the object that forward mode reads: a Keras network, or an object whose type has a rule.
      inward: the map from x to the coordinates that `source` takes; plain arithmetic, so that it also accepts jets.
      dtype: dtype of the term's values if it differs from the dtype in which `source` computes.
      unit: a function that returns the length of a direction whose image under `inward` has a length of order one;
        None for 1. In float16 the squares of images of another order would overflow.
    """

    function: EnergyCallable
    source: Any
    inward: Callable[[Any], Any] = lambda x: x
    dtype: Any = None
    unit: Callable[[], tf.Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Energy:
    """The engine's representation of an energy.

    Attributes:
      terms: the summands.
      event_shape: shape of one state; None for a plain callable, where it follows from the shape of E(x).
      training: the mode in which networks run.
      offset: a function that returns a constant summand; None for zero.
    """

    terms: tuple[Term, ...]
    event_shape: tuple[int | None, ...] | None = None
    training: bool = False
    offset: Callable[[], tf.Tensor] | None = None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns E(x)."""
        return self.total([term.function(x) for term in self.terms])

    def total(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """Computes E from the values of its terms."""
        energy = tf.add_n(values) if len(values) > 1 else values[0]
        return energy if self.offset is None else energy + self.offset()


def as_vector(energies: tf.Tensor) -> tf.Tensor:
    """Reshapes a network's output `[batch]` or `[batch, 1]` to `[batch]`."""
    shape = energies.shape
    if shape.rank == 1:
        return energies
    if shape.rank == 2 and shape[1] == 1:
        return energies[:, 0]
    raise ValueError(
        f"`energy_fn` must return one energy per row, shape [batch] or [batch, 1], got output of shape {tuple(shape)}."
    )


def as_energy(energy_fn: Any, x: tf.Tensor) -> Energy:
    """Returns `energy_fn` as an `Energy`, or raises if it is not an energy of x alone."""
    if not callable(energy_fn):
        raise TypeError(f"`energy_fn` must be a callable, a Keras network or an EnergyModel, got {energy_fn!r}.")
    check_keras_3("energy_fn", energy_fn)
    if hasattr(energy_fn, "energy_function"):
        return _of_model(energy_fn, x)
    if getattr(energy_fn, "is_conditional", False):
        raise ValueError(
            "`energy_fn` must take x alone, got one that takes (x, condition): fix the condition by "
            "`model.given(condition)` or `lambda x: energy_fn(x, condition)`."
        )
    if hasattr(energy_fn, "terms") and hasattr(energy_fn, "network"):
        network, *others = energy_fn.terms
        source = getattr(energy_fn, "network_source", energy_fn.network)
        terms = (Term(network, source, dtype=energy_fn.dtype), *(Term(other, other) for other in others))
        return Energy(terms, tuple(energy_fn.event_shape), bool(getattr(energy_fn, "training", False)))
    if isinstance(energy_fn, keras.Layer):
        if not energy_fn.built:  # a Sequential model has no graph before it is built
            energy_fn(keras.KerasTensor((None, *x.shape[1:]), x.dtype.name))
        shape = getattr(energy_fn, "input_shape", None)
        if not isinstance(shape, tuple) or len(shape) < 2 or isinstance(shape[0], tuple):
            shape = x.shape
        term = Term(lambda flat: as_vector(energy_fn(flat, training=False)), energy_fn)
        return Energy((term,), tuple(shape[1:]))
    return Energy((Term(energy_fn, energy_fn),))


def _of_model(model: Any, x: tf.Tensor) -> Energy:
    """Returns an `EnergyModel` as E(x) = E_z(z) + Σ log scale with z = (x − loc)/scale, which also accepts jets."""
    inner, standardization = as_energy(model.energy_function, x), model.standardization

    def unit() -> tf.Tensor:
        # a power of 2, so that multiplication does not round
        scale = tf.cast(standardization.scale.value, x.dtype)
        return 2.0 ** tf.round(tf.reduce_mean(tf.math.log(scale)) / math.log(2.0))

    def in_x(term: Term) -> Term:
        return dataclasses.replace(
            term, function=lambda x: term.function(standardization.to_z(x)), inward=standardization.to_z, unit=unit
        )

    return dataclasses.replace(inner, terms=tuple(map(in_x, inner.terms)), offset=standardization.log_scale_sum)


def as_floating(energy_fn: Any, x: Any) -> tf.Tensor:
    """Returns `x` as a floating-point tensor. If it is not a tensor yet, it gets the energy's dtype, if any."""
    dtype = getattr(energy_fn, "dtype", None)
    state = tf.convert_to_tensor(x) if tf.is_tensor(x) else tf.convert_to_tensor(x, dtype_hint=dtype)
    if not state.dtype.is_floating:
        raise TypeError(f"`x` must hold floating-point numbers, got a tensor of dtype {state.dtype.name}.")
    if hasattr(energy_fn, "energy_function") and state.dtype != tf.as_dtype(dtype):
        raise TypeError(f"`x` must have the model's dtype {tf.as_dtype(dtype).name}, got {state.dtype.name}.")
    return state
