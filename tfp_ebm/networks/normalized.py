"""Energies whose normaliser is known: E(x) = −log p(x), so that log Z = 0.

A network of this kind needs no chains: its log density is exact, it trains by `losses.NegativeLogLikelihood`, and it
draws exact samples. Everything that takes an energy takes it as it is.
"""

from __future__ import annotations

import math
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import random, serialization
from tfp_ebm.arguments import check_event_shape
from tfp_ebm.energy.base import check_base, draw


class NormalizedEnergy(keras.Model):
    """Base class of networks with ∫ exp(−E(x)) dx = 1 (eqs. 1-3 with Z = 1).

    A subclass writes `call(x, training=False)`, `[batch, *event] -> [batch]`, and `draw`. It may write
    `training_energy`, if training needs random numbers.

    Args:
      event_shape: shape of one state.

    >>> class StandardNormal(NormalizedEnergy):
    ...     def call(self, x, training=False):
    ...         return 0.5 * tf.reduce_sum(x**2, -1) + 0.5 * x.shape[1] * math.log(2.0 * math.pi)
    ...
    ...     def draw(self, num_samples, seed):
    ...         return random.normal(tf.stack([num_samples, *self.event_shape]), seed)
    >>> StandardNormal([2]).draw(3, tf.constant([0, 1])).shape
    TensorShape([3, 2])
    """

    def __init__(self, event_shape: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.event_shape = check_event_shape(event_shape)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of a batch."""
        return (None, *self.event_shape)

    @property
    def allows_missing(self) -> bool:
        """Whether coordinates may be missing, NaN, in which case E(x) is −log of the density of the others."""
        return False

    def training_energy(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the energies `[batch]` whose mean the training minimises; `seed` is int32[2]."""
        del seed
        return self(x, training=True)

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent exact samples `[num_samples, *event]`; `seed` is int32[2]."""
        raise NotImplementedError(f"{type(self).__name__} must implement `draw`.")


def is_normalized(model: Any) -> bool:
    """Returns whether the log Z of a model is known to be 0: its network is normalised, and nothing tilts it."""
    is_tilted = getattr(model, "base_measure", None) is not None
    return isinstance(model.network, NormalizedEnergy) and not is_tilted


@keras.saving.register_keras_serializable("tfp_ebm")
class DistributionEnergy(NormalizedEnergy):
    """The energy E(x) = −log p(x) of a TFP distribution.

    Args:
      distribution: one `tfd.Distribution` with `log_prob` and `sample`, in the coordinates of the network.

    Raises:
      TypeError, ValueError: if it is no distribution, or a batch of them.

    >>> import tensorflow_probability as tfp
    >>> energy = DistributionEnergy(tfp.distributions.MultivariateNormalDiag([0.0, 0.0]))
    >>> round(float(energy(tf.zeros([1, 2]))[0]), 4)
    1.8379
    """

    def __init__(self, distribution: Any, **kwargs: Any) -> None:
        check_base("distribution", distribution)
        kwargs.pop("event_shape", None)
        kwargs.setdefault("dtype", distribution.dtype.name)
        super().__init__(distribution.event_shape, **kwargs)
        self._given = types.SimpleNamespace(distribution=distribution)  # hidden from Keras's tracking
        self.built = True

    @property
    def distribution(self) -> Any:
        """The distribution that was given."""
        return self._given.distribution

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, of states `[batch, *event]`."""
        del training
        return -self.distribution.log_prob(x)

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples of the distribution, `[num_samples, *event]`."""
        return draw(self.distribution, tf.reshape(tf.convert_to_tensor(num_samples), [1]), seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "distribution": serialization.encode(self.distribution, "distribution")}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DistributionEnergy:
        """Rebuilds the network from `get_config`."""
        del custom_objects
        return cls(**{**config, "distribution": serialization.decode(config["distribution"])})


class MappedEnergy(NormalizedEnergy):
    """The energy of x whose image y has the energy E' of another network: E(x) = E'(y) − log |dy/dx|."""

    def __init__(self, network: NormalizedEnergy, **kwargs: Any) -> None:
        kwargs.pop("event_shape", None)
        super().__init__(network.event_shape, **kwargs)
        self.network = network

    @property
    def allows_missing(self) -> bool:
        """Whether coordinates may be missing, as in the network."""
        return self.network.allows_missing

    def _forward(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y and −log |dy/dx|."""
        raise NotImplementedError

    def image(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns y and log dyᵢ/dxᵢ, which is 0 where xᵢ is missing, in float64; of maps of each coordinate alone."""
        raise NotImplementedError

    def preimage(self, y: np.ndarray) -> np.ndarray:
        """Returns x, in float64; of maps of each coordinate alone."""
        raise NotImplementedError

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, of states `[batch, *event]`."""
        y, log_volume = self._forward(x)
        return tf.cast(self.network(y, training=training), self.dtype) + log_volume

    def training_energy(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns −log p(x) with the training energy of the network."""
        y, log_volume = self._forward(x)
        return self.network.training_energy(y, seed) + log_volume

    def get_config(self) -> dict[str, Any]:
        """Returns the network, for Keras."""
        return {**super().get_config(), "network": serialization.serialized_part(self.network)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MappedEnergy:
        """Rebuilds the network from `get_config`."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"], custom_objects)})


