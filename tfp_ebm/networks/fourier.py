"""Random Fourier features: a basis of sines with which a small network can learn fine structure.

A network of smooth units learns low frequencies first, and in few dimensions it has few inputs from which to form high
frequencies. It therefore learns modes that are narrow compared with the spread of the data last. Passing x through

    φ(x) = [x, cos(xB), sin(xB)],     B ∈ R^{d×m},  B_ij ~ N(0, stddev²)

first (no factor 2π: B holds angular frequencies) adds m random plane waves to the inputs. The dot product of the waves
at x and y, Σ_j cos((x−y)·B_j), approximates m times the Gaussian kernel exp(−½ stddev² ‖x−y‖²) (Bochner), so 1/stddev
is the length that they resolve. x itself is also a feature because waves are bounded: an energy of waves alone cannot
grow at infinity, and most of the mass of a model trained on waves alone was far outside the data.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.networks.precision import at_least_float32


@keras.saving.register_keras_serializable(package="tfp_ebm")
class FourierFeatures(keras.layers.Layer):
    """A layer of trainable random Fourier features φ(x) = [x, cos(xB), sin(xB)] of vectors x.

    Args:
      num_features: m, the number of plane waves; each gives a cosine and a sine.
      stddev: standard deviation of the initial angular frequencies, per coordinate, for standardised inputs. The
        initial features do not resolve structure much finer than 1/stddev standard deviations, which has to be learned.
      seed: int that determines the initial frequencies; None uses `keras.utils.set_random_seed`.
      **kwargs: passed to `keras.layers.Layer` (`name`, `dtype`, `trainable`).

    Input `[..., d]`, output `[..., d + 2m]`. The frequencies are the weight `kernel`, `[d, m]`, and are trained.

    Raises:
      ValueError: if `num_features` is below 1 or `stddev` is not positive.

    References:
      Rahimi, Recht. Random features for large-scale kernel machines. NIPS 2007.
      Tancik et al. Fourier features let networks learn high frequency functions in low dimensional domains.
      NeurIPS 2020. arXiv:2006.10739.

    >>> FourierFeatures(3, seed=0)(tf.zeros([1, 2])).numpy().tolist()
    [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, num_features: int, stddev: float = 1.5, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.num_features = check_count("num_features", num_features)
        self.stddev = check_positive("stddev", stddev)
        self.seed = seed

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Draws the frequencies `kernel`, `[d, m]`."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.num_features),
            initializer=keras.initializers.RandomNormal(stddev=self.stddev, seed=self.seed),
            autocast=False,
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [x, cos(xB), sin(xB)], `[..., d + 2m]`, for x `[..., d]`."""
        # in full precision even under a mixed policy, because the absolute error of a phase matters
        x = at_least_float32(inputs)
        phase = tf.linalg.matmul(x, at_least_float32(self.kernel.value))
        features = tf.concat([x, tf.cos(phase), tf.sin(phase)], axis=-1)
        return tf.cast(features, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[Any, ...]) -> tuple[int | None, ...]:
        """Returns the shape `[..., d + 2m]` for inputs `[..., d]`."""
        return (*input_shape[:-1], input_shape[-1] + 2 * self.num_features)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_features": self.num_features,
            "stddev": self.stddev,
            "seed": self.seed,
        }
