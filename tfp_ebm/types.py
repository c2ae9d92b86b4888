"""Types used in signatures on every floor: floor 0.

TensorFlow, Keras and TFP come without type stubs, so a type checker knows little about them. These names document the
possible arguments for readers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

ArrayLike: TypeAlias = np.ndarray | tf.Tensor | Sequence[Any] | float
"""Numbers: an array, a tensor, or nested sequences."""

Seed: TypeAlias = int | Sequence[int] | np.ndarray | tf.Tensor
"""A stateless seed: an int of any size, or two ints (int32[2]). The same seed gives the same bits."""

TargetLogProbFn: TypeAlias = Callable[..., tf.Tensor]
"""log p up to a constant, `[*chains, *event] -> [*chains]`: −E, never E."""

KernelLike: TypeAlias = Callable[[TargetLogProbFn], tfp.mcmc.TransitionKernel]
"""A kernel of `ebm.mcmc`, or any callable `target_log_prob_fn -> tfp.mcmc.TransitionKernel`."""


class EnergyFn(Protocol):
    """An energy E(x), `[batch, *event] -> [batch]`: a model, a Keras network, or any callable; −E is log p + log Z."""

    def __call__(self, x: Any, /) -> tf.Tensor:
        """Returns the energies of x."""


EnergyLike: TypeAlias = EnergyFn | keras.layers.Layer | tfp.distributions.Distribution
"""An `EnergyFn`, or a distribution, whose energy is minus its unnormalized log density."""


class Estimate(NamedTuple):
    """An estimate of a number and its uncertainty.

    Attributes:
      value: the estimate.
      standard_error: the standard error of `value`.
      ess: effective number of weights, chains or draws; None if it is not defined.
      log_weights: log weights of importance samples, float64 `[num_chains]`; None if there are none.
      is_approximate: whether an assumption of the method holds only approximately, such as that draws are exact.
    """

    value: float
    standard_error: float
    ess: float | None = None
    log_weights: np.ndarray | None = None
    is_approximate: bool = False
