"""Support for TFP's contract of distributions: tensor counts and log Z, broadcast batch axes, tracked variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_count
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.negative_energy import frozen_weights
from tfp_ebm.types import Estimate

tfb, tfd = tfp.bijectors, tfp.distributions


class UnfrozenVariables(Mapping[str, tf.Variable]):
    """The variables of a network that a `tf.Module` finds: all but those that are currently frozen in Keras."""

    def __init__(self, model: EnergyModel) -> None:
        self._model = model

    def _variables(self) -> dict[str, tf.Variable]:
        frozen = {id(weight) for weight in frozen_weights(self._model)}
        weights = (*self._model.network.weights, *self._model.standardization.weights)
        return {f"{i:06d}": weight.value for i, weight in enumerate(weights) if id(weight) not in frozen}

    def __getitem__(self, name: str) -> tf.Variable:
        return self._variables()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables())

    def __len__(self) -> int:
        return len(self._variables())


class BroadcastEnergies(tfd.BatchBroadcast.__bases__[0]):  # type: ignore[name-defined]
    """A `tfd.BatchBroadcast` that also broadcasts `unnormalized_log_prob`.

    Args:
      distribution: an `EnergyDistribution`.
      with_shape: batch shape.
    """

    def _unnormalized_log_prob(self, x: tf.Tensor) -> tf.Tensor:
        shape = tf.broadcast_dynamic_shape(
            tf.shape(x), tf.concat([self.batch_shape_tensor(), self.event_shape_tensor()], 0)
        )
        return self.distribution.unnormalized_log_prob(tf.broadcast_to(x, shape))


def check_count_or_tensor(name: str, value: Any) -> Any:
    """Returns a positive count: an int, or a scalar integer tensor whose value is not known yet."""
    if not tf.is_tensor(value):
        return check_count(name, value)
    static = tf.get_static_value(value)
    if value.shape.rank not in (0, None) or not value.dtype.is_integer:
        raise TypeError(f"`{name}` must be a whole number, got a {value.dtype.name} tensor of shape {value.shape}.")
    return tf.cast(value, tf.int32) if static is None else check_count(name, int(static))


def checked_log_normalizer(value: Any, dtype: tf.DType) -> Any:
    """Returns log Z as a scalar tensor, or as the variable that holds it."""
    value = value.value if isinstance(value, keras.Variable | Estimate) else value
    if value is None or isinstance(value, tuple | str | bool):
        raise TypeError(f"`log_normalizer` must be an Estimate or a number, got {value!r}.")
    if not isinstance(value, tf.Variable | tfp.util.DeferredTensor):
        value = tf.convert_to_tensor(value, dtype)
    elif value.dtype != dtype:
        raise TypeError(f"`log_normalizer` must have the energy's dtype {dtype.name}, got {value.dtype.name}.")
    if value.shape.rank not in (0, None):
        raise ValueError(
            f"`log_normalizer` must be an Estimate or a number, got shape {tuple(value.shape)}. In a joint "
            "distribution whose other variables have batch axes, use an auto-batched one, which passes one sample at "
            "a time."
        )
    known = None if isinstance(value, tf.Variable | tfp.util.DeferredTensor) else tf.get_static_value(value)
    if known is not None and not np.isfinite(known):
        raise ValueError(f"`log_normalizer` must be finite, got {known}.")
    return value


def with_added_axes(distribution: Any, slices: Any) -> tfp.distributions.Distribution:
    """Returns a distribution of batch shape () with the batch axes of size 1 that `slices` adds.

    Raises:
      IndexError: for an index or a slice, since there is no axis to index.
    """
    slices = slices if isinstance(slices, tuple) else (slices,)
    added = sum(item is None for item in slices)
    if any(item is not None and item is not Ellipsis for item in slices) or len(slices) - added > 1:
        raise IndexError(
            f"{distribution.name} has batch shape () and cannot be sliced, got [{', '.join(map(str, slices))}]; p[..., "
            "tf.newaxis] adds an axis, tfd.Sample(p, n) or p.sample(n) gives several."
        )
    return distribution if added == 0 else BroadcastEnergies(distribution, with_shape=[1] * added)


def bijector_of(base: tfp.distributions.Distribution | None, validate_args: bool) -> tfp.bijectors.Bijector:
    """Returns the bijector from unconstrained numbers onto the support of a base; the identity if it has none."""
    is_reshaped = isinstance(base, tfd.TransformedDistribution) and type(base.bijector) is tfb.Reshape
    if base is None or (is_reshaped and isinstance(base.distribution, tfd.MultivariateNormalLinearOperator)):
        return tfb.Identity(validate_args=validate_args)
    try:
        bijector = base.experimental_default_event_space_bijector()
    except NotImplementedError:
        bijector = None
    return tfb.Identity(validate_args=validate_args) if bijector is None else bijector
