"""Simulation-based inference: the posterior p(θ | x) of a simulator's parameters, from pairs (θ, x) that it made.

Neural posterior estimation (NPE) fits p(θ | x) itself, as an autoregressive energy with exact log p and draws. Neural
ratio estimation (NRE) fits r(θ, x) = p(θ | x)/p(θ) by a classifier; the posterior is prior × r, an energy that the
package's samplers draw from. Both are amortised: one training serves every observation. θ must come from the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import networks
from tfp_ebm.arguments import check_count, check_share
from tfp_ebm.energy.base import check_base
from tfp_ebm.losses import ContrastiveRatioEstimation
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.recipes.density_rows import split_rows
from tfp_ebm.recipes.regression import check_bounds, columns_of, fit_targets

tfd = tfp.distributions

# Trainings of a ratio: rows of a batch, learning rate, and the share of epochs after which one ends if none was better.
_BATCH_SIZE, _LEARNING_RATE, _PATIENCE = 256, 2e-3, 0.3
# A bound of a support is where values of its bijector no longer change.
_FAR = 200.0


def neural_posterior_estimation(
    theta: Any,
    x: Any,
    prior: Any = None,
    *,
    minutes: float | None = None,
    num_networks: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
) -> EnergyModel:
    """Fits the posterior p(θ | x) of a simulator's parameters as autoregressive energies, whose log Z is 0 for every x.

    The densities are those of `regression`. A coordinate of θ that the prior bounds has its energy in the logarithm or
    the logit of its place, so that no posterior has mass outside of the prior's support.

    Args:
      theta: parameters `[simulations, parameters]`, drawn from the prior.
      x: what the simulator made of them, `[simulations, observed]`: numbers, or summary statistics.
      prior: a `tfd.Distribution` over θ, whose support must be a box, or the box (low, high), which may be infinite; it
        says where θ is bounded, and nothing else. None: θ is not bounded.
      minutes: time for the trainings, about; default: as many steps as the number of simulations needs.
      num_networks: number of networks that are averaged; default: 10 for at most 2000 simulations, else 4.
      validation: share of the simulations that a network holds out.
      seed: of the splits, all weights and all batches.

    Returns:
      A conditional `EnergyModel` of θ given x: `model.energy(theta, x)` is −log p(θ | x), `model.given(x)` of one
      observation an ordinary model with exact `log_prob` and draws in an `EnergyDistribution`, and of a batch
      `[batch, observed]` a distribution of batch shape `[batch]`.

    Raises:
      TypeError, ValueError: if θ and x are no finite numbers, differ in their rows, have fewer than 20, or θ is outside
        of the prior's support.

    References:
      G. Papamakarios, I. Murray, Fast ε-free inference of simulation models with Bayesian conditional density
      estimation, 2016, arXiv:1605.06376; C. Nash, C. Durkan, Autoregressive energy machines, 2019, arXiv:1904.05626.

    >>> rng = np.random.default_rng(0)
    >>> theta = rng.uniform(-1.0, 1.0, (300, 1))
    >>> model = neural_posterior_estimation(
    ...     theta, theta + 0.1 * rng.normal(size=(300, 1)), prior=(-1.0, 1.0), minutes=0.02, num_networks=1
    ... )
    >>> p = model.given([[0.5]])
    >>> draws = p.sample(100, seed=0)
    >>> bool(tf.reduce_all(tf.abs(draws) < 1.0)), float(p.log_prob([1.5])[0])
    (True, -inf)
    """
    parameters, observed = (columns_of(name, value) for name, value in (("theta", theta), ("x", x)))
    low, high = support_of(prior, parameters.shape[1])
    return fit_targets(
        observed,
        parameters,
        low,
        high,
        names=("x", "theta"),
        minutes=minutes,
        num_networks=num_networks,
        validation=validation,
        seed=seed,
    )


def neural_ratio_estimation(
    theta: Any,
    x: Any,
    prior: Any,
    *,
    num_steps: int | None = None,
    num_contrasts: int = 20,
    units: Sequence[int] = (128, 128),
    validation: float = 0.1,
    seed: int = 0,
) -> EnergyModel:
    """Fits the ratio r(θ, x) = p(θ | x)/p(θ) of a simulator by contrast (NRE-C); the posterior is prior × r.

    The network is −log r of (θ, x), and the prior is the model's base measure, so that E(θ; x) = −log r − log prior(θ)
    is the energy of the posterior. Training stops where the loss of held-out simulations is best.

    Args:
      theta: parameters `[simulations, parameters]`, drawn from the prior.
      x: what the simulator made of them, `[simulations, observed]`.
      prior: a `tfd.Distribution` over θ, or (low, high) of a box in which θ is uniform.
      num_steps: optimizer steps; default: as many as the number of simulations needs.
      num_contrasts: K of `losses.ContrastiveRatioEstimation`.
      units: widths of the hidden layers.
      validation: share of the simulations that is held out.
      seed: of the split, the weights and the batches.

    Returns:
      A conditional `EnergyModel` of θ given x. `EnergyDistribution(model.given(x))` of one observation has
      `sample(n, seed)` by sequential Monte Carlo from the prior; its log Z, by `draw`, is near 0 if the ratio is right.

    Raises:
      TypeError, ValueError: if θ and x are no finite numbers, differ in their rows, have fewer than 20, or the prior is
        no distribution over θ or has no density at θ.

    References:
      B. K. Miller, C. Weniger, P. Forré, Contrastive neural ratio estimation, 2022, arXiv:2210.06170; J. Hermans,
      V. Begy, G. Louppe, Likelihood-free MCMC with amortized approximate ratio estimators, 2019, arXiv:1903.04057.

    >>> rng = np.random.default_rng(0)
    >>> theta = rng.uniform(-1.0, 1.0, (200, 1))
    >>> model = neural_ratio_estimation(
    ...     theta, theta + 0.3 * rng.normal(size=(200, 1)), (-1.0, 1.0), num_steps=40, units=[16]
    ... )
    >>> model.energy(theta[:2], np.array([[0.4], [0.5]])).shape, model.given(0.4).base.distribution.low.numpy().tolist()
    (TensorShape([2]), [-1.0])
    """
    parameters, observed = (columns_of(name, value) for name, value in (("theta", theta), ("x", x)))
    if len(parameters) != len(observed):
        raise ValueError(f"`theta` must have as many rows as x, {len(observed)}, got {len(parameters)}.")
    check_share("validation", validation)
    prior = _prior_of(prior, parameters.shape[1])
    parameters = parameters.astype(prior.dtype.as_numpy_dtype)
    outside = int((~np.isfinite(np.asarray(prior.log_prob(parameters)))).sum())
    if outside:
        raise ValueError(f"`prior` must have a density at all rows of theta, but has none at {outside} of them.")
    train, held_out = split_rows(np.concatenate([parameters, observed], 1), validation, seed)
    batch_size = min(_BATCH_SIZE, max(32, len(train) // 8))
    if num_steps is None:
        num_steps = min(500 + 200 * (len(train) // batch_size), 16_000)
    per_epoch = math.ceil(len(train) / batch_size)
    epochs = math.ceil(check_count("num_steps", num_steps) / per_epoch)

    network = _ratio_network(parameters.shape[1], observed[train], units, prior.dtype.name, seed)
    model = EnergyModel(network, base_measure=prior, seed=seed)
    model.adapt(parameters)
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, epochs * per_epoch), weight_decay=1e-3
        ),
        ContrastiveRatioEstimation(num_contrasts),
        steps_per_execution=per_epoch,
    )
    observed = observed.astype(prior.dtype.as_numpy_dtype)
    model.fit(
        parameters[train],
        observed[train],
        batch_size,
        epochs,
        validation_data=(parameters[held_out], observed[held_out]),
        validation_batch_size=len(held_out),
        callbacks=[keras.callbacks.EarlyStopping(patience=math.ceil(_PATIENCE * epochs), restore_best_weights=True)],
        verbose=0,
    )
    return model


def _ratio_network(size: int, x: np.ndarray, units: Sequence[int], dtype: str, seed: int) -> keras.Model:
    """Returns the network −log r of θ, in the model's units, and x, in its own."""
    scale = np.where(x.std(0) > 0.0, x.std(0), 1.0)
    inputs = [keras.Input((size,), dtype=dtype), keras.Input((x.shape[1],), dtype=dtype)]
    standardised = keras.layers.Rescaling((1.0 / scale).tolist(), (-x.mean(0) / scale).tolist(), dtype=dtype)(inputs[1])
    both = keras.layers.Concatenate(dtype=dtype)([inputs[0], standardised])
    energy = networks.mlp([size + x.shape[1]], units, dtype=dtype, seed=seed)(both)
    return keras.Model(inputs, energy, dtype=dtype)


