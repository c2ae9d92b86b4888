"""Draws of an energy without chains: exact ones of networks that can draw, and sequential Monte Carlo elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.arguments import check_count
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.mcmc.draws import of_exact
from tfp_ebm.mcmc.running.compiled import find_compiled
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.export import exact_sampler
from tfp_ebm.networks.noise_levels import level_of
from tfp_ebm.networks.normalized import is_normalized
from tfp_ebm.random import stateless_seed


def draws_exactly(energy: Any) -> bool:
    """Returns whether `energy` is a model with log Z = 0 whose network draws samples."""
    return isinstance(energy, EnergyModel) and is_normalized(energy)


def exact_draws(model: Any, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draws independent samples `[num_samples, *event]` by a function that is compiled once for each model."""

    def make(resolve: Any) -> Callable[..., tf.Tensor]:
        return exact_sampler(resolve().__self__)

    draw = find_compiled(model.unnormalized_log_prob, "exact draws", make)
    return draw(tf.cast(num_samples, tf.int32), seed)


def trusted_draws(
    energy: Any,
    negative_energy: Callable[[tf.Tensor], tf.Tensor],
    base: tfp.distributions.Distribution | None,
    num_samples: Any,
    seed: Any,
    settings: dict[str, Any],
) -> mcmc.Draws:
    """Returns draws with log Z and a verdict; those of a model run in its standardised coordinates.

    Args:
      energy: an `EnergyModel`, or another energy.
      negative_energy: −E of states x.
      base: a distribution over x; None for a model that draws exactly.
      num_samples: number of draws.
      seed: int or int32[2].
      settings: further arguments of `mcmc.sequential_monte_carlo`, or of `mcmc.anneal_noise_levels` for a model of
        `networks.NoiseLevelEnergy` at one noise level, whose draws come from its largest level instead of `base`.
    """
    num_samples = check_count("num_samples", num_samples)
    if not tf.executing_eagerly():
        raise NotImplementedError("`draw` runs eagerly only; inside a `tf.function`, use `sample`.")
    if base is None:
        words = stateless_seed(seed)
        return of_exact(lambda num: exact_draws(energy, num, words), lambda x: negative_energy(x).numpy(), num_samples)
    if not isinstance(energy, EnergyModel):
        return mcmc.sequential_monte_carlo(negative_energy, base, num_samples=num_samples, seed=seed, **settings)
    function = energy.energy_function
    coordinates = Coordinates.of(function)
    level, to_z = level_of(energy), tf.identity
    if level is not None and level[1] < level[0].sigma_max:
        network, sigma = level
        start = network.reference(network.sigma_max)
        scales = {"sigma_min": sigma, "sigma_max": network.sigma_max, **settings}
        drawn = mcmc.anneal_noise_levels(
            network.unnormalized_log_prob, start, num_samples=num_samples, seed=seed, **scales
        )
        to_z = network.to_state
    else:
        drawn = mcmc.sequential_monte_carlo(
            function.unnormalized_log_prob,
            coordinates.distribution_in_chain(base),
            num_samples=num_samples,
            seed=seed,
            **settings,
        )
    centers = coordinates.from_chain(to_z(tf.constant(drawn.shares.centers, energy.dtype))).numpy()
    states = coordinates.from_chain(to_z(drawn.states))
    return dataclasses.replace(drawn, states=states, shares=drawn.shares._replace(centers=centers))
