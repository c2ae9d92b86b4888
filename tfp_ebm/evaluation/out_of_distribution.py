"""Out-of-distribution detection: a statistic of each row, and the area under the ROC curve.

The area is the probability that a row in distribution has a higher statistic than a row out of distribution, where ties
count half (Mann & Whitney):

    AUROC = P(s_in > s_out) + ½ P(s_in = s_out),

with the standard error of DeLong et al. (1988), from the variances over rows of the share of the other set that a row
exceeds (or is below). If no pair is out of order, this error is zero however few rows there are, so a continuity
correction of half a row is added.
"""

from __future__ import annotations

import numpy as np

from tfp_ebm.arguments import check_choice, check_data
from tfp_ebm.evaluation import densities
from tfp_ebm.types import ArrayLike, EnergyLike, Estimate

KINDS = ("log_prob", "gradient", "class_probability")


def ood_statistic(energy_fn: EnergyLike, x: ArrayLike, kind: str = "log_prob") -> np.ndarray:
    """Computes a statistic of each row that is higher for rows like the data, one of three of Grathwohl et al. (2020).

      * "log_prob": −E(x), which is log p(x) up to log Z (Du & Mordatch 2019, arXiv:1903.08689).
      * "gradient": −‖∇E(x)‖, the approximate mass: typical rows lie where the density changes slowly.
      * "class_probability": max_y p(y|x), the largest softmax of a classifier's logits (Hendrycks & Gimpel 2017).

    Args:
      energy_fn: an `EnergyModel`, an `EnergyDistribution`, a Keras network, or a callable `[batch, *event] -> [batch]`;
        for "class_probability" a network or callable `[batch, *event] -> [batch, classes]` of logits, which as an
        energy is E(x) = −log Σ_y exp f_y(x).
      x: `[rows, *event]`.
      kind: the statistic to compute.

    Returns:
      float64 `[rows]`.

    Raises:
      TypeError, ValueError: if `x` is empty or not finite, or the kind is unknown.

    References:
      W. Grathwohl et al., Your classifier is secretly an energy based model, arXiv:1912.03263.

    >>> import tensorflow as tf
    >>> square, x = lambda x: 0.5 * tf.reduce_sum(x**2, -1), np.array([[3.0, 4.0]])
    >>> ood_statistic(square, x).tolist(), ood_statistic(square, x, "gradient").tolist()
    ([-12.5], [-5.0])
    """
    check_choice("kind", kind, KINDS)
    if kind == "log_prob":
        return -densities.energies(energy_fn, x)
    if kind == "gradient":
        return -np.linalg.norm(densities.scores(energy_fn, x), axis=-1)
    return densities.class_probabilities(energy_fn, x).max(-1)


def ood_auroc(energy_fn: EnergyLike, x_in: ArrayLike, x_out: ArrayLike, kind: str = "log_prob") -> Estimate:
    """Computes the area under the ROC curve when the model separates `x_in` (higher statistics) from `x_out`.

    Args:
      energy_fn, kind: as for `ood_statistic`.
      x_in: rows of the data distribution on which the model was not trained, `[rows, *event]`.
      x_out: rows from another distribution.

    Returns:
      An `Estimate`: 1 if every row of `x_in` has the higher statistic, ½ if the statistic separates nothing.

    Raises:
      TypeError, ValueError: if a set is empty, not finite, of another event shape, or a statistic is NaN.

    >>> import tensorflow as tf
    >>> rng = np.random.default_rng(0)
    >>> square = lambda x: 0.5 * tf.reduce_sum(x**2, -1)
    >>> auroc = ood_auroc(square, rng.normal(size=(500, 1)), 2 * rng.normal(size=(500, 1)))
    >>> abs(auroc.value - 2 * np.arctan(2) / np.pi) < 4 * auroc.standard_error < 0.1
    True
    """
    x_in, x_out = check_data("x_in", x_in, min_rows=2), check_data("x_out", x_out, min_rows=2)
    if x_in.shape[1:] != x_out.shape[1:]:
        raise ValueError(
            f"`x_in` and `x_out` must have the same event shape, got {x_in.shape[1:]} and {x_out.shape[1:]}."
        )
    inside, outside = ood_statistic(energy_fn, x_in, kind), ood_statistic(energy_fn, x_out, kind)
    num_nan = int(np.isnan(inside).sum() + np.isnan(outside).sum())
    if num_nan:
        raise ValueError(f"the statistics must be numbers, {num_nan} of {len(inside) + len(outside)} are NaN.")
    beaten, losing = share_below(inside, outside), share_below(outside, inside)
    n, m = len(inside), len(outside)
    variance = np.var(beaten, ddof=1) / n + np.var(losing, ddof=1) / m
    return Estimate(float(np.mean(beaten)), float(np.hypot(np.sqrt(variance), 0.5 / min(n, m))))


def share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the share of the others that each value exceeds, where ties count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return below / (2 * len(others))
