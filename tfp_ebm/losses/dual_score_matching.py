"""Dual score matching: one energy of (y, σ) for all noise levels, whose log densities can be compared between levels.

With t = σ² and y = x + √t z, z ~ N(0, I), the density p_t of the noisy data has E(y, t) = −log p_t(y), and

    ∇_y E = E[(y − x)/t | y],      ∂_t E = E[d/(2t) − ‖y − x‖²/(2t²) | y].

Denoising score matching (eqs. 47-52) uses the first identity alone, so it leaves a constant free at every level, and it
hardly depends on the weights of separate modes. The second identity fixes all constants but one, and with them the
weights of the modes, which are visible at the levels where the modes overlap. A network that is the known Gaussian at
the largest level, such as `networks.noise_level_mlp`, has no free constant left, and log Z = 0 at every level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_bool, check_nonnegative, check_positive
from tfp_ebm.losses.base import Loss, LossOutput
from tfp_ebm.random import fold_in, normal, uniform


def sigma_of_rows(sigma_min: float, sigma_max: float, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns one noise scale for each row, `[batch]`, log-uniform; those of a batch are spread evenly.

    Each row alone is log-uniform, whatever its place in the batch.
    """
    num_rows = tf.shape(x)[0]
    places = tf.cast(tf.range(num_rows), x.dtype) / tf.cast(tf.maximum(num_rows, 1), x.dtype)
    share = tf.math.floormod(places + uniform([], seed, x.dtype), tf.ones([], x.dtype))
    return tf.exp(math.log(sigma_min) + math.log(sigma_max / sigma_min) * share)


def own_targets(z: tf.Tensor) -> tf.Tensor:
    """Returns the target (d − ‖z‖²)/2 of t ∂_t E, `[batch]`, for noise z `[batch, d]`."""
    return 0.5 * (z.shape[1] - tf.reduce_sum(tf.square(z), 1))