def _prior_of(prior: Any, size: int) -> Any:
    """Returns a prior over vectors of that size; (low, high) is a uniform one."""
    if not isinstance(prior, tfd.Distribution):
        low, high = check_bounds("prior", prior, size)
        if prior is None or not (np.isfinite(low) & np.isfinite(high)).all():
            raise ValueError(f"`prior` must be a tfd.Distribution, or finite bounds (low, high), got {prior!r}.")
        prior = tfd.Independent(tfd.Uniform(low.astype(np.float32), high.astype(np.float32)), 1)
    check_base("prior", prior, event_shape=(size,))
    return prior


def support_of(prior: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the box (low, high) of a prior's support, which may be infinite.

    Args:
      prior: a distribution over vectors, (low, high), or None.
      size: number of parameters.

    Raises:
      TypeError, ValueError: if it is of another event shape, or its support is no box.

    >>> support_of(tfd.Independent(tfd.Exponential([1.0, 2.0]), 1), 2)
    (array([0., 0.]), array([inf, inf]))
    """
    if not isinstance(prior, tfd.Distribution):
        return check_bounds("prior", prior, size)
    check_base("prior", prior, event_shape=(size,))
    places = tf.constant(np.outer([-2.0, -1.0, 1.0, 2.0], np.full(size, _FAR)), prior.dtype)
    try:
        bijector = prior.experimental_default_event_space_bijector()
        if bijector is None:
            return check_bounds("prior", None, size)
        far = np.asarray(bijector.forward(places), np.float64)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError("`prior` must have a box as support; pass it as (low, high).") from error
    if far.shape != places.shape:
        raise ValueError("`prior` must have a box as support, got one whose coordinates depend on each other.")
    far = np.where(np.abs(far) < 1e-30, 0.0, far)
    with np.errstate(invalid="ignore"):
        is_bound = [np.isfinite(far[end]) & (np.abs(far[end] - far[near]) <= 1e-6) for end, near in ((0, 1), (3, 2))]
    return np.where(is_bound[0], far[0], -np.inf), np.where(is_bound[1], far[3], np.inf)
