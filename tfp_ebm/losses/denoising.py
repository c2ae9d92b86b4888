"""Denoising score matching: regression on the score of noisy data, with a known target for each row (eqs. 46-52).

Noise is added to the data, x* = x + σ·ε with ε ~ N(0, I). The score of the noisy data's density is unknown, but there
is a known regression target (Vincent 2011; eqs. 47-48):

    ½ E‖∇ log q(x*) − s(x*)‖² = ½ E‖∇ log q(x*|x) − s(x*)‖² + const,      ∇ log q(x*|x) = −(x* − x)/σ² = −ε/σ,

so no second derivative in x is needed, only one in (x, θ). The minimiser is the energy of the *noisy* data: for a
Gaussian of covariance Σ, the precision learned is P = (Σ + σ²I)⁻¹, where the loss is ½(d/σ² − tr P).

With several scales, a model can both connect separated modes and be sharp. Li, Chen & Sommer (2019) train *one* energy
that does not depend on the scale: each row gets noise of its own scale σᵢ, but the regression target is
−(x* − x)/σ₀² with one fixed σ₀, and the weight is 1/σᵢ².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_positive, check_sigmas
from tfp_ebm.derivatives import score
from tfp_ebm.losses.base import Loss, LossOutput
from tfp_ebm.random import fold_in, normal


def scale_of_rows(sigmas: Sequence[float], x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns one of `sigmas` for each row, `[batch, 1, ...]`, in turn from a random first one, in equal shares."""
    first = tf.random.stateless_uniform([], seed, 0, len(sigmas), tf.int32, alg="philox")
    indices = (first + tf.range(tf.shape(x)[0])) % len(sigmas)
    return tf.reshape(tf.gather(tf.constant(sigmas, x.dtype), indices), [-1] + [1] * (x.shape.rank - 1))


