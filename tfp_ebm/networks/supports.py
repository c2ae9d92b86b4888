"""Columns that take a few values, and missing cells, in an autoregressive energy.

A coordinate with the support v₁ … v_K has probabilities instead of a density,

    P(xᵢ = v_k | x_<i) = exp(log π_k + ℓ_k) / Σ_l exp(log π_l + ℓ_l),

a sum over the support that is exact. π are the frequencies of the values, or the masses that a Gaussian mixture gives
to the cells around them, and ℓ_k = Σ_f a_f B_kf is linear in the outputs a of the network.

A missing cell, NaN, has no factor in the density. What comes after it sees that it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.networks.conditionals import Conditionals

# Values up to which a column is also given to the network as one number for each value.
_MAX_INDICATORS = 64
# |ℓ| stays below this: no value is impossible.
_MAX_LOGIT = 12.0
# Share of the frequencies in the masses that a mixture gives to the values.
_FREQUENCY_SHARE = 0.01


def check_supports(supports: Mapping[int, Any] | None, size: int) -> dict[int, np.ndarray]:
    """Returns supports as a dict from coordinates to sorted float64 values.

    >>> check_supports({1: [1, 0]}, 2)
    {1: array([0., 1.])}
    """
    checked = {}
    for coordinate, values in (supports or {}).items():
        number = int(coordinate)
        array = np.sort(np.asarray(values, np.float64))
        if not 0 <= number < size:
            raise ValueError(f"`supports` must be for coordinates from 0 to {size - 1}, got {coordinate!r}.")
        if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or not np.diff(array).all():
            raise ValueError(f"`supports[{number}]` must be at least two different finite numbers, got {values!r}.")
        checked[number] = array
    return checked


class Features:
    """What the masked network sees of states: the coordinates, and values and missing cells as numbers of 0 and 1.

    Args:
      supports: the values of each coordinate in the order of dependence, None for numbers on the line.
      allows_missing: whether cells may be NaN.
      num_frequencies: of the waves sin(2ᵏy) and cos(2ᵏy) of each number on the line, k = 0, 1, …
    """

    def __init__(self, supports: Sequence[np.ndarray | None], allows_missing: bool, num_frequencies: int = 0) -> None:
        self.allows_missing, size = allows_missing, len(supports)
        self.center = np.array([0.0 if values is None else values.mean() for values in supports])
        self.scale = np.array([1.0 if values is None else values.std() for values in supports])
        self._is_plain = all(values is None for values in supports)
        with_indicators = [
            (place, values)
            for place, values in enumerate(supports)
            if values is not None and 2 < len(values) <= _MAX_INDICATORS
        ]
        self._source = np.array([place for place, values in with_indicators for _ in values], int)
        self._values = np.array([value for _, values in with_indicators for value in values])
        self._reach = np.array([0.5 * np.diff(values).min() for _, values in with_indicators for _ in values])
        own: np.ndarray = np.arange(1, size + 1)
        self._lines = np.array(
            [place for place, values in enumerate(supports) if values is None and num_frequencies], int
        )
        self._frequencies = 2.0 ** np.arange(num_frequencies)
        waves: np.ndarray = np.repeat(self._lines + 1, 2 * num_frequencies)
        self.places = np.concatenate([own, self._source + 1, own if allows_missing else own[:0], waves])

    def __call__(self, y: tf.Tensor, seen_range: tf.Tensor) -> tf.Tensor:
        """Returns the features `[batch, number]` of states `[batch, size]`, clipped to a range `[2, size]`."""
        number = tf.clip_by_value(y, seen_range[0], seen_range[1])
        if not self._is_plain:
            number = (number - tf.constant(self.center, y.dtype)) / tf.constant(self.scale, y.dtype)
        parts = [number]
        if len(self._source):
            gap = tf.abs(tf.gather(y, self._source, axis=1) - tf.constant(self._values, y.dtype))
            parts.append(tf.cast(gap < tf.constant(self._reach, y.dtype), y.dtype))  # false for NaN
        if self.allows_missing:
            is_missing = tf.math.is_nan(y)
            parts[0] = tf.where(is_missing, tf.zeros_like(y), number)
            parts.append(tf.cast(is_missing, y.dtype))
        if len(self._lines):
            angles = tf.gather(parts[0], self._lines, axis=1)[..., None] * tf.constant(self._frequencies, y.dtype)
            waves = tf.concat([tf.sin(angles), tf.cos(angles)], -1)
            parts.append(tf.reshape(waves, [-1, 2 * len(self._lines) * len(self._frequencies)]))
        return parts[0] if len(parts) == 1 else tf.concat(parts, 1)


class ValueConditionals(keras.layers.Layer):
    """The probabilities of coordinates that have supports.

    Args:
      supports: the values of each coordinate in the order of dependence, None for numbers on the line.
      num_outputs: outputs of the network for each coordinate.
    """

    def __init__(self, supports: Sequence[np.ndarray | None], num_outputs: int, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        given = [(place, values) for place, values in enumerate(supports) if values is not None]
        self.places = np.array([place for place, _ in given], int)
        self.number_of = np.full(len(supports), 0)  # of a place among the places
        self.number_of[self.places] = np.arange(len(given))
        most = max(len(values) for _, values in given)
        self.values = np.stack([np.pad(values, (0, most - len(values)), mode="edge") for _, values in given])
        self.is_value = np.stack([np.arange(most) < len(values) for _, values in given])
        self.reach = np.array([0.25 * np.diff(values).min() for _, values in given])
        middles = [0.5 * (values[1:] + values[:-1]) for _, values in given]
        self.edges = np.stack([np.pad(m, (0, most - 1 - len(m)), constant_values=np.inf) for m in middles])
        self.basis = np.stack([_basis(len(values), most, num_outputs) for _, values in given])
        self.log_frequencies = self.add_weight(
            shape=(len(given), most), initializer="zeros", trainable=False, name="log_frequencies"
        )
        self.set_frequencies([np.full(len(values), 1.0 / len(values)) for _, values in given])
        self.built = True

    def set_frequencies(self, frequencies: Sequence[np.ndarray]) -> None:
        """Sets the frequencies of the values, one array for each coordinate that has a support."""
        padded = np.full(self.values.shape, -np.inf)
        for row, shares in zip(padded, frequencies, strict=True):
            row[: len(shares)] = np.log(shares)
        self.log_frequencies.assign(padded)

    def log_probs(self, outputs: tf.Tensor, proposal: Conditionals | None, at: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the log probabilities of the values, `[batch, coordinates, most values]`.

        Args:
          outputs: of the network, `[batch, coordinates, num_outputs]`.
          proposal: conditionals of a Gaussian mixture at the coordinates; None starts from the frequencies.
          at: the number of one coordinate, among those with supports; default: all.
        """

        def chosen(values: Any) -> tf.Tensor:
            values = tf.cast(values, outputs.dtype)
            return values if at is None else tf.gather(values, at)[None]

        logits = tf.einsum("bdf,dkf->bdk", outputs, chosen(self.basis))
        logits = _MAX_LOGIT * tf.tanh(logits / _MAX_LOGIT)
        start = chosen(self.log_frequencies.value)
        if proposal is not None:
            start = self._log_masses(proposal, chosen(self.edges), start)
        return tf.nn.log_softmax(start + logits)

    def _log_masses(self, proposal: Conditionals, edges: tf.Tensor, log_frequencies: tf.Tensor) -> tf.Tensor:
        """Returns logs of the masses of the cells around the values, with a share of the frequencies."""
        t = (edges[:, :, None] - proposal.loc[..., None, :]) * tf.exp(-proposal.log_scale[..., None, :])
        below = 0.5 * tf.math.erfc(tf.clip_by_value(-t * np.sqrt(0.5), -30.0, 30.0))  # the last edges are infinite
        below = tf.reduce_sum(tf.exp(proposal.log_probs[..., None, :]) * below, -1)
        below = tf.concat([tf.zeros_like(below[..., :1]), below, tf.ones_like(below[..., :1])], -1)
        masses = tf.maximum(below[..., 1:] - below[..., :-1], 0.0)
        frequencies = tf.exp(log_frequencies)
        mixed = (1.0 - _FREQUENCY_SHARE) * masses + _FREQUENCY_SHARE * frequencies
        is_value = frequencies > 0.0
        return tf.where(is_value, tf.math.log(tf.where(is_value, mixed, tf.ones_like(mixed))), log_frequencies)

    def at_states(self, log_probs: tf.Tensor, y: tf.Tensor, at: tf.Tensor | None = None) -> tf.Tensor:
        """Returns log P(yᵢ), `[batch, coordinates]`, −∞ off the support."""
        values, reach, is_value = (tf.constant(array) for array in (self.values, self.reach, self.is_value))
        if at is not None:
            values, reach, is_value = (tf.gather(array, at)[None] for array in (values, reach, is_value))
        near = tf.abs(y[..., None] - tf.cast(values, y.dtype)) < tf.cast(reach, y.dtype)[:, None]
        is_there = near & is_value
        # a sum, so that the gradient off the support is 0 and not NaN
        total = tf.reduce_sum(tf.where(is_there, log_probs, tf.zeros_like(log_probs)), -1)
        return tf.where(tf.reduce_any(is_there, -1), total, tf.fill(tf.shape(total), tf.constant(-np.inf, y.dtype)))

    def below(self, log_probs: tf.Tensor, y: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        """Returns P(Yᵢ ≤ y), `[batch]`, of one coordinate, given log probabilities `[batch, values]`."""
        values, reach = tf.gather(tf.constant(self.values), at), tf.gather(tf.constant(self.reach), at)
        is_below = tf.cast(values - reach, y.dtype) <= y[:, None]
        return tf.reduce_sum(tf.where(is_below, tf.exp(log_probs), tf.zeros_like(log_probs)), -1)

    def invert(self, log_probs: tf.Tensor, u: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        """Returns the values `[batch]` at quantiles u of one coordinate, given log probabilities `[batch, values]`."""
        totals = tf.cumsum(tf.exp(log_probs), axis=-1)
        last = tf.gather(tf.reduce_sum(tf.cast(tf.constant(self.is_value), tf.int32), -1), at) - 1
        chosen = tf.reduce_sum(tf.cast(u[:, None] * totals[:, -1:] > totals, tf.int32), -1)
        return tf.gather(tf.cast(tf.gather(self.values, at), u.dtype), tf.minimum(chosen, last))


def _basis(number: int, most: int, num_outputs: int) -> np.ndarray:
    """Returns B `[most, num_outputs]`: an output for each value, or steps along the values if outputs are fewer."""
    basis = np.zeros((most, num_outputs))
    if number <= num_outputs:
        basis[np.arange(number), np.arange(number)] = 1.0
    else:
        steps = np.linspace(0.0, number - 1.0, num_outputs)
        basis[:number] = np.tanh((np.arange(number)[:, None] - steps) * num_outputs / number)
    return basis
