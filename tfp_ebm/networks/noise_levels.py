"""Energies of noisy data at all levels, which are a known Gaussian at the largest level: E(y, σ) = −log p_t(y), t = σ².

Let the data have mean m and covariance Σ, and q = ½(y−m)ᵀ(Σ + tI)⁻¹(y−m). The Gaussian of the noisy data has the energy
G = q + ½ log det 2π(Σ + tI). With a network r and the largest level T,

    E = F + softplus(G + g(t) r − F),      g(t) = (1/(1+t) − 1/(1+T)) / (1 − 1/(1+T)) for t < T, else 0.

At t = T the energy is that of the Gaussian, so log Z = 0 there (up to `NoiseLevelEnergy.ANCHOR_ERROR`). F is a floor:

    F = ½ log det 2π(Σ + tI) + αq − w(q) (αq + ½ log det (Σ + tI)/t + c).

Where the data are, w = 1 and F = ½d log 2πt − c. No density of noisy data, E_x N(y; x, tI), exceeds that level by the
factor exp(c). Farther out than the data, w = 0 and F keeps the share α of the Gaussian's growth at every level, so
whatever the network returns, the mass far from the data is small, and Z is finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_count, check_event_shape, check_positive
from tfp_ebm.energy.base import gaussian
from tfp_ebm.energy.moments import FULL_COVARIANCE_LIMIT, DataMoments
from tfp_ebm.networks.conditional import FixedCondition
from tfp_ebm.networks.normalized import is_normalized
from tfp_ebm.networks.precision import at_least_float32

# α, c, and where w falls from 1 to 0: at this multiple of the largest q of the data, over this share of that value.
_GROWTH, _MARGIN, _REACH, _STEEPNESS = 0.8, 8.0, 1.5, 8.0
# Angular frequencies of the features of log σ.
_LEVEL_FREQUENCIES = (0.5, 1.0, 2.0)


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseLevelFeatures(keras.layers.Layer):
    """Features of noisy vectors and their noise scales: y/√(1+t), fading plane waves of y, and waves of log σ.

    The waves cos(b·y), sin(b·y) are multiplied by exp(−½‖b‖²t), the factor by which noise damps them in a density, so
    that fine structure is seen at small levels only. Their frequencies b, log-uniform in size, are trained.

    Args:
      num_features: number of plane waves; may be 0.
      frequencies: smallest and largest initial ‖b‖.
      seed: int that determines the initial frequencies; None uses `keras.utils.set_random_seed`.
      **kwargs: passed to `keras.layers.Layer`.

    Inputs `[batch, d]` and `[batch]`, output `[batch, d + 2 num_features + 7]`.
    """

    def __init__(
        self, num_features: int, frequencies: tuple[float, float] = (0.5, 10.0), seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.num_features = check_count("num_features", num_features, minimum=0)
        low, high = frequencies
        self.frequencies = check_positive("frequencies[0]", low), check_positive("frequencies[1]", high)
        self.seed = seed

    def build(self, y_shape: tuple[int | None, ...], sigma_shape: Any = None) -> None:
        """Draws the frequencies `kernel`, `[d, num_features]`."""
        del sigma_shape
        low, high = self.frequencies
        seeds = [None, None] if self.seed is None else [self.seed, self.seed ^ 0x5EED]
        directions = keras.initializers.RandomNormal(seed=seeds[0])
        sizes = keras.initializers.RandomUniform(math.log(low), math.log(high), seed=seeds[1])

        def initial(shape: tuple[int, ...], dtype: Any = None) -> Any:
            unit = keras.ops.normalize(directions(shape, dtype=dtype), axis=0)
            return unit * keras.ops.exp(sizes(shape[1:], dtype=dtype))

        shape = (y_shape[-1], self.num_features)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=initial, autocast=False)

    def call(self, y: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Returns the features of vectors `[batch, d]` and scales `[batch]`."""
        # in full precision even under a mixed policy, because the absolute error of a phase matters
        y, sigma = at_least_float32(y), at_least_float32(tf.reshape(sigma, [-1, 1]))
        t = tf.square(sigma)
        kernel = at_least_float32(self.kernel.value)
        phase = tf.matmul(y, kernel)
        fading = tf.exp(-0.5 * t * tf.reduce_sum(tf.square(kernel), 0))
        parts = [y * tf.math.rsqrt(1.0 + t), fading * tf.cos(phase), fading * tf.sin(phase), level_features(sigma)]
        return tf.cast(tf.concat(parts, -1), self.compute_dtype)

    def compute_output_shape(self, y_shape: tuple[Any, ...], sigma_shape: Any = None) -> tuple[int | None, ...]:
        """Returns the shape of the features."""
        del sigma_shape
        return (y_shape[0], y_shape[-1] + 2 * self.num_features + 1 + 2 * len(_LEVEL_FREQUENCIES))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        config = {"num_features": self.num_features, "frequencies": self.frequencies, "seed": self.seed}
        return {**super().get_config(), **config}


