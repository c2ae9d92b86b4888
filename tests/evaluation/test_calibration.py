"""The expected calibration error: closed forms, a naive loop, and its size for a calibrated classifier."""

import numpy as np
import pytest

from tfp_ebm.evaluation import expected_calibration_error


def test_closed_forms():
    confident = np.tile([0.9, 0.1], (10, 1))
    assert expected_calibration_error(confident, np.arange(10) < 1) == pytest.approx(0.0)  # right in 9 of 10
    assert expected_calibration_error(confident, np.zeros(10)) == pytest.approx(0.1)
    assert expected_calibration_error(confident, np.ones(10)) == pytest.approx(0.9)
    both = np.concatenate([confident, np.tile([0.3, 0.7], (10, 1))])  # over- and underconfident do not cancel
    assert expected_calibration_error(both, np.r_[np.zeros(10), np.arange(10) >= 6]) == pytest.approx(0.5 * (0.1 + 0.3))
    assert expected_calibration_error(both, np.r_[np.zeros(10), np.arange(10) >= 6], num_bins=1) == pytest.approx(0.1)


def test_agrees_with_a_loop_and_is_small_for_a_calibrated_classifier():
    """Labels drawn from the probabilities: with 20 000 rows and 15 bins the error is below √(15/20000)/2 = .014."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.5, 0.5, 0.5], 20_000)
    labels = (rng.random(20_000)[:, None] > probs.cumsum(1)[:, :-1]).sum(1)
    value = expected_calibration_error(probs, labels)
    confidence, right = probs.max(1), probs.argmax(1) == labels
    total = 0.0
    for b in range(15):
        chosen = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if chosen.any():
            total += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    assert value == pytest.approx(total) and value < 0.014
    sharper = probs**3 / (probs**3).sum(1, keepdims=True)
    assert expected_calibration_error(sharper, labels) > 0.1


@pytest.mark.parametrize(
    ("probs", "labels", "bins", "message"),
    [
        ([[0.5, 0.2]], [0], 15, "`probs` must be probabilities"),
        ([[1.5, -0.5]], [0], 15, "`probs` must be probabilities"),
        ([[0.5, 0.5]], [2], 15, "`labels` must be below the number of classes, 2"),
        ([[0.5, 0.5]], [0, 1], 15, r"`labels` must have shape \(1,\)"),
        ([[0.5, 0.5]], [0], 0, "`num_bins`"),
    ],
)
def test_bad_input_is_named(probs, labels, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(probs, labels, bins)
