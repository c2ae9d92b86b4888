"""Estimates with a standard error, and warnings if they are unreliable.

Importance weights w₁ … w_n with E w = Z give log Z by log w̄. Its error is that of the jackknife, the spread of the n
values that leave one weight out,

    se² = (n − 1)/n Σᵢ (ℓᵢ − ℓ̄)²,    ℓᵢ = log (Σ_{j≠i} w_j/(n − 1)),

which to first order is sd(w)/(√n w̄), and larger if a few weights dominate the sum. The effective sample size (Σw)²/Σw²
measures how many weights contribute. All computations are in float64, with the largest weight factored out.

If the weights have infinite variance, for example because the base is narrower than the target, neither the error nor
the effective sample size shows it. The shape k of a Pareto tail fitted to the largest weights does: moments up to order
1/k exist (Vehtari et al. 2024).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_finite, check_nonnegative
from tfp_ebm.mcmc.weights import jackknife_of_log_mean, pareto_shape
from tfp_ebm.types import Estimate

# Below this share of the weights, or this number, the effective sample size is too small for a reliable error.
MIN_ESS_SHARE, MIN_ESS = 0.05, 5.0
# The shape above which the mean of the weights is unreliable; with fewer weights the error of the shape is too large.
MAX_PARETO_SHAPE, MIN_WEIGHTS_FOR_SHAPE = 0.7, 500


def of_log_weights(log_weights: np.ndarray, is_reverse: bool = False, is_approximate: bool = False) -> Estimate:
    """Estimates log Z from log weights with E w = Z or, for the reverse direction, E (1/w) = 1/Z.

    Warns if the effective sample size is below 5 % of the weights (or below 5), if there are at least 500 weights and
    their tail is too heavy, and if a weight is NaN or infinite; the value is then NaN.

    >>> estimate = of_log_weights(np.log([1.0, 2.0, 3.0, 2.0] * 25))
    >>> round(float(np.exp(estimate.value)), 6), round(estimate.standard_error, 3), round(estimate.ess, 1)
    (2.0, 0.036, 88.9)
    """
    log_weights = np.asarray(log_weights, np.float64)
    sign = -1.0 if is_reverse else 1.0
    signed = sign * log_weights
    num = len(signed)
    bad = int(np.sum(np.isnan(signed) | (signed == np.inf)))
    if bad or not np.isfinite(signed).any():
        reason = f"{bad} of {num} weights are NaN or infinite" if bad else f"all {num} weights are zero"
        warnings.warn(f"log Z cannot be estimated: {reason}.", stacklevel=3)
        return Estimate(np.nan, np.nan, 0.0, log_weights, is_approximate)
    value, error = jackknife_of_log_mean(signed)
    weights = np.exp(signed - np.max(signed))
    ess = float(np.sum(weights) ** 2 / np.sum(weights**2))
    if ess < num and ess < max(MIN_ESS_SHARE * num, MIN_ESS):
        warnings.warn(
            f"the effective sample size is {ess:.1f} of {num} weights: neither log Z = {sign * value:.4g} nor its "
            "standard error can be trusted. More temperatures, a base closer to the target, or a kernel that mixes "
            "faster help.",
            stacklevel=3,
        )
    elif num >= MIN_WEIGHTS_FOR_SHAPE and (shape := pareto_shape(weights)) > MAX_PARETO_SHAPE:
        warnings.warn(
            f"the {num} weights have a tail of Pareto shape {shape:.2f}, above {MAX_PARETO_SHAPE}: more chains would "
            f"have larger weights, and neither log Z = {sign * value:.4g} nor its standard error can be trusted. The "
            "base may be narrower than the target.",
            stacklevel=3,
        )
    return Estimate(float(sign * value), error, ess, log_weights, is_approximate)


def mean_estimate(terms: np.ndarray, what: str, min_ess: float = 2.0) -> Estimate:
    """Returns the mean of independent terms and its standard error, sd/√n; warns if a term of `what` is not finite.

    >>> estimate = mean_estimate(np.array([1.0, 2.0, 3.0]), "loss")
    >>> estimate.value, round(estimate.standard_error, 4)
    (2.0, 0.5774)
    """
    terms = np.asarray(terms, np.float64)
    num = len(terms)
    bad = int(np.sum(~np.isfinite(terms)))
    if bad:
        warnings.warn(f"{what} is not finite at {bad} of {num} points.", stacklevel=3)
        with np.errstate(invalid="ignore"):
            return Estimate(float(np.mean(terms)), np.nan, float(num))
    if num < min_ess:
        warnings.warn(f"{what} was computed at {num} point, so its error is unknown.", stacklevel=3)
        return Estimate(float(np.mean(terms)), np.nan, float(num))
    return Estimate(float(np.mean(terms)), float(np.std(terms, ddof=1) / np.sqrt(num)), float(num))


def value_and_error(log_normalizer: Any) -> tuple[float, float]:
    """Returns log Z and its standard error from an `Estimate`, or from a number, which counts as exact."""
    if isinstance(log_normalizer, Estimate):
        value = check_finite("log_normalizer.value", log_normalizer.value)
        return value, check_nonnegative("log_normalizer.standard_error", log_normalizer.standard_error)
    if tf.is_tensor(log_normalizer) or isinstance(log_normalizer, np.ndarray | np.generic):
        log_normalizer = np.asarray(log_normalizer)[()]  # a number, if the array holds one
    return check_finite("log_normalizer", log_normalizer), 0.0


def combined(estimate: Estimate, shift: float, error: float, factor: float = 1.0) -> Estimate:
    """Returns `factor`·(estimate + shift), where the shift has an independent standard error."""
    value = factor * (estimate.value + shift)
    return estimate._replace(
        value=float(value), standard_error=float(abs(factor) * np.hypot(estimate.standard_error, error))
    )
