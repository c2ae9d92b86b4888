"""Exact score matching, which fits the unknown score of the data (eqs. 39-45).

The Fisher divergence ½ E‖∇ log p_data − s‖² (eq. 40) contains the unknown ∇ log p_data. Integration by parts (eq. 43;
Hyvärinen 2005) removes it, up to a constant that depends on the data alone (eq. 44):

    J = E[ ½‖s(x)‖² + tr ∇s(x) ],    s = −∇E,   tr ∇s = −tr ∇²E.

For E = ½(x−μ)ᵀP(x−μ) it is ½tr(P²S) + ½‖P(μ−m)‖² − tr P, with its minimum at the maximum-likelihood solution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_choice, check_count
from tfp_ebm.derivatives import energy_score_laplacian
from tfp_ebm.losses.base import Loss, LossOutput


@keras.saving.register_keras_serializable("tfp_ebm")
class ScoreMatching(Loss):
    """Exact score matching: per row ½‖s(x)‖² − tr ∇²E(x), with s = −∇E (eq. 44).

    The data must have a density: for whole numbers, such as pixels, the loss has no lower bound (dequantise them). The
    loss hardly depends on the weights of separated modes.

    Args:
      method: the method for the trace, see `ebm.derivatives.laplacian`: "auto", "forward", "reverse", or "hutchinson",
        an unbiased estimate from one random direction.
      chunk_size: number of directions in memory at once; None for all. The value does not depend on it.

    Raises:
      ValueError: if the method is unknown or the chunk size below 1.

    Reference: A. Hyvärinen, Estimation of non-normalized statistical models by score matching, JMLR 2005.

    >>> import tensorflow as tf
    >>> x = tf.constant([[1.0, 2.0]])
    >>> ScoreMatching()(lambda x: 0.5 * tf.reduce_sum(x**2, -1), x, seed=0).per_example.numpy().tolist()  # 5/2 − 2
    [0.5]
    """

    differentiates_score = True
    needs_curvature = True

    def __init__(self, method: str = "auto", chunk_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.method = check_choice("method", method, ("auto", "forward", "reverse", "hutchinson"))
        self.chunk_size = None if chunk_size is None else check_count("chunk_size", chunk_size)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns ½‖s‖² − tr ∇²E of each row."""
        noise = {"seed": seed} if self.method == "hutchinson" else {}
        _, score, laplacian = energy_score_laplacian(energy_fn, x, self.method, self.chunk_size, **noise)
        return LossOutput(0.5 * tf.reduce_sum(tf.square(score), list(range(1, x.shape.rank))) - laplacian)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "method": self.method, "chunk_size": self.chunk_size}