def level_features(sigma: tf.Tensor) -> tf.Tensor:
    """Returns features `[batch, 7]` of scales `[batch, 1]`: log σ and slow waves of it.

    >>> level_features(tf.ones([2, 1])).shape
    TensorShape([2, 7])
    """
    level = tf.math.log(sigma)
    waves = [wave(frequency * level) for frequency in _LEVEL_FREQUENCIES for wave in (tf.cos, tf.sin)]
    return tf.concat([0.25 * level, *waves], -1)


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseLevelImages(keras.layers.Layer):
    """Noisy images y/√(1+t) with seven more channels, the features of log σ, for a convolutional network.

    Inputs `[batch, height, width, channels]` and `[batch]`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)

    def call(self, y: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Returns the images with their channels of the level."""
        y, sigma = at_least_float32(y), at_least_float32(tf.reshape(sigma, [-1, 1]))
        scale = tf.math.rsqrt(1.0 + tf.square(sigma))[:, :, None, None]
        level = level_features(sigma)[:, None, None, :]
        ones = tf.ones_like(y[..., :1])
        return tf.cast(tf.concat([y * scale, ones * level], -1), self.compute_dtype)

    def compute_output_shape(self, y_shape: tuple[Any, ...], sigma_shape: Any = None) -> tuple[int | None, ...]:
        """Returns the shape of the images with all channels."""
        del sigma_shape
        return (*y_shape[:-1], y_shape[-1] + 1 + 2 * len(_LEVEL_FREQUENCIES))


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseLevelEnergy(keras.Model):
    """A network of (y, σ) that is the Gaussian of the noisy data at the largest level, and grows far from the data.

    `EnergyModel.adapt` sets the mean, the covariance and the range of the data. Until then they are those of N(0, I).

    Args:
      network: the residual r: a Keras model of [y, σ], `[batch, *event]` and `[batch]`, to `[batch, 1]`.
      sigma_max: √T, the noise scale at which the energy is Gaussian.
      **kwargs: passed to `keras.Model`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    Reference: F. Guth, Z. Kadkhodaie, E. Simoncelli, Learning normalized image densities via dual score matching, 2025,
    arXiv:2506.05310.

    >>> y, sigma = keras.Input((2,)), keras.Input(())
    >>> h = NoiseLevelFeatures(4, seed=0)(y, sigma)
    >>> network = NoiseLevelEnergy(keras.Model([y, sigma], keras.layers.Dense(1)(h)), sigma_max=10.0)
    >>> energy = network(tf.zeros([1, 2]), tf.constant([10.0]))  # log 2π(1 + 10²)
    >>> abs(float(energy[0]) - math.log(2.0 * math.pi * 101.0)) < NoiseLevelEnergy.ANCHOR_ERROR
    True
    """

    # Bound of |log Z| at the largest level: the softplus adds at most exp(−c) where the Gaussian has its mass.
    ANCHOR_ERROR = 1e-3

    def __init__(self, network: keras.Model, sigma_max: float, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float64" if network.compute_dtype == "float64" else "float32")
        super().__init__(**kwargs)
        self.network = network
        self.sigma_max = check_positive("sigma_max", sigma_max)
        self.event_shape = check_event_shape(network.inputs[0].shape[1:])
        size = math.prod(self.event_shape)
        self._is_full = size <= FULL_COVARIANCE_LIMIT

        def weight(name: str, shape: tuple[int, ...], initializer: Any = "zeros", **others: Any) -> keras.Variable:
            return self.add_weight(shape=shape, initializer=initializer, trainable=False, name=name, **others)

        self.loc = weight("loc", (size,))
        self.variances = weight("variances", (size,), "ones")
        self.axes = weight("axes", (size, size), "identity") if self._is_full else None
        spread = keras.initializers.Constant(0.5 * size + 4.0 * math.sqrt(0.5 * size) + 4.0)
        self.largest_square = weight("largest_square", (), spread)
        self.levels_matched = weight("levels_matched", (), dtype="int32")
        self.built = True

    @property
    def input_shape(self) -> list[tuple[int | None, ...]]:
        """The shapes of a batch and its noise scales."""
        return [(None, *self.event_shape), (None,)]

    def adapt_to(self, rows: np.ndarray, moments: DataMoments) -> None:
        """Sets mean, covariance and range of the data.

        Args:
          rows: rows `[rows, *event]` in the network's coordinates, which decide the range.
          moments: moments in the same coordinates.
        """
        if self.axes is None:
            values, along = np.square(moments.cholesky()), np.asarray(rows, np.float64).reshape(len(rows), -1)
            along = along - moments.mean
        else:
            factor = moments.cholesky()
            values, axes = np.linalg.eigh(factor @ factor.T)
            self.axes.assign(axes)
            along = (np.asarray(rows, np.float64).reshape(len(rows), -1) - moments.mean) @ axes
        self.loc.assign(moments.mean)
        self.variances.assign(values)
        size = len(values)
        floor = 0.5 * size + 4.0 * math.sqrt(0.5 * size) + 4.0
        self.largest_square.assign(max(floor, float(np.max(0.5 * np.sum(np.square(along) / values, 1)))))

    def mark_levels_as_matched(self) -> None:
        """Notes that a loss learns the constants of all levels, so that log Z = 0 at each."""
        self.levels_matched.assign(1)

    def gaussian_terms(self, y: tf.Tensor, sigma: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns q, ½ log det 2π(Σ + tI) and ½ log det (Σ + tI)/t, `[batch]` each."""
        centred = tf.reshape(y, [-1, self.loc.shape[0]]) - self.loc.value
        along = centred if self.axes is None else tf.matmul(centred, self.axes.value)
        t = tf.square(sigma)[:, None]
        widths = self.variances.value + t
        square = 0.5 * tf.reduce_sum(tf.square(along) / widths, 1)
        volume = 0.5 * tf.reduce_sum(tf.math.log(2.0 * math.pi * widths), 1)
        return square, volume, 0.5 * tf.reduce_sum(tf.math.log1p(self.variances.value / t), 1)

    def gaussian(self, sigma: float) -> tfp.distributions.Distribution:
        """Returns the Gaussian N(m, Σ + σ²I) over states `[*event]`, which is p_σ at the largest level."""
        variances = self.variances.value + tf.constant(sigma, self.dtype) ** 2
        if self.axes is None:
            return gaussian(self.loc.value, tf.sqrt(variances), self.event_shape)
        axes = self.axes.value
        factor = tf.linalg.cholesky(tf.matmul(axes * variances, axes, transpose_b=True))
        return gaussian(self.loc.value, factor, self.event_shape)

    def unnormalized_log_prob(self, y: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Returns −E(y, σ), `[batch]`: a target of `mcmc.anneal_noise_levels`."""
        return -self(y, sigma)

    def gate(self, sigma: tf.Tensor) -> tf.Tensor:
        """Returns g(t), from 1 at t = 0 to 0 at T and beyond."""
        last = 1.0 / (1.0 + self.sigma_max**2)
        return tf.nn.relu(1.0 / (1.0 + tf.square(sigma)) - last) / (1.0 - last)

    def call(self, y: tf.Tensor, sigma: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns E(y, σ), `[batch]`, of states `[batch, *event]` and noise scales `[batch]`."""
        sigma = tf.reshape(sigma, [-1])
        residual = self.network([y, sigma], training=training)
        residual = tf.cast(tf.reshape(residual, [-1]), y.dtype) * self.gate(sigma)
        square, volume, sharpening = self.gaussian_terms(y, sigma)
        near = tf.sigmoid(_STEEPNESS * (1.0 - square / (_REACH * self.largest_square.value)))
        above = residual + (1.0 - _GROWTH) * square + near * (_GROWTH * square + sharpening + _MARGIN)
        floor = volume + _GROWTH * square - near * (_GROWTH * square + sharpening + _MARGIN)
        return floor + tf.nn.softplus(above)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        network = keras.saving.serialize_keras_object(self.network)
        return {"name": self.name, "dtype": self.dtype, "network": network, "sigma_max": self.sigma_max}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> NoiseLevelEnergy:
        """Rebuilds the network from `get_config`."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"], custom_objects)})


