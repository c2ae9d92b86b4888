"""Ready-made configurations that train well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfp_ebm import losses, networks
from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.base import fit_base
from tfp_ebm.model import EnergyModel

__all__ = ["low_dimensional"]

# Batches that one compiled call runs: Keras's own cost per call is then small beside the step's.
_STEPS_PER_EXECUTION = 100


def low_dimensional(
    x: Any,
    loss: Any = None,
    num_steps: int = 5000,
    *,
    units: Sequence[int] = (128, 128),
    fourier_features: int = 0,
    learning_rate: float = 5e-3,
    steps_per_execution: int = _STEPS_PER_EXECUTION,
    seed: int = 0,
) -> EnergyModel:
    """A model ready to `fit` data of up to some hundred coordinates.

    A dense network on standardised data, tilted by the Gaussian fitted to it, E(x) = network − log base(x), so that no
    mass hides where there is no data; Adam whose learning rate decays along a cosine to zero at `num_steps`.

    Args:
      x: the data `[rows, *event]`.
      loss: an `ebm.losses.Loss` or its alias; default: denoising score matching at .1 standard deviations.
      num_steps: optimizer steps that `fit` will take; the learning rate is zero from there on.
      units: widths of the hidden layers.
      fourier_features: number of random frequencies in front of them; for objectives other than score matching.
      learning_rate: at the start.
      steps_per_execution: batches run by one compiled call.
      seed: of initial weights and of all noise.

    Returns:
      A compiled, adapted `EnergyModel`.

    Raises:
      TypeError, ValueError: for data that is not whole, and for arguments out of range.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(512, 2)).astype("float32")
    >>> model = low_dimensional(x, num_steps=100)
    >>> history = model.fit(x, batch_size=256, epochs=1, verbose=0)
    """
    x = check_data("x", x)
    schedule = keras.optimizers.schedules.CosineDecay(
        check_positive("learning_rate", learning_rate), check_count("num_steps", num_steps)
    )
    network = networks.mlp(x.shape[1:], units, fourier_features=fourier_features, seed=seed)
    model = EnergyModel(network, base_measure=fit_base(x), seed=seed)
    model.adapt(x)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=losses.DenoisingScoreMatching() if loss is None else loss,
        steps_per_execution=check_count("steps_per_execution", steps_per_execution),
    )
    return model