@keras.saving.register_keras_serializable("tfp_ebm")
class WarpedEnergy(MappedEnergy):
    """The energy of x whose heavy-tailed coordinates are asinh(xᵢ) to another network, with the map's Jacobian.

        E(x) = E'(y) + Σ_warped ½ log(1 + xᵢ²),      yᵢ = asinh(xᵢ) where warped, else xᵢ

    Tails that fall like a power of x fall exponentially in y.

    Args:
      network: a `NormalizedEnergy` of vectors.
      warped: for each coordinate, whether it is mapped.

    >>> import tensorflow_probability as tfp
    >>> inner = DistributionEnergy(tfp.distributions.MultivariateNormalDiag([0.0]))
    >>> round(float(WarpedEnergy(inner, [True])(tf.constant([[1e30]]))[0]), 1)
    2504.0
    """

    def __init__(self, network: NormalizedEnergy, warped: Any, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.warped = tuple(bool(flag) for flag in warped)
        if (len(self.warped),) != self.event_shape:
            raise ValueError(f"`warped` must have one entry for each of {self.event_shape}, got {len(self.warped)}.")
        self.built = True

    def _forward(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns y and Σ ½ log(1 + xᵢ²), without overflow."""
        size = tf.abs(x)
        far = size > 1e6
        near = tf.where(far, tf.ones_like(x), size)
        log_size = tf.math.log(tf.where(far, size, tf.ones_like(x)))
        y = tf.sign(x) * tf.where(far, log_size + math.log(2.0), tf.asinh(near))
        slope = tf.where(far, log_size, 0.5 * tf.math.log1p(near**2))
        counts = self.warped & ~tf.math.is_nan(x)  # a missing cell has no factor
        return tf.where(self.warped, y, x), tf.reduce_sum(tf.where(counts, slope, tf.zeros_like(x)), -1)

    def image(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `MappedEnergy`."""
        slopes = np.where(self.warped, -np.log(np.hypot(1.0, np.nan_to_num(x))), 0.0)
        return np.where(self.warped, np.arcsinh(x), x), slopes

    def preimage(self, y: np.ndarray) -> np.ndarray:
        """See `MappedEnergy`."""
        with np.errstate(over="ignore"):
            return np.where(self.warped, np.sinh(y), y)

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples `[num_samples, size]`."""
        y = self.network.draw(num_samples, seed)
        return tf.where(self.warped, tf.sinh(y), y)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "warped": self.warped}


@keras.saving.register_keras_serializable("tfp_ebm")
class AffineEnergy(MappedEnergy):
    """The energy of x whose affine map y = shift + scale·x has the energy of another network.

        E(x) = E'(shift + scale·x) − Σ log scale

    Args:
      network: a `NormalizedEnergy`.
      shift, scale: arrays of the event shape; scales are positive.

    >>> import tensorflow_probability as tfp
    >>> inner = DistributionEnergy(tfp.distributions.MultivariateNormalDiag([3.0], [2.0]))
    >>> round(float(AffineEnergy(inner, [3.0], [2.0])(tf.zeros([1, 1]))[0]), 4)  # the standard normal
    0.9189
    """

    def __init__(self, network: NormalizedEnergy, shift: Any = None, scale: Any = None, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.shift = self.add_weight(shape=self.event_shape, initializer="zeros", trainable=False, name="shift")
        self.scale = self.add_weight(shape=self.event_shape, initializer="ones", trainable=False, name="scale")
        if shift is not None:
            self.shift.assign(shift)
        if scale is not None:
            self.scale.assign(scale)
        self.built = True

    def _forward(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y = self.shift.value + self.scale.value * x
        log_scale = tf.math.log(self.scale.value)
        if not self.allows_missing:
            return y, -tf.reduce_sum(log_scale)
        counts = tf.where(tf.math.is_nan(x), tf.zeros_like(x), log_scale)
        return y, -tf.reduce_sum(counts, tf.range(1, tf.rank(x)))

    def image(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `MappedEnergy`."""
        shift, scale = (np.asarray(value, np.float64) for value in (self.shift, self.scale))
        return shift + scale * x, np.where(np.isnan(x), 0.0, np.log(scale))

    def preimage(self, y: np.ndarray) -> np.ndarray:
        """See `MappedEnergy`."""
        return (y - np.asarray(self.shift, np.float64)) / np.asarray(self.scale, np.float64)

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples `[num_samples, *event]`."""
        return (tf.cast(self.network.draw(num_samples, seed), self.dtype) - self.shift.value) / self.scale.value


@keras.saving.register_keras_serializable("tfp_ebm")
class MixtureEnergy(NormalizedEnergy):
    """The energy −log Σₖ wₖ exp(−Eₖ(x)) of a mixture of densities whose log Z is 0.

    Args:
      parts: networks of the same event shape, each a `NormalizedEnergy`.
      probs: weights, not negative, with sum 1.

    >>> import tensorflow_probability as tfp
    >>> parts = [DistributionEnergy(tfp.distributions.MultivariateNormalDiag([m])) for m in (-1.0, 1.0)]
    >>> MixtureEnergy(parts, [0.5, 0.5]).draw(3, tf.constant([0, 1])).shape
    TensorShape([3, 1])
    """

    def __init__(self, parts: Any, probs: Any, **kwargs: Any) -> None:
        shapes = {tuple(part.event_shape) for part in parts}
        if len(shapes) != 1:
            raise ValueError(f"`parts` must have one event shape, got {sorted(shapes)}.")
        probs = check_probs(probs, len(parts))
        kwargs.pop("event_shape", None)
        super().__init__(shapes.pop(), **kwargs)
        self.parts = list(parts)
        self.probs = self.add_weight(shape=probs.shape, initializer="zeros", trainable=False, name="probs")
        self.probs.assign(probs)
        self.built = True

    @property
    def allows_missing(self) -> bool:
        """Whether coordinates may be missing, as in all parts."""
        return all(part.allows_missing for part in self.parts)

    def _mixed(self, energies: list[tf.Tensor]) -> tf.Tensor:
        return -tf.reduce_logsumexp(tf.math.log(self.probs.value) - tf.stack(energies, -1), -1)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, of states `[batch, *event]`."""
        return self._mixed(
            [tf.cast(part(tf.cast(x, part.dtype), training=training), self.dtype) for part in self.parts]
        )

    def training_energy(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns −log p(x) with the training energies of the parts."""
        energies = [
            part.training_energy(tf.cast(x, part.dtype), random.fold_in(seed, i)) for i, part in enumerate(self.parts)
        ]
        return self._mixed([tf.cast(energy, self.dtype) for energy in energies])

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns independent samples: of each part as many as choose it, in random order of the parts."""
        u = random.uniform(tf.reshape(num_samples, [1]), random.fold_in(seed, 0), self.dtype)
        chosen = tf.reduce_sum(tf.cast(u[:, None] > tf.cumsum(self.probs.value)[:-1], tf.int32), -1)
        places = [tf.reshape(tf.where(tf.equal(chosen, i)), [-1]) for i in range(len(self.parts))]
        samples = [
            tf.cast(part.draw(tf.shape(place)[0], random.fold_in(seed, i + 1)), self.dtype)
            for i, (part, place) in enumerate(zip(self.parts, places, strict=True))
        ]
        return tf.gather(tf.concat(samples, 0), tf.argsort(tf.concat(places, 0)))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        parts = [serialization.serialized_part(part) for part in self.parts]
        return {**super().get_config(), "parts": parts, "probs": self.probs.numpy().tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MixtureEnergy:
        """Rebuilds the network from `get_config`."""
        parts = [keras.saving.deserialize_keras_object(part, custom_objects) for part in config["parts"]]
        return cls(**{**config, "parts": parts})


def check_probs(probs: Any, count: int) -> np.ndarray:
    """Returns the weights of a mixture, float64, if they are `count` numbers that add up to 1."""
    probs = np.asarray(probs, np.float64)
    if probs.shape != (count,) or not (probs >= 0).all() or not np.isclose(probs.sum(), 1.0, atol=1e-5):
        raise ValueError(f"`probs` must be {count} weights that add up to 1, got {probs.tolist()}.")
    return probs / probs.sum()


def in_blocks(function: Any, x: tf.Tensor, max_rows: int) -> tf.Tensor:
    """Applies `function`, `[rows, size] -> [rows, ...]`, to blocks of at most `max_rows` rows, which bounds its memory.

    >>> in_blocks(lambda x: tf.reduce_sum(x, -1), tf.ones([5, 2]), 2).numpy().tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    static = x.shape[0]
    if static is not None and static <= max_rows:
        return function(x)
    if static is not None:
        num_blocks: Any = math.ceil(static / max_rows)
        size: Any = math.ceil(static / num_blocks)
        padding = num_blocks * size - static
    else:
        num_rows = tf.shape(x)[0]
        num_blocks = tf.maximum(1, -(-num_rows // max_rows))
        size = -(-num_rows // num_blocks)
        padding = num_blocks * size - num_rows
    blocks = tf.reshape(tf.pad(x, [[0, padding], [0, 0]]), tf.stack([num_blocks, size, x.shape[1]]))
    if static is not None:
        blocks = tf.ensure_shape(blocks, [num_blocks, size, x.shape[1]])
    values = tf.map_fn(function, blocks, parallel_iterations=1)
    rest = values.shape[2:]
    return tf.reshape(values, tf.concat([[-1], rest], 0))[: tf.shape(x)[0]]
