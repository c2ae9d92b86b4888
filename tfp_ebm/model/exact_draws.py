"""Exact samples, without chains, of models whose network can draw them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_ebm.mcmc.running.compiled import find_compiled
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.export import exact_sampler
from tfp_ebm.networks.normalized import is_normalized


def draws_exactly(energy: Any) -> bool:
    """Returns whether `energy` is a model with log Z = 0 whose network draws samples."""
    return isinstance(energy, EnergyModel) and is_normalized(energy)


def exact_draws(model: Any, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draws independent samples `[num_samples, *event]` by a function that is compiled once for each model."""

    def make(resolve: Any) -> Callable[..., tf.Tensor]:
        return exact_sampler(resolve().__self__)

    draw = find_compiled(model.unnormalized_log_prob, "exact draws", make)
    return draw(tf.cast(num_samples, tf.int32), seed)