def adapt_noise_levels(network: Any, blocks: Iterable[np.ndarray], to_z: Any) -> None:
    """Sets the moments of a `NoiseLevelEnergy` from rows of x, which `to_z` standardises; other networks stay as is.

    Raises:
      ValueError: if there are no rows, because the source could be read only once.
    """
    if not isinstance(network, NoiseLevelEnergy):
        return
    rows = [np.asarray(to_z(tf.cast(block, network.dtype)), np.float64) for block in blocks]
    if not rows:
        raise ValueError("`x` must be data that can be read twice for this network, such as an array or a dataset.")
    network.adapt_to(np.concatenate(rows), DataMoments.of(rows))


def level_of(model: Any) -> tuple[NoiseLevelEnergy, float] | None:
    """Returns the `NoiseLevelEnergy` of a model at one noise scale up to σ_max, and this scale; else None."""
    fixed = getattr(model, "network", None)
    if getattr(model, "base_measure", None) is not None or not isinstance(fixed, FixedCondition):
        return None
    network, sigma = fixed.network, fixed.condition
    return (network, sigma) if isinstance(network, NoiseLevelEnergy) and 0.0 < sigma <= network.sigma_max else None


def has_log_normalizer_zero(model: Any) -> bool:
    """Returns whether log Z of a model is 0: by construction, or at a fixed noise level whose constant was learned."""
    found = level_of(model)
    if found is None:
        return is_normalized(model)
    network, _ = found
    with tf.init_scope():  # a fact, not a tensor, also while a function is traced
        return bool(network.levels_matched.value.numpy())
