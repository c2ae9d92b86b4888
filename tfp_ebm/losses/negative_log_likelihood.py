"""Maximum likelihood for energies whose normaliser is known (eq. 6): −log p(x) = E(x) + log Z with log Z = 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.losses.base import Loss, LossOutput
from tfp_ebm.networks.normalized import NormalizedEnergy


@keras.saving.register_keras_serializable("tfp_ebm")
class NegativeLogLikelihood(Loss):
    """The exact negative log-likelihood −log p(x) of each row (eq. 6), in standardised units in an `EnergyModel`.

    It trains energies whose log Z is known, such as `networks.autoregressive`, and needs neither chains nor a noise
    distribution. The value on held-out rows is exact, so training can stop at its minimum.

    Raises:
      ValueError: when called with a network whose log Z is unknown, or with a base measure, which would change log Z.

    >>> import tensorflow as tf, tfp_ebm as ebm
    >>> model = ebm.EnergyModel(ebm.networks.autoregressive([2], units=[8], seed=0))
    >>> model.compile(loss="negative_log_likelihood")
    >>> history = model.fit(tf.random.stateless_normal([64, 2], [0, 1]), epochs=1, verbose=0)
    """

    def check(self, energy_fn: Callable[..., tf.Tensor]) -> None:
        """Raises ValueError if log Z of the energy is not known."""
        super().check(energy_fn)
        network = getattr(energy_fn, "network", None)
        if not (isinstance(network, NormalizedEnergy) or getattr(network, "is_normalized", False)):
            raise ValueError(
                "NegativeLogLikelihood needs an energy whose log Z is known, such as `networks.autoregressive`, got "
                f"{type(energy_fn if network is None else network).__name__}."
            )
        if getattr(energy_fn, "base_measure", None) is not None:
            raise ValueError("NegativeLogLikelihood takes no `base_measure`: it would make log Z unknown.")

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns −log p(x) of each row."""
        network: Any = getattr(energy_fn, "network", None)
        if training and isinstance(network, NormalizedEnergy):
            return LossOutput(network.training_energy(x, seed))
        return LossOutput(energy_fn(x))