@keras.saving.register_keras_serializable("tfp_ebm")
class DenoisingScoreMatching(Loss):
    """Denoising score matching at one noise scale: per row ½‖s(x + σε) + ε/σ‖², with s = −∇E (eq. 52).

    Args:
      sigma: standard deviation σ of the noise, in the units of the loss's argument x; in an adapted `EnergyModel`,
        these
        are standard deviations of the data. The model learns the density of the noisy data: a small σ gives a sharp
        density but noisy gradients (the variance grows as 1/σ²), a large σ connects separated modes.

    Raises:
      TypeError, ValueError: if `sigma` is not a positive finite number.

    Reference: P. Vincent, A connection between score matching and denoising autoencoders, 2011.

    >>> import tensorflow as tf
    >>> x = tf.random.stateless_normal([1000, 2], seed=[0, 0])
    >>> loss = DenoisingScoreMatching(sigma=0.5)
    >>> def mean_loss(energy_fn):
    ...     return float(tf.reduce_mean(loss(energy_fn, x, seed=1).per_example))
    >>> right = mean_loss(lambda x: tf.reduce_sum(x**2, -1) / (2 * (1 + 0.5**2)))  # N(0, I) blurred by σ
    >>> right < mean_loss(lambda x: -tf.reduce_sum(x**2, -1) / (2 * (1 + 0.5**2)))
    True
    """

    differentiates_score = True

    def __init__(self, sigma: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigma = check_positive("sigma", sigma)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns ½‖s(x + σε) + ε/σ‖² of each row."""
        epsilon = normal(tf.shape(x), seed, x.dtype)
        residual = score(energy_fn, x + self.sigma * epsilon) + epsilon / self.sigma
        return LossOutput(0.5 * tf.reduce_sum(tf.square(residual), axis=list(range(1, x.shape.rank))))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "sigma": self.sigma}


@keras.saving.register_keras_serializable("tfp_ebm")
class MultiscaleDenoisingScoreMatching(Loss):
    """Denoising at many scales with one energy: per row ½‖s(x*) + (x* − x)/σ₀²‖²/σᵢ², x* = x + σᵢε.

    Each row gets one scale, and a batch has all scales in equal shares. For a Gaussian of covariance Σ the minimiser is
    P⁻¹ = σ₀²(I + κΣ), where κ is the mean of σᵢ⁻². If all σᵢ = σ₀, the loss is plain denoising divided by σ₀².

    Args:
      sigmas: the scales σᵢ, positive and sorted, in the units of the loss's argument x.
      sigma0: the one scale σ₀ of the regression target.

    Raises:
      TypeError, ValueError: if the scales are empty, unsorted or not positive.

    Reference: Z. Li, Y. Chen, F. T. Sommer, Learning energy-based models in high-dimensional spaces with multi-scale
    denoising score matching, 2019, arXiv:1910.07762.

    >>> import tensorflow as tf
    >>> loss = MultiscaleDenoisingScoreMatching(sigmas=[0.1, 0.2, 0.4], sigma0=0.1)
    >>> loss(lambda x: tf.reduce_sum(x**2, -1), tf.zeros([6, 2]), seed=0).per_example.shape
    TensorShape([6])
    """

    differentiates_score = True

    def __init__(self, sigmas: Sequence[float], sigma0: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigmas = check_sigmas("sigmas", sigmas)
        self.sigma0 = check_positive("sigma0", sigma0)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns ½‖s(x*) + (x* − x)/σ₀²‖²/σᵢ² of each row."""
        sigma = scale_of_rows(self.sigmas, x, seed)
        step = sigma * normal(tf.shape(x), fold_in(seed, 1), x.dtype)
        residual = (score(energy_fn, x + step) + step / self.sigma0**2) / sigma
        return LossOutput(0.5 * tf.reduce_sum(tf.square(residual), axis=list(range(1, x.shape.rank))))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "sigmas": list(self.sigmas), "sigma0": self.sigma0}


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseConditionalDenoisingScoreMatching(Loss):
    """Denoising of a network of (x, σ): per row ½‖σ s(x + σε; σ) + ε‖², s = −∇E, σ drawn for each row (eq. 52 × σ²).

    Each row gets one scale, and a batch has all scales in equal shares. The energy function is called as
    `energy_fn(x, sigma)` with x `[batch, *event]` and sigma `[batch]`. `EnergyModel.given(sigma)` is the model of the
    data with noise of one scale, and `ebm.mcmc.annealed_langevin` samples from the largest scale to the smallest.

    Args:
      sigmas: the scales, positive and sorted, in the units of the loss's argument x; in an adapted `EnergyModel`, these
        are standard deviations of the data. Usually a geometric sequence, from about the distance between the data's
        modes down to the finest detail of interest.

    Raises:
      TypeError, ValueError: if the scales are empty, unsorted or not positive.

    Reference: Y. Song, S. Ermon, Generative modeling by estimating gradients of the data distribution, 2019,
    arXiv:1907.05600.

    >>> import tensorflow as tf
    >>> loss = NoiseConditionalDenoisingScoreMatching(sigmas=[1.0, 0.5, 0.25])
    >>> blurred = lambda x, sigma: 0.5 * tf.reduce_sum(x**2, -1) / (1 + sigma**2)  # N(0, I) blurred by sigma
    >>> loss(blurred, tf.zeros([6, 2]), seed=0).per_example.shape
    TensorShape([6])
    """

    differentiates_score = True
    gives_condition = True

    def __init__(self, sigmas: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigmas = check_sigmas("sigmas", sigmas)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns ½‖σ s(x + σε; σ) + ε‖² of each row."""
        sigma = scale_of_rows(self.sigmas, x, seed)
        epsilon = normal(tf.shape(x), fold_in(seed, 1), x.dtype)
        rows = tf.reshape(sigma, [-1])
        residual = sigma * score(lambda y: energy_fn(y, rows), x + sigma * epsilon) + epsilon
        return LossOutput(0.5 * tf.reduce_sum(tf.square(residual), axis=list(range(1, x.shape.rank))))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "sigmas": list(self.sigmas)}
