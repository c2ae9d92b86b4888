"""The named faces of maximum likelihood: contrastive divergence, and its persistent form."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow_probability as tfp

from tfp_ebm import mcmc, serialization
from tfp_ebm.losses.maximum_likelihood import MaximumLikelihood
from tfp_ebm.mcmc.starts import FromData, ReplayBuffer

# In standardised units a step of .1 is a safe start for any energy; adaptation takes it from there.
_DEFAULT_KERNEL = mcmc.Adaptive(mcmc.MALA(0.1))


@keras.saving.register_keras_serializable("tfp_ebm")
class ContrastiveDivergence(MaximumLikelihood):
    """Contrastive divergence: maximum likelihood with chains that start at the data (Hinton 2002).

    With few steps the negatives stay near the data: quick, and a biased gradient that says nothing of regions without
    data.

    Args:
      kernel: default: `mcmc.Adaptive(mcmc.MALA(0.1))`.
      num_steps: kernel steps per training step, the k of CD-k.
      **kwargs: the options of `MaximumLikelihood`.

    Reference: G. E. Hinton, Training products of experts by minimizing contrastive divergence, 2002.

    >>> ContrastiveDivergence().num_steps
    1
    """

    def __init__(self, kernel: Any = None, num_steps: int = 1, **kwargs: Any) -> None:
        super().__init__(_DEFAULT_KERNEL if kernel is None else kernel, num_steps, FromData(), **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras."""
        config = super().get_config()
        del config["chains"]
        return config


@keras.saving.register_keras_serializable("tfp_ebm")
class PersistentContrastiveDivergence(MaximumLikelihood):
    """Persistent contrastive divergence: maximum likelihood with chains that go on from step to step (Tieleman 2008).

    By default its negatives are calibrated: MALA, its step size adapted to its acceptance, and at the start of every
    training step one independence-Metropolis move from the base, which carries mass between modes that local moves do
    not connect. ChainStart start at the base.

    In few dimensions `recipes.low_dimensional(x, loss="persistent_contrastive_divergence")` is a preset that trains
    well: the base as base measure too, Fourier features, a learning rate of 10⁻³ that decays.

    Args:
      kernel: default: `mcmc.Adaptive(mcmc.MALA(0.1))`.
      num_steps: kernel steps per training step.
      capacity: number of chains; at least the rows of a batch.
      restart_probability: chance per chain and training step that it starts anew from the base.
      base: a `tfd.Distribution` over x; None for the model's.
      **kwargs: the options of `MaximumLikelihood`.

    Reference: T. Tieleman, Training restricted Boltzmann machines using approximations to the likelihood gradient,
    2008.

    >>> PersistentContrastiveDivergence().chains.capacity
    10000
    """

    def __init__(
        self,
        kernel: Any = None,
        num_steps: int = 20,
        capacity: int = 10_000,
        restart_probability: float = 0.0,
        base: tfp.distributions.Distribution | None = None,
        **kwargs: Any,
    ) -> None:
        chains = ReplayBuffer(capacity, restart_probability, base)
        super().__init__(_DEFAULT_KERNEL if kernel is None else kernel, num_steps, chains, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras."""
        config = super().get_config()
        del config["chains"]
        return {
            **config,
            "capacity": self.chains.capacity,
            "restart_probability": self.chains.restart_probability,
            "base": serialization.encode(self.chains.base, "base"),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PersistentContrastiveDivergence:
        """The inverse of `get_config`."""
        return super().from_config({**config, "base": serialization.decode(config["base"])})