def averaged_targets(x: tf.Tensor, y: tf.Tensor, sigma: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Averages both targets over the rows of the batch from which each noisy row may have come.

    Row i of y comes from row j of x with probability wᵢⱼ ∝ exp(−‖yᵢ − xⱼ‖²/(2tᵢ)). Distances are computed in float64,
    because small differences of large squares decide at small levels.

    Args:
      x, y: rows and noisy rows, `[batch, d]`.
      sigma: σ of each row, `[batch]`.

    Returns:
      Σⱼ wᵢⱼ zᵢⱼ, `[batch, d]`, and Σⱼ wᵢⱼ (d − ‖zᵢⱼ‖²)/2, `[batch]`, with zᵢⱼ = (yᵢ − xⱼ)/√tᵢ.
    """
    rows, noisy, scale = (tf.cast(part, tf.float64) for part in (x, y, sigma[:, None]))
    squares = tf.reduce_sum(tf.square(noisy), 1)[:, None] + tf.reduce_sum(tf.square(rows), 1)
    squares = tf.maximum(squares - 2.0 * tf.matmul(noisy, rows, transpose_b=True), 0.0) / tf.square(scale)
    weights = tf.nn.softmax(-0.5 * squares, 1)
    z = (noisy - tf.matmul(weights, rows)) / scale
    level = 0.5 * (x.shape[1] - tf.reduce_sum(weights * squares, 1))
    return tf.cast(z, x.dtype), tf.cast(level, x.dtype)


@keras.saving.register_keras_serializable("tfp_ebm")
class DualScoreMatching(Loss):
    """Dual score matching: per row t/d ‖∇_y E − (y−x)/t‖² + w t²/(d/2) (∂_t E − d/(2t) + ‖y−x‖²/(2t²))², y = x + √t z.

    t = σ² is log-uniform between the squares of the two scales. Both terms have order one at every level. The energy
    function is called as `energy_fn(y, sigma)` with y `[batch, *event]` and sigma `[batch]`, and must be differentiable
    in both. For a Gaussian of covariance Σ the minimiser is E(y, t) = ½(y−μ)ᵀ(Σ + tI)⁻¹(y−μ) + ½ log det(Σ + tI) + c.
    A network such as `networks.noise_level_mlp` fixes c, so that log Z = 0; if it has units of its own for the noise, x
    and y above are in these. Averaged weights are better than the last ones: `keras.optimizers.Adam(...,
    use_ema=True, ema_momentum=0.998)`.

    Metrics: `score_error` and `level_error`, the means of the two terms, without w.

    Args:
      sigma_min, sigma_max: the smallest and the largest noise scale, in the units of the loss's argument x; in an
        adapted `EnergyModel`, these are standard deviations of the data. The model is sharp down to `sigma_min`; at
        `sigma_max` the noisy data must be almost Gaussian.
      level_weight: w, the weight of the second term; 0 gives denoising score matching at all levels.
      average_targets: whether both targets are averaged over the rows of the batch from which y may have come (Xu,
        Tong & Jaakkola 2023). The minimiser is the same, and the gradient has less variance. It must be False if the
        rows have sample weights.

    Raises:
      TypeError, ValueError: if a scale is not positive, `sigma_min` is not below `sigma_max`, or w is negative.

    References:
      F. Guth, Z. Kadkhodaie, E. Simoncelli, Learning normalized image densities via dual score matching, 2025,
      arXiv:2506.05310.
      Y. Xu, S. Tong, T. Jaakkola, Stable target field for reduced variance score estimation, 2023, arXiv:2302.00670.

    >>> import tensorflow as tf
    >>> x = tf.random.stateless_normal([1000, 2], seed=[0, 0])
    >>> def energy(y, sigma):  # N(0, I) blurred by sigma
    ...     return 0.5 * tf.reduce_sum(y**2, -1) / (1 + sigma**2) + tf.math.log(1 + sigma**2)
    >>> output = DualScoreMatching(sigma_min=0.1, sigma_max=10.0)(energy, x, seed=0)
    >>> output.per_example.shape, sorted(output.metrics)
    (TensorShape([1000]), ['level_error', 'score_error'])
    """

    differentiates_score = True
    gives_condition = True
    metric_names = ("score_error", "level_error")

    def __init__(
        self,
        sigma_min: float,
        sigma_max: float,
        level_weight: float = 1.0,
        average_targets: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sigma_min, self.sigma_max = check_positive("sigma_min", sigma_min), check_positive("sigma_max", sigma_max)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"`sigma_min` must be below `sigma_max`, got {sigma_min} and {sigma_max}.")
        self.level_weight = check_nonnegative("level_weight", level_weight)
        self.average_targets = check_bool("average_targets", average_targets)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns ‖√t ∇_y E − z‖²/d + w (t ∂_t E − (d − ‖z‖²)/2)²/(d/2) of each row."""
        size = math.prod(x.shape[1:])
        units = getattr(getattr(energy_fn, "network", None), "noise_units", None)
        x = x if units is None else units.to_y(x)
        sigma = sigma_of_rows(self.sigma_min, self.sigma_max, x, seed)
        z = normal(tf.shape(x), fold_in(seed, 1), x.dtype)
        y = x + tf.reshape(sigma, [-1] + [1] * (x.shape.rank - 1)) * z
        flat_x, flat_y, flat_z = (tf.reshape(part, [-1, size]) for part in (x, y, z))
        if self.average_targets:
            score_target, level_target = averaged_targets(flat_x, flat_y, sigma)
        else:
            score_target, level_target = flat_z, own_targets(flat_z)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([y, sigma])
            if units is None:
                energy = energy_fn(y, sigma)
            else:
                state = units.to_z(y)
                energy = energy_fn(state, sigma) + units.log_slope(state)
        slope, level_slope = tape.gradient(energy, [y, sigma])
        if slope is None or level_slope is None:
            raise ValueError(
                "`energy_fn` must be differentiable in x and in the noise scale, but its gradient in "
                f"{'x' if slope is None else 'the noise scale'} is None."
            )
        residual = sigma[:, None] * tf.reshape(slope, [-1, size]) - score_target
        score_error = tf.reduce_mean(tf.square(residual), 1)
        level_error = tf.square(0.5 * sigma * level_slope - level_target) / (0.5 * size)  # t ∂_t = ½ σ ∂_σ
        if training:
            _mark_as_matched(energy_fn, self)
        metrics = {"score_error": tf.reduce_mean(score_error), "level_error": tf.reduce_mean(level_error)}
        return LossOutput(score_error + self.level_weight * level_error, metrics)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            **super().get_config(),
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "level_weight": self.level_weight,
            "average_targets": self.average_targets,
        }


def _mark_as_matched(energy_fn: Any, loss: DualScoreMatching) -> None:
    """Notes in a network that is Gaussian at its largest level that the constants of its levels are being learned."""
    mark = getattr(getattr(energy_fn, "network", None), "mark_levels_as_matched", None)
    if mark is not None and loss.level_weight > 0.0:
        mark()
