"""Contrastive divergence, its persistent form, and its improved form: variants of maximum likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc, random, serialization
from tfp_ebm.arguments import check_choice, check_nonnegative
from tfp_ebm.losses.maximum_likelihood import MaximumLikelihood
from tfp_ebm.mcmc.starts import ChainStart, FromData, ReplayBuffer

# In standardised units .1 is a safe first step size for any energy, which adaptation then changes.
_DEFAULT_KERNEL = mcmc.Adaptive(mcmc.MALA(0.1))


@keras.saving.register_keras_serializable("tfp_ebm")
class ContrastiveDivergence(MaximumLikelihood):
    """Contrastive divergence: maximum likelihood with chains that start at the data (Hinton 2002).

    With few steps the negatives stay near the data. This is fast, but the gradient is biased: it has no information on
    regions without data.

    Args:
      kernel: a kernel as for `MaximumLikelihood`; default: `mcmc.Adaptive(mcmc.MALA(0.1))`.
      num_steps: number of kernel steps per training step, the k of CD-k.
      **kwargs: the options of `MaximumLikelihood`.

    Reference: G. E. Hinton, Training products of experts by minimizing contrastive divergence, 2002.

    >>> ContrastiveDivergence().num_steps
    1
    """

    def __init__(self, kernel: Any = None, num_steps: int = 1, **kwargs: Any) -> None:
        super().__init__(_DEFAULT_KERNEL if kernel is None else kernel, num_steps, FromData(), **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        config = super().get_config()
        del config["chains"]
        return config


@keras.saving.register_keras_serializable("tfp_ebm")
class PersistentContrastiveDivergence(MaximumLikelihood):
    """Persistent contrastive divergence: maximum likelihood with chains that continue between steps (Tieleman 2008).

    By default its kernels are calibrated: MALA, with its step size adapted to the acceptance, and at the start of every
    training step one independence-Metropolis move from the base, which moves mass between modes that local moves do not
    connect. Chains start at the base.

    In few dimensions, the preset `recipes.low_dimensional(x, loss="persistent_contrastive_divergence")` trains well: it
    uses the base as base measure too, Fourier features, and a learning rate that decays from 10⁻³.

    Args:
      kernel: a kernel as for `MaximumLikelihood`; default: `mcmc.Adaptive(mcmc.MALA(0.1))`.
      num_steps: number of kernel steps per training step.
      capacity: number of chains; at least the number of rows in a batch.
      restart_probability: probability, per chain and training step, of a restart from the base.
      base: a `tfd.Distribution` over x; None for the model's base.
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
        """Returns the arguments, for Keras."""
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
        """Creates the object from the result of `get_config`."""
        return super().from_config({**config, "base": serialization.decode(config["base"])})


FORMS = ("difference", "softplus", "logsumexp")


@keras.saving.register_keras_serializable("tfp_ebm")
class ImprovedContrastiveDivergence(MaximumLikelihood):
    """Maximum likelihood with the KL term of improved contrastive divergence (Du et al. 2021).

    The term is computed for negatives after one more gradient step, through which the parameters are differentiated. It
    is their energy, with fixed parameters, minus their entropy, estimated by nearest neighbours.

    Args:
      kernel: a kernel of `ebm.mcmc` that uses the gradient.
      num_steps: number of kernel steps per training step.
      chains: the starting states: `mcmc.FromData()`, `FromBase()` or `ReplayBuffer(capacity)`.
      kl_weight: weight of the KL term.
      form: "difference", E(x) − E(x⁻); "softplus" of it, or "logsumexp", which weighs negatives by softmax(−E(x⁻))
        (both as in the code of Du & Mordatch 2019).
      **kwargs: the options of `MaximumLikelihood`.

    Raises:
      TypeError, ValueError: as for `MaximumLikelihood`; for an unknown form, a negative weight, or a kernel that does
        not use the gradient.

    Reference: Y. Du, S. Li, J. Tenenbaum, I. Mordatch, Improved contrastive divergence training, 2021,
    arXiv:2012.01316.

    >>> loss = ImprovedContrastiveDivergence(mcmc.MALA(0.5), num_steps=5, chains=FromData())
    >>> loss.kl_weight, loss.form
    (1.0, 'difference')
    """

    def __init__(
        self,
        kernel: Any,
        num_steps: int,
        chains: ChainStart,
        *,
        kl_weight: float = 1.0,
        form: str = "difference",
        **kwargs: Any,
    ) -> None:
        super().__init__(kernel, num_steps, chains, **kwargs)
        self.form = check_choice("form", form, FORMS)
        self.kl_weight = check_nonnegative("kl_weight", kl_weight)
        if self.kl_weight > 0.0 and not (isinstance(kernel, mcmc.Kernel) and kernel.uses_gradient):
            raise ValueError(f"`kl_weight` needs a kernel of ebm.mcmc that uses the gradient, got {kernel!r}.")

    @property
    def differentiates_score(self) -> bool:  # type: ignore[override]
        """Whether the parameter gradient contains the derivative of ∇ₓE: only with the KL term."""
        return self.kl_weight > 0.0

    def _contrast(self, data_energy: tf.Tensor, sample_energy: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        gap = super()._contrast(data_energy, sample_energy, weights)
        if self.form == "softplus":
            return tf.where(weights > 0, tf.math.softplus(gap), tf.zeros_like(gap))
        if self.form == "logsumexp":
            shares = tf.nn.softmax(tf.stop_gradient(tf.where(weights > 0, -sample_energy, -float("inf"))))
            return data_energy - shares * tf.cast(tf.size(shares), gap.dtype) * sample_energy
        return gap

    def _extra(self, energy_fn: Callable[..., tf.Tensor], negatives: tf.Tensor, seed: tf.Tensor) -> tf.Tensor | None:
        """Returns sg(E)(x') − log min_j ‖x' − x⁻_j‖ of each row, times the weight, x' = x⁻ − ½ε²∇E(x⁻) + εZ."""
        if self.kl_weight == 0.0:
            return None
        epsilon = tf.identity(self.step_size)
        with tf.GradientTape() as tape:
            tape.watch(negatives)
            total = tf.reduce_sum(energy_fn(negatives))
        slope = tape.gradient(total, negatives)
        after = (
            negatives - 0.5 * epsilon**2 * slope + epsilon * random.normal(tf.shape(negatives), seed, negatives.dtype)
        )
        fixed = tf.stop_gradient(after)
        with tf.GradientTape() as tape:
            tape.watch(fixed)
            energy = energy_fn(fixed)
        force = tf.stop_gradient(tape.gradient(energy, fixed))
        axes = list(range(1, after.shape.rank))
        # the value of the energy, with the gradient through `after` alone
        energy = tf.stop_gradient(energy) + tf.reduce_sum(force * (after - fixed), axes)
        flat, others = (tf.reshape(states, [tf.shape(states)[0], -1]) for states in (after, negatives))
        squares = tf.reduce_sum(tf.square(flat[:, None] - others[None]), -1)
        squares += tf.linalg.diag(tf.fill(tf.shape(squares)[:1], tf.constant(float("inf"), squares.dtype)))
        nearest = tf.reduce_min(squares, 1)
        # a batch of one row has no neighbours, hence no estimate of the entropy
        entropy = tf.where(tf.shape(squares)[0] > 1, 0.5 * tf.math.log(nearest), tf.zeros_like(nearest))
        return self.kl_weight * (energy - entropy)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "kl_weight": self.kl_weight, "form": self.form}
