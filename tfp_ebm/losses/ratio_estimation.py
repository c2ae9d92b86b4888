"""Contrastive ratio estimation: learn p(θ|x)/p(θ) by telling pairs (θ, x) from pairs that do not belong together.

A batch of pairs from p(θ, x) also gives pairs from p(θ)p(x): x with the θ of another row. Given x and K values of θ, of
which one belongs to x or none does, which one is it? With odds γ that one does, Bayes' rule answers by the ratios
r(θ, x) = p(θ|x)/p(θ) alone:

    q(k | Θ, x) = γ r(θ_k, x) / (K + γ Σᵢ r(θᵢ, x)),      q(0 | Θ, x) = K / (K + γ Σᵢ r(θᵢ, x)).

The energy of the network is −log r, so that posterior = prior × exp(−network), without a normaliser at the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.losses.base import Loss, LossOutput


@keras.saving.register_keras_serializable("tfp_ebm")
class ContrastiveRatioEstimation(Loss):
    """The loss NRE-C, which learns log r(θ, x) = log p(θ|x) − log p(θ) from pairs in `fit(theta, x)`.

    With h = −network(θ, x), θ₀ the parameters of the row, and θ₁, …, θ_K those of other rows, the loss of a row is

        −1/(1 + γ) log [K / (K + γ Σ_{i=1..K} exp h(θᵢ))] − γ/(1 + γ) log [γ exp h(θ₀) / (K + γ Σ_{i<K} exp h(θᵢ))]

    whose minimum over h is log r, without a free constant (eqs. 11-13 of the paper). K = 1 is a classifier of pairs
    (NRE-A), and γ → ∞ chooses one among K (NRE-B), which leaves a function of x free.

    The θ of the batches must come from the prior. In an `EnergyModel` whose base measure is the prior, the energy given
    x is that of the posterior; the loss then sees the network alone. Without a base measure the energy is −log r. A
    batch of one row has loss 0, since it has no other rows.

    Args:
      num_contrasts: K.
      gamma: γ, the odds that one of the K belongs to x.

    Metrics: `accuracy` with which h > 0 tells pairs that belong together from pairs that do not, in equal shares;
    `mean_log_ratio` of pairs that belong together, an estimate of the mutual information of θ and x in nats.

    Raises:
      TypeError, ValueError: if K or γ is not positive.

    Reference: B. K. Miller, C. Weniger, P. Forré, Contrastive neural ratio estimation, 2022, arXiv:2210.06170.

    >>> import tensorflow as tf
    >>> x = tf.zeros([4, 1])
    >>> output = ContrastiveRatioEstimation(2)(lambda theta: 0.0 * theta[:, 0], x, seed=0)
    >>> output.per_example.numpy().astype(float).round(4).tolist()  # ½ log 2 + ½ log 4
    [1.0397, 1.0397, 1.0397, 1.0397]
    """

    metric_names = ("accuracy", "mean_log_ratio")

    def __init__(self, num_contrasts: int, gamma: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_contrasts = check_count("num_contrasts", num_contrasts)
        self.gamma = check_positive("gamma", gamma)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns the loss of each row; `x` are the parameters θ, whose conditions `energy_fn` knows."""
        del condition, training
        network_term: Any = getattr(energy_fn, "network_term", energy_fn)  # without −log of the prior
        num_rows, count = tf.shape(x)[0], self.num_contrasts
        num_others = tf.maximum(num_rows - 1, 1)
        first = tf.cast(random.uniform([], seed, tf.float64) * tf.cast(num_others, tf.float64), tf.int32)
        rows = tf.range(num_rows)
        contrasts = [tf.gather(x, (rows + 1 + (first + k) % num_others) % num_rows) for k in range(count)]
        # one call of the network: row i of each block has the condition of row i
        log_ratio = -tf.reshape(network_term(tf.concat([x, *contrasts], 0)), [count + 1, num_rows])
        weighted = math.log(self.gamma) + log_ratio
        none = tf.fill([1, num_rows], tf.constant(math.log(count), log_ratio.dtype))
        of_none = none[0] - tf.reduce_logsumexp(tf.concat([none, weighted[1:]], 0), 0)
        of_own = weighted[0] - tf.reduce_logsumexp(tf.concat([none, weighted[:-1]], 0), 0)
        per_example = -(of_none + self.gamma * of_own) / (1.0 + self.gamma)
        per_example = tf.where(num_rows > 1, per_example, tf.zeros_like(per_example))
        right = [tf.reduce_mean(tf.sign(sign * part)) for sign, part in ((1.0, log_ratio[0]), (-1.0, log_ratio[1:]))]
        metrics = {
            "accuracy": 0.5 + 0.25 * (right[0] + right[1]),
            "mean_log_ratio": tf.reduce_mean(log_ratio[0]),
        }
        return LossOutput(tf.ensure_shape(per_example, x.shape[:1]), metrics)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "num_contrasts": self.num_contrasts, "gamma": self.gamma}
