"""Denoising at many scales by a family of energies, one for each scale (Song & Ermon 2019).

The data blurred by σ has the density q_σ(x*) = ∫ q(x) N(x*; x, σ²I) dx, and denoising at σ learns its score (eqs.
46-52). Here the network is told the scale, E(x; σ), and learns all of them: at large σ the modes are joined and their
weights are seen, at small σ it is sharp. Sampling follows the scales down (`mcmc.annealed_langevin`).

The score of q_σ grows as 1/σ, so the losses of the scales are weighted by σ² to be of one size,

    J = mean over i of  ½ E‖σᵢ s(x + σᵢε; σᵢ) + ε‖²,      s = −∇E,   ε ~ N(0, I).

Each scale has a minimiser of its own: a Gaussian of covariance Σ is learned as P(σ) = (Σ + σ²I)⁻¹, where its part of
the loss is ½(d − σ² tr P(σ)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_sigmas, fold_in
from tfp_ebm.derivatives import score
from tfp_ebm.losses.base import Loss, LossOutput
from tfp_ebm.losses.scales import scale_of_rows
from tfp_ebm.noise import normal

__all__ = ["NoiseConditionalDenoisingScoreMatching"]


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseConditionalDenoisingScoreMatching(Loss):
    """Denoising of a network of (x, σ): per row ½‖σ s(x + σε; σ) + ε‖², s = −∇E, σ drawn for each row (eq. 52 × σ²).

    Each row draws one scale, so that a batch holds all of them in equal shares. The energy function is called as
    `energy_fn(x, sigma)` with x `[batch, *event]` and sigma `[batch]`. `EnergyModel.given(sigma)` is the model of the
    data blurred by one scale, and `ebm.mcmc.annealed_langevin` samples from the largest scale to the smallest.

    Args:
      sigmas: the scales, positive and sorted, in the units of x that the loss is given; in an adapted `EnergyModel`
        those are standard deviations of the data. Usually geometric, from about the distance of the data's modes down
        to the finest detail wanted.

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
        """½‖σ s(x + σε; σ) + ε‖² of each row."""
        sigma = scale_of_rows(self.sigmas, x, seed)
        epsilon = normal(tf.shape(x), fold_in(seed, 1), x.dtype)
        rows = tf.reshape(sigma, [-1])
        residual = sigma * score(lambda y: energy_fn(y, rows), x + sigma * epsilon) + epsilon
        return LossOutput(0.5 * tf.reduce_sum(tf.square(residual), axis=list(range(1, x.shape.rank))))

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras."""
        return {**super().get_config(), "sigmas": list(self.sigmas)}
