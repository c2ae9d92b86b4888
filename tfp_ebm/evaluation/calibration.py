"""Calibration of a classifier: whether its probabilities are those with which it is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_ebm.arguments import check_count, check_data
from tfp_ebm.networks.joint_energy import labels_of


def expected_calibration_error(probs: Any, labels: Any, num_bins: int = 15) -> float:
    """Computes the expected calibration error of a classifier, from 0 (calibrated) to 1.

    With confidence cᵢ = max_y pᵢ(y), in `num_bins` bins of equal width over (0, 1],

        ECE = Σ_b n_b/n |share right in b − mean of c in b|.

    Args:
      probs: probabilities `[rows, classes]`, not negative, with sum 1 in each row.
      labels: the true classes `[rows]`, whole numbers from 0.
      num_bins: number of bins.

    Returns:
      A number from 0 to 1. For n rows it is of order √(bins/n)/2 at most even for a calibrated classifier.

    Raises:
      TypeError, ValueError: if `probs` are no probabilities, or `labels` are no classes of them.

    Reference: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On calibration of modern neural networks, 2017,
    arXiv:1706.04599.

    >>> round(expected_calibration_error([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]], [0, 1, 1, 1]), 2)
    0.35
    """
    rows: np.ndarray = check_data("probs", probs).astype(np.float64)
    if rows.ndim != 2 or (rows < 0.0).any() or not np.allclose(rows.sum(1), 1.0, atol=1e-3):
        raise ValueError(
            "`probs` must be probabilities [rows, classes], not negative and with sum 1 in each row, got shape "
            f"{rows.shape}, from {rows.min():.3g} to {rows.max():.3g}."
        )
    classes = np.asarray(labels_of(labels, "labels"))
    if classes.shape != rows.shape[:1]:
        raise ValueError(f"`labels` must have shape ({len(rows)},), one for each row, got {classes.shape}.")
    if classes.max() >= rows.shape[1]:
        raise ValueError(f"`labels` must be below the number of classes, {rows.shape[1]}, got {classes.max()}.")
    count = check_count("num_bins", num_bins)
    confidence = rows.max(1)
    excess = (rows.argmax(1) == classes) - confidence
    bins = np.clip(np.ceil(confidence * count).astype(int) - 1, 0, count - 1)
    return float(np.abs(np.bincount(bins, excess, count)).sum() / len(rows))
