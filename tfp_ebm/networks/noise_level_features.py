"""Features of noisy states and their noise scales: waves that fade as noise damps them, and waves of log σ."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.networks.precision import at_least_float32

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
      num_waves: number of frequencies of the waves of each coordinate, as in `NoiseLevelImages`; may be 0.
      **kwargs: passed to `keras.layers.Layer`.

    Inputs `[batch, d]` and `[batch]`, output `[batch, (1 + 2 num_waves) d + 2 num_features + 7]`.
    """

    def __init__(
        self,
        num_features: int,
        frequencies: tuple[float, float] = (0.5, 10.0),
        seed: int | None = None,
        num_waves: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.num_features = check_count("num_features", num_features, minimum=0)
        self.num_waves = check_count("num_waves", num_waves, minimum=0)
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
        parts = [y * tf.math.rsqrt(1.0 + t), *coordinate_waves(y, t, self.num_waves)]
        parts += [fading * tf.cos(phase), fading * tf.sin(phase), level_features(sigma)]
        return tf.cast(tf.concat(parts, -1), self.compute_dtype)

    def compute_output_shape(self, y_shape: tuple[Any, ...], sigma_shape: Any = None) -> tuple[int | None, ...]:
        """Returns the shape of the features."""
        del sigma_shape
        size = (1 + 2 * self.num_waves) * y_shape[-1] + 2 * self.num_features
        return (y_shape[0], size + 1 + 2 * len(_LEVEL_FREQUENCIES))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        config = {"num_features": self.num_features, "frequencies": self.frequencies, "seed": self.seed}
        config |= {"num_waves": self.num_waves}
        return {**super().get_config(), **config}


def coordinate_waves(y: tf.Tensor, t: tf.Tensor, num_waves: int) -> list[tf.Tensor]:
    """Returns the waves exp(−½b²t) cos(by) and exp(−½b²t) sin(by) of each coordinate, for b a power of 2.

    >>> [wave.shape for wave in coordinate_waves(tf.ones([2, 3]), tf.ones([2, 1]), 1)]
    [TensorShape([2, 3]), TensorShape([2, 3])]
    """
    waves = []
    for frequency in (2.0**k for k in range(num_waves)):
        fading = tf.exp(-0.5 * frequency**2 * t)
        waves += [fading * tf.cos(frequency * y), fading * tf.sin(frequency * y)]
    return waves


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
    """Noisy images y/√(1+t) with fading waves of each pixel and seven features of log σ as further channels.

    The waves are cos(by) and sin(by) times exp(−½b²t), with b = 1, 2, 4, … They resolve grey levels: the density of
    dequantised pixels has steps that y alone, of order one, does not show to a network.

    Args:
      num_waves: number of frequencies b; may be 0.
      **kwargs: passed to `keras.layers.Layer`.

    Inputs `[batch, height, width, channels]` and `[batch]`, output with (1 + 2 num_waves) channels + 7 channels.
    """

    def __init__(self, num_waves: int = 0, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.num_waves = check_count("num_waves", num_waves, minimum=0)

    def call(self, y: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Returns the images with their waves and their channels of the level."""
        y, sigma = at_least_float32(y), at_least_float32(tf.reshape(sigma, [-1, 1]))
        t = tf.square(sigma)[:, :, None, None]
        parts = [y * tf.math.rsqrt(1.0 + t), *coordinate_waves(y, t, self.num_waves)]
        parts.append(tf.ones_like(y[..., :1]) * level_features(sigma)[:, None, None, :])
        return tf.cast(tf.concat(parts, -1), self.compute_dtype)

    def compute_output_shape(self, y_shape: tuple[Any, ...], sigma_shape: Any = None) -> tuple[int | None, ...]:
        """Returns the shape of the images with all channels."""
        del sigma_shape
        return (*y_shape[:-1], (1 + 2 * self.num_waves) * y_shape[-1] + 1 + 2 * len(_LEVEL_FREQUENCIES))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "num_waves": self.num_waves}
