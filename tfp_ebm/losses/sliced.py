"""Sliced score matching: the Fisher divergence along random directions, one second derivative at a time (eqs. 53-57).

Projection of both scores on a direction v with E[vvᵀ] = I, and integration by parts as in eq. 43, give (Song et al.
2019)

    J = E_v E_x[ ½(vᵀs)² + vᵀ∇s v ],    s = −∇E,   vᵀ∇s v = −vᵀ∇²E v,

where vᵀ∇²E v costs no more than two gradients in any dimension. As E_v (vᵀs)² = ‖s‖², the first term may be replaced by
its expectation, ½‖s‖², which has less variance. (The note's eqs. 53-54 have the ½ inside the square, and eq. 56 omits
the cross terms of (vᵀs)²: the expectation is the same, but single draws differ.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.arguments import check_bool, check_choice, check_count
from tfp_ebm.derivatives import energy_score_curvature
from tfp_ebm.losses.base import Loss, LossOutput

PROJECTIONS = ("gaussian", "rademacher", "sphere")


@keras.saving.register_keras_serializable("tfp_ebm")
class SlicedScoreMatching(Loss):
    """Sliced score matching: per row ½‖s‖² − vᵀ∇²E v, or ½(vᵀs)² − vᵀ∇²E v, averaged over random v (eqs. 53-57).

    Args:
      num_projections: number of directions per row and step.
      projection: distribution of v, with E[vvᵀ] = I: "rademacher" (signs; vᵀ∇²E v is exact for a diagonal Hessian),
        "gaussian", or "sphere" (uniform on the sphere of radius √d).
      variance_reduced: whether to use ½‖s‖², the expectation over v, instead of ½(vᵀs)².

    Raises:
      TypeError, ValueError: if the count is below 1 or the projection is unknown.

    Reference: Y. Song, S. Garg, J. Shi, S. Ermon, Sliced score matching, UAI 2019, arXiv:1905.07088.

    >>> import tensorflow as tf
    >>> x = tf.constant([[1.0, 2.0]])
    >>> loss = SlicedScoreMatching()
    >>> loss(lambda x: 0.5 * tf.reduce_sum(x**2, -1), x, seed=0).per_example.numpy().tolist()  # 5/2 − 2
    [0.5]
    """

    differentiates_score = True
    needs_curvature = True

    def __init__(
        self,
        num_projections: int = 1,
        projection: str = "rademacher",
        variance_reduced: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_projections = check_count("num_projections", num_projections)
        self.projection = check_choice("projection", projection, PROJECTIONS)
        self.variance_reduced = check_bool("variance_reduced", variance_reduced)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns ½‖s‖² or ½(vᵀs)², minus vᵀ∇²E v, of each row."""
        v = self.directions(x, seed)
        _, score, bends = energy_score_curvature(energy_fn, x, v)
        event_axes = list(range(1, x.shape.rank))
        if self.variance_reduced:
            squares = tf.reduce_sum(tf.square(score), event_axes)
        else:
            slopes = tf.reduce_sum(v * score, [axis + 1 for axis in event_axes])
            squares = tf.reduce_mean(tf.square(slopes), 0)
        return LossOutput(0.5 * squares - tf.reduce_mean(bends, 0))

    def directions(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws directions `[num_projections, batch, *event]` for the rows of x."""
        shape = tf.concat([[self.num_projections], tf.shape(x)], 0)
        if self.projection == "rademacher":
            v = random.rademacher(shape, seed, x.dtype)
        else:
            v = random.normal(shape, seed, x.dtype)
        v = tf.ensure_shape(v, [self.num_projections, *x.shape])
        if self.projection == "sphere":
            axes = list(range(2, v.shape.rank))
            length = math.sqrt(math.prod(x.shape[1:]))
            v *= length * tf.math.rsqrt(tf.reduce_sum(tf.square(v), axes, keepdims=True))
        return v

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            **super().get_config(),
            "num_projections": self.num_projections,
            "projection": self.projection,
            "variance_reduced": self.variance_reduced,
        }
