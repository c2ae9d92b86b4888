"""A correction of a density whose log Z is known: a global energy on top of it, with draws by rejection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import random, serialization
from tfp_ebm.arguments import check_count
from tfp_ebm.networks.fourier import FourierFeatures
from tfp_ebm.networks.normalized import NormalizedEnergy

# Coordinates up to which the correction sees Fourier features, their number and the deviation of their frequencies.
_MAX_FOURIER, _NUM_FEATURES, _DEVIATION = 3, 64, 1.5


@keras.saving.register_keras_serializable("tfp_ebm")
class ResidualEnergy(NormalizedEnergy):
    """The energy E(x) = E'(x) − g(x) + log Z of a density p' = exp(−E') that is corrected by a factor exp(g).

    g is a network that is bounded from above, by b, so that exact samples are those of p' that are accepted with
    probability exp(g(x) − b). log Z = log E exp(g) under p' is a weight, which `recipes.density_residual` estimates.

    Args:
      network: a `NormalizedEnergy` of vectors.
      units: widths of the layers of g.
      bound: b. It costs at most exp(b) draws of p' for each sample.
      seed: of the initial weights; at first g = 0.

    >>> import tensorflow_probability as tfp
    >>> from tfp_ebm.networks.normalized import DistributionEnergy
    >>> inner = DistributionEnergy(tfp.distributions.MultivariateNormalDiag([0.0]))
    >>> energy = ResidualEnergy(inner, units=[4])
    >>> round(float(energy(tf.zeros([1, 1]))[0]), 4), energy.draw(3, tf.constant([0, 1])).shape
    (0.9189, TensorShape([3, 1]))
    """

    def __init__(
        self,
        network: NormalizedEnergy,
        units: Sequence[int] = (128, 128),
        bound: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("event_shape", None)
        kwargs.setdefault("dtype", network.dtype)
        super().__init__(network.event_shape, **kwargs)
        if len(self.event_shape) != 1 or network.allows_missing:
            raise ValueError("`network` must be an energy of vectors without missing cells.")
        (size,) = self.event_shape
        self.network, self.bound = network, float(bound)
        widths = [check_count("units", width) for width in units]
        self._config = {"units": widths, "bound": self.bound, "seed": seed}
        layers: list[Any] = [keras.layers.Input([size], dtype=self.dtype)]
        if size <= _MAX_FOURIER:
            layers.append(FourierFeatures(_NUM_FEATURES, _DEVIATION, seed=seed, dtype=self.dtype))
        for number, width in enumerate(widths):
            start = keras.initializers.HeNormal(seed=seed + number)
            layers.append(keras.layers.Dense(width, "silu", kernel_initializer=start, dtype=self.dtype))
        layers.append(keras.layers.Dense(1, kernel_initializer="zeros", dtype=self.dtype))
        self.correction = keras.Sequential(layers)
        # g sees no coordinate beyond these: far from the data it would extrapolate
        self.seen_range = self.add_weight(shape=(2, size), initializer="zeros", trainable=False, name="seen_range")
        self.seen_range.assign(np.array([[-np.inf], [np.inf]]) * np.ones(size))
        self.log_mass = self.add_weight(shape=(), initializer="zeros", trainable=False, name="log_mass")
        self.built = True

    def log_ratio(self, x: tf.Tensor) -> tf.Tensor:
        """Returns g(x), `[batch]`: below the bound, and as far below zero as the network has it."""
        low, high = tf.unstack(self.seen_range.value)
        output = self.correction(tf.clip_by_value(x, low, high))[:, 0]
        return self.bound - tf.nn.softplus(math.log(math.expm1(self.bound)) - output)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, of states `[batch, size]`."""
        return self.network(x, training=training) - self.log_ratio(x) + self.log_mass.value

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples `[num_samples, size]`: draws of the network until each sample is accepted."""
        number = tf.reshape(tf.convert_to_tensor(num_samples, tf.int32), [])

        def step(turn: tf.Tensor, x: tf.Tensor, left: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            own = random.fold_in(seed, turn)
            drawn = self.network.draw(tf.shape(left)[0], random.fold_in(own, 0))
            u = random.uniform(tf.shape(left), random.fold_in(own, 1), self.dtype)
            is_accepted = tf.math.log(u) < self.log_ratio(drawn) - self.bound
            places = tf.boolean_mask(left, is_accepted)[:, None]
            x = tf.tensor_scatter_nd_update(x, places, tf.boolean_mask(drawn, is_accepted))
            return turn + 1, x, tf.boolean_mask(left, ~is_accepted)

        start = (tf.constant(0), tf.zeros(tf.stack([number, *self.event_shape]), self.dtype), tf.range(number))
        shapes = (tf.TensorShape([]), tf.TensorShape([None, *self.event_shape]), tf.TensorShape([None]))
        return tf.while_loop(
            lambda turn, x, left: tf.size(left) > 0, step, start, shape_invariants=shapes, parallel_iterations=1
        )[1]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), **self._config, "network": serialization.serialized_part(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ResidualEnergy:
        """Rebuilds the network from `get_config`."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"], custom_objects)})
