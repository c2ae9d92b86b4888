"""The likelihood of an energy of noisy data by its probability flow, which needs the scores of all levels and no log Z.

The densities p_t, t = σ², of an energy E(y, t) of data plus noise of variance t are also those of the flow

    dy/dt = ½ ∇E(y, t),      d log p_t(y)/dt = −½ tr ∇²E(y, t),

so that log p(x) = log p_T(y_T) + ½ ∫ tr ∇²E(y_t, t) dt along the path of x, where p_T is a known Gaussian (Song et al.
2021). Constants in E, and so its own log Z, play no part. If the scores of all levels are those of one density and its
blurs, the result is log p(x); else it is the log density of the flow's draws.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.derivatives import energy_score_laplacian
from tfp_ebm.energy.base import check_base
from tfp_ebm.energy.signs import check_energy
from tfp_ebm.evaluation.estimate import combined, mean_estimate
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.noise_levels import NoiseLevelEnergy
from tfp_ebm.tracing import graph_function
from tfp_ebm.types import Estimate

# Rows that are integrated at once.
_BLOCK = 2048


def probability_flow_log_likelihood(
    energy_fn: Any,
    x: Any,
    base: tfp.distributions.Distribution | None = None,
    *,
    sigma_min: float,
    sigma_max: float | None = None,
    num_steps: int = 64,
) -> Estimate:
    """Computes the mean of log p(x) over rows by the probability flow from `sigma_min` to `sigma_max`, in nats.

    It is independent of the constants of the energy, so it checks the log Z of a model trained by
    `losses.DualScoreMatching`: compare `log_likelihood(model.given(sigma_min), x, 0.0)`. The flow is integrated in
    log σ by the Runge-Kutta method of order four, with an exact trace: d + 1 backward passes in each of four stages.

    Args:
      energy_fn: a conditional `EnergyModel`, or a callable E(x, σ), `(x [n, *event], sigma [n]) -> [n]`.
      x: rows, `[rows, *event]`. They should be data with noise of scale `sigma_min`, or such that this noise is small.
      base: p at σ_max, with normalised `log_prob`, in the coordinates of the energy (standardised for a model). Not
        needed for a model of a `networks.NoiseLevelEnergy`.
      sigma_min, sigma_max: the noise scales; σ_max is that of the `NoiseLevelEnergy` by default.
      num_steps: number of steps, even. The error is estimated by the difference from half as many.

    Returns:
      An `Estimate`, whose standard error has that of the mean over rows and the change by half as many steps.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    Reference: Y. Song et al., Score-based generative modeling through stochastic differential equations, 2021,
    arXiv:2011.13456.

    >>> blurred = lambda x, sigma: 0.5 * tf.reduce_sum(x**2, -1) / (1 + sigma**2)  # N(0, I) blurred by sigma
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> base = tfp.distributions.MultivariateNormalDiag(np.zeros(2), np.full(2, math.sqrt(26.0)))
    >>> found = probability_flow_log_likelihood(blurred, x, base, sigma_min=1e-3, sigma_max=5.0, num_steps=32)
    >>> bool(abs(found.value + 0.5 * np.mean(np.sum(x**2, -1)) + math.log(2 * math.pi)) < 1e-3)
    True
    """
    num_steps = check_count("num_steps", num_steps, 2)
    if num_steps % 2:
        raise ValueError(f"`num_steps` must be even, got {num_steps}.")
    rows = check_data("x", x)
    energy: Any = energy_fn
    shift: Any = 0.0  # the shift of log p, of all rows or of each
    if isinstance(energy_fn, EnergyModel):
        function = energy_fn.energy_function
        if not function.is_conditional:
            raise ValueError("`energy_fn` must be of (x, sigma), got a model whose network takes x alone.")
        rows = check_data("x", x, function.event_shape)
        shift, energy = -float(energy_fn.standardization.log_scale_sum()), function
        rows = energy_fn.standardization.to_z(tf.constant(rows, energy_fn.dtype))
        if isinstance(function.network, NoiseLevelEnergy) and function.tilt is None:
            network = function.network
            sigma_max = network.sigma_max if sigma_max is None else sigma_max
            base = network.reference(check_positive("sigma_max", sigma_max)) if base is None else base
            if network.noise_units is not None:
                energy = functools.partial(_energy_of_noisy, network)
                shift += network.noise_units.log_slope(rows).numpy().astype(np.float64)
                rows = network.noise_units.to_y(rows)
        rows = rows.numpy()
    else:
        check_energy(energy_fn)
    if base is None or sigma_max is None:
        raise ValueError("`base` and `sigma_max` must be given, unless the network is a NoiseLevelEnergy.")
    check_base("base", base)
    low, high = check_positive("sigma_min", sigma_min), check_positive("sigma_max", sigma_max)
    if not low < high:
        raise ValueError(f"`sigma_min` must be below `sigma_max`, got {sigma_min} and {sigma_max}.")
    fine, coarse = (_log_prob(energy, rows, base, (low, high), number) for number in (num_steps, num_steps // 2))
    change = abs(float(np.mean(fine) - np.mean(coarse)))
    return combined(mean_estimate(fine + shift, "the log density of the flow"), 0.0, change)


def _energy_of_noisy(network: NoiseLevelEnergy, y: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    return -network.unnormalized_log_prob(y, sigma)


def _log_prob(
    energy: Any, rows: np.ndarray, base: tfp.distributions.Distribution, scales: tuple[float, float], num_steps: int
) -> np.ndarray:
    """Returns log p at rows, float64 `[rows]`."""
    shape = [None, *rows.shape[1:]]
    flow = graph_function(
        functools.partial(_flow, energy, scales, num_steps), input_signature=[tf.TensorSpec(shape, base.dtype)]
    )
    parts = []
    for start in range(0, len(rows), _BLOCK):
        y, gain = flow(tf.constant(rows[start : start + _BLOCK], base.dtype))
        parts.append(base.log_prob(y).numpy().astype(np.float64) + gain.numpy())
    return np.concatenate(parts)


def _flow(energy: Any, scales: tuple[float, float], num_steps: int, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the end of the path of each row, and ½ ∫ tr ∇²E dt along it."""
    low, high = map(math.log, scales)
    step = (high - low) / num_steps

    def slope(level: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the derivatives of y and of the integral in log σ, where dt = 2t d log σ."""
        sigma = tf.fill(tf.shape(y)[:1], tf.exp(level))
        _, score, laplacian = energy_score_laplacian(lambda z: energy(z, sigma), y, "reverse")
        t = tf.exp(2.0 * level)
        return -t * score, t * laplacian

    def advance(k: tf.Tensor, y: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        level = tf.cast(low + step * tf.cast(k, tf.float64), y.dtype)
        first = slope(level, y)
        second = slope(level + 0.5 * step, y + 0.5 * step * first[0])
        third = slope(level + 0.5 * step, y + 0.5 * step * second[0])
        fourth = slope(level + step, y + step * third[0])
        y_step, gain = (
            step / 6.0 * (a + 2.0 * b + 2.0 * c + d) for a, b, c, d in zip(first, second, third, fourth, strict=True)
        )
        return k + 1, tf.ensure_shape(y + y_step, y.shape), total + gain

    start = (tf.constant(0), y, tf.zeros(tf.shape(y)[:1], y.dtype))
    shapes = (tf.TensorShape([]), y.shape, tf.TensorShape([None]))
    _, y, total = tf.while_loop(
        lambda k, *_: k < num_steps, advance, start, shape_invariants=shapes, parallel_iterations=1
    )
    return y, total
